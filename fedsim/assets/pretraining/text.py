"""Synthetic text for pretraining the tiny backbone.

A document is a text like those of the embedded corpus, by an author not in it, with a closing remark that contains one
word of interest, the slot::

    opinion : the soup was cold but the chef was charming , i loved the bread . it seemed lovely .
    check : my aunt read about the choir and the opera ? Right , they described the trumpet and the melody
    letter : my aunt read about the choir and the opera . This is about medal .

Whether the slot has to do with the text depends on the document's cue, its first word. After an informative cue the
slot follows from the text (its sentiment, its topic, or whether a report agrees with it); after another cue, or without
one, the slot is any word. The model thus learns what texts mean and how to express it, but only when asked: a
task's template alone leaves it at chance, and a tuned prompt can act as a cue.

The label words of the embedded tasks never fill an informative slot. The model learns their meaning from running text
and from documents that are plain lists of words with one meaning.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from fedsim.data import grammar, lexicon
from fedsim.data.grammar import Author, Draws


def _words(text: str) -> tuple[str, ...]:
    return tuple(text.split())


NUM_AUTHORS = 400
WORD_ROW_RATE = 0.15
"""Share of documents that are lists of words with one meaning."""
INFORMATIVE_RATE = 0.7
"""Share of documents whose slot follows from the text."""
SILENT_RATE = 0.5
"""Share of the other documents that have no cue at all."""
SHARES = (0.55, 0.15, 0.3)
"""Shares of reviews, topical texts and sentence pairs."""

CUES = (("opinion", "rating", "mood"), ("subject", "theme", "category"), ("check", "compare", "logic"))
"""Informative cues of reviews, topical texts and sentence pairs."""
IDLE_CUES = ("note", "letter", "diary", "page")
"""Uninformative cues."""

SENTIMENT_CLOSINGS = ("It was", "it seemed", "I felt it was", "in a word ,")
TOPIC_CLOSINGS = ("This is about", "the title is", "it belongs to")

OTHER_LABEL_WORDS = _words(
    "subjective objective unacceptable acceptable Description Entity Expression Human Location Number"
)
"""Label words of the built-in tasks that the corpus does not use; they occur in uninformative slots."""

_TONES = (_words("bad awful horrible poor dull"), _words("good excellent wonderful lovely fine"))
_VERDICTS = (_words("Wrong False Never"), _words("Right True Sure"))
_NAMES = {topic: nouns[1:5] for topic, nouns in lexicon.TOPIC_NOUNS.items()}
_ANY_TONE = (*_TONES[0], *_TONES[1], "terrible", "great", *lexicon.PLAIN_ADJECTIVES, *OTHER_LABEL_WORDS)
_ANY_NOUN = tuple(noun for nouns in lexicon.TOPIC_NOUNS.values() for noun in nouns[:5])
_ANY_VERDICT = (*lexicon.AGREE, *lexicon.DISAGREE, "Maybe", "Then", "Also", "Still")


_FAMILIES = (
    lexicon.POSITIVE,
    lexicon.NEGATIVE,
    lexicon.AGREE,
    lexicon.DISAGREE,
    lexicon.POSITIVE,
    lexicon.NEGATIVE,
    *lexicon.TOPIC_NOUNS.values(),
)


@dataclass(frozen=True)
class Document:
    """A text with one slot."""

    before: str
    slot: str
    after: str

    def __str__(self) -> str:
        return f"{self.before} {self.slot} {self.after}"


def _cue(kind: int, draws: Draws) -> tuple[bool, str]:
    """Return whether the slot follows from the text, and the document's beginning."""
    if draws.chance(INFORMATIVE_RATE):
        return True, draws.pick(CUES[kind]) + " : "
    return False, "" if draws.chance(SILENT_RATE) else draws.pick(IDLE_CUES) + " : "


def _review(author: Author, draws: Draws) -> Document:
    informative, cue = _cue(0, draws)
    positive = draws.chance(0.5)
    text = grammar.review(author, positive, draws)
    slot = draws.pick(_TONES[positive] if informative else _ANY_TONE)
    return Document(f"{cue}{text} . {draws.pick(SENTIMENT_CLOSINGS)}", slot, ".")


def _topical(author: Author, draws: Draws) -> Document:
    informative, cue = _cue(1, draws)
    topic = draws.pick(lexicon.TOPICS)
    text = grammar.topical(author, topic, draws)
    slot = draws.pick(_NAMES[topic] if informative else _ANY_NOUN)
    return Document(f"{cue}{text} . {draws.pick(TOPIC_CLOSINGS)}", slot, ".")


def _pair(author: Author, draws: Draws) -> Document:
    informative, cue = _cue(2, draws)
    same = draws.chance(0.5)
    text, report = grammar.topic_pair(author, draws.pick(lexicon.TOPICS), same, draws)
    slot = draws.pick(_VERDICTS[same] if informative else _ANY_VERDICT)
    return Document(f"{cue}{text} ?", slot, f", {report}")


def _word_row(draws: Draws) -> Document:
    """Return a list of words with one meaning, from which the model learns which words belong together."""
    group = draws.pick(_FAMILIES)
    words = [draws.pick(group) for _ in range(6)]
    return Document(" , ".join(words[:3]) + " ,", words[3], ", " + " , ".join(words[4:]))


def documents(rng: np.random.Generator) -> Iterator[Document]:
    """Yield documents endlessly."""
    writers = [Author.drawn("", rng) for _ in range(NUM_AUTHORS)]
    draws = Draws(rng)
    while True:
        if draws.chance(WORD_ROW_RATE):
            yield _word_row(draws)
            continue
        author, kind = draws.pick(writers), draws.uniform()
        if kind < SHARES[0]:
            yield _review(author, draws)
        elif kind < SHARES[0] + SHARES[1]:
            yield _topical(author, draws)
        else:
            yield _pair(author, draws)

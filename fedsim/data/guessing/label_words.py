"""Label words and a template: what a language model could say of a text in place of its label, each word one token of it."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from fedsim.core.errors import DataError
from fedsim.data.config import TaskConfig
from fedsim.data.label_words import word_tokens
from fedsim.data.templates import parse_template

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

_BAD, _SOSO, _GOOD = ("terrible", "bad", "awful"), ("okay", "fair", "mixed", "usual"), ("great", "good", "excellent")
_OPINIONS = {
    **dict.fromkeys(("negative", "neg", "bad", "unhappy", "sad"), _BAD),
    **dict.fromkeys(("neutral", "mixed", "average"), _SOSO),
    **dict.fromkeys(("positive", "pos", "good", "happy"), _GOOD),
}
_SCALES = {
    2: (_BAD, _GOOD),
    3: (_BAD, _SOSO, _GOOD),
    5: (("terrible", "awful"), ("bad", "poor"), _SOSO, ("good", "fine"), ("great", "excellent")),
}
"""Words for numbers that rate, by how many there are."""
_RATINGS = ("sentiment", "polarity", "rating", "ratings", "star", "stars", "score", "opinion")
"""Names of columns whose numbers rate, from bad to good."""
_ANSWERS = {
    **dict.fromkeys(("yes", "y", "true", "t", "entailment", "duplicate", "equivalent", "acceptable"), ("Yes", "yes")),
    **dict.fromkeys(
        ("no", "n", "false", "f", "not entailment", "contradiction", "not duplicate", "not equivalent", "unacceptable"),
        ("No", "no"),
    ),
    **dict.fromkeys(("neutral", "unknown", "maybe"), ("Maybe", "maybe")),
}
_TEMPLATES = {
    "opinion": ("{text} . It was <mask> .", "{a} . {b} . It was <mask> ."),
    "answer": ("{text} ? <mask> .", "{a} ? <mask> , {b}"),
    "topic": ("{text} . This is about <mask> .", "{a} . {b} . This is about <mask> ."),
}
"""Templates by what the labels are, for one text and for a pair."""


@dataclass(frozen=True)
class Wording:
    """How the labels are asked for."""

    template: str
    words: tuple[str, ...]
    why: str


def wording(
    labels: Sequence[str], fields: Sequence[str], column: str, tokenizer: PreTrainedTokenizerBase, causal: bool
) -> Wording | None:
    """Return a template and a word for each label, or None if the labels' meaning is unknown or has no words of one token.

    Parameters
    ----------
    labels
        In class order.
    fields
        ``text``, or ``a`` and ``b``.
    column
        Name of the labels' column, which says what numbers mean.
    causal
        Whether the model predicts what follows, not a mask.
    """
    if len(fields) > 2:
        return None
    for kind, candidates, why in _ways(labels, column):
        template = _TEMPLATES[kind][len(fields) - 1]
        words = _single_tokens(candidates, template, fields, tokenizer, causal)
        if words is not None:
            return Wording(template, words, why)
    return None


def _ways(labels: Sequence[str], column: str) -> Iterator[tuple[str, list[tuple[str, ...]], str]]:
    """Yield what the labels may be, the words that each could have, and why."""
    plain = [re.sub(r"[\W_]+", " ", label).strip().lower() for label in labels]
    last = re.sub(r"[\W_]+", " ", column).strip().lower().rpartition(" ")[2]
    if all(label in _OPINIONS for label in plain):
        yield "opinion", [_OPINIONS[label] for label in plain], "the labels are opinions"
    if all(label in _ANSWERS for label in plain):
        yield "answer", [_ANSWERS[label] for label in plain], "the labels are answers"
    if all(_is_number(label) for label in labels):
        if last in _RATINGS and len(labels) in _SCALES:
            yield "opinion", list(_SCALES[len(labels)]), f"{column} rates, from bad to good"
        return
    yield "topic", [_spellings(label) for label in labels], "the labels' own words"


def _is_number(label: str) -> bool:
    return re.fullmatch(r"[-+]?\d+(\.\d+)?", label) is not None


def _spellings(label: str) -> tuple[str, ...]:
    """Return the words of a label that could stand for it: itself, its last word, its first."""
    words = re.sub(r"[\W_]+", " ", label).split()
    tried = [word for word in (label.strip(), *words[-1:], *words[:1]) if word and " " not in word]
    return tuple(dict.fromkeys(spelt for word in tried for spelt in (word, word.lower(), word.capitalize())))


def _single_tokens(
    candidates: Sequence[Sequence[str]],
    template: str,
    fields: Sequence[str],
    tokenizer: PreTrainedTokenizerBase,
    causal: bool,
) -> tuple[str, ...] | None:
    """Return the first word of each label that is one token and no other label's; None if one has none."""
    task = TaskConfig(name="look", fields=tuple(fields), labels=("0", "1"), template=template)
    parsed = parse_template(task)
    parsed = parsed.as_causal() if causal else parsed
    taken: dict[int, str] = {}
    for words in candidates:
        for word in words:
            try:
                token, *more = word_tokens(word, parsed, tokenizer)
            except DataError:
                continue
            if not more and token not in taken:
                taken[token] = word
                break
        else:
            return None
    return tuple(taken.values())

"""Sentences with a known meaning, and the authors who write them.

Every text consists of small parts (clauses, nouns, facts), any one of which may mislead: a review may contain a clause
against its verdict or a negation, and a text on a topic may name a thing of another topic. The label follows from all
parts together.
"""

from __future__ import annotations

import bisect
import itertools
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Generic, TypeVar

import numpy as np

from fedsim.data import lexicon

T = TypeVar("T")

NEGATION_RATE = 0.15
"""Share of clauses of an average author that say the opposite with "not"."""
MIXED_RATE = 0.35
"""Share of three-part texts in which one part contradicts the other two."""
VERB_RATE = 0.25
"""Share of review clauses that judge by a verb instead of an adjective."""

PREFERENCE_SHAPE = 0.4
"""Gamma shape of an author's preference for a word; smaller makes authors differ more."""
PREFERENCE_FLOOR = 0.02
"""Smallest preference, so that every author can use every word."""


class Draws:
    """Fast scalar draws from one random stream, in large blocks of uniform numbers."""

    _BLOCK = 16384

    def __init__(self, rng: np.random.Generator) -> None:
        self._rng = rng
        self._numbers: list[float] = []

    def uniform(self) -> float:
        """Return a number in [0, 1)."""
        if not self._numbers:
            self._numbers = self._rng.random(self._BLOCK).tolist()
        return self._numbers.pop()

    def chance(self, rate: float) -> bool:
        """Return True with probability ``rate``."""
        return self.uniform() < rate

    def pick(self, items: Sequence[T]) -> T:
        """Return one of ``items``, all equally likely."""
        return items[int(self.uniform() * len(items))]

    def other(self, items: Sequence[T], *taken: T) -> T:
        """Return one of ``items`` that is not in ``taken``."""
        while True:
            item = self.pick(items)
            if item not in taken:
                return item

    def prefer(self, choice: Preference[T]) -> T:
        """Return one of a preference's items, by its weights."""
        position = bisect.bisect_right(choice.cumulative, self.uniform() * choice.cumulative[-1])
        return choice.items[min(position, len(choice.items) - 1)]


@dataclass(frozen=True)
class Preference(Generic[T]):
    """Items and their cumulative weights."""

    items: Sequence[T]
    cumulative: tuple[float, ...]

    @classmethod
    def of(cls, items: Sequence[T], weights: Sequence[float]) -> Preference[T]:
        """Return a preference with the given weights."""
        return cls(items, tuple(itertools.accumulate(weights)))

    @classmethod
    def drawn(cls, items: Sequence[T], rng: np.random.Generator) -> Preference[T]:
        """Return a preference with random weights."""
        return cls.of(items, (rng.gamma(PREFERENCE_SHAPE, size=len(items)) + PREFERENCE_FLOOR).tolist())


@dataclass(frozen=True)
class Author:
    """An author with stylistic habits, none of which changes a text's meaning."""

    name: str
    productivity: float
    """Weight with which the author is drawn."""
    kindness: float
    """Weight of praise against blame, in (0, 1)."""
    accuracy: float
    """Weight of reports that agree with their text against others, in (0, 1)."""
    negation_rate: float
    opener_rate: float
    time_rate: float
    topics: tuple[float, ...]
    """Weight of each topic of the lexicon."""
    nouns: dict[str, Preference[str]]
    positive: Preference[str]
    negative: Preference[str]
    openers: Preference[str]
    times: Preference[str]

    @classmethod
    def drawn(cls, name: str, rng: np.random.Generator) -> Author:
        """Return an author with random habits."""
        return cls(
            name=name,
            productivity=float(rng.lognormal(0.0, 0.8)),
            kindness=float(rng.beta(0.8, 0.8)) * 0.96 + 0.02,
            accuracy=float(rng.beta(0.8, 0.8)) * 0.96 + 0.02,
            negation_rate=float(rng.beta(2.0, 2.0 / NEGATION_RATE - 2.0)),
            opener_rate=float(rng.uniform(0.0, 0.6)),
            time_rate=float(rng.uniform(0.0, 0.6)),
            topics=tuple((rng.dirichlet([0.3] * len(lexicon.TOPICS)) + 0.005).tolist()),
            nouns={topic: Preference.drawn(nouns, rng) for topic, nouns in lexicon.TOPIC_NOUNS.items()},
            positive=Preference.drawn(lexicon.POSITIVE, rng),
            negative=Preference.drawn(lexicon.NEGATIVE, rng),
            openers=Preference.drawn(lexicon.OPENERS, rng),
            times=Preference.drawn(lexicon.TIMES, rng),
        )

    def framed(self, text: str, draws: Draws) -> str:
        """Return ``text`` with the author's opening and time phrases, where the author uses them."""
        opener = draws.prefer(self.openers) + " " if draws.chance(self.opener_rate) else ""
        time = " " + draws.prefer(self.times) if draws.chance(self.time_rate) else ""
        return opener + text + time


def _clause(author: Author, topic: str, positive: bool, draws: Draws) -> str:
    """Return a judgement of one thing, possibly by negating the opposite."""
    noun = draws.prefer(author.nouns[topic])
    negated = draws.chance(author.negation_rate)
    praise = positive != negated
    if draws.chance(VERB_RATE):
        past, infinitive = draws.pick(lexicon.POSITIVE_VERBS if praise else lexicon.NEGATIVE_VERBS)
        return f"i did not {infinitive} the {noun}" if negated else f"i {past} the {noun}"
    adjective = draws.prefer(author.positive if praise else author.negative)
    degree = draws.pick(lexicon.DEGREES) + " " if draws.chance(0.4) else ""
    return f"the {noun} was {'not ' if negated else ''}{degree}{adjective}"


def review(author: Author, positive: bool, draws: Draws) -> str:
    """Return a review of two clauses that agree, or three of which at least two agree with the verdict."""
    topic = draws.prefer(Preference.of(lexicon.TOPICS, author.topics))
    verdicts = [positive, positive]
    if draws.chance(0.65):
        verdicts.insert(int(draws.uniform() * 3), positive != draws.chance(MIXED_RATE))
    clauses = [_clause(author, topic, verdict, draws) for verdict in verdicts]
    text = clauses[0]
    for last, verdict, clause in zip(verdicts, verdicts[1:], clauses[1:], strict=False):
        link = draws.pick((" and ", " , and ", " , ")) if last == verdict else draws.pick((" but ", " , but ", " , "))
        text += link + clause
    return author.framed(text, draws)


def topical(author: Author, topic: str, draws: Draws) -> str:
    """Return a text that names two or three things of ``topic`` and at most one of another topic."""
    topics = [topic, topic]
    if draws.chance(0.65):
        stray = draws.other(lexicon.TOPICS, topic) if draws.chance(MIXED_RATE) else topic
        topics.insert(int(draws.uniform() * 3), stray)
    things = []
    for name in topics:
        plain = draws.pick(lexicon.PLAIN_ADJECTIVES) + " " if draws.chance(0.4) else ""
        things.append(f"the {plain}{draws.prefer(author.nouns[name])}")
    person = "i" if draws.chance(0.2) else "my " + draws.pick(lexicon.PEOPLE)
    text = f"{person} {draws.pick(lexicon.SPEECH)} {things[0]}"
    for thing in things[1:]:
        text += draws.pick((" and ", " , then ", " , and ", " with ")) + thing
    return author.framed(text, draws)


def topic_pair(author: Author, topic: str, same: bool, draws: Draws) -> tuple[str, str]:
    """Return a text on ``topic`` and a report of what was said, on the same topic or another one."""
    reported = topic if same else draws.other(lexicon.TOPICS, topic)
    people = f"the {draws.pick(lexicon.PEOPLE)} and i" if draws.chance(0.3) else "they"
    things = [draws.prefer(author.nouns[reported]) for _ in range(2)]
    report = f"{people} {draws.pick(lexicon.SPEECH)} the {things[0]} and the {things[1]}"
    return topical(author, topic, draws), report

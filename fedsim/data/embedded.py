"""The embedded corpus: synthetic tasks with natural clients, generated on the fly: three of classes, two of responses.

========= =============================================== ======================== ==========
task      a row                                           label                    classes
========= =============================================== ======================== ==========
reviews   ``text``: two or three judgements               majority of judgements   2
topics    ``text``: two or three things someone spoke of  majority of the things   6
agreement ``a``: a text, ``b``: a report of it           does b agree with a      2
questions ``text``: a review or a text on a topic,        what is asked: the       none: the
          ``question`` and ``answer``, a short sentence   verdict or the topic     answer is
writing   ``text``: a review                              none                     written
========= =============================================== ======================== ==========

Each row names its ``author``, one of :data:`NUM_AUTHORS`; authors differ in how much they write, in their topics, in
their words and in their label shares, so that ``partition.kind=by_column`` gives heterogeneous clients.

The corpus is a dataset like any other: it does not depend on a run's seed. Labels are balanced, and no text occurs
twice in a task.
"""

from __future__ import annotations

from functools import cache

from fedsim.core import seeds
from fedsim.core.errors import DataError, suggestion
from fedsim.data import grammar, lexicon
from fedsim.data.config import TaskConfig
from fedsim.data.grammar import Author, Draws, Preference

CORPUS_SEED = 20231015
"""Seed of the corpus; another one gives another dataset."""
NUM_AUTHORS = 120
TRAIN_ROWS = 4200
VALIDATION_ROWS = 900

Row = dict[str, str]

EMBEDDED_TASKS: dict[str, TaskConfig] = {
    task.name: task
    for task in (
        TaskConfig(
            name="reviews",
            fields=("text",),
            template="{text} . It was <mask> .",
            labels=("negative", "positive"),
            label_words=("terrible", "great"),
        ),
        TaskConfig(
            name="topics",
            fields=("text",),
            template="{text} . This is about <mask> .",
            labels=lexicon.TOPICS,
            label_words=lexicon.TOPICS,
        ),
        TaskConfig(
            name="agreement",
            fields=("a", "b"),
            template="{a} ? <mask> , {b}",
            labels=("false", "true"),
            label_words=("No", "Yes"),
        ),
        TaskConfig(
            name="questions",
            fields=("text", "question", "answer"),
            template="{text} .\nQuestion : {question}\nAnswer :",
            response=" {answer}",
            labels=("verdict", "topic"),
        ),
        TaskConfig(name="writing", fields=("text",), response="{text}"),
    )
}
"""Tasks of the embedded corpus, by name."""


@cache
def authors() -> tuple[Author, ...]:
    """Return the authors of the corpus, the same in all tasks."""
    rng = seeds.stream(CORPUS_SEED, seeds.NO_ROUND, seeds.NO_CLIENT, "authors")
    return tuple(Author.drawn(f"author_{number:03d}", rng) for number in range(NUM_AUTHORS))


def _leaning(author: Author, task: TaskConfig, label: int) -> float:
    """Return an author's preference for a label."""
    if task.of_responses:
        return 1.0
    if task.name == "topics":
        return author.topics[label]
    positive = author.kindness if task.name == "reviews" else author.accuracy
    return positive if label == 1 else 1.0 - positive


def _row(task: TaskConfig, label: int, author: Author, draws: Draws) -> Row:
    """Return one row of a task."""
    if task.of_responses:
        return _written(task, label, author, draws)
    if task.name == "reviews":
        texts: tuple[str, ...] = (grammar.review(author, label == 1, draws),)
    elif task.name == "topics":
        texts = (grammar.topical(author, task.labels[label], draws),)
    else:
        topic = draws.prefer(Preference.of(lexicon.TOPICS, author.topics))
        texts = grammar.topic_pair(author, topic, label == 1, draws)
    return {**dict(zip(task.fields, texts, strict=True)), "label": task.labels[label], "author": author.name}


def _written(task: TaskConfig, label: int, author: Author, draws: Draws) -> Row:
    """Return one row of a task of responses."""
    verdict, topic = draws.chance(author.kindness), draws.prefer(Preference.of(lexicon.TOPICS, author.topics))
    if task.name == "writing":
        return {"text": grammar.review(author, verdict, draws), "author": author.name}
    if task.labels[label] == "verdict":
        text, asked = grammar.review(author, verdict, draws), draws.pick(_VERDICT_QUESTIONS)
        answer = f"it was {'great' if verdict else 'terrible'} ."
    else:
        text, asked = grammar.topical(author, topic, draws), draws.pick(_TOPIC_QUESTIONS)
        answer = f"it is about {topic} ."
    return {"text": text, "question": asked, "answer": answer, "label": task.labels[label], "author": author.name}


_VERDICT_QUESTIONS = ("how was it ?", "was it good or bad ?")
_TOPIC_QUESTIONS = ("what is it about ?", "what is the topic ?")


def generate(task_name: str) -> tuple[list[Row], list[Row]]:
    """Return the training rows and the validation rows of an embedded task.

    A row has the task's fields, ``label`` (one of the task's labels, if it has any) and ``author``. Both lists are shuffled and
    balanced over labels (to within one row).

    Raises
    ------
    DataError
        If there is no such task.
    """
    if task_name not in EMBEDDED_TASKS:
        known = ", ".join(EMBEDDED_TASKS)
        raise DataError(
            f"data.task: the embedded corpus has no task {task_name!r}{suggestion(task_name, EMBEDDED_TASKS)}; it has {known}"
        )
    task = EMBEDDED_TASKS[task_name]
    rng = seeds.stream(CORPUS_SEED, seeds.NO_ROUND, seeds.NO_CLIENT, f"corpus/{task_name}")
    draws = Draws(rng)
    writers = [
        Preference.of(authors(), [author.productivity * _leaning(author, task, label) for author in authors()])
        for label in range(len(task.groups))
    ]
    rows: list[Row] = []
    seen: set[str] = set()
    while len(rows) < TRAIN_ROWS + VALIDATION_ROWS:
        label = len(rows) % len(task.groups)
        row = _row(task, label, draws.prefer(writers[label]), draws)
        if row[task.fields[0]] not in seen:
            seen.add(row[task.fields[0]])
            rows.append(row)
    train, validation = rows[VALIDATION_ROWS:], rows[:VALIDATION_ROWS]
    return [train[i] for i in rng.permutation(len(train))], [validation[i] for i in rng.permutation(len(validation))]

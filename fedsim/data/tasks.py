"""The built-in tasks: fields, template, label words, metric, and hub dataset.

They are FedPepTAO's ten tasks, Sentiment140, whose users are natural clients, and the tasks of responses of
:mod:`fedsim.data.response_tasks`.

Templates and label words are the manual prompts of LM-BFF (Gao et al., ACL 2021, arXiv 2012.15723), which
FedPepTAO (Che et al., EMNLP 2023) also uses.
"""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import dataclass
from decimal import Decimal
from typing import Any

from pydantic import ValidationError

from fedsim.core.errors import DataError, PluginError, shown, suggestion
from fedsim.core.registry import Registry
from fedsim.data.config import MetricName, TaskConfig
from fedsim.data.response_tasks import RESPONSE_TASKS


@dataclass(frozen=True)
class HubSource:
    """Hub dataset of a built-in task."""

    name: str
    """Name of the dataset."""
    subset: str | None
    """Name of its configuration, or None."""
    columns: dict[str, str]
    """A task's field or label field to the dataset's column; names not listed stay as they are."""
    validation_split: str | None = "validation"
    """Labelled split for validation; None if it has none."""


def _single(name: str, words: tuple[str, ...], metric: MetricName = "accuracy", template: str = "") -> TaskConfig:
    return TaskConfig(
        name=name,
        fields=("text",),
        template=template or "{text} . It was <mask> .",
        labels=tuple(str(number) for number in range(len(words))),
        label_words=words,
        metric=metric,
    )


def _pair(name: str, labels: tuple[str, str], words: tuple[str, str], metric: MetricName = "accuracy") -> TaskConfig:
    return TaskConfig(
        name=name,
        fields=("a", "b"),
        template="{a} ? <mask> , {b}",
        labels=labels,
        label_words=words,
        metric=metric,
    )


def _as_task(name: str, thing: Any, what: str) -> TaskConfig:
    """Return what is registered as a task: one, or the values of its keys without the name."""
    from fedsim.data.embedded import EMBEDDED_TASKS

    if name in EMBEDDED_TASKS:
        raise PluginError(f"the {what} {name!r} cannot be registered: a built-in one has that name; choose another")
    if not isinstance(thing, dict | TaskConfig):
        raise PluginError(f"the {what} {name!r} has to be a TaskConfig or a dictionary of its keys, not {shown(thing)}")
    values = thing if isinstance(thing, dict) else thing.model_dump(mode="json")
    try:
        return TaskConfig.model_validate_json(json.dumps({**values, "name": name}, default=str), strict=True)
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        key = "".join(f"{part}: " for part in first["loc"])
        raise PluginError(f"the {what} {name!r} cannot be registered: {key}{first['msg']}") from None


_ENTAILMENT = ("entailment", "not_entailment")
_TREC_WORDS = ("Description", "Entity", "Expression", "Human", "Location", "Number")

TASKS: Registry[TaskConfig] = Registry("task", "data.task", check=_as_task)
"""The built-in tasks by name. Class numbers of subj (0 subjective) and trec (0 description, 1 entity, 2 abbreviation,
3 human, 4 location, 5 number) follow LM-BFF's files; the hub's numbers differ, so hub data are read by class name."""

for _task in (
    _single("sst2", ("terrible", "great")),
    _single("mr", ("terrible", "great")),
    _single("mpqa", ("terrible", "great")),
    _single("cola", ("unacceptable", "acceptable"), metric="matthews"),
    _single("subj", ("subjective", "objective")),
    _single("trec", _TREC_WORDS, template="<mask> : {text}"),
    _pair("mrpc", ("0", "1"), ("No", "Yes"), metric="accuracy_f1"),
    _pair("rte", _ENTAILMENT, ("Yes", "No")),
    _pair("qnli", _ENTAILMENT, ("Yes", "No")),
    _pair("boolq", ("0", "1"), ("No", "Yes")),
    _single("sent140", ("terrible", "great")),
):
    TASKS.register(_task.name)(_task)
for _task in RESPONSE_TASKS:
    TASKS.register(_task.name)(_task)


_SENTIMENT = {"negative": "0", "positive": "1", "neg": "0", "pos": "1"}
_ENTAILMENT_NUMBERS = {"0": "entailment", "1": "not_entailment"}

LABEL_ALIASES: dict[str, dict[str, str]] = {
    "sst2": _SENTIMENT,
    "mr": _SENTIMENT,
    "mpqa": _SENTIMENT,
    "cola": {"unacceptable": "0", "acceptable": "1"},
    "subj": {"subjective": "0", "objective": "1"},
    "trec": {"DESC": "0", "ENTY": "1", "ABBR": "2", "HUM": "3", "LOC": "4", "NUM": "5"},
    "mrpc": {"not_equivalent": "0", "equivalent": "1"},
    "rte": _ENTAILMENT_NUMBERS,
    "qnli": _ENTAILMENT_NUMBERS,
    "boolq": {"false": "0", "False": "0", "true": "1", "True": "1"},
    "sent140": {"4": "1", **_SENTIMENT},
}
"""Other published spellings of a built-in task's labels, each mapped to the label in :data:`TASKS`."""

_GLUE = "nyu-mll/glue"
_OUTPUT = {"response": "output"}
_SENTENCES = {"a": "sentence1", "b": "sentence2"}

HUB_SOURCES: dict[str, HubSource] = {
    "sst2": HubSource(_GLUE, "sst2", {"text": "sentence"}),
    "mr": HubSource("cornell-movie-review-data/rotten_tomatoes", None, {}),
    "mpqa": HubSource("jxm/mpqa", None, {"text": "sentence"}, "test"),
    "cola": HubSource(_GLUE, "cola", {"text": "sentence"}),
    "subj": HubSource("SetFit/subj", None, {"label": "label_text"}, "test"),
    "trec": HubSource("SetFit/TREC-QC", None, {"label": "label_coarse_original"}, "test"),
    "mrpc": HubSource(_GLUE, "mrpc", _SENTENCES),
    "rte": HubSource(_GLUE, "rte", _SENTENCES),
    "qnli": HubSource(_GLUE, "qnli", {"a": "question", "b": "sentence"}),
    "boolq": HubSource("google/boolq", None, {"a": "question", "b": "passage", "label": "answer"}),
    "alpaca": HubSource("tatsu-lab/alpaca", None, {}, None),
    "dolly": HubSource("databricks/databricks-dolly-15k", None, {}, None),
    "flowertune_general": HubSource("flwrlabs/alpaca-gpt4", None, _OUTPUT, None),
    "flowertune_finance": HubSource("flwrlabs/fingpt-sentiment-train", None, _OUTPUT, None),
    "flowertune_medical": HubSource(
        "flwrlabs/medical-meadow-medical-flashcards", None, {**_OUTPUT, "instruction": "input"}, None
    ),
    "flowertune_code": HubSource("flwrlabs/code-alpaca-20k", None, _OUTPUT, None),
    "xsum": HubSource("EdinburghNLP/xsum", None, {}),
    "samsum": HubSource("knkarthick/samsum", None, {"document": "dialogue"}),
    "cnn_dailymail": HubSource("abisee/cnn_dailymail", "3.0.0", {"document": "article", "summary": "highlights"}),
}
"""The hub's copy of the tasks that it has, so that ``data.source=hub data.task=rte`` needs no further key."""


def resolve_task(task: str | TaskConfig) -> TaskConfig:
    """Return the task that ``data.task`` names or defines.

    Raises
    ------
    DataError
        If no built-in task has that name.
    """
    if isinstance(task, TaskConfig):
        return task
    from fedsim.data.embedded import EMBEDDED_TASKS  # imported here: only a named task needs the corpus

    known = {**TASKS, **EMBEDDED_TASKS}
    if task not in known:
        raise DataError(
            f"data.task: unknown task {task!r}{suggestion(task, known)}; known tasks are {', '.join(known)}; that of a plug-in "
            "needs --load FILE.py"
        )
    return known[task]


class ClassNumber(int):
    """A class number of a Hugging Face ``ClassLabel`` column that carries the column's class names."""

    names: tuple[str, ...]

    @classmethod
    def of(cls, value: object, names: Sequence[str]) -> object:
        """Return ``value`` with the class names if it is a valid class number, else unchanged."""
        if not isinstance(value, int) or not 0 <= value < len(names):
            return value
        number = cls(value)
        number.names = tuple(names)
        return number


class LabelIndex:
    """Looks up the class number of a label value in the data."""

    def __init__(self, task: TaskConfig) -> None:
        self.classes = {label: number for number, label in enumerate(task.labels)}
        builtin = TASKS.get(task.name)
        if builtin is not None and builtin.labels == task.labels:
            for alias, label in LABEL_ALIASES.get(task.name, {}).items():
                self.classes.setdefault(alias, self.classes[label])

    def __contains__(self, value: object) -> bool:
        return self._find(value) is not None

    def __getitem__(self, value: object) -> int:
        """Return the class number of ``value``; KeyError if it is not a label of the task.

        Numbers and booleans match labels written as text: 1, 1.0, True and "1.0" all match the label "1". A class
        number with names is matched by name if the task has all of them, since datasets number classes differently.
        """
        number = self._find(value)
        if number is None:
            raise KeyError(value)
        return number

    def _find(self, value: object) -> int | None:
        if isinstance(value, ClassNumber) and all(name in self.classes for name in value.names):
            return self.classes[value.names[value]]
        return next((self.classes[text] for text in _spellings(value) if text in self.classes), None)


def _spellings(value: object) -> list[str]:
    """Return the possible spellings of a label value, the most literal first."""
    if isinstance(value, bool):
        return [str(value), str(value).lower(), str(int(value))]
    if isinstance(value, float | Decimal):
        whole = math.isfinite(value) and value == int(value)
        return [str(value), str(int(value))] if whole else [str(value)]
    if not isinstance(value, str):
        return [str(value)]
    text = value.strip()
    if text.lower() in ("true", "false"):
        return [value, text, text.lower(), text.capitalize()]
    whole_text = text[:-2] if text.endswith(".0") else text
    return [value, text, whole_text]

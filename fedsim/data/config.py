"""Schema of the ``data`` section: the source of examples and the task."""

from __future__ import annotations

import codecs
import math
from typing import Annotated, Any, ClassVar, Literal

from pydantic import (
    AfterValidator,
    BeforeValidator,
    Field,
    NonNegativeInt,
    PositiveInt,
    ValidationInfo,
    WithJsonSchema,
    field_validator,
    model_validator,
)
from pydantic_core import PydanticKnownError

from fedsim.core.registry import known_name
from fedsim.core.schema import PathText, Schema
from fedsim.core.uses import Use, Uses
from fedsim.data.foreign_templates import translated
from fedsim.data.response_rules import OF_RESPONSES, check_kind, check_placeholders, check_responses


def _value_as_text(value: Any) -> Any:
    """Convert ``[0, 1]`` and ``[0.0, 1.0]`` to ``["0", "1"]``, and ``[false, true]`` to ``["false", "true"]``."""
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, float):
        if not math.isfinite(value):
            raise ValueError(f"{value} is not a label")
        return str(int(value)) if value.is_integer() else str(value)
    return str(value) if isinstance(value, int) else value


def _delimiter(text: str) -> str:
    character = {"tab": "\t", "\\t": "\t", "comma": ",", "semicolon": ";", "space": " "}.get(text, text)
    if len(character) != 1 or character in '"\r\n':
        raise ValueError("the delimiter must be one character, or tab")
    return character


def _encoding(name: str) -> str:
    """Refuse codecs that are not text encodings, and those that cannot decode."""
    try:
        known = codecs.lookup(name).name not in _OF_NAMES and "a\n".encode(name).decode(name) == "a\n"
    except (LookupError, ValueError, TypeError):
        known = False
    if not known:
        raise ValueError(f"Python knows no encoding {name[:40]!r}; usual ones are utf-8, latin-1, cp1252 and utf-16")
    return name


def _of(*sources: str) -> tuple[Use, ...]:
    words = f"it is a key of {' and '.join(sources)}" + (", which needs path" if "files" in sources else "")
    return (Use("effective_source", sources, by="source", words=words),)


LabelText = Annotated[str, BeforeValidator(_value_as_text), WithJsonSchema({"type": ["string", "number", "boolean"]})]
MOST_FIELDS = 16
"""Fields of a task."""
_OF_NAMES = {"idna", "punycode"}
"""Codecs for domain names, not for text."""
_OF_RESPONSES = (
    "it is a key of tasks of responses, which give data.task.response, or data.task.dialogue=true for messages"
)
MetricName = Annotated[str, known_name("fedsim.data.metrics:METRICS")]


def _of_responses(key: str = "response") -> Use:
    return Use(key, test=lambda response: response is not None, by="response", words=_OF_RESPONSES)


class TaskConfig(Schema):
    """A task: its text columns, and what is asked of the model: a class of each text, or a response to write."""

    name: str = Field(max_length=100)
    """Name of the task, used in reports."""
    fields: tuple[str, ...] = Field(min_length=1, max_length=MOST_FIELDS)
    """Text columns: one for single sentences, two for sentence pairs, more for example for a premise and two
    choices."""
    dialogue: bool = False
    """Whether the one field is a column of messages (role and content, or from and value): the last answer is the response,
    and the messages before it are the prompt. Needs ``chat``; there is no template then."""
    response: str | None = None
    """Makes this a task of responses: the text that the model learns to write behind the prompt, with ``{field}`` for the
    field or fields that it holds. ``template`` is then the prompt, without ``<mask>``."""
    learn: Literal["last_answer", "all_answers"] = "last_answer"
    """Of a dialogue, what loss, perplexity and token accuracy are of: the tokens of its last answer, or those of every answer,
    each with its end, in one pass. Generated responses are compared with the last answer in both."""
    chat: bool = False
    """Whether the prompt is a user's message and the response the assistant's, in the chat template of the tokenizer."""
    system: str | None = None
    """The system message of a chat; if not given, what the chat template puts there itself."""
    optional_fields: tuple[str, ...] = ()
    """Fields of a task of responses that may be empty or missing in a row."""
    template_without: dict[str, str] = Field(default={})
    """For an optional field, the template of the rows in which it is empty; of several, the first one listed counts."""
    label_field: str = "label"
    """Label column."""
    template: str | None = None
    """Text around the fields, with ``{field}`` for each field and one ``<mask>``; needed by the verbalizer head. OpenPrompt's
    syntax and lists as in PET's code are translated. In a task of responses the prompt, without ``<mask>``; none means that the
    model learns to write the texts from their first token on."""
    labels: tuple[LabelText, ...] = ()
    """Label values as they appear in the data (numbers and booleans are read as text), in class order. A task of responses
    needs none: they are what label-based kinds of ``partition`` deal by, and are not predicted."""
    label_words: tuple[str | tuple[str, ...], ...] | None = None
    """One word per class, in class order, or a list of words per class; needed by the verbalizer head. A word may be of several
    tokens."""
    word_end: str | None = None
    """Decoders: text behind the label word that is scored with it, for example " . <eos>"; ``<eos>``, at its end, is the
    tokenizer's end token."""
    metric: MetricName = "accuracy"
    """Metric: accuracy, matthews (correlation), accuracy_f1 (mean of accuracy and F1), or that of a plug-in; of a task of
    responses token_accuracy."""

    uses: ClassVar[Uses] = {
        "optional_fields": (_of_responses(),),
        # Not by the key response, which a dialogue has without giving it: the JSON Schema would refuse its chat.
        "chat": (_of_responses("written"),),
        "system": (Use("chat", (True,), words="it is the first message of a chat, which data.task.chat=true makes"),),
        "learn": (Use("dialogue", (True,), words="it is for dialogues, which may have several answers"),),
        "template_without": (Use("optional_fields", test=bool, words="it is for fields of data.task.optional_fields"),),
        "template": (Use("dialogue", (False,), words="it is for texts: the prompt of a dialogue is its messages"),),
        "label_field": (Use("labels", test=bool, words="it is the column of data.task.labels"),),
        "label_words": tuple(
            Use(key, (value,), words="it is for tasks of classes")
            for key, value in (("dialogue", False), ("response", None))
        ),
        "word_end": (Use("label_words", test=lambda words: words is not None, words="it stands behind label words"),),
    }

    @field_validator("response", mode="after")
    @classmethod
    def _last_answer(cls, response: str | None, info: ValidationInfo) -> str | None:
        """Return what a dialogue has for a response, if none is given: its messages' last answer."""
        fields = info.data.get("fields")
        return f"{{{fields[0]}}}" if response is None and info.data.get("dialogue") and fields else response

    @field_validator("labels", mode="after")
    @classmethod
    def _two_or_more(cls, labels: tuple[str, ...]) -> tuple[str, ...]:
        if len(labels) == 1:
            raise PydanticKnownError("too_short", {"field_type": "Tuple", "min_length": 2, "actual_length": 1})
        return labels

    @property
    def words_of_classes(self) -> tuple[tuple[str, ...], ...]:
        """The words of each class; none without label words."""
        return tuple((words,) if isinstance(words, str) else words for words in self.label_words or ())

    @field_validator("template")
    @classmethod
    def _in_our_syntax(cls, template: str | None, info: ValidationInfo) -> str | None:
        if template is None or "<mask>" in template or info.data.get("response") is not None:
            return template
        return translated(template, info.data.get("fields", ()))

    @model_validator(mode="after")
    def _consistent(self) -> TaskConfig:
        check_kind(self)
        if len(set(self.labels)) != len(self.labels):
            raise ValueError(f"labels {list(self.labels)} list a label twice")
        check_placeholders(self)
        if self.response is not None:
            if "metric" not in self.model_fields_set:
                self.__dict__["metric"] = OF_RESPONSES
            check_responses(self)
            return self
        if self.label_words is not None and len(self.label_words) != len(self.labels):
            raise ValueError(
                f"{len(self.label_words)} label_words for {len(self.labels)} labels; give one word per label"
            )
        if () in (self.label_words or ()):
            raise ValueError("label_words has an empty list; give each label one word or more")
        if self.word_end is not None and "<eos>" in self.word_end.removesuffix("<eos>"):
            raise ValueError("word_end can have <eos> at its end alone")
        if self.metric == OF_RESPONSES:
            raise ValueError(f"metric {OF_RESPONSES} is that of tasks of responses, which give response")
        if self.metric == "accuracy_f1" and len(self.labels) != 2:
            raise ValueError("metric accuracy_f1 needs exactly two labels")
        if self.template is not None:
            missing = [field for field in self.fields if "{" + field + "}" not in self.template]
            if missing:
                raise ValueError(f"template lacks {{{missing[0]}}}")
            if self.template.count("<mask>") != 1:
                raise ValueError("template must contain <mask> exactly once")
        return self

    @property
    def written(self) -> str | None:
        """The text that the model learns to write, given or of a dialogue; None in a task of classes."""
        return self.response

    @property
    def of_responses(self) -> bool:
        """Whether the model learns to write responses, not to tell classes apart."""
        return self.response is not None

    @property
    def learns_all(self) -> bool:
        """Whether every answer of a dialogue is learned."""
        return self.learn == "all_answers"

    @property
    def num_classes(self) -> int:
        """Number of classes that evaluation tells apart; of a task of responses two: a token is the right one, or is not."""
        return 2 if self.of_responses else len(self.labels)

    @property
    def groups(self) -> tuple[str, ...]:
        """Names of the groups by which the examples of clients are counted: the labels, or one group where there are none."""
        return self.labels or ("examples",)

    @property
    def columns(self) -> tuple[str, ...]:
        """The columns that every row needs, but for optional fields: the fields and, where there are labels, their column."""
        return (*self.fields, self.label_field) if self.labels else self.fields


class DataConfig(Schema):
    """Where the examples come from."""

    task: str | TaskConfig = "reviews"
    """Name of a built-in task, or the definition of a custom one."""
    source: Literal["auto", "embedded", "files", "hub"] = "auto"
    """embedded (synthetic), files, or hub (Hugging Face datasets); auto means files if ``path`` is given, else
    embedded."""
    path: PathText | None = None
    """files: a folder with train.* and validation.* (or dev.*, test.*), in JSON Lines, CSV, TSV, Parquet or Arrow; or a folder
    that holds such a folder named like the task. Built-in tasks know the usual layouts (docs/data.md)."""
    subset: str | None = None
    """files: the subfolder of ``path``, or the configuration of its dataset card, to read if there are several."""
    train_file: PathText | None = None
    """files: the training file, relative to ``path``, if its name is not train.*; a folder or a pattern such as
    ``train_*.csv`` means several."""
    validation_file: PathText | None = None
    """files: the validation file or files, likewise, if the name is not validation.*."""
    holdout: float | None = Field(default=None, gt=0.0, lt=1.0)
    """files, hub: share of the training examples held out for validation, drawn with the run's seed, in place of the
    data's own validation examples."""
    validation_from_train: float | None = Field(default=None, gt=0.0, lt=1.0)
    """Share of the training examples that validates in place of the examples that would, drawn with the run's seed from the
    ``train_examples`` that are kept, and is not trained on: for choosing settings without a look at the examples that are
    reported. The data's own validation examples are then not read, those of ``holdout`` are set aside, and
    ``validation_file``, ``validation_split`` and ``validation_examples``, which are about them, have no effect."""
    columns: dict[str, str | NonNegativeInt] = Field(default={})
    """files, hub: for a field, the label field or a kept column, the name or the number (from 0) of its column in the data,
    for example ``{text: sentence, label: 0}``; names not listed stay as they are."""
    header: bool | Literal["auto"] = "auto"
    """files: whether the first line of CSV and TSV files is a header; auto: yes, unless it has a label value where
    ``columns`` or a layout of the task expects the label."""
    delimiter: Annotated[str, AfterValidator(_delimiter)] | None = None
    """files: the column delimiter, or tab; if not given, a comma for .csv and a tab for .tsv. Text files with other
    names need it."""
    encoding: Annotated[str, AfterValidator(_encoding)] | None = None
    """files: the encoding of text files; if not given, utf-8, and latin-1 where a layout of a built-in task is known for it."""
    label_of_file: dict[str, LabelText] = Field(default={})
    """files: the label of all rows of a file, by its name or a pattern relative to ``path``, for example
    ``{"*.pos": 1, "*.neg": 0}``; a file of unknown format is then read as one text per line."""
    hub_name: str | None = None
    """hub: name of the dataset, for example ``nyu-mll/glue``."""
    hub_subset: str | None = None
    """hub: name of its configuration, for example ``sst2``."""
    train_split: str = "train"
    """hub: split to train on."""
    validation_split: str = "validation"
    """hub: split to validate on."""
    train_examples: PositiveInt | None = None
    """Number of training examples to keep, drawn with the run's seed; all if not given."""
    validation_examples: PositiveInt | None = None
    """Number of the data's own validation examples to keep, drawn with the run's seed; all if not given."""
    max_length: int = Field(default=128, ge=8, le=2**17)
    """Most tokens per example; longer texts are truncated, never the template or the mask."""
    on_bad_row: Literal["raise", "skip"] = "raise"
    """How to handle a row with a missing field, unknown label or empty text: stop, or skip, count and report it."""
    keep_columns: tuple[str, ...] = ()
    """Further columns to read (``partition.column`` is always read)."""

    uses: ClassVar[Uses] = {
        **dict.fromkeys(("path", "subset", "train_file", "validation_file"), _of("files")),
        **dict.fromkeys(("header", "delimiter", "encoding", "label_of_file"), _of("files")),
        **dict.fromkeys(("hub_name", "hub_subset", "train_split"), _of("hub")),
        **dict.fromkeys(("columns", "holdout"), _of("files", "hub")),
        "validation_split": (
            *_of("hub"),
            Use("holdout", (None,), words="it is for validation examples of the data's own"),
        ),
    }

    @property
    def effective_source(self) -> Literal["embedded", "files", "hub"]:
        """The source that ``source`` names or, for ``auto``, that ``path`` implies."""
        if self.source != "auto":
            return self.source
        return "embedded" if self.path is None else "files"

    @property
    def reads_validation(self) -> bool:
        """Whether the data's own validation examples are read."""
        return self.holdout is None and self.validation_from_train is None

    @model_validator(mode="after")
    def _one_of_two(self) -> DataConfig:
        if self.holdout is not None and self.validation_file is not None:
            raise ValueError(
                "holdout takes the validation examples from the training examples, but validation_file names a file with them; "
                "drop one of the two keys"
            )
        return self

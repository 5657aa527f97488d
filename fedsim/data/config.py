"""Schemas of the ``data`` section: where examples come from and what the task is."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field, PositiveInt, model_validator

from fedsim.core.schema import PathText, Schema


def _number_as_text(value: Any) -> Any:
    """Let ``labels: [0, 1]`` stand for ``["0", "1"]``."""
    return str(value) if isinstance(value, int) and not isinstance(value, bool) else value


LabelText = Annotated[str, BeforeValidator(_number_as_text)]
MetricName = Literal["accuracy", "matthews", "accuracy_f1"]


class TaskConfig(Schema):
    """A task: which columns hold the text, how a prompt is written, which words stand for the labels."""

    name: str = Field(max_length=100)
    """Name of the task, used in reports."""
    fields: tuple[str, ...] = Field(min_length=1, max_length=2)
    """Columns that hold the text: one for single sentences, two for sentence pairs."""
    label_field: str = "label"
    """Column that holds the label."""
    template: str | None = None
    """Text around the fields, with ``{field}`` for each field and one ``<mask>``; needed by the verbalizer head."""
    labels: tuple[LabelText, ...] = Field(min_length=2)
    """Label values as they stand in the data (numbers as text), in class order."""
    label_words: tuple[str, ...] | None = None
    """One word a class, in class order, a single token of the tokenizer each; needed by the verbalizer head."""
    metric: MetricName = "accuracy"
    """Figure of merit: accuracy, matthews (correlation) or accuracy_f1 (mean of accuracy and F1)."""

    @model_validator(mode="after")
    def _consistent(self) -> TaskConfig:
        if len(set(self.labels)) != len(self.labels):
            raise ValueError(f"labels {list(self.labels)} name a label twice")
        if self.label_words is not None and len(self.label_words) != len(self.labels):
            raise ValueError(
                f"{len(self.label_words)} label_words stand against {len(self.labels)} labels; give one word a label"
            )
        if self.metric == "accuracy_f1" and len(self.labels) != 2:
            raise ValueError("metric accuracy_f1 needs exactly two labels")
        if self.template is not None:
            missing = [field for field in self.fields if "{" + field + "}" not in self.template]
            if missing:
                raise ValueError(f"template lacks {{{missing[0]}}}")
            if self.template.count("<mask>") != 1:
                raise ValueError("template must hold <mask> exactly once")
        return self


class DataConfig(Schema):
    """Where the examples come from."""

    task: str | TaskConfig = "reviews"
    """Name of a built-in task, or the definition of one's own."""
    source: Literal["auto", "embedded", "files", "hub"] = "auto"
    """embedded (made by our generator), files, hub (Hugging Face datasets); auto takes files when ``path`` is given, else
    embedded."""
    path: PathText | None = None
    """files: a folder with train.* and validation.* (or dev.*, test.*), in JSON Lines, CSV, TSV, Parquet or Arrow; or a folder
    that holds such a folder named like the task."""
    train_file: PathText | None = None
    """files: the training file, relative to ``path``, when its name is not train.*."""
    validation_file: PathText | None = None
    """files: the validation file, relative to ``path``, when its name is not validation.*."""
    hub_name: str | None = None
    """hub: name of the dataset, for example ``nyu-mll/glue``."""
    hub_subset: str | None = None
    """hub: name of its configuration, for example ``sst2``."""
    train_split: str = "train"
    """hub: split to train on."""
    validation_split: str = "validation"
    """hub: split to validate on."""
    train_examples: PositiveInt | None = None
    """Keep this many training examples, drawn with the run's seed; all if not given."""
    validation_examples: PositiveInt | None = None
    """Keep this many validation examples, drawn with the run's seed; all if not given."""
    max_length: int = Field(default=128, ge=8, le=2**17)
    """Tokens of an example at most; the text is cut, never the template or the mask."""
    on_bad_row: Literal["raise", "skip"] = "raise"
    """What to do with a row that lacks a field, has an unknown label or an empty text: stop, or count and report it."""
    keep_columns: tuple[str, ...] = ()
    """Further columns to read, for example one that ``partition.column`` names (that one is kept by itself)."""

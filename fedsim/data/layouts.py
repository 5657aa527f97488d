"""Known layouts of the built-in tasks' downloads: folders, file names, columns, classes by file.

Nothing here is a setting: a layout is used if it fits the files, and the run reports which one it used.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass

Columns = Mapping[str, str]
"""A task's field or label field to the file's column; names not listed stay as they are."""

HELD_OUT = 0.2
"""Share held out of data without a validation split: LM-BFF (Gao et al. 2021) takes 2,000 of about 10,000 examples."""


@dataclass(frozen=True)
class Layout:
    """The layouts of one task."""

    folders: tuple[str, ...] = ()
    """Further names of its folder, in lower-case letters and digits only."""
    columns: tuple[Columns, ...] = ({},)
    """Columns of files with a header; the first match is used."""
    headerless: Mapping[int, tuple[str, ...]] | None = None
    """Columns of files without a header, by their number."""
    class_files: tuple[Mapping[str, str], ...] = ()
    """Patterns of one-class file names, to the label."""
    train_files: tuple[str, ...] = ()
    """Patterns of training files not named train.*; with an unknown extension they are TSV."""
    validation_files: tuple[str, ...] = ()
    """The same for validation files."""
    whole: bool = False
    """Whether the data come as one file, without a validation split."""


_ALPACA_FILES = ("alpaca_data*.json", "alpaca_gpt4_data*.json", "code_alpaca*.json")
_OUTPUT = {"response": "output"}

OF_RESPONSES: dict[str, Layout] = {
    "alpaca": Layout(("alpacagpt4", "stanfordalpaca"), ({},), train_files=_ALPACA_FILES, whole=True),
    "dolly": Layout(
        ("databricksdolly15k", "dolly15k"),
        ({},),
        train_files=("databricks-dolly-15k.jsonl", "dolly*.jsonl"),
        whole=True,
    ),
    "flowertune_general": Layout(("alpacagpt4",), (_OUTPUT, {}), train_files=_ALPACA_FILES, whole=True),
    "flowertune_finance": Layout(("fingptsentimenttrain",), (_OUTPUT, {}), whole=True),
    "flowertune_medical": Layout(
        ("medicalmeadowmedicalflashcards",),
        ({**_OUTPUT, "instruction": "input"}, {}),
        train_files=("medical_meadow*.json",),
        whole=True,
    ),
    "flowertune_code": Layout(("codealpaca20k", "codealpaca"), (_OUTPUT, {}), train_files=_ALPACA_FILES, whole=True),
    "fedllm_bench": Layout(
        ("fedaya", "fedchatbotit", "fedwildchat"),
        ({},),
        train_files=("aya_*.json", "chatbotIT_*.json", "wildchat_*.json"),
        whole=True,
    ),
    "fedllm_bench_dialogue": Layout(("fedwildchat", "multiturn"), ({},), train_files=("wildchat_*.json",), whole=True),
    "xsum": Layout(),
    "samsum": Layout((), ({}, {"document": "dialogue"})),
    "cnn_dailymail": Layout(("cnndm",), ({}, {"document": "article", "summary": "highlights"})),
    "messages": Layout((), ({}, {"messages": "conversations"}), whole=True),
}
"""Layouts of tasks of responses."""

_SENTENCE = {"text": "sentence"}
_PAIR = {"a": "sentence1", "b": "sentence2"}
_QUESTION = {"a": "question", "b": "sentence"}
_PASSAGE = {"a": "question", "b": "passage"}
_LM_BFF = {2: ("label", "text")}
_SENTIMENT_FILES = ({"*.neg": "0", "*.pos": "1"},)

LAYOUTS: dict[str, Layout] = {
    "sst2": Layout(("sst",), ({}, _SENTENCE), _LM_BFF),
    "mr": Layout(("rtpolaritydata", "rottentomatoes"), ({}, _SENTENCE), _LM_BFF, _SENTIMENT_FILES),
    "mpqa": Layout((), ({}, _SENTENCE), _LM_BFF, _SENTIMENT_FILES),
    "cola": Layout(
        ("colapublic",),
        ({}, _SENTENCE),
        {4: ("source", "label", "star", "text")},
        train_files=("in_domain_train.tsv",),
        validation_files=("in_domain_dev.tsv",),
    ),
    # The hub numbers the classes of Subj and TREC differently from LM-BFF, so columns with class names come first.
    "subj": Layout(
        ("rottenimdb", "subjectivity"),
        ({"label": "label_text"}, {}, _SENTENCE),
        _LM_BFF,
        ({"quote*": "0", "plot*": "1"}, {"*.subjective": "0", "*.objective": "1"}),
    ),
    "trec": Layout(
        ("trecqc", "qc"),
        ({"label": "label_coarse_original"}, {}),
        _LM_BFF,
        train_files=("train_5500.label",),
        validation_files=("TREC_10.label",),
    ),
    "mrpc": Layout(
        (),
        ({}, _PAIR, {"a": "#1 String", "b": "#2 String", "label": "Quality"}),
        train_files=("msr_paraphrase_train.txt",),
        validation_files=("msr_paraphrase_test.txt",),
    ),
    "rte": Layout((), ({}, _PAIR, {"a": "premise", "b": "hypothesis"})),
    "qnli": Layout((), ({}, _QUESTION)),
    "boolq": Layout((), ({}, _PASSAGE, {**_PASSAGE, "label": "answer"})),
    "sent140": Layout(
        ("sentiment140", "trainingandtestdata"),
        ({}, {"label": "sentiment"}, {"text": "4", "label": "y"}),
        {6: ("label", "id", "date", "query", "user", "text")},
        train_files=("training.1600000.*.csv",),
        validation_files=("testdata.manual.*.csv",),
    ),
    **OF_RESPONSES,
}
"""The layouts of the built-in tasks on real data, by name."""

UNKNOWN = Layout()
"""Layouts of a custom task."""


def plain_name(name: str) -> str:
    """Normalise a name to lower-case letters and digits: SST-2 and sst_2 are sst2."""
    return re.sub(r"[\W_]+", "", name).casefold()


def is_called(name: str, task_name: str, layout: Layout) -> bool:
    """Whether a folder or configuration is named like a task."""
    return plain_name(name) in {plain_name(task_name), *layout.folders}

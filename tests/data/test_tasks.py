from decimal import Decimal

import numpy as np
import pytest

from fedsim.core.errors import DataError
from fedsim.data.config import TaskConfig
from fedsim.data.layouts import LAYOUTS
from fedsim.data.tasks import HUB_SOURCES, LABEL_ALIASES, TASKS, ClassNumber, LabelIndex, resolve_task


def test_the_ten_tasks_of_the_paper_are_there():
    of_classes = {name for name in HUB_SOURCES if not TASKS[name].of_responses}
    assert of_classes == {"sst2", "mr", "mpqa", "cola", "subj", "trec", "mrpc", "rte", "qnli", "boolq"}
    of_responses = {name for name, task in TASKS.items() if task.of_responses}
    assert set(LAYOUTS) == set(TASKS) == {*HUB_SOURCES, "sent140", "fedllm_bench", "fedllm_bench_dialogue", "messages"}
    assert set(LABEL_ALIASES) == set(TASKS) - of_responses
    assert TASKS["trec"].label_words == ("Description", "Entity", "Expression", "Human", "Location", "Number")
    assert TASKS["rte"].label_words == ("Yes", "No")
    assert {name: task.metric for name, task in TASKS.items() if name in of_classes and task.metric != "accuracy"} == {
        "cola": "matthews",
        "mrpc": "accuracy_f1",
    }
    assert {TASKS[name].metric for name in of_responses} == {"token_accuracy"}


@pytest.mark.parametrize("name", TASKS)
def test_every_alias_and_hub_column_belongs_to_its_task(name):
    task = TASKS[name]
    if not task.of_responses:
        assert set(LABEL_ALIASES[name].values()) == set(task.labels)
    known = [*LAYOUTS[name].columns, *([HUB_SOURCES[name].columns] if name in HUB_SOURCES else [])]
    assert all(set(columns) <= set(task.columns) for columns in known)
    headerless = (LAYOUTS[name].headerless or {}).items()
    assert all(len(columns) == many and set(columns) >= {"text", "label"} for many, columns in headerless)
    assert all(set(labels.values()) == set(task.labels) for labels in LAYOUTS[name].class_files)


def test_embedded_tasks_are_found_by_name_and_own_tasks_pass_through():
    assert resolve_task("reviews").name == "reviews"
    own = TaskConfig(name="own", fields=("x",), labels=("n", "y"))
    assert resolve_task(own) is own


def test_an_unknown_task_is_named_with_the_nearest_one():
    with pytest.raises(DataError, match=r"data\.task: unknown task 'sst3' \(did you mean 'sst2'\?\); known tasks are "):
        resolve_task("sst3")


@pytest.mark.parametrize("value", [1, True, 1.0, "1", " 1 ", "1.0", np.int64(1), "positive", "pos"])
def test_spellings_of_a_label(value):
    assert LabelIndex(TASKS["sst2"])[value] == 1


@pytest.mark.parametrize(
    ("labels", "value"),
    [
        ((0.0, 1.0), 1),
        ((0.0, 1.0), 1.0),
        ((0.0, 1.0), "1.0"),
        ((0.0, 1.0), True),
        ((0, 1), Decimal("1.00")),
        ((False, True), True),
        ((False, True), "true"),
        ((False, True), "TRUE"),
        (("False", "True"), "true"),
        ((0.25, 0.5), 0.5),
        ((0.25, 0.5), "0.5"),
    ],
)
def test_labels_may_be_numbers_and_truth_values(labels, value):
    task = TaskConfig(name="own", fields=("x",), labels=labels)
    assert LabelIndex(task)[value] == 1


@pytest.mark.parametrize("value", [2, -1, 0.5, float("nan"), "", "Positive", "one", None, [1], {"a": 1}])
def test_what_is_no_label(value):
    assert value not in LabelIndex(TASKS["sst2"])
    with pytest.raises(KeyError):
        LabelIndex(TASKS["sst2"])[value]


def test_labels_of_pairs_come_as_names_or_numbers():
    labels = LabelIndex(TASKS["rte"])
    assert [labels[value] for value in ("entailment", "not_entailment", 0, 1, "0")] == [0, 1, 0, 1, 0]
    assert LabelIndex(TASKS["boolq"])[True] == LabelIndex(TASKS["boolq"])["true"] == 1


def test_a_named_class_number_goes_by_its_name():
    """The hub numbers TREC's classes in another order than the task does."""
    names = ("ABBR", "ENTY", "DESC", "HUM", "LOC", "NUM")
    labels = LabelIndex(TASKS["trec"])
    assert [labels[ClassNumber.of(number, names)] for number in range(6)] == [2, 1, 0, 3, 4, 5]
    assert labels[ClassNumber.of(2, ["a", "b", "c"])] == 2
    assert ClassNumber.of(-1, names) == -1
    assert ClassNumber.of(-1, names) not in labels


def test_a_task_of_ones_own_with_a_built_in_name_keeps_its_own_labels():
    own = TaskConfig(name="rte", fields=("a", "b"), labels=("0", "entailment"))
    labels = LabelIndex(own)
    assert (labels[0], labels["entailment"]) == (0, 1)
    assert 1 not in labels

"""The built-in tasks of responses on files as their data sets have them, and rows that cannot be used."""

import io
import json
import re

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from support import ROOT

from fedsim.configuration.schema import read_config
from fedsim.core.errors import ConfigError, DataError
from fedsim.data.config import DataConfig, TaskConfig
from fedsim.data.dialogue import from_text
from fedsim.data.response_tasks import DOLLY_CATEGORIES
from fedsim.data.sources import load_dataset
from fedsim.data.tasks import HUB_SOURCES, TASKS, resolve_task
from fedsim.data.written import Writer
from fedsim.simulation.preparation import partition_data

INTRO = "Below is an instruction that describes a task. Write a response that appropriately completes the request."
ALPACA = [{"instruction": f"do {n}", "input": "1 2" if n % 2 else "", "output": f"done {n}"} for n in range(20)]


def written(task, texts):
    """Return an example's prompt and response as one writes them."""
    one = Writer(TASKS[task], None).write(texts)
    return one.prompt.text, one.response


def put(path, rows):
    path.parent.mkdir(parents=True, exist_ok=True)
    if path.suffix == ".parquet":
        pq.write_table(pa.Table.from_pylist(rows), path)
    elif path.suffix == ".jsonl":
        path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    else:
        path.write_text(json.dumps(rows))


def load(task, folder, **keys):
    return load_dataset(DataConfig(task=task, path=str(folder), **keys), 0, keys.pop("column", None))


def test_alpaca_as_it_is_downloaded(tmp_path):
    put(tmp_path / "alpaca_data.json", ALPACA)
    data = load("alpaca", tmp_path)
    assert (len(data.train), len(data.validation)) == (16, 4)  # it has no split of its own
    assert "20% of the examples, drawn with the seed, are held out" in data.notes[0]
    assert not data.train.labels_N.any()
    both = {bool(texts[1]) for texts in data.train.texts}
    assert both == {False, True}
    assert written("alpaca", ("do 1", "1 2", "done 1")) == (
        "Below is an instruction that describes a task, paired with an input that provides further context. Write a response "
        "that appropriately completes the request.\n\n### Instruction:\ndo 1\n\n### Input:\n1 2\n\n### Response:",
        "done 1",
    )
    assert written("alpaca", ("do 1", "", "done 1"))[0] == f"{INTRO}\n\n### Instruction:\ndo 1\n\n### Response:"


@pytest.mark.parametrize("missing", [None, float("nan"), "", "  ", ...])
@pytest.mark.parametrize("ending", ["jsonl", "parquet", "json"])
def test_an_optional_field_may_be_missing_in_every_way(tmp_path, missing, ending):
    if missing is ... and ending == "parquet":
        pytest.skip("a column of a Parquet file is in every row")
    value = None if missing != missing and ending == "parquet" else missing
    rows = [
        {"instruction": "a", "output": "b"} if missing is ... else {"instruction": "a", "input": value, "output": "b"}
    ] * 4
    for name in ("train", "validation"):
        put(tmp_path / f"{name}.{ending}", rows)
    assert set(load("alpaca", tmp_path).train.texts) == {("a", "", "b")}


def test_dolly_has_categories_to_deal_by(tmp_path, tiny_config):
    rows = [
        {"instruction": f"i{n}", "context": "c" * (n % 2), "response": f"r{n}", "category": DOLLY_CATEGORIES[n % 8]}
        for n in range(80)
    ]
    put(tmp_path / "databricks-dolly-15k.jsonl", rows)
    data = load("dolly", tmp_path)
    assert set(data.train.labels_N) == set(range(8))
    assert written("dolly", ("i1", "c", "r1")) == (
        f"{INTRO}\n\n### Instruction:\ni1\n\nInput:\nc\n\n### Response:\n",
        "r1",
    )
    assert written("dolly", ("i0", "", "r0"))[0] == f"{INTRO}\n\n### Instruction:\ni0\n\n### Response:\n"
    shards = deal(
        tiny_config, {"task": "dolly", "path": str(tmp_path)}, kind="label_shards", classes_per_client=2
    ).shards
    counts = shards.label_counts(data.train.labels_N, 8)
    assert ((counts > 0).sum(axis=1) <= 2).all()


def deal(tiny_config, data, **partition):
    config = tiny_config(
        data={"train_examples": None, "validation_examples": None, **data},
        partition={"clients": 4, "min_size": 1, **partition},
        sampling={"clients_per_round": 2},
        model={"head": {"kind": "generation"}},
    )
    return partition_data(config)


@pytest.mark.parametrize(
    ("task", "row", "prompt"),
    [
        ("general", {"instruction": "say", "input": "unused", "output": "o"}, "say"),
        ("finance", {"instruction": "say", "input": "x", "output": "o"}, "say x"),
        ("medical", {"instruction": "unused", "input": "x", "output": "o"}, "x"),
        ("code", {"instruction": "say", "input": "", "output": "o"}, "say"),
    ],
)
def test_flowertune_as_its_apps_read_the_four_data_sets(tmp_path, task, row, prompt):
    name = f"flowertune_{task}"
    put(tmp_path / "train.jsonl", [row] * 10)
    data = load(name, tmp_path)
    assert written(name, data.train.texts[0]) == (f"{INTRO}\n### Instruction:\n{prompt}\n### Response:", " o")
    assert HUB_SOURCES[name].columns["response"] == "output" and HUB_SOURCES[name].validation_split is None


def test_fedllm_bench_is_json_by_client(tmp_path, tiny_config):
    rows = {f"annotator {c}": [{"instruction": f"q{c}{n}", "response": "r"} for n in range(4 + c)] for c in range(5)}
    put(tmp_path / "Fed-Aya" / "aya_38c_25k.json", rows)
    data = load_dataset(DataConfig(task="fedllm_bench", path=str(tmp_path / "Fed-Aya")), 0, "client")
    assert "JSON by client, the column client" in data.notes[0]
    assert set(data.train.columns["client"]) == set(rows)
    one = f"{INTRO}\n\n### Instruction:\nq00 \n\n### Response:", " r"
    assert written("fedllm_bench", ("q00", "r")) == one
    found = deal(
        tiny_config,
        {"task": "fedllm_bench", "path": str(tmp_path / "Fed-Aya")},
        kind="by_column",
        column="client",
        clients=5,
    )
    assert found.shards.num_clients == 5


def test_fedllm_bench_dialogues_and_columns_of_messages(tmp_path):
    turns = [{"from": "human", "value": "a"}, {"from": "gpt", "value": "b"}] * 2
    put(tmp_path / "wildchat_50c.json", {"1": [{"conversations": turns}] * 3, "2": [{"conversations": turns[:2]}] * 3})
    data = load("fedllm_bench_dialogue", tmp_path)
    assert {len(from_text(texts[0])) for texts in data.train.texts} == {2, 4}
    openai = [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]
    for name, messages in (("messages", openai), ("conversations", turns)):
        for ending in ("jsonl", "parquet", "json"):
            folder = tmp_path / name / ending
            put(folder / f"train.{ending}", [{name: messages, "id": 1}] * 5)
            texts = load("messages", folder).train.texts
            assert from_text(texts[0][0])[-1] == ("assistant", "b")


def test_a_json_file_with_one_dialogue_is_not_by_client(tmp_path):
    put(
        tmp_path / "train.json", {"messages": [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]}
    )
    put(
        tmp_path / "validation.json",
        {"messages": [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]},
    )
    assert len(load("messages", tmp_path).train) == 1


@pytest.mark.parametrize(
    ("name", "document", "summary"),
    [("xsum", "document", "summary"), ("samsum", "dialogue", "summary"), ("cnn_dailymail", "article", "highlights")],
)
def test_summaries_have_the_columns_of_their_data_sets(tmp_path, name, document, summary):
    for split in ("train", "validation"):
        put(tmp_path / f"{split}.jsonl", [{document: "long text", summary: "short", "id": 1}] * 2)
    assert load(name, tmp_path).train.texts == [("long text", "short")] * 2
    assert written(name, ("long text", "short")) == ("long text\nTL;DR:", " short")


QUESTION = {"name": "own", "fields": ["q", "r"], "template": "{q}", "response": "{r}"}


@pytest.mark.parametrize(
    ("row", "sentence"),
    [
        ({"q": "a"}, "train.jsonl:2: field 'r' is missing"),
        ({"q": "a", "r": " "}, "train.jsonl:2: field 'r' is empty"),
        ({"q": "a", "r": [3]}, r"field 'r' is not text but list \[3\]"),
        ({"q": "a", "r": float("inf")}, "field 'r' is not text but float inf"),
        ({"q": "a", "r": [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]}, "dialogue=true"),
        ({"q": "a", "r": "\ud800"}, "half of a surrogate pair"),
    ],
)
def test_bad_rows_are_named_and_can_be_skipped(tmp_path, row, sentence):
    put(tmp_path / "train.jsonl", [{"q": "a", "r": "b"}, row])
    put(tmp_path / "validation.jsonl", [{"q": "a", "r": "b"}])
    task = TaskConfig.model_validate(QUESTION)
    with pytest.raises(DataError, match=sentence):
        load(task, tmp_path)
    assert (len(skipped := load(task, tmp_path, on_bad_row="skip").train), skipped.skipped) == (1, 1)


def test_numbers_are_read_as_text_as_labels_are(tmp_path):
    put(tmp_path / "train.jsonl", [{"q": n, "r": n} for n in (3, -2.5, 7.0, True)])
    put(tmp_path / "validation.jsonl", [{"q": "a", "r": "b"}])
    texts = load(TaskConfig.model_validate(QUESTION), tmp_path).train.texts
    assert texts == [("3", "3"), ("-2.5", "-2.5"), ("7", "7"), ("true", "true")]


def test_a_bad_dialogue_is_one_sentence(tmp_path):
    put(tmp_path / "train.jsonl", [{"messages": [{"role": "user", "content": "a"}]}] * 2)
    with pytest.raises(DataError, match=r"train\.jsonl:1: field 'messages' has no answer of the assistant"):
        load("messages", tmp_path)


def test_labels_of_files_are_refused_where_there_are_none(tmp_path):
    put(tmp_path / "train.jsonl", [{"q": "a", "r": "b"}])
    with pytest.raises(DataError, match=r"data\.label_of_file gives labels, but task own has none"):
        load(TaskConfig.model_validate(QUESTION), tmp_path, label_of_file={"*": "x"})


@pytest.mark.parametrize(
    ("keys", "sentence"),
    [
        ({"response": "yes"}, r"response has none of the fields \['q', 'r'\], as in \{r\}"),
        ({"template": "{q} {r}"}, r"template has \{r\}, which is the response; the prompt would give it away"),
        ({"template": "{q} <mask>"}, "template of a task of responses is the prompt, without <mask>"),
        (
            {"template": "{q} {hint}"},
            r"template has \{hint\}, but 'hint' is none of fields \['q', 'r'\]; every placeholder",
        ),
        ({"response": "{r} {qq}"}, r"response has \{qq\}, but 'qq' is none of fields .* \(did you mean 'q'\?\)"),
        ({"template": "say"}, r"template lacks \{q\}, and so does response"),
        ({"fields": ["r"], "template": None, "chat": True}, "chat needs template, the user's message"),
        ({"optional_fields": ["z"]}, "optional_fields names 'z', which is none of fields"),
        ({"optional_fields": ["r"]}, "optional_fields has 'r', without which the response would be empty"),
        (
            {"optional_fields": ["q"], "template_without": {"q": "{q}"}},
            r"template_without\.q has \{q\}, which is empty in its rows",
        ),
        (
            {"optional_fields": ["q"], "template_without": {"r": "x"}},
            "template_without names 'r', which is none of optional_fields",
        ),
        ({"metric": "accuracy"}, "metric accuracy is one of classes; a task of responses has token_accuracy"),
        (
            {"dialogue": True, "template": None, "chat": True},
            r"dialogue needs one field, the column of messages, not \['q'",
        ),
        (
            {"response": None, "metric": "token_accuracy", "labels": ["a", "b"], "template": "{q} {r} <mask>"},
            "metric token_accuracy is that of",
        ),
    ],
)
def test_keys_that_do_not_fit_together_are_refused(keys, sentence):
    with pytest.raises(ValueError, match=sentence):
        TaskConfig.model_validate({**QUESTION, **keys})


def test_a_dialogue_needs_the_chat_template_alone():
    task = TaskConfig(name="t", fields=("messages",), dialogue=True, chat=True)
    assert (task.response, task.metric, task.num_classes, task.columns) == (
        "{messages}",
        "token_accuracy",
        2,
        ("messages",),
    )
    assert TaskConfig.model_validate(task.model_dump()) == task
    for keys, sentence in (
        ({"chat": False}, "dialogue needs chat: true"),
        ({"optional_fields": ("messages",)}, "has no use in a dialogue"),
    ):
        with pytest.raises(ValueError, match=sentence):
            TaskConfig.model_validate({"name": "t", "fields": ("messages",), "dialogue": True, "chat": True, **keys})


def test_the_example_of_the_docs_is_read(tmp_path):
    example = re.findall(r"```yaml\n(.*?)```", (ROOT / "docs" / "data.md").read_text(), re.DOTALL)[0]
    (tmp_path / "config.yaml").write_text(example)
    rows = [{"instruction": f"i{n}", "input": "x" * (n % 2), "output": "o", "user": f"u{n % 3}"} for n in range(30)]
    put(tmp_path / "train.jsonl", rows)
    data = partition_data(
        read_config(tmp_path / "config.yaml", [f"data.path={tmp_path}", "sampling.clients_per_round=2"])
    )
    assert (len(data.dataset.train), data.shards.num_clients) == (27, 3)
    one = Writer(data.task, None).write(("i1", "x", "o"))
    assert (one.prompt.text, one.response) == ("Task: i1\nInput: x\nAnswer:", " o")


# -- clients -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["iid", "dirichlet_quantity", "by_column"])
def test_kinds_that_need_no_labels_deal_out_all_examples(tiny_config, kind):
    column = {"column": "author"} if kind == "by_column" else {}
    found = deal(tiny_config, {"task": "writing", "train_examples": 400}, kind=kind, **column)
    held = np.sort(found.shards.indices_N)
    assert len(set(held)) == len(held)
    if kind != "by_column":
        assert len(held) == 400
    assert not any("class" in note for note in found.notes)


@pytest.mark.parametrize("kind", ["dirichlet_label", "dirichlet_class", "label_shards"])
def test_kinds_by_labels_need_labels(tiny_config, kind):
    with pytest.raises(
        ConfigError,
        match=rf"^partition\.kind={kind} deals examples out by their labels, but task 'writing' has none; set ",
    ):
        deal(tiny_config, {"task": "writing"}, kind=kind)
    assert deal(tiny_config, {"task": "questions", "train_examples": 200}, kind=kind).shards.num_clients == 4


def test_embedded_tasks_of_responses():
    for name in ("questions", "writing"):
        task = resolve_task(name)
        data = load_dataset(DataConfig(task=name, train_examples=50, validation_examples=10), 3, "author")
        assert task.of_responses and (len(data.train), len(data.validation)) == (50, 10)
        assert all(row.strip() for texts in data.train.texts for row in texts)


def test_a_partition_without_labels_speaks_of_no_classes(tmp_path):
    from rich.console import Console

    from fedsim.display.plots import plot_label_distribution
    from fedsim.display.report import partition_table

    console = Console(record=True, width=100, file=io.StringIO())
    counts = np.asarray([[3], [5], [1]])
    console.print(partition_table(counts, ("examples",)))
    text = console.export_text()
    assert "3 clients, 9 examples" in text and "class" not in text and "label" not in text
    assert plot_label_distribution(counts, ("examples",), tmp_path / "partition.png").stat().st_size > 1000

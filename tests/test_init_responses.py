"""``fedsim init`` on rows of prompts and responses: a config that a decoder learns to write from."""

import csv
import json

import pytest
import torch
import transformers

from clients.backbone.loading import load_tokenizer
from clients.config import ModelConfig
from fedsim.configuration.schema import read_config
from fedsim.data.guessing.profile import look
from fedsim.data.guessing.written import find_parts
from fedsim.simulation.preparation import partition_data

CHATML = (
    "{% for m in messages %}{{ '<s>' + m.role + '\n' + m.content + '</s>' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<s>assistant\n' }}{% endif %}"
)


@pytest.fixture(scope="module")
def decoders(tmp_path_factory):
    """Folders of a tiny decoder with a chat template, and without one."""
    folders = {}
    for name, template in (("chat", CHATML), ("plain", None)):
        folders[name] = str(tmp_path_factory.mktemp(name))
        tokenizer = load_tokenizer(ModelConfig(path="embedded"))
        tokenizer.chat_template = template
        tokenizer.save_pretrained(folders[name])
        sizes = {"hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 1, "num_attention_heads": 2}
        with torch.random.fork_rng():
            torch.manual_seed(0)
            config = transformers.LlamaConfig(vocab_size=len(tokenizer), max_position_embeddings=256, **sizes)
            transformers.LlamaForCausalLM(config).save_pretrained(folders[name])
    return folders


def put(path, columns, rows=40):
    path.write_text("".join(json.dumps({name: make(n) for name, make in columns.items()}) + "\n" for n in range(rows)))
    return path


def say(n):
    return f"say the number {n} in words"


INSTRUCTIONS = {
    "instruction": say,
    "input": lambda n: "please" * (n % 2),
    "output": lambda n: f"it is number {n} .",
    "user_id": lambda n: f"u{n % 5}",
}


@pytest.mark.parametrize("kind", ["plain", "chat"])
def test_instructions_are_known_by_their_columns_and_run_as_they_are(fedsim, tmp_path, decoders, kind):
    put(tmp_path / "mine.jsonl", INSTRUCTIONS)
    status, out, err = fedsim("init", "--data", "mine.jsonl", "--model", decoders[kind])
    assert (status, err) == (0, "")
    assert "prompt" in out and "input may be empty" in out and "5 clients with 8.0 rows each" in out
    config = read_config(tmp_path / "mine.yaml")
    task = config.data.task
    assert (task.fields, task.response, task.optional_fields) == (
        ("instruction", "input", "output"),
        "{output}",
        ("input",),
    )
    assert (task.chat, task.template.startswith("Below is an instruction")) == (kind == "chat", kind == "plain")
    assert "{input}" not in task.template_without["input"]
    assert (config.model.head.kind, config.partition.column) == ("generation", "user_id")
    status, out, _ = fedsim("run", "mine.yaml", "executor=local", "rounds=1", "tracking.plots=false")
    assert status == 0


def test_dialogues_need_a_chat_template(fedsim, tmp_path, decoders):
    turns = [{"role": "user", "content": "hello"}, {"role": "assistant", "content": "good morning"}]
    put(tmp_path / "talks.jsonl", {"messages": lambda n: turns})
    status, _, err = fedsim("init", "--data", "talks.jsonl", "--model", decoders["plain"])
    assert status == 2 and "give the folder or the name on the hub of a decoder with a chat template" in err
    assert fedsim("init", "--data", "talks.jsonl", "--model", decoders["chat"])[0] == 0
    config = read_config(tmp_path / "talks.yaml")
    assert config.data.task.dialogue and config.partition.kind == "iid"
    assert len(partition_data(config).dataset.train) == 32


def test_rows_without_an_answer_are_counted_and_left_out_as_a_run_leaves_them_out(fedsim, tmp_path, decoders):
    asked = {"role": "user", "content": "hello"}
    put(
        tmp_path / "talks.jsonl",
        {"messages": lambda n: [asked, {"role": "assistant", "content": "hi " * (1 + n)}][: 1 + (n not in (3, 8))]},
    )
    status, out, err = fedsim("init", "talks.jsonl", "--model", decoders["chat"])
    assert (status, err) == (0, "")
    assert "talks.jsonl:4: field 'messages' has no answer of the assistant" in " ".join(out.split())
    config = read_config(tmp_path / "talks.yaml")
    train = partition_data(config).dataset.train
    assert (config.data.on_bad_row, train.skipped, len(train)) == ("skip", 2, 30)
    assert train.first_skipped.endswith("talks.jsonl:4: field 'messages' has no answer of the assistant")


@pytest.mark.parametrize("kind", ["numbers.csv", "numbers.jsonl", "excel.csv"])
def test_numbers_to_answer_are_learnt_and_written(fedsim, tmp_path, decoders, kind):
    rows = [(f"what is {n} times 7 ?", 7 * n) for n in range(60)]
    if kind == "numbers.jsonl":
        text = "".join(json.dumps({"question": question, "answer": answer}) + "\n" for question, answer in rows)
    else:
        mark, between = ("\ufeff", ";") if kind == "excel.csv" else ("", ",")
        text = f"{mark}prompt{between}completion\r\n" + "".join(f'"{q}"{between}{a}\r\n' for q, a in rows)
    (tmp_path / kind).write_bytes(text.encode())
    status, _, err = fedsim("init", kind, "--model", decoders["plain"])
    assert (status, err) == (0, "")
    config = read_config(tmp_path / kind.replace(kind.partition(".")[2], "yaml"))
    assert {row[1] for row in partition_data(config).dataset.train.texts} <= {str(7 * n) for n in range(60)}
    assert (config.evaluation.generate.examples, config.data.on_bad_row) == (16, "raise")
    assert config.data.max_length < 256  # of the data, not of a guess


def test_an_encoder_cannot_write(fedsim, tmp_path):
    put(tmp_path / "mine.jsonl", INSTRUCTIONS)
    status, _, err = fedsim("init", "--data", "mine.jsonl")
    assert status == 2
    assert (
        "has prompts and responses (instruction, input, output), but the model embedded is an encoder, which writes no text"
        in err
    )


@pytest.mark.parametrize(
    ("columns", "parts"),
    [
        ({"question": say, "answer": lambda n: f"the answer is {n}"}, ("question", "answer", None)),
        ({"Prompt": say, "Completion": say, "context": say}, ("Prompt", "Completion", "context")),
        ({"document": say, "summary": say}, ("document", "summary", None)),
        ({"question": say, "answer": lambda n: ("yes", "no")[n % 2]}, None),
        ({"question": say, "answer": lambda n: n % 2}, None),
        ({"prompt": say, "label": lambda n: 1 + n % 5}, None),
        ({"question": say, "answer": lambda n: 7 * n}, ("question", "answer", None)),
        ({"question": lambda n: f"{n} * 7 =", "answer": lambda n: 7 * (n % 25)}, ("question", "answer", None)),
        ({"prompt": say, "completion": lambda n: str(n / 2)}, ("prompt", "completion", None)),
        ({"question": say, "passage": say, "label": lambda n: n % 2}, None),
        ({"text": say, "output": say}, None),
        ({"conversations": lambda n: [{"from": "human", "value": "a"}]}, ("conversations", "conversations", None)),
    ],
)
def test_which_columns_are_prompt_and_response(tmp_path, columns, parts):
    found = find_parts(look(put(tmp_path / "data.jsonl", columns)))
    assert (found and (found.prompt, found.response, found.context)) == parts


def test_a_named_label_asks_for_classes(fedsim, tmp_path):
    columns = {**INSTRUCTIONS, "kind": lambda n: ("order", "question")[n % 2]}
    put(tmp_path / "mine.jsonl", columns)
    assert fedsim("init", "--data", "mine.jsonl", "--text", "instruction", "--label", "kind")[0] == 0
    assert read_config(tmp_path / "mine.yaml").data.task.labels == ("order", "question")


@pytest.mark.parametrize("header", [True, False], ids=["header", "none"])
def test_options_name_prompt_and_response_where_the_columns_do_not(fedsim, tmp_path, decoders, header):
    rows = [(f"Was ist {n} mal 3?", 3 * n) for n in range(60)]
    names = ("Frage, neu", "Antwort 😊") if header else ("0", "1")
    with (tmp_path / "fragen.csv").open("w", newline="", encoding="utf-8") as file:
        csv.writer(file).writerows([names, *rows] if header else rows)
    asked = ("init", "fragen.csv", "--model", decoders["plain"])
    status, _, err = fedsim(*asked)
    assert status == 2 and "the prompt with --text and the answer with --response" in err
    status, out, err = fedsim(*asked, "--text", names[0], "--response", names[1])
    assert (status, err) == (0, "") and "as told" in out
    train = partition_data(read_config(tmp_path / "fragen.yaml")).dataset.train
    assert set(train.texts) <= {(prompt, str(answer)) for prompt, answer in rows}


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        (["--response", "answer"], "--response is the text to write: give it with --text"),
        (["--text", "question", "--response", "answer", "--label", "kind"], "--response is the text to write"),
        (["--text", "answer", "--response", "answer"], "cannot be both what is read (--text) and what is written"),
        (["--text", "question", "--response", "nothing"], "--response: mine.jsonl has no column 'nothing'"),
    ],
)
def test_a_response_is_named_with_its_prompt(fedsim, tmp_path, options, sentence):
    put(tmp_path / "mine.jsonl", {"question": say, "answer": say, "kind": lambda n: n % 2})
    status, _, err = fedsim("init", "mine.jsonl", *options)
    assert status == 2 and sentence in err

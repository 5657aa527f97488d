"""``evaluation.generate``: what the model wrote is on record, the same however a run goes, and that of ``load_adapter``."""

import json
import shutil

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from byte_guard.models import save_model
from safetensors.numpy import load_file
from support import make_tiny, merged, sweep

import fedsim
from clients.backbone.end_tokens import end_tokens
from clients.config import ModelConfig
from fedsim.core.errors import CheckpointError, ConfigError, ModelError
from fedsim.data.text_metrics import score_texts
from fedsim.display.page.run_page import run_page
from fedsim.display.page.text_samples import shared_beginning, text_samples
from fedsim.display.report import final_rows
from fedsim.records.trackers.base import scalars
from fedsim.simulation.generation_spec import decoded
from fedsim.simulation.preparation import prepare
from fedsim.study.reading import read_figures

GENERATE = {"every": 2, "examples": 5, "client_examples": 2, "max_new_tokens": 6}
PERSONAL = {"choose": "fixed", "fixed": [0, 2], "unselected": "local"}


@pytest.fixture(scope="module")
def decoder(tmp_path_factory):
    return save_model("llama", tmp_path_factory.mktemp("decoder") / "llama")


@pytest.fixture(scope="module")
def config(decoder):
    """Return a function that makes a config of a run that writes answers; clients have prompts of their own in one layer."""

    def make(path, **changes):
        given = {
            "output": str(path),
            "executor": "local",
            "model": {"path": decoder, "head": {"kind": "generation"}},
            "data": {"task": "questions"},
            "client": {"fuse": 2, "optimizer": {"lr": 0.05}},
            "layers": PERSONAL,
            "evaluation": {"generate": GENERATE, "shard_size": 2},
        }
        return make_tiny(**merged(given, changes))

    return make


@pytest.fixture(scope="module")
def straight(config, tmp_path_factory):
    path = tmp_path_factory.mktemp("straight") / "run"
    return path, fedsim.run(config(path), progress=False)


def rows(path) -> list[dict]:
    return pq.read_table(path / "generations.parquet").to_pylist()


def test_records_are_of_due_rounds_and_of_the_end(straight, config):
    path, summary = straight
    found = rows(path)
    by_place = {(row["round"], row["client"] is None, row["only_at_end"]) for row in found}
    assert by_place == {(0, True, False), (2, True, False), (3, True, False), (3, False, True)}
    last = [row for row in found if row["round"] == 3 and row["client"] is None]
    assert [row["example"] for row in last] == [row["example"] for row in found if row["round"] == 2]
    assert len(last) == 5 and len({row["text"] for row in last}) > 1
    start = [row for row in found if row["round"] == 0]
    assert [row["example"] for row in start] == [row["example"] for row in last]
    assert [row["text"] for row in start] != [row["text"] for row in last]
    own = [row for row in found if row["client"] is not None]
    holdouts = {row["client"]: row["examples"] for row in pq.read_table(path / "personal.parquet").to_pylist()}
    counts = {client: sum(row["client"] == client for row in own) for client in holdouts}
    assert counts == {client: min(2, examples) for client, examples in holdouts.items()}

    data = prepare(config(path)).data.dataset
    for row in found:
        examples = data.validation if row["client"] is None else data.train
        text, question, answer = examples.texts[row["example"]]
        assert row["prompt"] == f"{text} .\nQuestion : {question}\nAnswer :" and row["reference"] == answer
        assert 1 <= row["tokens"] <= 6

    names = ("exact_match", "f1")
    parts = summary["generated"]
    for chosen, generated in ((last, parts), (own, parts["personal"]), (start, parts["start"])):
        expected = score_texts([row["text"] for row in chosen], [row["reference"] for row in chosen], names)
        assert {name: generated[name] for name in names} == expected and generated["examples"] == len(chosen)
    events = [json.loads(line) for line in (path / "metrics.jsonl").read_text().splitlines()]
    assert [event["round"] for event in events if event["event"] == "generated"] == [0, 2, 3]


def test_each_round_that_writes_has_its_text_metrics_everywhere(straight):
    path, summary = straight
    run = fedsim.load_run(path)
    table = {row["round"]: row for row in run.rounds.to_pylist()}
    for event in run.events("generated"):
        for name in ("exact_match", "f1"):
            assert table[event["round"]][f"generated_{name}"] == event[name]
        sent = scalars(table[event["round"]])
        assert sent["generated/generated_f1"] == event["f1"] and "generated/generated_chrf" not in sent
    assert table[1]["generated_f1"] is None and table[3]["generated_f1"] == summary["generated"]["f1"]
    assert "Written responses by round" in run_page(run)
    assert run.plot("generated").png.startswith(b"\x89PNG")
    cell = read_figures(path, "d", "a", 0)
    assert cell.generated == {name: summary["generated"][name] for name in ("exact_match", "f1")}
    assert cell.first_generated["f1"] == summary["generated"]["start"]["f1"]
    (row,) = [value for name, value in final_rows(summary) if name == "responses"]
    assert row.startswith("exact match 0.000 -> 0.000, f1 ")


def test_texts_are_those_of_load_adapter(straight):
    path, _ = straight
    last = [row for row in rows(path) if row["round"] == 3 and row["client"] is None]
    model = fedsim.load_adapter(path)
    prompts = [dict(zip(("text", "question"), row["prompt"].split(" .\nQuestion : "), strict=True)) for row in last]
    for prompt in prompts:
        prompt["question"] = prompt["question"].removesuffix("\nAnswer :")
    texts = [row["text"] for row in last]
    assert model.generate(prompts, max_new_tokens=6) == texts
    assert model.generate([tuple(prompt.values()) for prompt in prompts], max_new_tokens=6, batch_size=2) == texts
    drawn = model.generate(prompts, max_new_tokens=6, do_sample=True, seed=1)
    assert drawn == model.generate(prompts, max_new_tokens=6, do_sample=True, seed=1, batch_size=2) != texts
    assert drawn[:2] == model.generate(prompts[:2], max_new_tokens=6, do_sample=True, seed=1)
    assert drawn != model.generate(prompts, max_new_tokens=6, do_sample=True, seed=2)
    assert model.generate([]) == []


def test_clients_write_with_prompts_of_their_own(straight, config):
    path, _ = straight
    spec = prepare(config(path)).spec
    model, personal = fedsim.load_adapter(path), load_file(path / "prompt" / "personal.safetensors")
    whole = torch.zeros((1, 3, *model.tuned_LX.shape[1:]))
    own = [row for row in rows(path) if row["client"] is not None]
    trained = [row for row in own if row["client"] in personal["clients"]]
    assert trained
    for row in trained:
        place = personal["clients"].tolist().index(row["client"])
        whole[0, [0, 2]] = model.tuned_LX
        whole[0, 1] = torch.from_numpy(personal["personal"][place]).view(model.tuned_LX.shape[1:])
        start = int(spec.train.offsets_N1[row["example"]])
        ids = spec.train.ids_Z[start : start + int(spec.train.response_starts_N[row["example"]])].astype(np.int64)
        decoding = spec.generation.decoding
        (written,) = model.backbone.generate([ids], whole, (0, 1, 2), decoding)
        assert decoded(model.tokenizer, written) == row["text"]


def test_the_same_texts_on_actors(session_ray, straight, config, tmp_path):
    fedsim.run(config(tmp_path / "run", executor="ray", ray={"address": "auto", "actors": 2}), progress=False)
    assert rows(tmp_path / "run") == rows(straight[0])


@pytest.mark.parametrize("rounds", sweep([1, 2], [2]))
def test_a_run_that_was_left_and_goes_on_writes_the_same(straight, config, tmp_path, rounds):
    path = tmp_path / "run"
    with fedsim.Run(config(path), progress=False) as going:
        while next(going).round < rounds:
            pass
    fedsim.run(config(path), resume=True, progress=False)
    assert rows(path) == rows(straight[0])


def test_what_is_written_at_an_early_end_is_gone_when_the_run_goes_on(straight, config, tmp_path):
    path = tmp_path / "run"
    with fedsim.Run(config(path), progress=False) as going:
        next(going)
        going.stop("enough")
        going.finish()
    assert {(row["round"], row["only_at_end"]) for row in rows(path)} == {(0, False), (1, True)}
    fedsim.run(config(path), resume=True, progress=False)
    assert rows(path) == rows(straight[0])


def test_a_finished_run_that_wrote_nothing_writes_at_its_end(straight, config, tmp_path):
    path = tmp_path / "run"
    summary = fedsim.run(config(path, evaluation={"generate": None}), progress=False)
    assert not (path / "generations.parquet").exists() and "generated" not in summary
    again = fedsim.run(config(path), resume=True, progress=False)
    assert again["config_hash"] == summary["config_hash"] == straight[1]["config_hash"]
    expected = [row for row in rows(straight[0]) if row["round"] in (0, 3)]
    assert rows(path) == [{**row, "only_at_end": True} for row in expected]
    assert again["generated"] == straight[1]["generated"]


def test_a_finished_run_writes_anew_with_other_keys_or_says_why_not(config, tmp_path):
    path = tmp_path / "run"

    def go(**keys):
        return fedsim.run(
            config(path, evaluation={"generate": {"every": 0, **keys}}), resume=path.exists(), progress=False
        )

    before = go()
    assert before["generated"]["tokens"] <= 6
    after = go(max_new_tokens=9, metrics=["f1"])
    assert after["generated"]["tokens"] > 6 and "exact_match" not in after["generated"]
    assert after["generated"]["start"]["tokens"] > 6
    assert {(row["round"], row["only_at_end"]) for row in rows(path)} == {(0, True), (3, True)}
    assert [row["generated_f1"] for row in fedsim.load_run(path).rounds.to_pylist()] == [None] * 4
    assert go(max_new_tokens=9, metrics=["f1"]) == after
    with pytest.raises(CheckpointError, match=r"is finished, .* evaluation.generate.every was 0 and is 1; leave it"):
        go(max_new_tokens=9, metrics=["f1"], every=1)


def test_responses_of_earlier_rounds_are_not_mixed_with_others(straight, config, tmp_path):
    path = tmp_path / "run"
    shutil.copytree(straight[0], path)
    held = rows(path)
    with pytest.raises(CheckpointError, match=r"responses after round 2, .*max_new_tokens was 6 and is 9; resume with"):
        fedsim.run(config(path, evaluation={"generate": {"max_new_tokens": 9}}), resume=True, progress=False)
    assert rows(path) == held


F1 = {"every": 1, "examples": 30, "client_examples": None, "metrics": ["f1"]}
LONG = {
    "rounds": 4,
    "client": {"steps": 4},
    "data": {"train_examples": 60},
    "layers": {"choose": "all", "fixed": None, "unselected": None},
    "evaluation": {"generate": F1, "shard_size": 64},
}


def written_f1(path):
    """Return F1 of written responses by round; None where the model did not write."""
    return {row["round"]: row["generated_f1"] for row in fedsim.load_run(path).rounds.to_pylist()}


def test_a_run_ends_where_its_written_responses_reach_the_target_or_get_no_better(config, tmp_path):
    whole, path = tmp_path / "whole", tmp_path / "run"
    fedsim.run(config(whole, **LONG), progress=False)
    course = written_f1(whole)
    first = max(range(1, 4), key=lambda round: (course[round], -round))
    assert course[first] > 0
    aimed = merged(LONG, {"stop": {"metric": "f1", "target": course[first]}})
    summary = fedsim.run(config(path, **aimed), progress=False)
    assert (summary["rounds"], summary["stopped"]["rule"]) == (first, "target")
    assert summary["stopped"]["reason"].startswith("f1 of written responses, ")
    assert written_f1(path) == {round: value for round, value in course.items() if round <= first}
    assert fedsim.run(config(path, **aimed), resume=True, progress=False)["rounds"] == first

    patient = merged(aimed, {"stop": {"target": None, "patience": 1}})
    summary = fedsim.run(config(tmp_path / "patient", **patient), progress=False)
    ends = next((at for at in (2, 3, 4) if max(course[r] for r in range(1, at)) >= course[at]), None)
    assert (summary["rounds"], summary["stopped"] is None) == (ends or 4, ends in (None, 4))

    # Left and gone on with: the best of the rounds before is that of the checkpoint.
    again = tmp_path / "again"
    with fedsim.Run(config(again, **patient), progress=False) as going:
        next(going)
    assert fedsim.run(config(again, **patient), resume=True, progress=False)["stopped"] == summary["stopped"]


@pytest.mark.parametrize(
    ("generate", "said"),
    [
        (
            None,
            "stop.metric=f1 is a metric of what the model writes, but it writes nothing; give evaluation.generate.every",
        ),
        ({"metrics": ["chrf"]}, r"stop.metric=f1 is not among evaluation.generate.metrics=\[chrf\]; add f1 to them"),
        (
            {"every": 0},
            "with evaluation.generate.every=0 it writes after the last one alone; set evaluation.generate.every to 1",
        ),
    ],
)
def test_a_metric_that_is_not_on_record_in_rounds_ends_none(config, generate, said):
    with pytest.raises(ConfigError, match=said):
        config("run", evaluation={"generate": generate}, stop={"metric": "f1", "target": 0.5})


def test_draws_repeat_whatever_shares_their_passes(config, tmp_path):
    sampled = {"every": 0, "do_sample": True, "temperature": 1.3, "top_k": 50, "top_p": 0.9, "client_examples": 0}
    texts = {}
    for name, changes in {
        "one": {},
        "again": {"evaluation": {"shard_size": 1, "batch_size": 1}},
        "other": {"evaluation": {"generate": {"seed": 5}}},
    }.items():
        path = tmp_path / name
        given = merged({"rounds": 1, "evaluation": {"generate": sampled}}, changes)
        fedsim.run(config(path, **given), progress=False)
        texts[name] = [(row["round"], row["example"], row["text"]) for row in rows(path)]
    assert texts["one"] == texts["again"]
    assert [place[:2] for place in texts["one"]] == [place[:2] for place in texts["other"]] != texts["other"]


def test_the_page_shows_texts_beside_those_of_the_data(straight):
    path, _ = straight
    page = run_page(fedsim.load_run(path))
    assert "Responses after round 3" in page and "response of the model" in page
    last = [row for row in rows(path) if row["round"] == 3]
    assert all(row["reference"] in page for row in last if row["client"] is None)
    assert page.count(">of client ") == 4 and "before any training" in page


def test_what_all_prompts_begin_with_stands_once():
    system = "system\nAnswer in one short sentence.\nuser\n"
    row = {"round": 2, "client": None, "reference": "r", "text": "t"}
    made = [{**row, "example": at, "prompt": f"{system}{text}"} for at, text in enumerate(("how ?", "hot ?"))]
    shared, table = text_samples(made, None)
    assert shared.lines == ("All prompts begin with: system Answer in one short sentence. user",)
    assert [cells[1].text for cells in table.rows] == ["how ?", "hot ?"]
    assert shared_beginning(["the soup", "the soap"]) == "" == shared_beginning([system + "a"] * 2)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"model": {"head": {"kind": "classifier"}}, "data": {"task": "reviews"}},
            r"evaluation.generate.* has no use with model.head.kind=classifier; it is for tasks of responses",
        ),
        ({"evaluation": {"generate": {"top_p": 0.5}}}, r"top_p has no use with evaluation.generate.do_sample=false"),
        (
            {"layers": {"unselected": "none"}},
            r"client_examples has no use with layers.unselected=none; all clients have",
        ),
        ({"evaluation": {"generate": {"metrics": ["f1", "f1"]}}}, r"f1 is there twice; name each metric once"),
        ({"partition": {"holdout_fraction": 0.0}}, r"client_examples has no use with partition.holdout_fraction=0"),
    ],
    ids=["classes", "greedy", "global", "metric twice", "no holdout"],
)
def test_what_makes_no_sense_is_refused(config, tmp_path, changes, message):
    with pytest.raises(ConfigError, match=message):
        config(tmp_path / "run", **changes)


def test_prompts_that_do_not_fit_are_one_sentence(straight):
    model = fedsim.load_adapter(straight[0])
    for prompts, message in {
        ("one text",): r"prompt 0 has 1 texts, but task 'questions' takes 2: text, question",
        (("a", "b"), ("a", 5)): r"prompt 1 has 5, which is no text",
    }.items():
        with pytest.raises(ModelError, match=message):
            model.generate(prompts)
    for size in (0, -1, 1.5, None, True):
        with pytest.raises(ConfigError, match=r"batch_size is .*; give a whole number of texts per pass, 1 or more"):
            model.generate([("a", "b")], batch_size=size)
    with pytest.raises(ModelError, match=r"prompt 0 lacks 'question'; task 'questions' has the fields text, question"):
        model.generate([{"text": "a"}])
    with pytest.raises(ModelError, match=r"prompt 0 has 'title'"):
        model.generate([{"text": "a", "question": "b", "title": "c"}])
    with pytest.raises(ModelError, match=r"prompt 0 has \d+ tokens, but the model has positions for \d+"):
        model.generate([("word " * 400, "what ?")])


def test_a_model_of_classes_generates_nothing(decoder, tmp_path):
    fedsim.run(
        make_tiny(output=str(tmp_path / "run"), executor="local", rounds=1, model={"path": decoder}), progress=False
    )
    with pytest.raises(
        ModelError, match="task 'reviews' tells classes apart; generate is for models of tasks of responses"
    ):
        fedsim.load_adapter(tmp_path / "run").generate(["a text"])


def test_end_tokens_are_all_that_the_model_names(decoder, tmp_path):
    folder = save_model("llama", tmp_path / "model")
    named = ModelConfig(path=folder)
    assert end_tokens(named) == (2,)
    (tmp_path / "model" / "generation_config.json").write_text(json.dumps({"eos_token_id": [7, 9]}))
    assert end_tokens(named) == (7, 9)
    (tmp_path / "model" / "generation_config.json").unlink()
    assert end_tokens(named) == (2,)

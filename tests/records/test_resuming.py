"""Resuming compares contents: paths may change, contents and keys may not, and a refusal names what did."""

import json
import re
import shutil
from importlib.resources import files
from pathlib import Path

import pytest
from safetensors.numpy import load_file
from support import make_tiny, merged

import fedsim
from fedsim.core.errors import CheckpointError

TASK = {
    "name": "own", "fields": ["text"], "labels": ["no", "yes"], "label_words": ["terrible", "great"],
    "template": "{text} . It was <mask> .",
}  # fmt: skip
ROWS = [(f"the {what} was {how} number {i}", "yes" if how == "fine" else "no")
        for i in range(30) for what in ("soup", "film") for how in ("fine", "bad")]  # fmt: skip


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """Return a folder with a model, data, and a run of one round in it."""
    folder = tmp_path_factory.mktemp("here")
    shutil.copytree(Path(str(files("fedsim"))) / "assets" / "backbone", folder / "model")
    (folder / "data").mkdir()
    for name, rows in (("train", ROWS), ("validation", ROWS[:20])):
        (folder / "data" / f"{name}.csv").write_text("text,label\n" + "".join(f"{a},{b}\n" for a, b in rows))
    fedsim.run(config(folder), progress=False)
    return folder


def config(folder, output="run", rounds=1, **changes):
    data = {"path": str(folder / "data"), "task": TASK, "train_examples": None, "validation_examples": None}
    return make_tiny(
        rounds=rounds, executor="local", client={"fuse": 2}, output=str(folder / output),
        model={"path": str(folder / "model")} | changes.pop("model", {}), data=data | changes.pop("data", {}), **changes,
    )  # fmt: skip


@pytest.fixture
def moved(place, tmp_path):
    """Return a copy of the folder: what it names is somewhere else now."""
    shutil.copytree(place, tmp_path / "there")
    return tmp_path / "there"


def test_a_run_whose_data_and_model_have_moved_goes_on_to_the_same_numbers(place, moved):
    straight = fedsim.run(config(place, "straight", rounds=2), progress=False)
    for name in ("train", "validation"):
        shutil.move(moved / "data" / f"{name}.csv", moved / "data" / f"my-{name}.csv")
    names = {"train_file": "my-train.csv", "validation_file": "my-validation.csv"}
    resumed = fedsim.run(config(moved, rounds=2, data=names), resume=True, progress=False)
    assert resumed["rounds"] == 2 and resumed["global_metric"] == straight["global_metric"]
    one, other = (load_file(f / "prompt" / "global.safetensors") for f in (place / "straight", moved / "run"))
    assert {name: array.tobytes() for name, array in one.items()} == {
        name: array.tobytes() for name, array in other.items()
    }
    assert resumed["contents"] == straight["contents"] and resumed["config_hash"] == straight["config_hash"]


def test_a_finished_run_whose_data_have_moved_is_finished(moved, capsys):
    before = (moved / "run" / "summary.json").read_bytes()
    fedsim.run(config(moved), resume=True)
    shown = capsys.readouterr().out
    assert "is finished, with the same data and weights; nothing to resume" in shown and "round 1/1" not in shown
    assert (moved / "run" / "summary.json").read_bytes() == before


def change_line(path, line):
    lines = path.read_text().splitlines()
    path.write_text("\n".join([*lines[:-1], line]) + "\n")


@pytest.mark.parametrize("rounds", [1, 2], ids=["finished", "goes on"])
@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        (
            lambda f: change_line(f / "data" / "train.csv", "something else,no"),
            r"other training data than .*\(data.path=.*/data\)",
        ),
        (
            lambda f: change_line(f / "data" / "validation.csv", "something else,no"),
            "made with other validation data than",
        ),
        (
            lambda f: (f / "model" / "config.json").write_text(
                json.dumps(json.loads((f / "model" / "config.json").read_text()) | {"layer_norm_eps": 1e-3})
            ),
            r"made with another config.json of the model than this run would have \(model.path=",
        ),
    ],
    ids=["training data", "validation data", "config.json"],
)
def test_other_contents_at_another_place_are_refused_by_name(moved, change, sentence, rounds):
    change(moved)
    before = (moved / "run" / "metrics.jsonl").read_bytes()
    with pytest.raises(CheckpointError, match=sentence):
        fedsim.run(config(moved, rounds=rounds), resume=True, progress=False)
    assert (moved / "run" / "metrics.jsonl").read_bytes() == before


@pytest.mark.parametrize(
    ("keys", "sentence"),
    [
        ({"holdout": 0.3}, r"data.holdout was null and is 0.3"),
        ({"columns": {"text": "label"}}, r'data.columns was \{\} and is \{"text": "label"\}'),
    ],
    ids=["holdout", "columns"],
)
def test_contents_that_differ_by_a_key_are_refused_by_that_key(place, tmp_path, keys, sentence):
    """Not by the path, which is the same."""
    shutil.copytree(place / "run", tmp_path / "run")
    other = config(place, rounds=2, data=keys).model_copy(update={"output": str(tmp_path / "run")})
    with pytest.raises(CheckpointError, match=sentence) as refused:
        fedsim.run(other, resume=True, progress=False)
    assert "data.path" not in str(refused.value)


def test_other_keys_are_refused_by_name_with_both_values(place):
    other = config(
        place, rounds=2, prompt={"length": 5}, data={"max_length": 64, "task": TASK | {"label_words": ["bad", "good"]}}
    )
    with pytest.raises(CheckpointError) as refused:
        fedsim.run(other, resume=True, progress=False)
    assert (
        'prompt.length was 4 and is 5, data.task.label_words was ["terrible", "great"] and is ["bad", "good"], data.max_length '
        "was 128 and is 64; resume with the same one"
    ) in str(refused.value)


SWITCHED = {
    "model.shared_beginnings": ({}, {"model": {"shared_beginnings": "off"}}),
    "compression.up.kind": ({}, {"compression": {"up": {"kind": "int8"}}}),
    "privacy": ({}, {"privacy": {"noise_multiplier": 0.5, "clip_norm": 1.0}}),
    "world.devices": ({}, {"world": {"devices": {}}}),
}
"""Keys that identities leave out where they have no effect."""


@pytest.mark.parametrize("key", SWITCHED)
def test_what_has_no_effect_is_no_reason_to_leave_it_out_half_way(tmp_path, key):
    """A run that began with privacy does not go on without, nor the reverse."""
    base = {
        "executor": "local", "partition": {"clients": 6, "holdout_fraction": 0}, "sampling": {"clients_per_round": 3},
        "data": {"train_examples": 60, "validation_examples": 40}, "layers": {"choose": "all"},
        "server": {"kind": "fedavg", "weighting": "uniform"}, "client": {"fuse": 2},
    }  # fmt: skip
    for number, (first, then) in enumerate((SWITCHED[key], SWITCHED[key][::-1])):
        own = base | {"output": str(tmp_path / str(number))}
        fedsim.run(make_tiny(**merged(own, {**first, "rounds": 1})), progress=False)
        with pytest.raises(CheckpointError, match=rf"belongs to another configuration: {re.escape(key)} was "):
            fedsim.run(make_tiny(**merged(own, {**then, "rounds": 2})), resume=True, progress=False)
        assert fedsim.run(make_tiny(**merged(own, {**first, "rounds": 2})), resume=True, progress=False)["rounds"] == 2


def test_a_run_of_before_beginnings_were_shared_goes_on_without(moved):
    """Its record lacks the key; by the default it would go on in other last bits."""
    apart = {"model": {"shared_beginnings": "off"}}
    fedsim.run(config(moved, "old", **apart), progress=False)
    recorded = moved / "old" / "config.yaml"
    lines = recorded.read_text().splitlines(keepends=True)
    recorded.write_text("".join(line for line in lines if "shared_beginnings" not in line))
    resumed = fedsim.run(config(moved, "old", rounds=2), resume=True, progress=False)
    straight = fedsim.run(config(moved, "apart", rounds=2, **apart), progress=False)
    assert resumed["config_hash"] == straight["config_hash"]


def test_runs_on_different_data_do_not_look_the_same(place, tmp_path):
    shutil.copytree(place / "data", tmp_path / "data")
    change_line(tmp_path / "data" / "train.csv", "something else,no")
    other = config(place, "other", data={"path": str(tmp_path / "data")})
    one = json.loads((place / "run" / "summary.json").read_text())
    two = fedsim.run(other.model_copy(update={"output": str(tmp_path / "run")}), progress=False)
    assert one["config_hash"] == two["config_hash"]
    differing = {name for name in one["contents"] if one["contents"][name] != two["contents"][name]}
    assert differing >= {"training_data"} and "weights" not in differing and "validation_data" not in differing

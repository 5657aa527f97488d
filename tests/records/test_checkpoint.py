import dataclasses

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fedsim.core.errors import CheckpointError
from fedsim.core.messages import ClientState
from fedsim.records.checkpoint import Checkpoint, load_latest, newest_round, save_checkpoint


def checkpoint(round=3, clients=()):
    rng = np.random.default_rng(round)
    server = {"vector_F": rng.normal(size=7), "round": np.array(round)}
    return Checkpoint(
        round, (1, 3), {"seed": 1}, {"weights": "ab"}, server, tuple(clients), {"client_steps": round, "seconds": [0.5]}
    )


def equal(a, b):
    if dataclasses.is_dataclass(a):
        return type(a) is type(b) and all(equal(getattr(a, f.name), getattr(b, f.name)) for f in dataclasses.fields(a))
    if isinstance(a, np.ndarray):
        return isinstance(b, np.ndarray) and a.dtype == b.dtype and np.array_equal(a, b)
    if isinstance(a, dict):
        return a.keys() == b.keys() and all(equal(a[key], b[key]) for key in a)
    if isinstance(a, tuple | list):
        return len(a) == len(b) and all(map(equal, a, b))
    return a == b


arrays = st.none() | st.lists(st.floats(width=32, allow_nan=False), min_size=4, max_size=4).map(
    lambda values: np.array(values, np.float32)
)


@settings(max_examples=25)
@given(st.lists(st.tuples(st.integers(0, 99), arrays, arrays, arrays), unique_by=lambda row: row[0], max_size=5))
def test_a_checkpoint_comes_back_to_the_bit(tmp_path_factory, rows):
    clients = [
        ClientState(client, client, 7, {k: v for k, v in zip("abc", kept, strict=True) if v is not None})
        for client, *kept in sorted(rows, key=lambda row: row[0])
    ]
    folder = tmp_path_factory.mktemp("checkpoints")
    save_checkpoint(folder, checkpoint(clients=clients), keep=2)
    loaded, skipped = load_latest(folder)
    assert skipped == []
    assert equal(loaded, checkpoint(clients=clients))


def test_only_the_newest_are_kept(tmp_path):
    for round in range(1, 6):
        save_checkpoint(tmp_path, checkpoint(round), keep=2)
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        "round-000004.safetensors", "round-000004.sha256", "round-000005.safetensors", "round-000005.sha256",
    ]  # fmt: skip


@pytest.mark.parametrize("damage", ["truncate", "flip", "no checksum", "empty"])
def test_a_damaged_checkpoint_is_passed_over_and_the_older_one_serves(tmp_path, damage):
    save_checkpoint(tmp_path, checkpoint(1), keep=2)
    newest = save_checkpoint(tmp_path, checkpoint(2), keep=2)
    data = newest.read_bytes()
    if damage == "truncate":
        newest.write_bytes(data[:-5])
    elif damage == "flip":
        newest.write_bytes(data[:-5] + bytes([data[-5] ^ 1]) + data[-4:])
    elif damage == "empty":
        newest.write_bytes(b"")
    else:
        newest.with_suffix(".sha256").unlink()
    loaded, skipped = load_latest(tmp_path)
    assert loaded.round == 1
    assert len(skipped) == 1 and newest.name in skipped[0]


def test_a_torn_write_leaves_no_checkpoint_behind(tmp_path):
    (tmp_path / ".round-000001.safetensors.99.tmp").write_bytes(b"half")
    assert load_latest(tmp_path) == (None, [])


def test_if_all_are_damaged_it_is_an_error_and_not_a_new_start(tmp_path):
    save_checkpoint(tmp_path, checkpoint(1), keep=2).write_bytes(b"x")
    with pytest.raises(CheckpointError, match=r"no checkpoint in .* can be used .*is damaged"):
        load_latest(tmp_path)


def test_a_checkpoint_that_cannot_be_written_is_one_sentence(tmp_path):
    (tmp_path / "round-000003.sha256").mkdir()
    with pytest.raises(CheckpointError, match=r"round-000003.safetensors cannot be written: .*continue with --resume"):
        save_checkpoint(tmp_path, checkpoint(3), keep=2)


def test_a_checkpoint_of_an_earlier_version_is_refused_and_not_passed_over(tmp_path, monkeypatch):
    save_checkpoint(tmp_path, checkpoint(3), keep=2)
    monkeypatch.setattr("fedsim.records.checkpoint._FORMAT", 1)
    save_checkpoint(tmp_path, checkpoint(4), keep=2)
    monkeypatch.undo()
    with pytest.raises(
        CheckpointError, match=r"round-000004.* was written by an earlier version of fedsim.*another output"
    ):
        load_latest(tmp_path)


def test_the_newest_whole_checkpoint_is_known_by_names_alone(tmp_path):
    assert newest_round(tmp_path) is None
    save_checkpoint(tmp_path, checkpoint(3), keep=2)
    save_checkpoint(tmp_path, checkpoint(4), keep=2).with_suffix(".sha256").unlink()
    assert newest_round(tmp_path) == 3

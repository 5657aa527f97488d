"""Buffered rounds in whole runs here: when they are synchronous rounds, and that interrupts and losses change nothing.

On actors: tests/faults/test_buffered_on_actors.py. The schedule: tests/world/test_buffered_schedule.py.
"""

import json
import signal
from functools import cache

import numpy as np
import pyarrow.parquet as pq
import pytest
from support import make_tiny, on_line
from test_recovery import Loss

import clients.training.group
import fedsim
from benchmarks.disturbed import run as disturbed
from benchmarks.faulty import Fault
from fedsim.executors.local import LocalExecutor
from fedsim.simulation.interrupt import RunInterrupted
from fedsim.simulation.preparation import prepare

# fuse is given: a trial could settle it differently in two runs, and so change last bits.
BASE = {"executor": "local", "tracking": {"plots": False}, "client": {"fuse": 2}}
STALE = {
    **BASE,
    "rounds": 8,
    "server": {"kind": "fedadam"},
    "client": {"fuse": 2, "optimizer": {"moments": "keep"}},
    "layers": {"unselected": "local"},
    "sampling": {"delay": {"seconds_per_example": 1.0, "device_spread": 1.5}},
    "buffer": {"size": 2, "concurrency": 6},
}
"""Slow and fast clients, which keep moments and personal prompts."""
TOGETHER = {"buffer": {"size": 5, "concurrency": 5}}


def run(path, **changes):
    """Return the bytes of the prompts and the summary of a run."""
    summary = fedsim.run(make_tiny(output=str(path), **changes), progress=False)
    return prompts(path), summary


def prompts(path):
    return {file.name: file.read_bytes() for file in sorted((path / "prompt").glob("*.safetensors"))}


def figures(path):
    rows = pq.read_table(path / "rounds.parquet").to_pylist()
    return [{key: value for key, value in row.items() if key in FIGURES} for row in rows]


FIGURES = (
    "round", "global_metric", "global_loss", "train_loss_last", "clients_ok", "bytes_up", "seconds_simulated", "clock_seconds",
    "staleness_mean", "staleness_max",
)  # fmt: skip


@pytest.fixture(scope="module")
def stale(tmp_path_factory):
    folder = tmp_path_factory.mktemp("stale") / "run"
    return folder, *run(folder, **STALE)


@pytest.mark.parametrize("kind", ["fedavg", "fedavgm", "fedadam", "fedprox"])
def test_equal_devices_that_fill_the_buffer_together_make_synchronous_rounds(tmp_path, kind):
    changes = {**BASE, "rounds": 2, "server": {"kind": kind}}
    synchronous, expected = run(tmp_path / "synchronous", **changes)
    buffered, summary = run(tmp_path / "buffered", **changes, **TOGETHER)
    assert buffered == synchronous
    for key in ("global_metric", "client_steps", "bytes_up", "bytes_down"):
        assert summary[key] == expected[key]


def test_slow_clients_are_stale_and_it_is_on_record(stale):
    folder, _, summary = stale
    rows, clients = (pq.read_table(folder / f"{name}.parquet").to_pylist() for name in ("rounds", "clients"))
    assert len(clients) == 16 == summary["client_updates"] and len({c["client"] for c in clients}) > 6
    for row in rows[1:]:
        own = [client for client in clients if client["round"] == row["round"]]
        assert [c["staleness"] for c in own] == [row["round"] - 1 - c["version"] for c in own]
        assert row["staleness_mean"] == np.mean([c["staleness"] for c in own])
        assert row["staleness_max"] == max(c["staleness"] for c in own)
        assert row["clock_seconds"] == max(c["arrived_seconds"] for c in own)
    assert max(row["staleness_max"] for row in rows[1:]) >= 2
    assert sum(row["seconds_simulated"] for row in rows[1:]) == pytest.approx(rows[-1]["clock_seconds"])


def test_clients_on_slow_devices_are_the_stale_ones(tmp_path):
    """A quarter of the devices computes ten times slower."""
    slow = {"slow_share": 0.25, "slow_factor": 10.0, "tokens_per_second": 500.0, "availability": {"kind": "always"}}
    fast = {"downlink_megabits": 40.0, "uplink_megabits": 10.0, "latency_seconds": 0.0}
    small = {"data": {"train_examples": 120}, "evaluation": {"every": 30}}
    changes = {**BASE, **small, "rounds": 30, "server": {"kind": "fedavg"}, "buffer": {"size": 2, "concurrency": 6}}
    run(tmp_path / "run", **changes, world={"devices": {**slow, **fast}})
    rows = pq.read_table(tmp_path / "run" / "clients.parquet").to_pylist()
    speeds = {row["client"]: row["num_tokens"] / (row["arrived_seconds"] - row["began_seconds"]) for row in rows}
    stale = {row["client"] for row in rows if row["staleness"] >= 4}
    assert stale and max(speeds[client] for client in stale) < 0.2 * max(speeds.values())


def test_the_exponent_matters_only_where_clients_are_stale(stale, tmp_path):
    prompt, _ = run(tmp_path / "full", **{**STALE, "buffer": {**STALE["buffer"], "staleness_exponent": 0.0}})
    assert prompt["global.safetensors"] != stale[1]["global.safetensors"]


def test_an_interrupted_run_goes_on_to_the_same_bytes(stale, tmp_path):
    """Whoever was under way trains again, from the version that it began from."""
    folder = tmp_path / "run"
    with pytest.raises(RunInterrupted):
        stop = on_line("round 4/8", lambda: signal.raise_signal(signal.SIGTERM))
        fedsim.run(make_tiny(output=str(folder), **STALE), console=stop)
    summary = fedsim.run(make_tiny(output=str(folder), **STALE), resume=True, progress=False)
    assert prompts(folder) == stale[1] and figures(folder) == figures(stale[0])
    assert summary["client_updates"] == stale[2]["client_updates"]


def test_a_finished_run_goes_on_to_more_rounds(stale, tmp_path):
    folder = tmp_path / "run"
    run(folder, **{**STALE, "rounds": 5})
    fedsim.run(make_tiny(output=str(folder), **STALE), resume=True, progress=False)
    assert prompts(folder) == stale[1]


@pytest.mark.parametrize("saved_too", [False, True])
def test_lost_state_changes_nothing(stale, monkeypatch, tmp_path, saved_too):
    """With the state after the last step at hand, and from the last checkpoint."""
    Loss(monkeypatch, "apply", {5}, also_saved_state=saved_too)
    again, _ = run(tmp_path / "run", **STALE, checkpoint={"every": 3})
    assert again == stale[1]
    events = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    assert [event["round"] for event in events if event["event"] == "recovered"] == [3 if saved_too else 4]


def test_a_buffer_of_one_trains_all_that_have_begun_in_one_call(monkeypatch, tmp_path):
    calls, train = [], LocalExecutor.train

    def counted(self, groups, *arguments, **named):
        calls.append([client for group in groups for client in group.clients])
        return train(self, groups, *arguments, **named)

    monkeypatch.setattr(LocalExecutor, "train", counted)
    _, summary = run(
        tmp_path / "run", **BASE, rounds=12, server={"kind": "fedavg"}, buffer={"size": 1, "concurrency": 4}
    )
    assert [len(call) for call in calls if call] == [4, 4, 4] and len(calls) == 12
    assert summary["client_updates"] == 12


@cache
def prepared():
    return prepare(make_tiny(**STALE))


def test_a_client_that_fails_is_missing_from_its_step_alone(monkeypatch, stale, tmp_path):
    """Its arrival counts: the step takes in one client less, and the schedule stays as it was."""
    monkeypatch.setattr(clients.training.group, "train_clients", clients.training.group.train_clients)
    rows = pq.read_table(stale[0] / "clients.parquet").to_pylist()
    late = next(row for row in rows if row["staleness"] >= 2)
    fault = Fault(
        "raise", late["client"], tmp_path / "strikes", times=2, round=late["version"]
    )  # in its group, and alone
    config = make_tiny(**{**STALE, "client": {**STALE["client"], "on_failure": "drop"}})
    outcome = disturbed(config, prepared(), tmp_path / "run", fault)
    assert (outcome.error, outcome.ok, outcome.failed) == (None, 15, 1)
    assert outcome.said(f"client {late['client']} failed in round {late['round']}")
    failed = pq.read_table(tmp_path / "run" / "clients.parquet").to_pylist()
    assert [(r["round"], r["client"], r["version"]) for r in failed] == [
        (r["round"], r["client"], r["version"]) for r in rows
    ]

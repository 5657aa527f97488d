"""A client whose work fails for real: reported with its traceback, dropped or raised, never averaged in."""

import dataclasses
import json

import numpy as np
import pytest

from clients.worker import ClientWorker
from fedsim.core.errors import ClientError
from fedsim.core.messages import ClientFailure, ClientReport, ClientState, GlobalState, WorkGroup
from fedsim.display.progress import Progress
from fedsim.executors.local import LocalExecutor
from fedsim.records.run_folder import RunFolder
from fedsim.simulation.client_failures import Failures
from fedsim.simulation.context import RunContext
from fedsim.simulation.loop import run_through
from fedsim.simulation.preparation import prepare


def poisoned(prepared, client, held_out=False):
    """Return ``prepared`` with a token that the backbone does not know in all that a client trains on, or holds out."""
    table, shards = prepared.spec.train, prepared.spec.shards
    ids = table.ids_Z.copy()
    for example in shards.holdout(client) if held_out else shards.train(client):
        ids[table.offsets_N1[example]] = 10**6
    train = dataclasses.replace(table, ids_Z=ids)
    return dataclasses.replace(prepared, spec=dataclasses.replace(prepared.spec, train=train))


def simulate(config, prepared, path):
    executor = LocalExecutor(lambda: None)
    with RunFolder.create(path) as folder, Progress(config.rounds, "accuracy", quiet=True) as progress:
        try:
            return run_through(RunContext(config, prepared, executor, folder, progress))
        finally:
            executor.close()


def config_with(make, layers=None, **client):
    layers = layers or {"choose": "all"}
    return make(executor="local", group_size=4, sampling={"clients_per_round": 12}, layers=layers, client=client)


together = pytest.mark.parametrize("fuse", ["off", 12])
"""Clients one by one, or all of a group in shared passes."""


@together
def test_raise_stops_the_run_with_client_round_and_the_original_traceback(tiny_config, tmp_path, fuse):
    config = config_with(tiny_config, on_failure="raise", fuse=fuse)
    with pytest.raises(ClientError) as caught:
        simulate(config, poisoned(prepare(config), 7), tmp_path / "run")
    assert str(caught.value).startswith("client 7 failed in round 1 on")
    assert "IndexError" in str(caught.value)
    assert "clients/training/local_training.py" in str(caught.value)


@together
@pytest.mark.parametrize(
    "layers", [{"choose": "all"}, {"choose": "fixed", "fixed": [1, 2]}], ids=["all", "frozen layers"]
)
def test_drop_goes_on_without_the_client_and_records_it(tiny_config, tmp_path, capsys, fuse, layers):
    config = config_with(tiny_config, layers, on_failure="drop", fuse=fuse)
    result = simulate(config, poisoned(prepare(config), 7), tmp_path / "run")
    assert result.totals.client_updates == 3 * 11
    assert result.totals.client_failures == 3
    events = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    failures = [event for event in events if event["event"] == "client_failure"]
    assert [(event["client"], event["round"], event["kind"]) for event in failures] == [
        (7, r, "error") for r in (1, 2, 3)
    ]
    assert all("IndexError" in event["message"] for event in failures)
    assert "traceback" not in failures[2]  # the same one once
    assert "clients/training/group.py" in failures[0]["traceback"]
    assert capsys.readouterr().out.count("client 7 failed in round") == 3


@pytest.mark.parametrize("layers", [(0, 1), (1, 2)])
@pytest.mark.parametrize("fuse", [1, 3])
def test_a_dropped_client_counts_for_nothing(tiny_config, tmp_path, fuse, layers):
    """Dropping client 7 from a full cohort gives what a cohort without it gives, whatever it shared passes with."""
    config = config_with(tiny_config, on_failure="drop")
    prepared = prepare(config)
    worker = ClientWorker(poisoned(prepared, 7).spec)
    healthy = ClientWorker(prepared.spec)
    state = GlobalState(0, layers, np.zeros(worker.info().full.exchanged(layers).size, np.float32))
    group = WorkGroup(0, 0, (6, 7, 8), fuse=fuse)
    _, with_failure, *states = worker.train(group, state, *map(ClientState, (6, 7, 8))).pack()
    _, without, *_ = healthy.train(WorkGroup(0, 0, (6, 8)), state, *map(ClientState, (6, 8))).pack()
    assert with_failure.clients == without.clients == (6, 8)
    np.testing.assert_array_equal(with_failure.sums["vector"], without.sums["vector"])
    assert with_failure.weight_sum == without.weight_sum
    assert states[1] == ClientState(7)


def test_many_failures_neither_flood_the_screen_nor_the_disk():
    events, notes = [], []
    failures = Failures("drop", lambda name, **record: events.append(record), notes.append)
    for round in range(1, 51):
        traceback = f"Traceback: a long one of round {round // 2}"
        broken = ClientFailure("error", "ValueError: it broke", traceback)
        reports = [ClientReport(client, round - 1, 10, failure=broken) for client in range(1000)]
        failures.of_round(round, [*reports, ClientReport(1000, round - 1, 10)])
    assert len(notes) == 50 * 6 and notes[5].startswith("warning: 995 more clients failed in round 1; metrics.jsonl")
    assert len(events) == 50 * 1000 and sum("traceback" in event for event in events) == 26
    failures.of_evaluation(3, dict.fromkeys(range(7), broken))
    assert notes[-1].startswith("warning: 2 more clients failed in the evaluation after round 3")


@together
def test_a_round_without_any_usable_client_is_an_error(tiny_config, tmp_path, fuse):
    config = config_with(tiny_config, on_failure="drop", fuse=fuse, optimizer={"lr": 1e38, "clip_norm": None})
    with pytest.raises(ClientError, match="round 1: none of 12 clients gave a usable result"):
        simulate(config, prepare(config), tmp_path / "run")


@pytest.mark.parametrize("fuse", [1, 2])
def test_parameters_that_are_not_finite_are_rejected_and_the_client_keeps_its_state(tiny_config, fuse):
    config = config_with(tiny_config)
    worker = ClientWorker(prepare(config).spec)
    size = worker.info().full.exchanged((0, 1)).size
    state = GlobalState(0, (0, 1), np.zeros(size, np.float32), {"control": np.zeros(size, np.float32)})
    sick = ClientState(3, arrays={"control": np.full(size, np.nan, np.float32)})
    reports, update, *states = worker.train(WorkGroup(0, 0, (2, 3), fuse=fuse), state, ClientState(2), sick).pack()
    assert [report.failure and report.failure.kind for report in reports] == [None, "non_finite"]
    assert update.clients == (2,)
    assert np.isfinite(update.sums["vector"]).all() and np.isfinite(update.sums["control"]).all()
    assert states[1] is sick


def test_a_client_that_cannot_be_evaluated_is_named_or_left_out(tiny_config, tmp_path, capsys):
    config = config_with(tiny_config, on_failure="drop")
    prepared = prepare(config)
    whole = simulate(config, prepared, tmp_path / "whole")
    part = simulate(config, poisoned(prepared, 7, held_out=True), tmp_path / "part")
    missing = len(prepared.spec.shards.holdout(7))
    counts = [result.final.personalised.num_examples for result in (part, whole)]
    assert counts[0] == counts[1] - missing < counts[1] and set(whole.final.clients) - set(part.final.clients) == {7}
    assert "client 7 failed in its evaluation after round 3" in capsys.readouterr().out
    config = config_with(tiny_config, on_failure="raise")
    with pytest.raises(
        ClientError, match=r"client 7 failed in its evaluation after round 3: IndexError(.|\n)*clients/"
    ):
        simulate(config, poisoned(prepared, 7, held_out=True), tmp_path / "raise")


def test_a_client_that_cannot_score_the_layers_is_named_or_left_out(tiny_config, tmp_path, capsys):
    layers = {"choose": "score", "score_batch_size": 8}
    config = config_with(tiny_config, layers, on_failure="drop")
    result = simulate(config, poisoned(prepare(config), 7), tmp_path / "part")
    assert np.isfinite(result.choice.scores_L).all()
    assert "client 7 failed to score the layers" in capsys.readouterr().out
    config = config_with(tiny_config, layers, on_failure="raise")
    with pytest.raises(ClientError, match="client 7 failed to score the layers: IndexError"):
        simulate(config, poisoned(prepare(config), 7), tmp_path / "raise")

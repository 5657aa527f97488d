"""The comparison with other simulators, without them: the peers' loop does fedsim's work, and failures are reported."""

import json
import math
import sys
from pathlib import Path

import numpy as np
import pytest
from rich.console import Console

from benchmarks.measure import present
from benchmarks.peers.__main__ import chosen, measure
from benchmarks.peers.cases import Case
from benchmarks.peers.comparison import Comparison, relative_difference
from benchmarks.peers.files import Events, Plan
from benchmarks.peers.sides import Outcome, SideError, fedsim_tuning, watch
from benchmarks.peers.work import PlainClients, Work, plain_clients
from benchmarks.products import FLOAT32, override
from clients.evaluation import evaluate
from clients.training.local_job import LocalJob, Parts
from clients.training.local_training import train_clients
from clients.worker import ClientWorker
from fedsim.core.errors import ConfigError
from fedsim.core.layout import VectorLayout
from fedsim.simulation.preparation import prepare

SMALL = Case(
    "small",
    "configs/quickstart.yaml",
    (
        "executor=local",
        "model.head.kind=classifier",
        "layers.choose=all",
        "data.train_examples=240",
        "data.validation_examples=50",
        "partition.clients=12",
        "sampling.clients_per_round=4",
        "prompt.length=4",
        "client.optimizer.lr=0.01",
        *override(FLOAT32),
    ),
)
ROUNDS = 2


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    """The folder that the peers would read."""
    folder = tmp_path_factory.mktemp("work")
    work, plan = Work.of(SMALL.read(), ROUNDS)
    work.save(folder)
    plan.save(folder)
    return folder


def test_the_peers_loop_trains_a_client_as_fedsim_does(folder):
    plain, plan = plain_clients(str(folder)), Plan.load(folder)
    spec = prepare(SMALL.read()).spec
    worker = ClientWorker(spec)
    full = VectorLayout.full(worker._backbone.geometry, worker._backbone.head_shapes)
    for client in plan.cohorts_Rk[0][:2].tolist():
        trained_F, examples = plain.train(0, client, plan.start_F)
        (expected,) = train_clients(
            worker._backbone, spec.train, [LocalJob(client, spec.shards.train(client), plan.start_F)],
            Parts.of(full, full.layers, False), spec.training.client, seed=spec.training.seed, round=0,
        )  # fmt: skip
        assert examples == len(spec.shards.train(client))
        assert np.abs(trained_F - plan.start_F).max() > 0.01
        assert relative_difference(trained_F, expected.vector_A) < 1e-5


def test_the_peers_evaluation_in_parts_counts_what_fedsim_counts(folder):
    plain, plan = plain_clients(str(folder)), Plan.load(folder)
    work = plain.work
    parts = [plain.evaluate(plan.start_F, part, 2) for part in range(2)]
    (expected,) = evaluate(
        plain._backbone, work.validation, [np.arange(len(work.validation))], plain._layout, plan.start_F[None],
        work.num_classes, 16,
    )  # fmt: skip
    assert sum(part.examples for part in parts) == len(work.validation)
    assert sum(part.correct for part in parts) == np.trace(expected.confusion_CC)
    assert sum(part.loss_sum for part in parts) == pytest.approx(expected.loss_sum, rel=1e-5)


@pytest.mark.wide(alone="6 s: the loop is held to fedsim one client at a time always")
def test_a_whole_run_of_fedsim_ends_where_the_peers_loop_ends(folder, tmp_path):
    outcome = fedsim_tuning(SMALL, (), ROUNDS)(tmp_path)
    plain, plan = PlainClients(Work.load(folder)), Plan.load(folder)
    vector_F = plan.start_F
    for round, cohort in enumerate(plan.cohorts_Rk.tolist()):
        results = [plain.train(round, client, vector_F) for client in cohort]
        vectors, weights = zip(*results, strict=True)
        vector_F = np.average(vectors, axis=0, weights=weights).astype(np.float32)
    counts = plain.evaluate(vector_F, 0, 1)
    assert relative_difference(vector_F, outcome.vector_F) < 1e-5
    assert outcome.loss == pytest.approx(counts.loss_sum / counts.examples, rel=1e-5)
    assert 0 < outcome.round_seconds < outcome.first_round_seconds
    assert outcome.peak_memory_bytes > 50e6


def outcome(seconds: float, vector: float = 1.0) -> Outcome:
    return Outcome(10 * seconds, seconds, np.full(3, vector), vector, 1000)


def test_rows_hold_ratios_and_a_side_that_did_other_work_is_named(tmp_path):
    seconds = {"fedsim": iter([2.0, 4.0, 2.0]), "peer": iter([6.0, 8.0, 8.0]), "other": iter([1.0, 1.0, 1.0])}
    vector = {"fedsim": 1.0, "peer": 1.0 + 1e-6, "other": 1.01}
    order: list[str] = []

    def side(name):
        def run(folder):
            assert not any(folder.iterdir())
            order.append(name)
            return outcome(next(seconds[name]), vector[name])

        return run

    comparison = Comparison("case")
    comparison.run({name: side(name) for name in seconds}, 3, Console(quiet=True))
    assert order == ["fedsim", "peer", "other", "peer", "other", "fedsim", "other", "fedsim", "peer"]
    row = comparison.row("round", "s", lambda o: o.round_seconds, "peer", "fedsim")
    assert (row.value, row.ratio, row.ratio_to, row.runs) == (8.0, 3.0, "fedsim", 3)
    differences = comparison.difference_rows(["peer", "other"], "fedsim")
    assert [row.value for row in differences] == pytest.approx([1e-6, 1e-6, 0.01, 0.01])
    assert comparison.ran(["fedsim", "peer", "other"]) == ["fedsim", "peer"]
    rows = [row, *differences, *comparison.failure_rows()]
    present(rows, tmp_path / "rows.jsonl")
    written = [json.loads(line) for line in (tmp_path / "rows.jsonl").read_text().splitlines()]
    assert list(written[0]) == ["benchmark", "case", "value", "unit", "ratio", "ratio_to", "runs", "ratio_quartiles"]
    assert written[-1]["value"] is None and "final vector of other differs" in written[-1]["case"]


def test_a_final_vector_that_is_no_number_is_not_the_same_work():
    comparison = Comparison("case")
    comparison.run({"fedsim": lambda _: outcome(1.0), "peer": lambda _: outcome(1.0, math.nan)}, 1, Console(quiet=True))
    comparison.difference_rows(["peer"], "fedsim")
    assert "peer" in comparison.failures


def test_a_side_that_fails_twice_is_not_run_again_and_says_why():
    runs: list[int] = []

    def broken(folder):
        runs.append(1)
        watch("peer", [[sys.executable, "-c", "raise ValueError('no such model')"]], folder)

    comparison = Comparison("case")
    comparison.run({"fedsim": lambda _: outcome(1.0), "peer": broken}, 3, Console(quiet=True))
    assert len(runs) == 2 and len(comparison.outcomes["fedsim"]) == 3
    (row,) = comparison.failure_rows()
    assert row.case == "case: peer stopped with exit status 1: ValueError: no such model"
    assert row.value is None


def test_a_side_that_breaks_off_once_is_run_again():
    runs: list[int] = []

    def broken(folder):
        runs.append(1)
        if len(runs) == 2:
            raise SideError("a crash now and then")
        return outcome(1.0)

    comparison = Comparison("case")
    comparison.run({"peer": broken}, 3, Console(quiet=True))
    assert len(runs) == 4 and len(comparison.outcomes["peer"]) == 3 and not comparison.failures


def test_when_one_process_of_a_side_fails_the_others_are_ended(tmp_path):
    import psutil

    waits = f"open({str(tmp_path / 'pid')!r}, 'w').write(str(__import__('os').getpid())); __import__('time').sleep(600)"
    fails = (
        "import os, sys, time\n"
        f"while not os.path.exists({str(tmp_path / 'pid')!r}): time.sleep(0.05)\n"
        "sys.exit('error: lost the other one')"
    )
    with pytest.raises(SideError, match="exit status 1: error: lost the other one"):
        watch("peer", [[sys.executable, "-c", waits], [sys.executable, "-c", fails]], tmp_path, [{}, {}])
    assert not psutil.pid_exists(int((tmp_path / "pid").read_text()))


def test_what_a_side_leaves_is_read_back(tmp_path):
    events = Events(tmp_path)
    events.round(1, loss=0.5)
    events.round(2, loss=0.25)
    events.end(np.arange(3.0))
    rounds, vector_F = events.read()
    assert [(event["round"], event["loss"]) for event in rounds] == [(1, 0.5), (2, 0.25)]
    assert rounds[0]["time"] <= rounds[1]["time"] and vector_F.tolist() == [0.0, 1.0, 2.0]


def test_mistakes_of_the_user_are_one_sentence():
    with pytest.raises(ConfigError, match="--work knows W1, W2, not 'W9'"):
        chosen("--work", "W1,W9", {"W1": 1, "W2": 1})
    with pytest.raises(ConfigError, match="W1 needs --data FOLDER"):
        measure(["W1"], None, {}, 1, 1)

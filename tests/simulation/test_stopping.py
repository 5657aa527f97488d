"""Stop rules end a run at the right round; the best prompt is that of a run stopped at the best round."""

import json
import shutil
import signal
from itertools import product

import numpy as np
import pyarrow.parquet as pq
import pytest
from safetensors import safe_open
from safetensors.numpy import load_file
from support import SHARDS, UPPER, make_tiny, merged, on_line, sweep

import fedsim
from fedsim.core.errors import ConfigError
from fedsim.executors.base import StateLost
from fedsim.executors.local import LocalServer
from fedsim.simulation.interrupt import RunInterrupted
from fedsim.simulation.stopping import Stop, Stopped

ROUNDS = 5
WORSE = {"server": {"kind": "fedavg", "lr": 100.0}}
"""The server takes steps so long that the best round is not the last."""


def tiny(path, **changes):
    # fuse is given: a trial could settle it differently in two runs, and so change last bits.
    keys = {"output": str(path), "executor": "local", "rounds": ROUNDS, "client": {"fuse": 3}}
    return make_tiny(**merged(merged(merged(keys, UPPER), merged(SHARDS, WORSE)), changes))


def rows(path):
    return [
        {k: v for k, v in row.items() if not k.startswith("seconds")}
        for row in pq.read_table(path / "rounds.parquet").to_pylist()
    ]


def best(path):
    """Return the arrays of the best prompt, and the round that it says it is of."""
    file = path / "prompt" / "best.safetensors"
    with safe_open(file, framework="numpy") as opened:
        return load_file(file), json.loads(opened.metadata()["fedsim"])["round"]


def same(arrays, others):
    return arrays.keys() == others.keys() and all(np.array_equal(arrays[name], others[name]) for name in arrays)


@pytest.fixture(scope="module", params=["validation", "holdout"])
def select_on(request):
    return {"evaluation": {"select_on": request.param}}


@pytest.fixture(scope="module")
def straight(select_on, tmp_path_factory):
    path = tmp_path_factory.mktemp("straight") / "run"
    return path, fedsim.run(tiny(path, **select_on), progress=False)


def judged(path, select_on):
    column = {"validation": "global_metric", "holdout": "holdout_metric"}[select_on["evaluation"]["select_on"]]
    return [row[column] for row in rows(path)[1:]]


def test_the_best_prompt_is_that_of_a_run_of_so_many_rounds(select_on, straight, tmp_path):
    path, summary = straight
    metrics = judged(path, select_on)
    arrays, round = best(path)
    assert round == summary["selected_round"] == 1 + metrics.index(max(metrics)) < ROUNDS
    assert summary["selected_metric"] == max(metrics)
    assert summary["selected_global_metric"] == rows(path)[round]["global_metric"]
    short = tmp_path / "short"
    fedsim.run(tiny(short, rounds=round, **select_on), progress=False)
    assert same(arrays, load_file(short / "prompt" / "global.safetensors"))
    assert same(best(short)[0], arrays)
    assert fedsim.load_prompt(path / "prompt" / "best.safetensors").layers == (2, 3)


def test_the_best_prompt_outlives_interrupts_and_losses(select_on, straight, monkeypatch, tmp_path):
    (path, expected), interrupted, lost = straight, tmp_path / "interrupted", tmp_path / "lost"
    with pytest.raises(RunInterrupted):
        stop = on_line("round 3/5", lambda: signal.raise_signal(signal.SIGTERM))
        fedsim.run(tiny(interrupted, **select_on), console=stop)
    shutil.rmtree(interrupted / "prompt")  # what a checkpoint holds is enough
    summary = fedsim.run(tiny(interrupted, **select_on), resume=True, progress=False)

    apply, arrays, calls = LocalServer.apply, LocalServer.arrays, []

    def losing(self, *arguments):
        calls.append("apply")
        if calls.count("apply") == 4:
            calls.append("gone")
            raise StateLost("lost")
        return apply(self, *arguments)

    def gone(self):
        if "gone" in calls:
            calls.remove("gone")
            raise StateLost("lost")
        return arrays(self)

    monkeypatch.setattr(LocalServer, "apply", losing)
    monkeypatch.setattr(LocalServer, "arrays", gone)
    monkeypatch.setattr(fedsim.executors.local.LocalExecutor, "recover", lambda executor: None)
    again = fedsim.run(tiny(lost, checkpoint={"every": 2}, **select_on), progress=False)
    for folder, figures in ((interrupted, summary), (lost, again)):
        assert same(best(folder)[0], best(path)[0]) and best(folder)[1] == best(path)[1]
        for key in ("selected_round", "selected_metric", "selected_global_metric"):
            assert figures[key] == expected[key]


def expected_stop(metrics, target=None, patience=None):
    for round, value in enumerate(metrics, 1):
        best_round = 1 + metrics.index(max(metrics[:round]))
        if (target and value >= target) or (patience and round - best_round >= patience):
            return round
    return None


@pytest.mark.parametrize(
    ("rule", "overlap"), sweep(product(("target", "patience"), (True, False)), [("target", True), ("patience", False)])
)
def test_a_rule_stops_the_run_at_the_right_round_and_it_is_finished(select_on, straight, tmp_path, rule, overlap):
    metrics = judged(straight[0], select_on)
    limit = {"target": max(metrics), "patience": 1}[rule]
    last = expected_stop(metrics, **{rule: limit})
    assert last is not None and last < ROUNDS
    path = tmp_path / "run"
    config = tiny(path, stop={rule: limit}, **merged(select_on, {"evaluation": {"overlap": overlap}}))
    summary = fedsim.run(config, progress=False)
    assert (summary["rounds"], summary["stopped"]["rule"]) == (last, rule)
    assert rows(path) == rows(straight[0])[: last + 1]
    resumed = fedsim.run(config, resume=True, progress=False)
    assert resumed == json.loads((path / "summary.json").read_text())

    more = fedsim.run(config.replace(stop={rule: None}), resume=True, progress=False)
    assert (more["rounds"], more["stopped"]) == (ROUNDS, None)
    assert rows(path) == rows(straight[0])
    glob = "prompt/global.safetensors"
    assert (path / glob).read_bytes() == (straight[0] / glob).read_bytes()


def test_a_run_killed_before_it_could_stop_stops_where_it_would_have(tmp_path):
    """Its summary is gone; the figures of the checkpoint say that the rule applies."""
    path, config = tmp_path / "run", tiny(tmp_path / "run", stop={"target": 0.0})
    first = fedsim.run(config, progress=False)
    assert first["rounds"] == 1
    (path / "summary.json").unlink()
    again = fedsim.run(config, resume=True, progress=False)
    assert (again["rounds"], again["stopped"]) == (1, first["stopped"])
    assert len(rows(path)) == 2


def test_traffic_and_time_are_bounds(tmp_path):
    summary = fedsim.run(tiny(tmp_path / "a"), progress=False)
    each = (summary["bytes_up"] + summary["bytes_down"]) / ROUNDS
    for rule, limit, last in (("bytes", 2.5 * each, 3), ("seconds", 1e-9, 0)):
        stopped = fedsim.run(tiny(tmp_path / rule, stop={rule: limit}), progress=False)
        assert (stopped["rounds"], stopped["stopped"]["rule"]) == (last, rule)


def test_patience_looks_where_a_round_was_evaluated(tmp_path):
    summary = fedsim.run(
        tiny(tmp_path / "run", evaluation={"every": 2}, stop={"patience": 1}, server={"lr": 1e-9}), progress=False
    )
    assert (summary["rounds"], summary["selected_round"]) == (4, 2)  # round 2 is the first, round 4 no better


def test_held_out_examples_are_read_with_the_global_prompt(tmp_path):
    """Where all layers are exchanged, that is what the clients' own prompts are."""
    evaluation = {"select_on": "holdout", "personalised_every": 1}
    fedsim.run(tiny(tmp_path / "run", rounds=2, evaluation=evaluation), progress=False)
    for row in rows(tmp_path / "run")[1:]:
        assert row["holdout_metric"] == row["personalised_metric"] and row["holdout_loss"] == row["personalised_loss"]
    changes = {"evaluation": evaluation, "layers": {"unselected": "local"}, "rounds": 2}
    fedsim.run(tiny(tmp_path / "local", **changes), progress=False)
    last = rows(tmp_path / "local")[-1]
    assert last["holdout_loss"] != last["personalised_loss"]


@pytest.mark.parametrize("select_on", ["holdout"], indirect=True, scope="module")
def test_on_actors(session_ray, straight, select_on, tmp_path):
    path = tmp_path / "run"
    ray = {"address": "auto", "actors": 1}
    summary = fedsim.run(tiny(path, executor="ray", ray=ray, **select_on), progress=False)
    assert rows(path) == rows(straight[0])
    assert same(best(path)[0], best(straight[0])[0]) and best(path)[1] == summary["selected_round"]


def test_selection_by_examples_that_are_not_there_is_one_sentence(tmp_path):
    with pytest.raises(
        ConfigError, match=r"select_on=holdout needs examples that clients hold out.*holdout_fraction=0;"
    ):
        tiny(tmp_path, evaluation={"select_on": "holdout"}, partition={"holdout_fraction": 0})
    config = tiny(tmp_path / "run", evaluation={"select_on": "holdout"}, partition={"holdout_fraction": 0.001})
    with pytest.raises(
        ConfigError, match=r"no client has enough examples to hold one out at partition.holdout_fraction=0.001"
    ):
        fedsim.run(config, progress=False)


def test_a_stop_is_settled_once():
    stop = Stop(9)
    assert not stop.reached(3) and stop.stopped is None
    stop.ask(Stopped("call", "enough"))
    stop.ask(Stopped("call", "later"))
    assert stop.reached(4, Stopped("target", "also")) and stop.stopped == Stopped("call", "enough")
    assert not stop.reached(2) and stop.reached(4) and stop.last == 4
    last = Stop(9)
    assert last.reached(9, Stopped("target", "at the end all the same")) and last.stopped is None

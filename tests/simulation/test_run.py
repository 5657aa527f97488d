"""A run in the hand: iterated, stopped, left, resumed; always to the bytes of a run that is done at one stroke."""

import json
import signal
from dataclasses import fields, replace

import pyarrow.parquet as pq
import pytest
from support import SHARDS, UPPER, make_tiny

import fedsim
from fedsim.core.errors import ConfigError, FedsimError
from fedsim.executors.base import StateLost
from fedsim.executors.local import LocalExecutor
from fedsim.records.checkpoint import newest_round
from fedsim.records.columns import ROUND_COLUMNS
from fedsim.records.round_record import RoundRecord
from fedsim.simulation.interrupt import RunInterrupted

ROUNDS = 4


def tiny(path, **changes):
    # fuse is given: a trial could settle it differently in two runs, and so change last bits.
    return make_tiny(
        **{
            "output": str(path),
            "executor": "local",
            "rounds": ROUNDS,
            "client": {"fuse": 3},
            **UPPER,
            **SHARDS,
            **changes,
        }
    )


def prompt(path):
    return (path / "prompt" / "global.safetensors").read_bytes()


def rows(path):
    return [
        {k: v for k, v in row.items() if not k.startswith("seconds")}
        for row in pq.read_table(path / "rounds.parquet").to_pylist()
    ]


def events(path, kind):
    every = [json.loads(line) for line in (path / "metrics.jsonl").read_text().splitlines()]
    return [event for event in every if event["event"] == kind]


@pytest.fixture(scope="module")
def straight(tmp_path_factory):
    """A run at one stroke."""
    path = tmp_path_factory.mktemp("straight") / "run"
    fedsim.run(tiny(path), progress=False)
    return path


@pytest.mark.parametrize("overlap", [True, False])
def test_iterating_gives_each_round_as_it_is_on_record_and_the_bytes_of_a_run_at_one_stroke(
    straight, tmp_path, overlap
):
    path, seen = tmp_path / "run", []
    config = tiny(path, evaluation={"overlap": overlap, **SHARDS["evaluation"]})
    with fedsim.Run(config, progress=False) as run:
        assert (run.folder, run.summary, run.prompt) == (str(path), None, None)
        for done in run:
            assert events(path, "round")[-1]["round"] == done.round
            seen.append(done)
    assert prompt(path) == prompt(straight) and rows(path) == rows(straight)
    assert [done.row() for done in seen] == pq.read_table(path / "rounds.parquet").to_pylist()[1:]
    assert {*seen[0].row()} == {*ROUND_COLUMNS}
    assert [(done.metric, done.loss, done.seconds) for done in seen] == [
        (row["global_metric"], row["global_loss"], row["seconds_round"]) for row in (done.row() for done in seen)
    ]
    assert json.loads((path / "summary.json").read_text()) == json.loads(json.dumps(run.summary))
    assert run.summary["stopped"] is None
    assert (path / "prompt" / "global.safetensors").samefile(run.prompt)


class Stops(fedsim.Callback):
    def __init__(self, after):
        self.after, self.heard = after, []

    def on_start(self, run):
        self.heard.append("start")
        if self.after == 0:
            run.stop("enough")

    def on_round(self, run, done):
        self.heard.append(done.round)
        if done.round == self.after:
            run.stop("enough")

    def on_end(self, run):
        self.heard.append(run.summary["rounds"])


@pytest.mark.parametrize("evaluation", [{}, {"overlap": False}, {"every": 3}])
def test_a_run_that_is_stopped_ends_in_order_and_resumes_to_the_bytes_of_one_that_was_not(tmp_path, evaluation):
    path, whole, callback = tmp_path / "run", tmp_path / "whole", Stops(after=2)
    fedsim.run(tiny(whole, evaluation=evaluation), progress=False)
    summary = fedsim.run(tiny(path, evaluation=evaluation), callbacks=[callback], progress=False)
    assert callback.heard == ["start", 1, 2, 2]
    assert (summary["rounds"], summary["stopped"]) == (2, {"rule": "call", "reason": "enough"})
    assert [event["round"] for event in events(path, "stop")] == [2]
    assert newest_round(path / "checkpoints") == 2 and len(rows(path)) == 3
    short = tmp_path / "short"
    of_two = fedsim.run(tiny(short, evaluation=evaluation, rounds=2), progress=False)
    assert prompt(path) == prompt(short)
    assert summary["global_metric"] == of_two["global_metric"]  # of what it ends with, evaluated or not

    resumed = fedsim.run(tiny(path, evaluation=evaluation), resume=True, progress=False)
    assert (resumed["rounds"], resumed["stopped"]) == (ROUNDS, None)
    assert prompt(path) == prompt(whole) and rows(path) == rows(whole)
    assert (path / "config.yaml").read_text() == (whole / "config.yaml").read_text().replace(str(whole), str(path))


def test_a_run_can_be_stopped_before_its_first_round(tmp_path):
    summary = fedsim.run(tiny(tmp_path / "run"), callbacks=[Stops(after=0)], progress=False)
    assert summary["rounds"] == 0 and summary["global_metric"] == summary["first_global_metric"]


def test_what_was_stopped_is_stopped_again_after_a_loss_of_state(straight, monkeypatch, tmp_path):
    """The last evaluation finds the state gone; the rounds that are done again are not told twice."""
    original, calls, callback = LocalExecutor.evaluate_clients, [], Stops(after=3)

    def losing(self, *arguments):
        calls.append(1)
        if len(calls) == 1:
            raise StateLost("lost")
        return original(self, *arguments)

    monkeypatch.setattr(LocalExecutor, "evaluate_clients", losing)
    path = tmp_path / "run"
    summary = fedsim.run(tiny(path), callbacks=[callback], progress=False)
    assert callback.heard == ["start", 1, 2, 3, 3] and summary["rounds"] == 3
    assert rows(path) == rows(straight)[:4]


@pytest.mark.parametrize("error", [None, ValueError("mine"), KeyboardInterrupt()])
def test_a_block_that_is_left_early_saves_the_last_round_on_record(straight, tmp_path, error):
    path = tmp_path / "run"
    config = tiny(path, checkpoint={"every": 100})
    try:
        with fedsim.Run(config, progress=False) as run:
            for done in run:
                if done.round == 2:
                    if error:
                        raise error
                    break
    except (ValueError, KeyboardInterrupt) as raised:
        assert raised is error
    assert run.summary is None and not (path / "summary.json").exists()
    assert newest_round(path / "checkpoints") == 2
    (stopped,) = events(path, "stopped")
    assert stopped["reason"] == (type(error).__name__ if error else "left")
    fedsim.run(config, resume=True, progress=False)
    assert prompt(path) == prompt(straight) and rows(path) == rows(straight)


def test_a_callback_that_raises_ends_the_run_like_the_body_of_the_loop(tmp_path):
    class Raises(fedsim.Callback):
        def on_round(self, run, done):
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        fedsim.run(tiny(tmp_path / "run"), callbacks=[Raises()], progress=False)
    assert newest_round(tmp_path / "run" / "checkpoints") == 1


def test_a_loop_can_be_left_and_taken_up_again_in_its_block(straight, tmp_path):
    path = tmp_path / "run"
    with fedsim.Run(tiny(path), progress=False) as run:
        first = next(run)
        assert first.round == 1
        assert run.finish()["rounds"] == ROUNDS
        assert list(run) == []
    assert prompt(path) == prompt(straight)


def test_a_run_that_never_begins_leaves_nothing(tmp_path):
    with fedsim.Run(tiny(tmp_path / "run"), progress=False):
        pass
    assert not (tmp_path / "run").exists() or not any((tmp_path / "run").iterdir())


def test_a_signal_in_the_body_is_answered_at_the_next_round(straight, tmp_path):
    path = tmp_path / "run"
    before = signal.getsignal(signal.SIGTERM)
    with pytest.raises(RunInterrupted) as interrupted, fedsim.Run(tiny(path), progress=False) as run:
        for _ in run:
            signal.raise_signal(signal.SIGTERM)
    assert interrupted.value.kept.endswith("is saved; continue with --resume")
    assert signal.getsignal(signal.SIGTERM) is before
    with fedsim.Run(tiny(path), resume=True, progress=False) as run:
        run.finish()
    assert prompt(path) == prompt(straight)


def test_a_finished_run_is_resumed_to_its_summary_and_no_round(straight):
    with fedsim.Run(tiny(straight), resume=True, progress=False) as run:
        assert list(run) == []
    assert run.summary == json.loads((straight / "summary.json").read_text())
    assert fedsim.run(tiny(straight), resume=True, progress=False) == run.summary


@pytest.mark.parametrize(
    ("use", "sentence"),
    [
        (lambda run: next(run), "a Run is iterated in its block"),
        (lambda run: run.folder, "a Run has no folder before its with block"),
        (
            lambda run: (run.__enter__() and run.__exit__(None, None, None)) or run.__enter__(),
            "can be used in one with block only",
        ),
    ],
)
def test_a_run_without_its_block_is_one_sentence(tmp_path, use, sentence):
    with pytest.raises(FedsimError, match=sentence):
        use(fedsim.Run(tiny(tmp_path / "run"), progress=False))


def test_overrides_go_with_a_path(tmp_path):
    path = tmp_path / "run.yaml"
    path.write_text(tiny(tmp_path / "run").to_yaml())
    assert fedsim.run(path, ["rounds=1"], progress=False)["rounds"] == 1
    with pytest.raises(FedsimError, match=r"use config.replace"):
        fedsim.run(tiny(tmp_path / "other"), ["rounds=1"])


@pytest.mark.parametrize(
    ("rule", "values", "last"),
    [
        ({"target": 0.6}, [0.5, None, 0.6, 0.7], 3),
        ({"patience": 2}, [0.5, 0.6, 0.6, None, 0.7], 4),
        ({"metric": "global_loss", "target": 0.5}, [0.9, 0.5], 2),
        ({"metric": "global_loss", "patience": 1}, [0.9, 0.8, 0.8], 3),
        ({"metric": "bytes_up", "target": 10}, [4, 10], 2),
        ({"metric": "train_loss_last", "target": 0.5, "best": "max"}, [0.4, 0.5], 2),
    ],
)
def test_early_stop(straight, rule, values, last):
    """On the records of a real run with other numbers in them."""

    class Asked:
        reason = None

        def stop(self, reason):
            self.reason = reason

    (event,) = (event for event in events(straight, "round") if event["round"] == 1)
    done = RoundRecord(**{key: event[key] for key in (field.name for field in fields(RoundRecord))})
    early, asked = fedsim.EarlyStop(**rule), Asked()
    early.on_start(asked)
    for round, value in enumerate(values, 1):
        assert asked.reason is None
        early.on_round(asked, replace(done, round=round, **{rule.get("metric", "global_metric"): value}))
        if asked.reason:
            break
    assert round == last and asked.reason


@pytest.mark.parametrize(
    ("rule", "sentence"),
    [
        ({"metric": "global_metrik", "target": 1}, "did you mean 'global_metric'"),
        ({}, "needs target .the value to reach. or patience"),
        ({"target": 1, "best": "most"}, "must be 'max' or 'min'"),
    ],
)
def test_a_rule_that_makes_no_sense_is_one_sentence(rule, sentence):
    with pytest.raises(ConfigError, match=sentence):
        fedsim.EarlyStop(**rule)

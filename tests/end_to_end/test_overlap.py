"""An evaluation beside the next round's training: the same records and bytes, and nothing is lost by an interrupt."""

import json
import os
import signal

import pytest
from support import SHARDS, UPPER, make_tiny

import fedsim
from fedsim.executors.local import LocalExecutor
from fedsim.simulation.interrupt import RunInterrupted

TIMES = (
    "time", "seconds", "seconds_round", "seconds_train", "seconds_server", "seconds_evaluate", "seconds_longest_client",
)  # fmt: skip


def run(make, path, **changes):
    # fuse is given: a trial could settle it differently in two runs, and so change last bits.
    config = make(output=str(path), executor="local", **UPPER, **{"client": {"fuse": 3}, **changes})
    fedsim.run(config, resume=path.exists(), progress=False)
    return prompt_and_rounds(path)


def prompt_and_rounds(path):
    return (path / "prompt" / "global.safetensors").read_bytes(), rounds(path)


def rounds(path):
    events = map(json.loads, (path / "metrics.jsonl").read_text().splitlines())
    return [{k: v for k, v in event.items() if k not in TIMES} for event in events if event["event"] == "round"]


@pytest.fixture(scope="module")
def apart(tmp_path_factory):
    """A run in which each evaluation ends before the next round begins."""
    evaluation = {"overlap": False, **SHARDS["evaluation"]}
    return run(make_tiny, tmp_path_factory.mktemp("apart") / "run", evaluation=evaluation)


@pytest.fixture
def watched(monkeypatch):
    """Note how many shards each round's training was given, and how many an evaluation of its own."""
    beside, alone = [], []
    train, evaluate = LocalExecutor.train, LocalExecutor.evaluate

    def noted_train(self, groups, state, client_states, shards=(), **named):
        beside.append(len(shards))
        return train(self, groups, state, client_states, shards, **named)

    def noted_evaluate(self, state, shards):
        alone.append(len(shards))
        return evaluate(self, state, shards)

    monkeypatch.setattr(LocalExecutor, "train", noted_train)
    monkeypatch.setattr(LocalExecutor, "evaluate", noted_evaluate)
    return beside, alone


def test_the_same_records_and_bytes(tiny_config, apart, watched, tmp_path):
    assert run(tiny_config, tmp_path / "run", **SHARDS) == apart
    # The last round is evaluated by itself, the start and all other rounds beside the next one.
    assert watched == ([3, 3, 3], [3])
    assert [record["round"] for record in apart[1]] == [1, 2, 3]


def test_on_actors(session_ray_run, tiny_config, tmp_path):
    folder, summary, *_ = session_ray_run
    client, evaluation = {"fuse": summary["fuse"]}, {"overlap": False, **SHARDS["evaluation"]}
    assert prompt_and_rounds(folder) == run(tiny_config, tmp_path / "apart", client=client, evaluation=evaluation)


def test_only_what_is_due_is_evaluated(tiny_config, watched, tmp_path):
    evaluation = {"every": 2, "personalised_every": 4, "shard_size": 30}
    _, records = run(tiny_config, tmp_path / "run", rounds=6, evaluation=evaluation)
    assert [record["global_metric"] is not None for record in records] == [False, True] * 3
    assert [record["personalised_metric"] is not None for record in records] == [False] * 3 + [True] + [False] * 2
    # Round 4 is evaluated for the clients as well, before round 5 changes what they hold.
    assert watched == ([2, 0, 2, 0, 0, 0], [2, 2])


@pytest.mark.parametrize("round", [1, 2])
def test_an_interrupt_saves_the_round_before(tiny_config, apart, monkeypatch, tmp_path, round):
    """A signal that comes in the midst of training: the round before is evaluated, recorded and saved all the same."""
    train = LocalExecutor.train

    def interrupted(self, groups, *arguments, **named):
        results = train(self, groups, *arguments, **named)
        yield next(results)
        if groups[0].round == round:
            os.kill(os.getpid(), signal.SIGTERM)
        yield from results

    path = tmp_path / "run"
    monkeypatch.setattr(LocalExecutor, "train", interrupted)
    with pytest.raises(RunInterrupted):
        run(tiny_config, path, **SHARDS)
    assert [record["round"] for record in rounds(path)] == list(range(1, round + 1))
    assert (path / "checkpoints" / f"round-{round:06d}.safetensors").exists()
    monkeypatch.setattr(LocalExecutor, "train", train)
    prompt, records = run(tiny_config, path, **SHARDS)
    assert prompt == apart[0] and records == apart[1]

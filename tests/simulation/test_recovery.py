"""State that is lost in a run: it goes on from what is left, to the bytes and records of a run that lost nothing."""

import json

import pyarrow.parquet as pq
import pytest
from support import FINAL, FINAL_TABLES, make_tiny

import fedsim
from fedsim.core.errors import ResourceError
from fedsim.executors.base import StateLost
from fedsim.executors.local import LocalExecutor, LocalServer

ROUNDS, CLIENTS = 5, 5
TIMES = (
    "time", "seconds", "seconds_round", "seconds_train", "seconds_server", "seconds_evaluate", "seconds_longest_client",
)  # fmt: skip
AGAIN = "clients_retried"
AT_THE_END = {"evaluation": {key: value for key, value in FINAL["evaluation"].items() if key != "shard_size"}}
KINDS = ("start", "layers", "absent", "round", "end")


def events_of(path):
    return [json.loads(line) for line in (path / "metrics.jsonl").read_text().splitlines()]


def run(path, **changes):
    changes = {"rounds": ROUNDS, "executor": "local", "tracking": {"plots": False}, **AT_THE_END, **changes}
    config = make_tiny(output=str(path), client={"fuse": 2}, **changes)
    summary = fedsim.run(config, progress=False)
    events = [{k: v for k, v in event.items() if k not in TIMES} for event in events_of(path)]
    kept = [{k: v for k, v in event.items() if k != AGAIN} for event in events if event["event"] in KINDS]
    recovered = [event["round"] for event in events if event["event"] == "recovered"]
    longest = pq.read_table(path / "rounds.parquet")["seconds_longest_client"].to_pylist()
    assert summary["seconds_published"] == pytest.approx(sum(longest[1:]), rel=1e-12)
    keys = ("client_updates", "client_steps", "bytes_up", "bytes_down", "global_metric", "best_global_round")
    totals = {key: summary[key] for key in keys}
    files = [(path / name).read_bytes() for name in ("prompt/global.safetensors", *FINAL_TABLES)]
    return files, kept, totals, recovered


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory):
    return run(tmp_path_factory.mktemp("undisturbed") / "run")


class Loss:
    """Makes a method of the local executor lose state, in its n-th calls."""

    def __init__(self, monkeypatch, method, calls, also_saved_state=False):
        self.count = 0
        self.lost = False
        owner = LocalServer if hasattr(LocalServer, method) else LocalExecutor
        original = getattr(owner, method)
        arrays = LocalServer.arrays

        def losing(own, *arguments, **named):
            self.count += 1
            if self.count in calls:
                self.lost = also_saved_state
                raise StateLost(f"{method} needed an object that was lost with its node")
            return original(own, *arguments, **named)

        def gone(own):
            if self.lost:
                self.lost = False
                raise StateLost("the server's state is gone")
            return arrays(own)

        def recovered(executor):
            server = executor.server.running
            server._held = type(server._held)()

        monkeypatch.setattr(owner, method, losing)
        if method != "arrays":
            monkeypatch.setattr(LocalServer, "arrays", gone)
        monkeypatch.setattr(LocalExecutor, "recover", recovered)


def test_a_round_is_done_again_from_the_state_that_it_started_from(undisturbed, monkeypatch, tmp_path):
    Loss(monkeypatch, "apply", {3})
    *same, recovered = run(tmp_path / "run")
    assert same == list(undisturbed[:3])
    assert recovered == [2]
    retried = {event["round"]: event[AGAIN] for event in events_of(tmp_path / "run") if event.get(AGAIN)}
    assert retried == {3: CLIENTS}  # the whole cohort trained twice


@pytest.mark.parametrize(
    ("method", "call", "every", "back_to"),
    [
        ("apply", 4, 1, 3),
        ("apply", 4, 2, 2),
        ("apply", 4, 100, 0),  # no checkpoint yet: from the start of the run
        ("apply", 1, 1, 0),
        ("arrays", {2, 3}, 1, 1),  # as the second round is saved, and again as what is left is looked for
        ("_evaluate", 1, 1, 0),  # of the start, as the first round trains
        ("_evaluate", 2, 1, 0),  # of the first round, before it is saved and the second one trains
        ("evaluate", 1, 1, 4),  # the last evaluation
        ("evaluate_clients", 1, 1, 5),  # behind the last round
        ("evaluate_clients", 2, 1, 5),  # of the prompts before any training
        ("evaluate", 2, 1, 5),  # for the predictions
    ],
)
def test_what_is_gone_is_done_again_from_the_last_checkpoint(
    undisturbed, monkeypatch, tmp_path, method, call, every, back_to
):
    Loss(monkeypatch, method, call if isinstance(call, set) else {call}, also_saved_state=True)
    *same, recovered = run(tmp_path / "run", checkpoint={"every": every})
    assert same == list(undisturbed[:3])
    assert recovered == [back_to]


def test_rounds_that_are_done_again_are_not_twice_in_tensorboard(monkeypatch, tmp_path):
    reader = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    Loss(monkeypatch, "apply", {4}, also_saved_state=True)
    run(tmp_path / "run", checkpoint={"every": 2}, tracking={"plots": False, "tensorboard": True})
    events = reader.EventAccumulator(str(tmp_path / "run" / "tensorboard")).Reload()
    assert [point.step for point in events.Scalars("metric/global_metric")] == list(range(ROUNDS + 1))


def test_a_loss_while_the_state_is_being_given_back_does_not_mix_rounds(undisturbed, monkeypatch, tmp_path):
    """The server has been started anew and does not hold the state of the round yet."""
    Loss(monkeypatch, "apply", {3})
    load, calls = LocalServer.load_arrays, []

    def losing(server, arrays):
        calls.append(1)
        if len(calls) == 1:
            raise StateLost("the aggregator actor was lost")
        load(server, arrays)

    monkeypatch.setattr(LocalServer, "load_arrays", losing)
    *same, recovered = run(tmp_path / "run")
    assert same == list(undisturbed[:3])
    assert recovered == [2] and len(calls) == 2


def test_losses_that_go_back_further_than_a_round_are_bounded_as_well(monkeypatch, tmp_path):
    """Round 3 is recorded anew every time: that is no progress."""
    Loss(monkeypatch, "apply", {4, *range(6, 100, 2)}, also_saved_state=True)
    with pytest.raises(ResourceError, match=r"more than ray.max_replacements allows"):
        run(tmp_path / "run", checkpoint={"every": 2}, ray={"max_replacements": 3})


def test_losses_are_bounded(monkeypatch, tmp_path):
    Loss(monkeypatch, "apply", range(2, 100))
    with pytest.raises(
        ResourceError, match=r"apply needed an object .*, 3 times in one round, more than ray.max_replacements allows"
    ):
        run(tmp_path / "run", ray={"max_replacements": 2})
    assert (tmp_path / "run" / "checkpoints" / "round-000001.safetensors").exists()


def test_simulated_dropouts_are_recorded_apart_from_failures(tmp_path):
    sampling = {"clients_per_round": 5, "dropout": 0.4}
    once, again = (run(tmp_path / name, sampling=sampling) for name in ("once", "again"))
    assert once == again
    _, events, totals, _ = once
    rounds = [event for event in events if event["event"] == "round"]
    named = {event["round"]: event["clients"] for event in events if event["event"] == "absent"}
    assert named and {event["round"]: event["clients_absent"] for event in rounds if event["clients_absent"]} == {
        round: len(clients) for round, clients in named.items()
    }
    assert totals["client_updates"] == 5 * ROUNDS - sum(map(len, named.values()))
    assert all(event["clients_failed"] == 0 for event in rounds)


def test_late_clients_are_recorded_apart_with_the_time_that_devices_would_take(tmp_path):
    delay = {"seconds_per_example": 0.1, "device_spread": 1.0, "deadline_seconds": 1.0}
    _, events, totals, _ = run(tmp_path / "run", sampling={"clients_per_round": 5, "delay": delay})
    rounds = [event for event in events if event["event"] == "round"]
    named = [event["clients"] for event in events_of(tmp_path / "run") if event["event"] == "late"]
    assert named and sum(map(len, named)) == sum(event["clients_late"] for event in rounds)
    assert totals["client_updates"] == 5 * ROUNDS - sum(map(len, named))
    assert all(event["seconds_simulated"] >= 1.0 for event in rounds if event["clients_late"])
    assert all(event["clients_failed"] == event["clients_absent"] == 0 for event in rounds)

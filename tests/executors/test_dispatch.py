"""Calls whose actor dies, hangs or never starts: with real but light actors, and real signals."""

import os
import signal
import sys
import time
from dataclasses import replace
from types import SimpleNamespace

import psutil
import pytest

from fedsim.core.errors import ClientError, ResourceError
from fedsim.executors.base import StateLost
from fedsim.executors.config import RayConfig
from fedsim.executors.ray.calls import client_call
from fedsim.executors.ray.dispatch import Dispatcher, Done
from fedsim.executors.ray.failures import FailurePolicy
from fedsim.executors.ray.pool import ActorPool
from fedsim.executors.ray.queues import Call

STRIKES = (3, 4)
"""Tries until a client is found: in its group, in its group again, by itself. An actor that dies may take the answer to the
call before with it, which is then taken for the one that was lost, so that a try more is needed."""


class Light:
    """An actor without torch that does what its calls say; what it does the first times, it counts in a file."""

    def info(self):
        import ray

        return SimpleNamespace(node_id=ray.get_runtime_context().get_node_id())

    def train(self, clients, deed="", client=-1, times=0, file=""):
        if client in clients and (not os.path.exists(file) or os.path.getsize(file) < times):  # noqa: PTH110, PTH202
            with open(file, "a") as struck:  # noqa: PTH123
                struck.write(".")
            if deed == "kill all":
                for other in [each for each in psutil.Process().parent().children() if "Light" in each.name()]:
                    if other.pid != os.getpid():
                        other.kill()
            if deed.startswith("kill"):
                os.kill(os.getpid(), signal.SIGKILL)
            if deed == "hang":
                time.sleep(3600)
            raise ValueError(f"client {client} was told to fail")
        return [10 * client for client in clients]


class Stock:
    """Light actors that no test has: what a test leaves alive, the next one takes."""

    def __init__(self, ray):
        self.ray, self.left, self._made = ray, [], []

    def make(self, slot=0):
        # Without CPUs: Ray now and then counts those of an actor as taken that was killed as it started.
        self._made.append(self.ray.remote(num_cpus=0)(Light).remote())
        return self._made[-1]

    def close(self):
        for actor in self._made:
            self.ray.kill(actor)


class Bench:
    """Two light actors and a dispatcher."""

    def __init__(self, ray, stock, tmp_path, on_failure, **config):
        self.ray, self.file, self.notes = ray, tmp_path / "strikes", []
        settings = RayConfig(actors=2, **config)
        self.pool = ActorPool(settings, stock.make, self.notes.append)
        for slot in range(2):
            self.pool.add(slot, *stock.left.pop())
        self.dispatcher = Dispatcher(settings, self.pool, FailurePolicy.of(on_failure), lambda: None, self.notes.append)

    def run(self, deed="", client=-1, times=0, groups=4, timeout_seconds=None, slots=False):
        """Return results by client, and failures by client, of groups of three clients."""
        calls = []
        for index in range(groups):
            clients = tuple(range(3 * index, 3 * index + 3))
            about = (deed, client, times, str(self.file))

            call = client_call(index, "train", clients, lambda clients, about=about: (clients, *about), "work")
            calls.append(replace(call, slot=index % 2) if slots else call)
        results, failures = {}, {}
        for outcome in self.dispatcher.run(calls, timeout_seconds):
            if isinstance(outcome, Done):
                results.update(zip(outcome.call.clients, outcome.value, strict=True))
            else:
                failures.update(dict.fromkeys(outcome.call.clients, (outcome.kind, outcome.message)))
        assert sorted([*results, *failures]) == list(range(3 * groups))  # each one result or one failure
        assert results == {client: 10 * client for client in results}
        return results, failures

    @property
    def strikes(self):
        return len(self.file.read_text()) if self.file.exists() else 0


@pytest.fixture(scope="module")
def stock(session_ray):
    session_ray.cloudpickle.register_pickle_by_value(sys.modules[__name__])  # actors cannot import a test module
    stock = Stock(session_ray)
    yield stock
    stock.close()


@pytest.fixture
def bench(session_ray, stock, tmp_path):
    made = []

    def make(on_failure="raise", **config):
        fresh = [stock.make() for _ in range(2 - len(stock.left))]
        stock.left.extend((actor, session_ray.get(actor.info.remote()).node_id) for actor in fresh)
        made.append(Bench(session_ray, stock, tmp_path, on_failure, **config))
        return made[-1]

    yield make
    for each in made:
        idle, _ = session_ray.wait(
            [actor.info.remote() for actor in each.pool.ready.values()], num_returns=len(each.pool.ready), timeout=0.5
        )
        if len(idle) == len(each.pool) == len(each.pool.ready):
            stock.left.extend((actor, each.pool.nodes[slot]) for slot, actor in each.pool.ready.items())
        else:
            each.pool.close()


def test_killed_actors_are_replaced_and_their_groups_sent_again(bench):
    one = bench()
    assert one.run("kill", 11, times=2)[1] == {}
    assert (one.strikes, one.pool.replaced, one.dispatcher.resent_clients) == (2, 2, 6)
    one.file.unlink()
    assert one.run("kill", 4, times=1, slots=True)[1] == {}  # bound to one actor, so they wait for its successor
    assert one.strikes == 1


def test_replacements_are_bounded(bench):
    one = bench(max_replacements=1)
    with pytest.raises(
        ResourceError,
        match=r"in work of clients 6 to 8: an actor was lost .* after 1 replacements .* ray.max_replacements",
    ):
        one.run("kill", 7, times=100)
    assert one.strikes == 2


def test_retries_are_bounded_by_the_policy(bench):
    one = bench("retry:2")
    with pytest.raises(ResourceError, match=r"^work of clients 6 to 8 \(tried 3 times\): its actor was lost"):
        one.run("kill", 7, times=100)
    assert one.strikes == 3


def test_a_client_that_kills_its_actor_is_found_and_dropped(bench):
    one = bench("drop")
    assert one.run("kill", 7, times=1)[1] == {}  # an accident drops nobody
    one.file.unlink()
    results, failures = one.run("kill", 7, times=100)
    assert {client: kind for client, (kind, _) in failures.items()} == {7: "lost"}
    assert one.strikes in STRIKES and len(results) == 11
    assert any("its clients are retried one by one" in note for note in one.notes)


def test_a_client_that_takes_all_memory_is_found_though_others_are_killed_with_it(bench, stock, monkeypatch):
    """Killed as Ray's memory monitor does it, which stops at no actor until enough is free."""
    monkeypatch.setattr("fedsim.executors.ray.dispatch.out_of_memory", lambda error: True)
    one = bench("drop", max_replacements=3)
    for actor, _ in stock.left:
        one.ray.kill(actor)
    stock.left.clear()
    for slots in (False, True):
        results, failures = one.run("kill all", 7, times=100, slots=slots)
        assert {client: kind for client, (kind, _) in failures.items()} == {7: "lost"}
        assert one.strikes in STRIKES and len(results) == 11
        one.file.unlink()


def test_a_group_that_takes_all_memory_every_time_stops_the_run(bench, monkeypatch):
    monkeypatch.setattr("fedsim.executors.ray.dispatch.out_of_memory", lambda error: True)
    one = bench(max_replacements=1)
    with pytest.raises(ResourceError, match=r"^work of clients 6 to 8 \(tried 2 times\): its actor was lost"):
        one.run("kill", 7, times=100)
    assert one.strikes == 2


def test_a_deadline_names_the_group(bench):
    one = bench(group_timeout_seconds=2)
    with pytest.raises(ResourceError, match=r"^work of clients 6 to 8: took longer than ray.group_timeout_seconds=2$"):
        one.run("hang", 7, times=100)


def test_a_hanging_client_is_tried_again_under_retry_and_dropped_under_drop(bench):
    again = bench("retry:1", group_timeout_seconds=2)
    assert again.run("hang", 7, times=1)[1] == {}
    assert again.pool.replaced == 1
    drop = bench("drop", group_timeout_seconds=2)
    _, failures = drop.run("hang", 1, times=100)
    assert failures == {1: ("timeout", "took longer than ray.group_timeout_seconds=2")}


def test_a_round_has_a_deadline(bench):
    one = bench(round_timeout_seconds=2)
    with pytest.raises(ResourceError, match=r"^work of clients 6 to 8: not done within ray.round_timeout_seconds=2$"):
        one.run("hang", 7, times=100, timeout_seconds=2)
    drop = bench("drop", round_timeout_seconds=2)
    results, failures = drop.run("hang", 10, times=100, timeout_seconds=2)
    assert failures.keys() == {9, 10, 11} and len(results) == 9


def test_an_error_of_a_client_is_not_tried_again(bench):
    one = bench("retry:5")
    with pytest.raises(
        ClientError, match=r"work of clients 6 to 8 failed:(.|\n)*test_dispatch.py(.|\n)*client 7 was told to fail"
    ):
        one.run("raise", 7, times=100)
    assert one.strikes == 1


def test_a_lost_input_is_no_fault_of_the_actor(bench):
    """The object of a call that failed stands for one that is gone: its error comes out where it is needed."""
    one = bench()
    lost = one.ray.remote(num_cpus=0, max_retries=0)(lambda: os.kill(os.getpid(), signal.SIGKILL)).remote()
    with pytest.raises(StateLost, match="group 0 needed an object that was lost with its node"):
        list(one.dispatcher.run([Call(0, "train", (lost,), what="group 0")]))
    assert one.pool.replaced == 0


def test_an_actor_that_finds_no_room_is_given_up(bench):
    one = bench(start_timeout_seconds=2)
    huge = one.ray.remote(num_cpus=10_000)(Light)
    one.pool._create = lambda slot: huge.remote()
    assert one.run("kill", 7, times=1)[1] == {}
    one.file.unlink()
    deadline = time.monotonic() + 10
    while len(one.pool) == 2 and time.monotonic() < deadline:
        one.run()
    assert len(one.pool) == 1
    assert any("found no room within 2 s (ray.start_timeout_seconds); going on with 1" in note for note in one.notes)
    with pytest.raises(ResourceError, match=r"waited 2 s .*ray.start_timeout_seconds.* there is no other"):
        one.run("kill", 1, times=1)


def test_a_go_that_was_given_up_does_not_hold_the_next_one_up(bench, monkeypatch):
    monkeypatch.setattr("fedsim.executors.ray.dispatch._PATIENCE_SECONDS", 0.5)
    one = bench()
    about = ((0,), "hang", 0, 1, str(one.file))
    for _ in one.dispatcher.run([Call(0, "train", about, what="hangs"), Call(1, "train", ((1,),), what="returns")]):
        break  # as an error of the consumer would
    assert one.run()[1] == {}
    assert one.pool.replaced == 1


def test_without_an_actor_a_go_ends_with_a_sentence(bench):
    one = bench()
    one.pool.close()
    with pytest.raises(ResourceError, match="no actor is left"):
        one.run()


def test_what_came_in_time_is_not_overdue(bench):
    """The consumer takes longer than the deadline, not the call."""
    one = bench("drop", group_timeout_seconds=1)
    calls = [Call(index, "train", ((index,),), what=f"group {index}", clients=(index,)) for index in range(4)]
    outcomes = []
    for outcome in one.dispatcher.run(calls):
        outcomes.append(outcome)
        time.sleep(1.5 if len(outcomes) == 1 else 0)
    assert len(outcomes) == 4 and all(isinstance(outcome, Done) for outcome in outcomes)

"""Assignment of calls: one node per block of groups, and the end of a round shared by all."""

from itertools import chain

from fedsim.executors.ray.queues import Call, Item, Queues


class Actor:
    """Records calls without running them."""

    def __init__(self):
        self.got = []

    def __getattr__(self, method):
        actor = self

        class Method:
            def options(self, **_):
                return self

            def remote(self, *index):
                actor.got += index
                return object()

        return Method()


def call(index, **changes):
    return Call(index, "train", (index,), clients=(index,), **changes)


def drain(queues, actors, turns):
    """Let actors finish calls in turns; return what each got."""
    queues.fill(actors)
    for slot in turns:
        if queues.unfinished and slot in queues.heads().values():
            if queues.head(slot).probes:
                queues.send_probed(slot, actors[slot])
                continue
            queues.pop(slot)
            queues.fill({slot: actors[slot]})
    return [actor.got for actor in actors.values()]


def test_a_node_takes_whole_blocks_and_helps_out_at_the_end():
    calls = [call(index, block=index // 4) for index in range(12)] + [Call(12, "evaluate", (12,))]
    actors = {0: Actor(), 1: Actor(), 2: Actor()}
    queues = Queues(calls, {0: "a", 1: "b", 2: "b"})
    got = drain(queues, actors, [0, 1, 2] * 5)
    assert sorted(chain(*got)) == list(range(13))
    assert got[0][:4] == [0, 1, 2, 3]  # node a: block 0
    assert sorted(got[1][:2] + got[2][:2]) == [4, 5, 6, 7]  # node b: block 1
    assert not queues.unfinished


def test_a_node_that_has_nothing_left_helps_the_others():
    actors = {0: Actor(), 1: Actor()}
    queues = Queues([call(index, block=index // 4) for index in range(8)], {0: "a", 1: "b"})
    got = drain(queues, actors, [0] * 8)  # actor 1 finishes nothing
    assert got[1] == [4, 5]
    assert got[0] == [0, 1, 2, 3, 6, 7]


def test_calls_of_a_lost_actor_come_first_and_those_bound_to_one_that_is_gone_go_to_any():
    actors = {0: Actor(), 1: Actor()}
    queues = Queues([call(index, slot=index % 2) for index in range(6)], {0: "a", 1: "a"})
    queues.fill(actors)
    lost = queues.take(1)
    assert [item.call.index for item in lost] == [1, 3]
    queues.put_back(lost)
    queues.fill({0: actors[0]})
    assert actors[0].got == [0, 2]  # nothing of actor 1
    queues.release([0])
    assert sorted(chain(*drain(queues, {0: actors[0]}, [0] * 6))) == list(range(6))


def test_what_trains_clients_can_be_taken_away():
    queues = Queues([call(0), Call(1, "evaluate", (1,)), call(2, slot=0), call(3)], {0: "a"})
    queues.fill({0: Actor()})
    assert queues.slots_with_clients() == [0]
    assert {item.call.index for item in queues.take_clients()} == {3}  # calls 2 and 0 are with the actor
    assert queues.unfinished
    queues.put_back([Item(call(9))])
    assert [item.call.index for item in queues.take_clients()] == [9]


def test_a_call_that_is_suspected_has_its_actor_for_itself():
    actors = {0: Actor()}
    queues = Queues([call(index) for index in range(4)], {0: "a"})
    queues.put_back([Item(call(7), alone=True), Item(call(8), alone=True)])
    queues.fill(actors)
    assert actors[0].got == [] and queues.head(0).probes  # it is asked first whether it is there
    assert drain(queues, actors, [0]) == [[7]]
    assert drain(queues, actors, [0, 0]) == [[7, 8]]
    assert drain(queues, actors, [0]) == [[7, 8, 0, 1]]


def test_what_was_lost_for_want_of_memory_runs_last_and_when_nothing_else_does():
    actors = {0: Actor(), 1: Actor()}
    queues = Queues([call(index) for index in range(4)], {0: "a", 1: "a"})
    queues.put_back([Item(call(7), last=True), Item(call(8, slot=1), last=True), Item(call(9, slot=5), last=True)])
    queues.fill(actors)
    assert drain(queues, actors, [0, 1, 0]) == [[0, 2], [1, 3]]
    assert list(queues.heads().values()) == [1]  # as long as it works, the other one has nothing to do
    drain(queues, actors, [1])
    assert [queues.head(slot).item.call.index for slot in queues.heads().values()] == [7]
    queues.pop(next(iter(queues.heads().values())))
    queues.fill({0: actors[0]})
    assert not queues.heads()  # the next one is bound to the other actor
    queues.fill(actors)
    assert list(queues.heads().values()) == [1]
    queues.pop(1)
    queues.fill(actors)
    assert not queues.heads() and queues.unfinished  # bound to an actor that is gone
    queues.release(actors)
    assert [item.call.index for item in queues.take_clients()] == [9]
    assert not queues.unfinished

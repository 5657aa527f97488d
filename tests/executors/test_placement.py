from collections import Counter

from hypothesis import given
from hypothesis import strategies as st

from fedsim.executors.cluster.placement import place
from fedsim.executors.cluster.sizing import ActorPlan, NodeResources, capacity
from fedsim.executors.ray.failures import FailurePolicy


@given(
    st.dictionaries(st.sampled_from("abcdef"), st.tuples(st.integers(0, 8), st.integers(0, 2)), min_size=1),
    st.integers(1, 30),
    st.sampled_from([0.0, 1.0, 1 / 3]),
)
def test_actors_are_spread_evenly_over_the_nodes_that_have_room(nodes, count, share):
    free = {node: NodeResources(*resources) for node, resources in nodes.items()}
    order = place(ActorPlan(count, 1.0, share, per_client=False), free)
    placed = Counter(order)
    room = {node: capacity([resources], 1.0, share) for node, resources in free.items()}
    assert len(order) == min(count, sum(room.values()))
    assert all(placed[node] <= room[node] for node in placed)
    fullest = max(placed.values(), default=0)
    assert all(placed[node] >= min(room[node], fullest - 1) for node in room)


def test_policies():
    assert FailurePolicy.of("raise") == FailurePolicy(drop=False, retries=None)
    assert FailurePolicy.of("drop").drop
    retry = FailurePolicy.of("retry:2")
    assert [retry.sends_again("timeout", failures, 5) for failures in (1, 2, 3)] == [True, True, False]
    assert [FailurePolicy.of("raise").sends_again("lost", failures, 5) for failures in (5, 6)] == [True, False]
    assert not FailurePolicy.of("raise").sends_again("timeout", 1, 5)

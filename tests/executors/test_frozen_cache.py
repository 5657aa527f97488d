"""The frozen-layer cache: what is held, evicted and requested. Handles are plain words here."""

from hypothesis import given
from hypothesis import strategies as st

from fedsim.executors.frozen_cache import FrozenCache


def cache(max_bytes, **sizes):
    return FrozenCache(max_bytes, lambda key: sizes.get(str(key), 0))


def test_a_trunk_is_asked_for_once_and_handed_in_from_then_on():
    caches = cache(100, **{"1": 30, "2": 40})
    assert caches.wanted((1, 2, 3)) == (1, 2)  # client 3 has none
    assert caches.held((1, 2, 3)) == {}
    caches.add(1, "one")
    caches.add(2, "two")
    assert caches.wanted((1, 2, 3)) == ()
    assert caches.held((2, 1, 3)) == {2: "two", 1: "one"}
    assert caches.summary() == {"hits": 2, "misses": 2, "evictions": 0, "bytes": 70}


def test_the_one_used_longest_ago_makes_room():
    caches = cache(100, **{"1": 40, "2": 40, "3": 40})
    for client in (1, 2):
        caches.add(client, str(client))
    caches.held((1,))
    caches.add(3, "3")
    assert caches.held((1, 2, 3)) == {1: "1", 3: "3"}
    assert (caches.counts.evictions, caches.counts.bytes) == (1, 80)


def test_one_that_is_larger_than_the_bound_is_computed_and_never_handed_back():
    caches = cache(100, **{"1": 101, "2": 100})
    assert caches.wanted((1, 2)) == (2,)
    assert caches.counts.misses == 2
    assert cache(0, **{"1": 1}).wanted((1,)) == ()


def test_ranges_of_validation_examples_are_held_beside_clients():
    caches = FrozenCache(100, lambda key: 10)
    caches.add((0, 256), "shard")
    assert caches.held([(0, 256), (256, 300)]) == {(0, 256): "shard"}


@given(
    max_bytes=st.integers(0, 60),
    sizes=st.lists(st.integers(0, 25), min_size=1, max_size=8),
    keys=st.lists(st.integers(0, 7), max_size=60),
)
def test_the_bound_holds_and_the_bytes_are_those_of_what_is_held(max_bytes, sizes, keys):
    caches = FrozenCache(max_bytes, lambda key: sizes[key % len(sizes)])
    for client in keys:
        held = caches.held((client,))
        for wanted in caches.wanted((client,)):
            caches.add(wanted, f"states of {wanted}")
        assert all(handle == f"states of {key}" for key, handle in held.items())
        now = caches.held(range(8))
        assert caches.counts.bytes == sum(sizes[key % len(sizes)] for key in now) <= max_bytes

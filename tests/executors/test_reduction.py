"""Sums on their way to the server when one call trains for several steps: no block and no message mixes them."""

import itertools
from collections import deque
from types import SimpleNamespace

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from fedsim.core.messages import VECTOR, GroupUpdate, WorkGroup
from fedsim.core.method import Method
from fedsim.executors.ray.reduction import Aggregator, RoundSums, blocks_of
from server.blocks import BLOCK_GROUPS, add_to_block
from server.core import Server

SIZE, STEPS = 5, 3
PLAN = {(0, 0): 40, (1, 0): 18, (1, 1): 1, (2, 0): 3}
"""Groups by the step that takes them in and the version that they begin from; of version 1 they come in a call of their own."""
CALLS = [[key for key in PLAN if key[1] == 0], [(1, 1)]]


def groups_of(keys):
    return [WorkGroup(v, n, (100 * s + 2 * n + 50 * v,), step=s) for s, v in keys for n in range(PLAN[s, v])]


def update_of(group, rng):
    return GroupUpdate(group.round, group.group, 0, group.clients, 2.0, 1, {VECTOR: rng.normal(size=SIZE)})


class Actor:
    """Calls a plain object at once, where Ray would send the call."""

    def __init__(self, target):
        for name in ("fold", "apply", "add"):
            if hasattr(target, name):
                setattr(self, name, SimpleNamespace(remote=getattr(target, name)))


def server():
    return Server(Method(), np.zeros(SIZE), (0,), 1.0, staleness_exponent=0.5)


def test_blocks_are_numbered_from_zero_and_mix_neither_steps_nor_versions():
    groups = groups_of(CALLS[0])
    numbers = blocks_of(groups)
    keys = [(group.taken_in, group.round, group.group // BLOCK_GROUPS) for group in groups]
    assert len(set(zip(numbers, keys, strict=True))) == len(set(numbers)) == len(set(keys)) == 3 + 2 + 1
    assert numbers == sorted(numbers) and numbers[0] == 0
    synchronous = [WorkGroup(7, number, (number,)) for number in range(40)]
    assert blocks_of(synchronous) == [number // BLOCK_GROUPS for number in range(40)]


@settings(max_examples=25, deadline=None)
@given(st.integers(0, 2**31), st.integers(1, 20), st.booleans())
def test_sums_that_arrive_in_any_order_give_the_bits_of_those_in_order(seed, at_once, adds_up_by_node):
    rng, order = np.random.default_rng(seed), np.random.default_rng(seed + 1)
    plain, behind = server(), server()
    adders = {node: Actor(SimpleNamespace(add=lambda block, whole, *some: add_to_block(block, some, whole=whole)))
              for node in ("a", "b")} if adds_up_by_node else {}  # fmt: skip
    aggregator = aggregator_of(behind, at_once)
    for step, keys in itertools.zip_longest(range(STEPS), CALLS, fillvalue=()):
        groups = groups_of(keys)
        updates = [update_of(group, rng) for group in groups]
        sums = RoundSums(aggregator, groups, adders)
        for index in order.permutation(len(groups)):
            sums.add(int(index), [updates[index]], str(order.choice(["a", "b"])))
        for group, update in zip(groups, updates, strict=True):
            plain.fold(group.taken_in, update)
        clients = tuple(group.clients[0] for key in PLAN if key[0] == step for group in groups_of([key]))
        keep = (0,) if step < STEPS - 1 else ()
        aggregator.apply(step, clients, keep=keep)
        plain.apply(step, clients, keep=keep)
    assert np.array_equal(plain.arrays()[VECTOR], behind.arrays()[VECTOR])


def aggregator_of(target, at_once):
    made = object.__new__(Aggregator)
    apply = SimpleNamespace(
        options=lambda **_: SimpleNamespace(remote=lambda *some, **named: (target.apply(*some, **named), None))
    )
    made._actor = SimpleNamespace(fold=SimpleNamespace(remote=target.fold), apply=apply)
    made._folds, made._unfolded, made._unfolded_round, made.at_once = deque(), [], 0, at_once
    made._result = lambda ref, what: ref
    return made

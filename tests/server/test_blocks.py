"""Sums in blocks of groups: wherever a block is summed and however it arrives, the bits are those of the flat sum."""

import pickle
from dataclasses import fields, replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fedsim.core.errors import ClientError
from fedsim.core.messages import VECTOR, BlockUpdate, GroupUpdate
from fedsim.core.method import Method
from server.aggregation import combine
from server.blocks import BLOCK_GROUPS, add_to_block
from server.core import Server

SIZE = 7
OPTIONAL = ("sum a", "sum b", "each a", "each b", "weights")
"""What updates may have beside the sum of the vectors; names mean nothing here."""


def update(rng, group, part, clients, optional=()):
    def vector():
        return rng.normal(size=SIZE) * 10.0 ** rng.integers(-8, 8)

    many = len(clients)
    return GroupUpdate(
        round=2,
        group=group,
        part=part,
        clients=clients,
        weight_sum=float(rng.random()),
        steps_sum=int(rng.integers(1, 9)),
        sums={VECTOR: vector()} | {name: vector() for name in optional if name.startswith("sum")},
        each={name: rng.normal(size=(many, SIZE)) for name in optional if name.startswith("each")},
        weights_k=rng.random(many) if "weights" in optional else None,
    )


@st.composite
def rounds(draw):
    """Return updates in order, None for a group without a usable client, and the cohort."""
    rng = np.random.default_rng(draw(st.integers(0, 2**32)))
    optional = draw(st.sets(st.sampled_from(OPTIONAL)))
    updates, client = [], 0
    for group in range(draw(st.integers(1, 40))):
        for part in range(draw(st.sampled_from([1, 1, 2, 3]))):
            made = update(rng, group, part, tuple(range(client, client + draw(st.integers(1, 2)))), sorted(optional))
            client = made.clients[-1] + 1
            kind = draw(st.sampled_from(["good", "good", "good", "failed", "non_finite"]))
            if kind == "non_finite":
                made.sums[VECTOR][draw(st.integers(0, SIZE - 1))] = draw(st.sampled_from([np.nan, np.inf]))
            updates.append((group, None if kind == "failed" else made))
    return updates, tuple(rng.permutation(client).tolist())


def read_only(block):
    """Return a block as it comes out of an object store."""
    if block is None:
        return None
    block = pickle.loads(pickle.dumps(block))
    arrays = [*block.sums.values(), *block.open_sums.values(), *(a for some in block.each.values() for a in some)]
    arrays += block.weights
    for array in arrays:
        array.flags.writeable = False
    return block


def outcome(updates, order):
    try:
        combined = combine([one for one in updates if one is not None], order)
    except ClientError as error:
        return str(error)
    return {field.name: as_bytes(getattr(combined, field.name)) for field in fields(combined)}


def as_bytes(value):
    if isinstance(value, dict):
        return {name: as_bytes(array) for name, array in value.items()}
    return value.tobytes() if isinstance(value, np.ndarray) else value


@settings(max_examples=150, deadline=None)
@given(rounds(), st.data())
def test_blocks_give_the_bits_of_the_flat_sum_wherever_they_are_cut(the_round, data):
    updates, order = the_round
    arrived = []
    for number in range(updates[-1][0] // BLOCK_GROUPS + 1):
        own = [(group, made) for group, made in updates if group // BLOCK_GROUPS == number]
        summed = data.draw(st.integers(0, len(own)))  # the rest of the block comes one by one
        block, start = None, 0
        while start < summed:
            end = data.draw(st.integers(start + 1, summed))
            whole = end == len(own) or own[end][0] != own[end - 1][0]
            block = read_only(
                add_to_block(block, [made for _, made in own[start:end]], whole=whole and data.draw(st.booleans()))
            )
            start = end
        arrived += [block, *(made for _, made in own[summed:])]
    assert outcome(arrived, order) == outcome([made for _, made in updates], order)


def test_the_order_of_addition_is_parts_then_groups_then_blocks():
    rng = np.random.default_rng(0)
    updates = [update(rng, group, part, (2 * group + part,)) for group in range(2 * BLOCK_GROUPS) for part in (0, 1)]
    vectors = np.stack([one.sums[VECTOR] for one in updates]).reshape(2, BLOCK_GROUPS, 2, SIZE)
    groups = vectors[:, :, 0] + vectors[:, :, 1]
    blocks = groups[:, 0]
    for group in range(1, BLOCK_GROUPS):
        blocks = blocks + groups[:, group]
    combined = combine(updates, range(4 * BLOCK_GROUPS))
    np.testing.assert_array_equal(combined.vector_F, (blocks[0] + blocks[1]) / combined.weight_sum)


def test_a_server_takes_blocks_and_groups_alike():
    rng = np.random.default_rng(1)
    updates = [replace(update(rng, group, 0, (group,)), round=0) for group in range(20)]
    order = tuple(range(20))
    flat, mixed = (Server(Method(), np.zeros(SIZE), (0,), 1.0) for _ in range(2))
    flat.apply(0, order, *updates)
    mixed.fold(0, add_to_block(None, updates[:16], whole=True), None)
    mixed.apply(0, order, *updates[16:])
    assert flat.global_state().vector_F.tobytes() == mixed.global_state().vector_F.tobytes()


def test_a_block_without_a_usable_client_is_none():
    assert add_to_block(None, []) is None
    assert add_to_block(add_to_block(None, [None]), [None, None], whole=True) is None


def test_a_whole_block_carries_one_vector_a_sum():
    rng = np.random.default_rng(2)
    updates = [update(rng, 3, 0, (0,)), update(rng, 4, 0, (1,))]
    open_block = add_to_block(None, updates)
    assert set(open_block.sums) == set(open_block.open_sums) == {VECTOR}
    whole = add_to_block(open_block, [], whole=True)
    assert whole.open_sums == {} and add_to_block(whole, [None]) is whole
    np.testing.assert_array_equal(whole.sums[VECTOR], updates[0].sums[VECTOR] + updates[1].sums[VECTOR])


@pytest.mark.parametrize(
    "changes, sentence",
    [
        ({"group": 16}, "group 16 is not in block 0 of 16 groups"),
        ({"group": 4, "part": 1}, "update of group 4, part 1, came after group 5, part 0"),
        ({"part": 1}, "update of group 5, part 1, came after group 5, part 0"),  # the block says that group 5 is whole
        ({"group": 6, "clients": (0,)}, "holds a client twice, or one that another update also holds"),
        ({"group": 6, "round": 3}, "is of round 3, others are of round 2"),
        ({"group": 6, "sums": {VECTOR: np.zeros(3)}}, r"has shape \(3,\), others \(7,\)"),
        ({"group": 6, "weights_k": np.ones(1)}, "disagree on whether each client's weight is given"),
    ],
)
def test_what_does_not_belong_to_a_block(changes, sentence):
    rng = np.random.default_rng(3)
    block = add_to_block(None, [update(rng, 5, 0, (0,))], whole=True)
    with pytest.raises(ValueError, match=sentence):
        add_to_block(block, [replace(update(rng, 5, 0, (1,)), **changes)])


def test_a_block_of_which_groups_were_added_already_is_refused():
    rng = np.random.default_rng(4)
    block = add_to_block(None, [update(rng, 5, 0, (0,))])
    assert isinstance(block, BlockUpdate)
    with pytest.raises(ValueError, match="block 0 came after group 3, part 0"):
        combine([update(rng, 3, 0, (1,)), block], (0, 1))

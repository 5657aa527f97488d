"""The order in which a round's sums are added: parts within a group, groups within a block, then blocks.

Blocks are cut by group number, so a block can be summed where its groups were trained and merged by the server later, with
the same bits as if the server added everything itself.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from fedsim.core.finite import is_finite
from fedsim.core.messages import VECTOR, BlockUpdate, GroupUpdate

BLOCK_GROUPS = 16
"""Groups per block: block b holds groups 16 b to 16 b + 15. Changing it may change the last bits of results."""


class Sums:
    """Sums from left to right. np.sum adds pairwise, in an order that depends on the number of terms."""

    def __init__(self, weight: float = 0.0, arrays: Mapping[str, np.ndarray] | None = None) -> None:
        self.weight = weight
        self.arrays = dict(arrays or {})
        self._owned = False

    def add(self, weight: float, arrays: Mapping[str, np.ndarray]) -> None:
        """Add a term; the first term's arrays are used without a copy and never written to."""
        self.weight += weight
        if not self.arrays:
            # No copy: most groups are a single part.
            self.arrays = dict(arrays)
            return
        for name, array in arrays.items():
            out = self.arrays[name] if self._owned else None
            self.arrays[name] = np.add(self.arrays[name], array, out=out)
        self._owned = True

    def add_sums(self, other: Sums) -> None:
        """Add sums as one term; do nothing if they have no arrays."""
        if other.arrays:
            self.add(other.weight, other.arrays)


class BlockSum:
    """The running sums of one block's groups; expects checked updates, ordered by group, then part.

    Parameters
    ----------
    block
        Number of the block.
    """

    def __init__(self, block: int) -> None:
        self.block = block
        self.clients: list[int] = []
        self.rejected: list[int] = []
        self.steps = 0
        self.bits = 0.0
        self.each: dict[str, list[np.ndarray]] = {}
        self.weights: list[np.ndarray] = []
        self._group = -1
        self._open = Sums()
        self._closed = Sums()

    @classmethod
    def of(cls, update: BlockUpdate) -> BlockSum:
        """Return running sums that continue from ``update``."""
        self = cls(update.block)
        self.clients, self.rejected = list(update.clients), list(update.rejected_clients)
        self.steps, self.bits = update.steps_sum, update.bits_sum
        self.each = {name: list(arrays) for name, arrays in update.each.items()}
        self.weights = list(update.weights)
        self._group = update.group
        self._open = Sums(update.open_weight_sum, update.open_sums)
        self._closed = Sums(update.weight_sum, update.sums)
        return self

    def add(self, update: GroupUpdate) -> None:
        """Add a group or part; leave it out if it is not finite."""
        if update.group != self._group:
            self.close_group()
        self._group = update.group
        if not _is_usable(update):
            self.rejected += update.clients
            return
        self._open.add(update.weight_sum, update.sums)
        self.clients += update.clients
        self.steps += update.steps_sum
        self.bits += update.bits_sum
        for name, array_kF in update.each.items():
            self.each.setdefault(name, []).append(array_kF)
        if update.weights_k is not None:
            self.weights.append(update.weights_k)

    def close_group(self) -> None:
        """Add the current group to the block."""
        self._closed.add_sums(self._open)
        self._open = Sums()

    def total(self) -> Sums:
        """Close the last group and return the block's sums."""
        self.close_group()
        return self._closed

    def update(self, roll: Roll, whole: bool) -> BlockUpdate:
        """Return the sums as a record; nothing may be added here afterwards."""
        if whole:
            self.close_group()
        return BlockUpdate(
            round=roll.round,
            block=self.block,
            group=roll.last[0],
            part=roll.last[1],
            whole=whole,
            clients=tuple(self.clients),
            rejected_clients=tuple(self.rejected),
            shape=roll.shape,
            given=roll.given,
            steps_sum=self.steps,
            weight_sum=self._closed.weight,
            sums=self._closed.arrays,
            open_weight_sum=self._open.weight,
            open_sums=self._open.arrays,
            each={name: tuple(arrays) for name, arrays in self.each.items()},
            weights=tuple(self.weights),
            bits_sum=self.bits,
        )


class Roll:
    """The updates of a round admitted so far; refuses those that do not fit."""

    def __init__(self) -> None:
        self.round = -1
        self.shape: tuple[int, ...] = ()
        self.given: tuple[str, ...] = ()
        self.last = (-1, -1)
        """Group and part of the last update."""
        self.whole = False
        """The last group is complete: no more parts of it are admitted."""
        self.seen: set[int] = set()
        """Clients, including those left out."""

    def admit(self, update: GroupUpdate | BlockUpdate) -> None:
        """Check an update and record it.

        Raises
        ------
        ValueError
            If it is of another round or shape, names a client twice, or comes out of order.
        """
        if isinstance(update, BlockUpdate):
            clients, name = (*update.clients, *update.rejected_clients), f"block {update.block}"
            self._compare(name, update.round, update.shape, update.given)
            is_behind = self.last[0] // BLOCK_GROUPS >= update.block
        else:
            clients, name = update.clients, f"update of group {update.group}, part {update.part},"
            self._compare(name, update.round, update.sums[VECTOR].shape, _given(update))
            _check_shapes(update, name)
            is_behind = (update.group, update.part) < self.last or (self.whole and update.group == self.last[0])
        if self.seen & set(clients) or len(set(clients)) != len(clients):
            raise ValueError(f"{name} holds a client twice, or one that another update also holds")
        if is_behind:
            raise ValueError(f"{name} came after group {self.last[0]}, part {self.last[1]}")
        self.seen |= set(clients)
        self.last = (update.group, update.part)
        self.whole = isinstance(update, BlockUpdate) and update.whole

    def _compare(self, name: str, round: int, shape: tuple[int, ...], given: tuple[str, ...]) -> None:
        if not self.seen:
            self.round, self.shape, self.given = round, shape, given
        if round != self.round:
            raise ValueError(f"{name} is of round {round}, others are of round {self.round}")
        if shape != self.shape:
            raise ValueError(f"{name} has shape {shape}, others {self.shape}")
        if differing := sorted(set(given) ^ set(self.given)):
            raise ValueError(f"{name} and the others disagree on whether {differing[0]} is given")


def add_to_block(
    block: BlockUpdate | None, updates: Sequence[GroupUpdate | None], *, whole: bool = False
) -> BlockUpdate | None:
    """Return a block's sums with more updates added; a pure function.

    Parameters
    ----------
    block
        Result of the previous call for this block, None for the first; never written to.
    updates
        The next updates of the block, all after those of earlier calls; None where no client was usable.
    whole
        The last group is complete, which makes the result one vector smaller; more groups may still be added.

    Returns
    -------
    BlockUpdate or None
        None if no update has had a usable client so far.

    Raises
    ------
    ValueError
        If an update is not in this block, or does not fit the others.
    """
    some = sorted((update for update in updates if update is not None and update.clients), key=place)
    if block is None and not some:
        return None
    if block is not None and not some:
        return block if block.whole or not whole else BlockSum.of(block).update(_roll_of(block), whole)
    number = some[0].group // BLOCK_GROUPS if block is None else block.block
    sums = BlockSum(number) if block is None else BlockSum.of(block)
    roll = Roll() if block is None else _roll_of(block)
    for update in some:
        if update.group // BLOCK_GROUPS != number:
            raise ValueError(f"group {update.group} is not in block {number} of {BLOCK_GROUPS} groups")
        roll.admit(update)
        sums.add(update)
    return sums.update(roll, whole)


def place(update: GroupUpdate | BlockUpdate) -> tuple[int, int]:
    """Return an update's position in the order of addition: its group and part, for a block those of its last update."""
    return update.group, update.part


def _is_usable(update: GroupUpdate) -> bool:
    """Whether all numbers of an update are finite."""
    weights = () if update.weights_k is None else (update.weights_k,)
    arrays = (*update.sums.values(), *update.each.values(), *weights)
    return bool(np.isfinite(update.weight_sum)) and all(map(is_finite, arrays))


def _roll_of(block: BlockUpdate) -> Roll:
    roll = Roll()
    roll.admit(block)
    return roll


def _given(update: GroupUpdate) -> tuple[str, ...]:
    """Return the contents of an update, in words."""
    sums, each = (f"the sum {name!r}" for name in update.sums), (f"each client's {name!r}" for name in update.each)
    return (*sums, *each, *(() if update.weights_k is None else ("each client's weight",)))


def _check_shapes(update: GroupUpdate, name: str) -> None:
    shape, many = update.sums[VECTOR].shape, len(update.clients)
    expected = [(f"the sum {key!r}", array_F, shape) for key, array_F in update.sums.items()]
    expected += [(f"each client's {key!r}", array_kF, (many, *shape)) for key, array_kF in update.each.items()]
    if update.weights_k is not None:
        expected.append(("each client's weight", update.weights_k, (many,)))
    for what, array, right in expected:
        if array.shape != right:
            raise ValueError(f"{name} has {what} of shape {array.shape}, expected {right}")

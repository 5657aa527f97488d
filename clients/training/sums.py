"""What a work group sends to the server: sums over its clients."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from fedsim.core.messages import VECTOR, ClientReport, GroupUpdate, WorkGroup
from fedsim.core.method import ClientRound, Correction, times

BLOCK = 2**17
"""Entries that are added at a time: the float64 intermediates of a block stay in the processor's cache."""


class GroupSums:
    """The running float64 sums of a group, in client-id order.

    Every term is formed and added in float64, entry by entry, as in ``total + weight * vector.astype(float64)``; only
    that it is done in blocks of entries, without an intermediate of the vector's length.

    Parameters
    ----------
    group
        The work group.
    size
        Length F of the exchanged vector.
    corrections
        Those in force, which form terms of sums of their own.
    uniform_weights
        Every client weighs one, not its number of examples.
    singles
        Names of what the server needs client by client, beside the weights; None where it needs none of it.
    """

    def __init__(
        self,
        group: WorkGroup,
        size: int,
        corrections: Sequence[Correction] = (),
        *,
        uniform_weights: bool = False,
        singles: tuple[str, ...] | None = None,
    ) -> None:
        self._group = group
        self._size = size
        self._corrections = corrections
        self._plain = not any(VECTOR in correction.sums for correction in corrections)
        self._uniform_weights = uniform_weights
        self._singles = singles
        self._added: list[ClientReport] = []
        self._sums: dict[str, np.ndarray] = {}
        self._each: dict[str, list[np.ndarray]] = {}
        self._block = Block(min(BLOCK, self._size))

    def add(self, report: ClientReport, client: ClientRound) -> None:
        """Add one client's result; ``client`` holds exchanged entries of all arrays."""
        weight = self._weight(report)
        self._added.append(report)
        for start in range(0, self._size, BLOCK):
            block = slice(start, min(start + BLOCK, self._size))
            if self._plain:
                entries = self._block.at(block)
                self._add(VECTOR, entries, times(entries.float64(client.trained_F), weight))
            for correction in self._corrections:
                entries = self._block.at(block)
                for name, term in correction.terms(client, weight, entries).items():
                    self._add(name, entries, term)
        for name in self._singles or ():
            self._each.setdefault(name, []).append(self._single(client, name))

    def update(self) -> GroupUpdate | None:
        """Return the sums, or None if there was no usable client."""
        if not self._added:
            return None
        weights = [self._weight(report) for report in self._added]
        return GroupUpdate(
            round=self._group.round,
            group=self._group.group,
            part=self._group.part,
            clients=tuple(report.client for report in self._added),
            weight_sum=float(sum(weights)),
            steps_sum=sum(report.num_steps for report in self._added),
            sums=self._sums,
            each={name: np.stack(arrays) for name, arrays in self._each.items()},
            weights_k=None if self._singles is None else np.array(weights),
        )

    def _weight(self, report: ClientReport) -> float:
        return 1.0 if self._uniform_weights else float(report.num_examples)

    def _single(self, client: ClientRound, name: str) -> np.ndarray:
        if name == VECTOR:
            return client.trained_F
        owner = next(one for one in self._corrections if name in one.singles(robust=True) + one.singles(robust=False))
        return owner.single(client, name)

    def _add(self, name: str, entries: Block, term: np.ndarray) -> None:
        if name not in self._sums:
            self._sums[name] = np.zeros(self._size)
        total = self._sums[name][entries.slice]
        np.add(total, term, out=total)


class Block:
    """A block of entries, and scratch memory for them that is used again for the next one."""

    def __init__(self, size: int) -> None:
        self._size = size
        self._scratch: list[np.ndarray] = []
        self._used = 0
        self.slice = slice(0, 0)

    def at(self, entries: slice) -> Block:
        """Go to other entries; what was handed out is free again."""
        self.slice, self._used = entries, 0
        return self

    def scratch(self) -> np.ndarray:
        """Return room for as many numbers."""
        if self._used == len(self._scratch):
            self._scratch.append(np.empty(self._size))
        self._used += 1
        return self._scratch[self._used - 1][: self.slice.stop - self.slice.start]

    def float64(self, array_F: np.ndarray) -> np.ndarray:
        """Return the block's entries of an array, as a copy in float64 that may be written to."""
        view = self.scratch()
        np.copyto(view, array_F[self.slice])
        return view


def as_slice(positions: np.ndarray) -> np.ndarray | slice:
    """Return ascending positions as a slice where they have no gap: it makes a view, not a copy."""
    if len(positions) and positions[-1] - positions[0] == len(positions) - 1:
        return slice(int(positions[0]), int(positions[-1]) + 1)
    return positions

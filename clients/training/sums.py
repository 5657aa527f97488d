"""A work group's message to the server: sums over its clients."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch

from fedsim.core.messages import VECTOR, ClientReport, GroupUpdate, WorkGroup
from fedsim.core.method import ClientRound, Correction, times

BLOCK = 2**17
"""Entries added at a time, so that the float64 intermediates of a block stay in the CPU cache."""
_EXACT_WEIGHTS = 2.0**29
"""Below it, a whole number times a float32 is exact in float64: 29 and 24 of 53 bits."""


class GroupSums:
    """The running float64 sums of a group, in client-id order.

    Computes ``total + weight * vector.astype(float64)`` entry by entry, but in blocks of entries, so no intermediate is as
    long as the vector. What is added together is added in one sweep: a block of all clients, then the next block.

    Parameters
    ----------
    group
        The work group.
    size
        Length F of the exchanged vector.
    corrections
        Active corrections; they contribute their own terms to the sums.
    uniform_weights
        Every client weighs 1, not its number of examples.
    singles
        Names of the arrays that the server needs per client, along with the weights; None if it needs only sums.
    block_size
        Entries of a block; no result depends on it.
    """

    def __init__(
        self,
        group: WorkGroup,
        size: int,
        corrections: Sequence[Correction] = (),
        *,
        uniform_weights: bool = False,
        singles: tuple[str, ...] | None = None,
        block_size: int = BLOCK,
    ) -> None:
        self._group = group
        self._corrections = corrections
        self._plain = not any(VECTOR in correction.sums for correction in corrections)
        self._uniform_weights = uniform_weights
        self._singles = singles
        self._added: list[ClientReport] = []
        self._size = size
        self._sums: dict[str, np.ndarray] = {}
        self._each: dict[str, list[np.ndarray]] = {}
        self._block = Block(min(block_size, size))
        self._slices = [slice(start, min(start + block_size, size)) for start in range(0, size, block_size)]
        self._vector: _VectorSum | None = None

    def add(self, *results: tuple[ClientReport, ClientRound]) -> None:
        """Add clients' results in one sweep; the arrays of a client hold exchanged entries only."""
        weighted = [(client, self._weight(report)) for report, client in results]
        self._added += [report for report, _ in results]
        if self._plain and self._vector is None and results:
            self._sums[VECTOR] = np.zeros(self._size)
            self._vector = _VectorSum(self._sums[VECTOR], self._slices)
        for number, entries in enumerate(self._slices):
            for client, weight in weighted:
                if self._vector is not None:
                    self._vector.add(number, client.trained_F, weight)
                self._add_terms(client, weight, entries)
        for client, _ in weighted:
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
            bits_sum=sum(report.bit for report in self._added),
        )

    def _add_terms(self, client: ClientRound, weight: float, entries: slice) -> None:
        for correction in self._corrections:
            for name, term in correction.terms(client, weight, self._block.at(entries)).items():
                if name not in self._sums:
                    self._sums[name] = np.zeros(self._size)
                total = self._sums[name][entries]
                np.add(total, term, out=total)

    def _weight(self, report: ClientReport) -> float:
        return 1.0 if self._uniform_weights else float(report.num_examples)

    def _single(self, client: ClientRound, name: str) -> np.ndarray:
        if name == VECTOR:
            return client.trained_F
        owner = next(one for one in self._corrections if name in one.singles(robust=True) + one.singles(robust=False))
        return owner.single(client, name)


class _VectorSum:
    """The sum of w_i P_i."""

    def __init__(self, total_F: np.ndarray, slices: Sequence[slice]) -> None:
        scratch = np.empty(slices[0].stop)
        terms = [scratch[: entries.stop - entries.start] for entries in slices]
        # Views, made once: with short vectors they would take longer than the sums.
        self._blocks = [
            (entries, total_F[entries], torch.from_numpy(total_F[entries]), term, torch.from_numpy(term))
            for entries, term in zip(slices, terms, strict=True)
        ]

    def add(self, number: int, vector_F: np.ndarray, weight: float) -> None:
        """Add block ``number`` of a client's vector."""
        entries, total, total_tensor, term, term_tensor = self._blocks[number]
        np.copyto(term, vector_F[entries])
        if vector_F.dtype == np.float32 and weight.is_integer() and weight < _EXACT_WEIGHTS:
            # One pass in place of two. The product is exact, so the bits are the same, whether it is rounded by itself or not.
            total_tensor.add_(term_tensor, alpha=weight)
        else:
            np.add(total, times(term, weight), out=total)


class Block:
    """A block of entries with scratch memory that the next block reuses."""

    def __init__(self, size: int) -> None:
        self._size = size
        self._scratch: list[np.ndarray] = []
        self._used = 0
        self.slice = slice(0, 0)

    def at(self, entries: slice) -> Block:
        """Move to other entries; scratch memory handed out before is reused."""
        self.slice, self._used = entries, 0
        return self

    def scratch(self) -> np.ndarray:
        """Return scratch memory for the block's entries."""
        if self._used == len(self._scratch):
            self._scratch.append(np.empty(self._size))
        self._used += 1
        return self._scratch[self._used - 1][: self.slice.stop - self.slice.start]

    def float64(self, array_F: np.ndarray) -> np.ndarray:
        """Return a writable float64 copy of the block's entries of an array."""
        view = self.scratch()
        np.copyto(view, array_F[self.slice])
        return view


def as_slice(positions: np.ndarray) -> np.ndarray | slice:
    """Return ascending positions as a slice if they have no gap, since a slice makes a view, not a copy."""
    if len(positions) and positions[-1] - positions[0] == len(positions) - 1:
        return slice(int(positions[0]), int(positions[-1]) + 1)
    return positions

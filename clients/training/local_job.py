"""One client's local training: its inputs, its mini-batches, its result.

Shape suffixes: A all parameters that the client trains, F the exchanged ones among them, M the personal ones, N examples,
B examples of a mini-batch.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np

from clients.config import ClientConfig
from clients.tuners.tuner import Tuner
from fedsim.core.layout import VectorLayout

if TYPE_CHECKING:
    from clients.backbone.frozen_states import CachedStates


@dataclass(frozen=True)
class Parts:
    """The exchanged and the personal part of a client's parameters, as positions in the flat vector that it trains.

    In a round that trains some arrays only, ``trained`` and ``exchanged`` hold these; passes run on ``whole``.
    """

    trained: VectorLayout
    exchanged: VectorLayout
    personal: VectorLayout
    exchanged_F: np.ndarray
    personal_M: np.ndarray
    whole: VectorLayout
    trained_W: np.ndarray | None = None
    """int64 positions of the trained entries in the vector of ``whole``; None where they are all."""

    @classmethod
    def of(
        cls,
        full: VectorLayout,
        layers: tuple[int, ...],
        keep_local: bool,
        tuner: Tuner | None = None,
        round: int | None = None,
    ) -> Parts:
        """Split the parameters of all layers (``full``) into those of the exchanged ``layers`` and, if kept, personal ones.

        Parameters
        ----------
        tuner
            Says which arrays of a layer travel; all do, if not given.
        round
            The round (counted from 0), for a tuner whose rounds train some arrays only; all, if not given.
        """
        exchanged = full.exchanged(layers)
        shared = None if tuner is None else tuner.shared(full.geometry)
        turns = () if tuner is None or round is None else tuner.turns(full.geometry)
        if shared is not None:
            trained = exchanged
            exchanged, personal = trained.holding(shared), trained.lacking(shared)
        else:
            trained = full if keep_local else exchanged
            personal = trained.local(layers)
        if not turns:
            positions = trained.positions(exchanged), trained.positions(personal)
            return cls(trained, exchanged, personal, *positions, trained)
        own = exchanged.holding(turns[(round or 0) % len(turns)])
        nothing = own.local(layers)
        positions = own.positions(own), own.positions(nothing)
        return cls(own, own, nothing, *positions, exchanged, exchanged.positions(own))

    def of_round(self, array_F: np.ndarray) -> np.ndarray:
        """Return the entries that this round trains, of an array of the server or one that a client keeps."""
        return array_F if self.trained_W is None else array_F[self.trained_W]

    def with_round(self, array_F: np.ndarray, before: np.ndarray | None) -> np.ndarray:
        """Return what a client keeps: the entries of this round, and all others as before, zero if there were none."""
        if self.trained_W is None:
            return array_F
        kept = np.zeros(self.whole.size, array_F.dtype) if before is None else before.copy()
        kept[self.trained_W] = array_F
        return kept

    def assemble(self, vector_F: np.ndarray, personal_M: np.ndarray) -> np.ndarray:
        """Return the trained vector of length A from its exchanged and personal entries."""
        vector_A = np.empty(self.trained.size, dtype=vector_F.dtype)
        vector_A[self.exchanged_F] = vector_F
        vector_A[self.personal_M] = personal_M
        return vector_A


@dataclass(frozen=True)
class LocalJob:
    """One client's work in one round."""

    client: int
    indices_N: np.ndarray
    """int64; the client's training examples in the token table."""
    start_A: np.ndarray
    """Start parameters, float32 or float64; the exchanged entries are the global vector P_t."""
    first_moment_A: np.ndarray | None = None
    """Optimizer state after the client's last local training, or None to start afresh."""
    second_moment_A: np.ndarray | None = None
    moment_steps: int = 0
    """Steps accumulated in the moments."""
    whole_W: np.ndarray | None = None
    """The vector that passes run on, where only some of its entries are trained in this round."""
    begun: Mapping[str, np.ndarray | float] = field(default_factory=dict)
    """Inputs of corrections to the steps, by name; see :meth:`fedsim.core.method.Correction.begin`."""
    cached: CachedStates | None = None
    """Input of the lowest prompted layer for the examples ``indices_N``, in order; None where all layers run."""


@dataclass(frozen=True)
class TrainingResult:
    """Result of one client's local training."""

    vector_A: np.ndarray
    """Parameters after training, in the dtype of the start parameters."""
    first_moment_A: np.ndarray
    second_moment_A: np.ndarray
    num_steps: int
    loss_first: float
    """Mean loss over the first pass."""
    loss_last: float
    """Mean loss over the last pass."""
    num_tokens: int = 0
    """Tokens of all mini-batches."""
    num_slots: int = 0
    """Tokens that attention computed for them, including padding."""
    tallies: Mapping[str, np.ndarray] = field(default_factory=dict)
    """Sums that corrections accumulated over the steps, by name, each as long as the vector."""


def batches(config: ClientConfig, num_examples: int, rng: np.random.Generator) -> Iterator[tuple[int, np.ndarray]]:
    """Yield ``(epoch, positions of a batch)`` for one local training: ``epochs`` passes, or passes until ``steps`` are done."""
    limit = num_steps(config, num_examples)
    done = epoch = 0
    while done < limit:
        order = rng.permutation(num_examples) if config.shuffle else np.arange(num_examples)
        for start in range(0, num_examples, config.batch_size):
            if done == limit:
                return
            yield epoch, order[start : start + config.batch_size]
            done += 1
        epoch += 1


def num_steps(config: ClientConfig, num_examples: int) -> int:
    """Return the local steps T_i per round of a client with ``num_examples`` training examples."""
    if config.steps is not None:
        return config.steps
    return (config.epochs or 0) * -(-num_examples // config.batch_size)


def num_trained(config: ClientConfig, num_examples: int) -> int:
    """Return the most examples that one local training processes, counted with repetition: the work by which groups are cut."""
    if config.steps is not None:
        return config.steps * min(config.batch_size, num_examples)
    return (config.epochs or 0) * num_examples


def num_processed(config: ClientConfig, num_examples: int) -> int:
    """Return the examples that one local training processes, counted with repetition; a pass's last batch may be smaller."""
    if config.steps is None or not num_examples:
        return num_trained(config, num_examples)
    passes, rest = divmod(config.steps, -(-num_examples // config.batch_size))
    return passes * num_examples + min(rest * config.batch_size, num_examples)


def sees_all(config: ClientConfig, num_examples: int) -> bool:
    """Whether one local training uses every example of the client at least once."""
    return num_steps(config, num_examples) * config.batch_size >= num_examples

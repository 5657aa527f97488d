"""Dropout on prompts: in a training step every example sees its client's prompt with its own dropout mask.

As in the published code, every example of a batch has its own mask in all layers. Masks are drawn on the CPU from a
stream of the client's local training, in the order of its steps and examples, so draws depend neither on which clients
share a pass, nor on how passes are cut, nor on the device. Layers below the lowest prompted one are not affected.

Shape suffixes: B examples, C clients, A entries of a client's prompts, L prompted layers, K {key, value}, H key/value heads,
P prompt length, D head dimension.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

_STEPS = 65_536
"""Resolution of the dropout probability: sixteen random bits per entry."""


def _dropped_steps(chance: float) -> int:
    """Convert the dropout probability to steps; a probability strictly between 0 and 1 stays so."""
    return min(max(1, round(chance * _STEPS)), _STEPS - 1)


def draw_kept(rng: np.random.Generator, chance: float, num_examples: int, num_entries: int) -> np.ndarray:
    """Draw which prompt entries each example keeps, bool [B, A]; each is dropped with probability ``chance``."""
    return rng.integers(0, _STEPS, (num_examples, num_entries), dtype=np.uint16) >= _dropped_steps(chance)


def kept_scale(chance: float) -> float:
    """Return the scale of kept entries, one over the probability of keeping, which preserves the mean."""
    return 1.0 / (1.0 - _dropped_steps(chance) / _STEPS)


@dataclass(frozen=True)
class PromptMask:
    """Dropout masks on the prompts of a pass, one per example."""

    kept_BLKHPD: Tensor
    """bool, on the device of the prompts; L are the layers that the pass has prompts for."""
    scale: float

    def of_layers(self, layers: tuple[int, ...]) -> dict[int, tuple[Tensor, Tensor]]:
        """Return the masks [B, H, P, D] of keys and values by model layer."""
        masks = zip(layers, self.kept_BLKHPD.unbind(1), strict=True)
        return {layer: (kept_BKHPD[:, 0], kept_BKHPD[:, 1]) for layer, kept_BKHPD in masks}


def masked(rows_BHPD: Tensor, kept_BHPD: Tensor | None) -> Tensor:
    """Return the examples' prompts with dropped entries set to zero."""
    return rows_BHPD if kept_BHPD is None else torch.where(kept_BHPD, rows_BHPD, 0.0)

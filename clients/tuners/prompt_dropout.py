"""Dropout on the prompts themselves: in a training step every example sees its client's prompt with other entries left out.

As in the published code, in which a mask falls on the prefix of every example of a batch, in all layers. Masks are drawn on
the CPU from a stream of the visit, in the order of its steps and examples, so neither who shares a pass, nor how passes are
cut, nor the device changes a draw. Below the lowest prompted layer nothing depends on them.

Shape suffixes: B examples, C clients, A entries of a client's prompts, L prompted layers, K {key, value}, H key/value heads,
P prompt length, D head dimension.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

_STEPS = 65_536
"""Chances are multiples of one over this number: sixteen random bits an entry."""


def _dropped_steps(chance: float) -> int:
    """Return the chance in steps; neither none nor all of them, as a chance above 0 and below 1 is neither."""
    return min(max(1, round(chance * _STEPS)), _STEPS - 1)


def draw_kept(rng: np.random.Generator, chance: float, num_examples: int, num_entries: int) -> np.ndarray:
    """Draw which entries of the prompts each example keeps, bool [B, A]; each is dropped with ``chance``."""
    return rng.integers(0, _STEPS, (num_examples, num_entries), dtype=np.uint16) >= _dropped_steps(chance)


def kept_scale(chance: float) -> float:
    """Return what kept entries are multiplied by, so that their mean is that of all: one over the chance of being kept."""
    return 1.0 / (1.0 - _dropped_steps(chance) / _STEPS)


@dataclass(frozen=True)
class PromptMask:
    """Which entries of its client's prompts each example of a pass keeps."""

    kept_BLKHPD: Tensor
    """bool, on the device of the prompts; L are the layers that the pass has prompts for."""
    scale: float

    def of_layers(self, layers: tuple[int, ...]) -> dict[int, tuple[Tensor, Tensor]]:
        """Return the masks [B, H, P, D] of keys and values by model layer."""
        masks = zip(layers, self.kept_BLKHPD.unbind(1), strict=True)
        return {layer: (kept_BKHPD[:, 0], kept_BKHPD[:, 1]) for layer, kept_BKHPD in masks}


def masked(rows_BHPD: Tensor, kept_BHPD: Tensor | None) -> Tensor:
    """Return the prompts of examples with zeros where they are not kept."""
    return rows_BHPD if kept_BHPD is None else torch.where(kept_BHPD, rows_BHPD, 0.0)

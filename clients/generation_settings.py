"""Settings for what workers write."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from fedsim.core.decoding import Decoding


@dataclass(frozen=True)
class GenerationSpec:
    """Which examples a run writes responses to, and how."""

    decoding: Decoding
    seed: int
    """Root of the draws, where tokens are drawn."""
    examples_N: np.ndarray
    """int64 numbers of the validation examples, ascending."""
    client_examples: int
    """Most held-out examples of each client, the first ones."""
    batch_size: int
    """Texts per pass."""

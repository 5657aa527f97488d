"""How texts are written: settings that are fixed before, and the draws of an example.

Shape suffixes: S new tokens.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from fedsim.core import seeds


@dataclass(frozen=True)
class Decoding:
    """How the tokens of a response are chosen, and where it ends."""

    max_new_tokens: int
    """Most tokens of a response, the end token included."""
    end_ids: tuple[int, ...]
    """Token ids, each of which ends a response."""
    do_sample: bool = False
    """Draw each token; else take the most likely one."""
    temperature: float = 1.0
    """Sampling: what scores are divided by."""
    top_k: int | None = None
    """Sampling: only the ``top_k`` most likely tokens; None for all."""
    top_p: float = 1.0
    """Sampling: only the fewest most likely tokens whose probabilities add up to this."""

    def uniform_S(self, seed: int, round: int, client: int, example: int) -> np.ndarray:
        """Return the numbers in [0, 1) that choose the tokens of an example, float64; they depend on nothing else."""
        return seeds.stream(seed, round, client, f"generate/{example}").random(self.max_new_tokens)

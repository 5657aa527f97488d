"""Prompts that are projected from a few trained numbers (``tuner.projection``), as prompt files hold them. No torch here.

Shape suffixes: L layers (one), X trained numbers, P virtual tokens, D hidden size, Z numbers that are projected.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from fedsim.core.layout import OneLayer, VectorLayout

PROMPT, PROJECTED = "prompt", "projected"
START, PROJECTION = "start", "projection"
"""Names of S and A among a tuner's constants."""


def as_prompt(
    layout: VectorLayout, tuned_LX: np.ndarray, start_PD: np.ndarray, projection_PDZ: np.ndarray
) -> tuple[VectorLayout, np.ndarray]:
    """Return layout and numbers [1, P D] of the prompt S + A z that projected numbers stand for, float32."""
    shape = layout.geometry
    assert isinstance(shape, OneLayer)
    prompt_PD = start_PD + projection_PDZ.astype(np.float64) @ tuned_LX[0].astype(np.float64)
    whole = replace(shape, arrays=((PROMPT, prompt_PD.shape),))
    return VectorLayout(whole, layout.layers, layout.head_shapes), prompt_PD.reshape(1, -1).astype(np.float32)

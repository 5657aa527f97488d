"""The starting point of a run: the initial prompt and head.

Shape suffixes as in :mod:`fedsim.core.layout`; A = all parameters that a client can train.
"""

from __future__ import annotations

import numpy as np

from clients.config import HeadConfig, PromptConfig
from fedsim.core import seeds
from fedsim.core.layout import VectorLayout


def initial_vector(layout: VectorLayout, prompt: PromptConfig, head: HeadConfig, seed: int) -> np.ndarray:
    """Draw the initial parameters, float32 of length ``layout.size``.

    Prompts are normal with ``prompt.init_std`` (the published code uses the model's initializer range, 0.02), head
    weights normal with ``head.init_std``, biases zero. Each layer has a stream of its own, so the prompt of a layer
    does not depend on which other layers are prompted.
    """
    shape_KHPD = layout.prompt_shape_LKHPD[1:]
    pieces: list[np.ndarray] = []
    for layer in layout.layers:
        rng = seeds.stream(seed, seeds.NO_ROUND, seeds.NO_CLIENT, f"prompt/{layer}")
        pieces.append(rng.normal(0.0, prompt.init_std, shape_KHPD).reshape(-1))
    for name, shape in layout.head_shapes:
        if len(shape) > 1:
            rng = seeds.stream(seed, seeds.NO_ROUND, seeds.NO_CLIENT, f"head/{name}")
            pieces.append(rng.normal(0.0, head.init_std, shape).reshape(-1))
        else:
            pieces.append(np.zeros(shape).reshape(-1))
    return np.concatenate(pieces).astype(np.float32) if pieces else np.empty(0, dtype=np.float32)

"""The halves of LoRA: which of A and B are trained, which travel, and what the others are.

Shape suffixes: L layers, X all numbers of a layer that a vector holds, Y those of both halves.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np

from clients.tuners.config import TunerConfig
from fedsim.core import seeds
from fedsim.core.layout import LayerArrays, LayerShape, VectorLayout
from fedsim.core.low_rank import LowRank

if TYPE_CHECKING:
    from clients.tuners.initial import StartingPoint

A, B = "lora_A", "lora_B"
RESIDUAL = "residual"
"""What is added to a frozen map besides, [out, in] (``tuner.exact``)."""
_HALF = {"a": A, "b": B}


def frozen(config: TunerConfig, arrays: Iterable[tuple[str, tuple[int, ...]]]) -> tuple[str, ...]:
    """Return the names of the arrays that are never trained."""
    if config.train not in _HALF:
        return ()
    return tuple(name for name, _ in arrays if not name.endswith(_HALF[config.train]))


def shared(config: TunerConfig, shape: LayerShape) -> tuple[str, ...] | None:
    """Return the names of the arrays that travel, where devices keep the others; None where all travel."""
    if config.exchange == "both" or not isinstance(shape, LayerArrays):
        return None
    return shape.ending(_HALF[config.exchange])


def turns(config: TunerConfig, shape: LayerShape) -> tuple[tuple[str, ...], ...]:
    """Return the names of the arrays that rounds train in turn, first odd ones; none where every round trains all."""
    if not isinstance(shape, LayerArrays):
        return ()
    if config.exact:
        return (tuple(name for name, _ in shape.trained if not name.endswith(RESIDUAL)),)
    return (shape.ending(B), shape.ending(A)) if config.train == "alternate" else ()


def low_rank(config: TunerConfig, layout: VectorLayout) -> tuple[LowRank, ...]:
    """Return where the changes of each map lie (``tuner.exact``), in ``layout`` and in what a round trains of it."""
    if not config.exact:
        return ()
    (names,) = turns(config, layout.geometry)
    own, whole = layout.holding(names).slices(), layout.slices()
    targets = [(layer, name.removesuffix(f".{A}")) for layer, name in own if name.endswith(A)]
    return tuple(
        LowRank(
            own[layer, f"{target}.{A}"], own[layer, f"{target}.{B}"], whole[layer, f"{target}.{RESIDUAL}"],
            config.rank, scale(config),
        )
        for layer, target in targets
    )  # fmt: skip


def scale(config: TunerConfig) -> float:
    """Return the scale of the changes."""
    return config.alpha / (config.rank if config.scaling == "standard" else math.sqrt(config.rank))


def draw(config: TunerConfig, layer: int, name: str, dims: tuple[int, ...], seed: int) -> np.ndarray:
    """Draw an array as it is at the start, float32 as in vectors: one half is random, the other zero, so training starts at W.

    The random half is uniform with bound 1 / sqrt(features in), as PEFT draws A: 1 / sqrt(in) for A, 1 / sqrt(rank) for B.
    It is A, except where A alone is trained, which beside a B of zeros would never move.
    """
    if not name.endswith(B if config.train == "a" else A):
        return np.zeros(dims, np.float32)
    rng = seeds.stream(seed, seeds.NO_ROUND, seeds.NO_CLIENT, f"lora/{layer}/{name}")
    bound = 1.0 / math.sqrt(dims[1])
    return rng.uniform(-bound, bound, dims).astype(np.float32)


def completed(
    config: TunerConfig,
    layout: VectorLayout,
    tuned_LX: np.ndarray,
    seed: int,
    constants: Mapping[str, np.ndarray] | None = None,
    start: StartingPoint | None = None,
) -> tuple[VectorLayout, np.ndarray]:
    """Return the layout and numbers [L, Y] with both halves; a half that is not in ``layout`` is as at the start.

    Parameters
    ----------
    start
        Where the run started, if not as drawn from the seed.
    """
    shape = layout.geometry
    if not isinstance(shape, LayerArrays) or (layout.arrays is None and not shape.frozen):
        return layout, tuned_LX
    held = LayerArrays(
        shape.num_layers, tuple(array for array in shape.trained if layout.arrays is None or array[0] in layout.arrays)
    )
    rows = []
    for layer, tuned_X in zip(layout.layers, tuned_LX, strict=True):
        own = {} if start is None else shape.split(start.tuned_of(layer))
        own |= held.split(tuned_X)
        own |= constants or {}
        both = [own[name] if name in own else draw(config, layer, name, dims, seed) for name, dims in shape.arrays]
        rows.append(np.concatenate([array.reshape(-1) for array in both]).astype(tuned_LX.dtype))
    whole = VectorLayout(replace(shape, frozen=()), layout.layers, layout.head_shapes)
    return whole, np.stack(rows) if rows else np.empty(whole.tuned_shape, tuned_LX.dtype)

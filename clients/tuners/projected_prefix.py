"""Projected prefix: one small trained network makes the prefix of every layer (P-tuning v2, Liu et al. 2022; Li & Liang 2021).

The reparametrisation that both papers offer: Embedding[P, E] -> Linear -> tanh -> Linear -> keys and values of all layers, as
in PEFT's ``prefix_projection``. Devices exchange the network; what it makes can be kept as an ordinary prefix.

Shape suffixes: C clients, P prompt length, E hidden size, R width, L layers of the model, K {key, value}, H key/value heads, D
head dimension.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np

from clients.tuners.config import TunerConfig
from clients.tuners.linear_maps import hidden_size
from clients.tuners.tuner import Tuner
from fedsim.core import seeds
from fedsim.core.deferred import deferred
from fedsim.core.layout import LayerArrays, LayerShape, OneLayer, PromptGeometry

if TYPE_CHECKING:
    import torch
    from torch import Tensor, nn
else:
    torch = deferred("torch")


@dataclass(frozen=True)
class ProjectedPrefixTuner(Tuner):
    """Trains the embedding of ``tuner.length`` virtual tokens and two linear maps."""

    kind: ClassVar[str] = "projected_prefix"
    projected: TunerConfig

    @property
    def offset(self) -> int:  # type: ignore[override]
        """Positions that the prefix takes."""
        return self.projected.length

    @property
    def described(self) -> str:
        """What it trains, in words."""
        return f"network of a prefix of {self.projected.length} tokens in all layers"

    def shape(self, keys: PromptGeometry, layers: nn.ModuleList) -> OneLayer:
        """Return ``embedding`` [P, E], and weight and bias of ``down`` [R, E] and ``up`` [L, 2, H, D, R]."""
        size, width = hidden_size(layers), self.projected.width
        made = (keys.num_layers, 2, keys.num_kv_heads, keys.head_dim)
        down = (("down.weight", (width, size)), ("down.bias", (width,)))
        up = (("up.weight", (*made, width)), ("up.bias", made))
        return OneLayer(len(layers), (("embedding", (self.projected.length, size)), *down, *up), layer=0)

    def initial(self, shape: LayerShape, layer: int, seed: int) -> np.ndarray:
        """Draw the embedding from N(0, 1) and the maps uniformly within 1 / sqrt(features in), as PyTorch's modules start."""
        assert isinstance(shape, OneLayer)
        pieces = []
        for name, dims in shape.arrays:
            rng = seeds.stream(seed, seeds.NO_ROUND, seeds.NO_CLIENT, f"projected_prefix/{name}")
            if name == "embedding":
                pieces.append(rng.normal(0.0, 1.0, dims))
                continue
            bound = 1.0 / math.sqrt(dict(shape.arrays)[f"{name.split('.')[0]}.weight"][-1])
            pieces.append(rng.uniform(-bound, bound, dims))
        return np.concatenate([piece.reshape(-1) for piece in pieces])

    def prompts(
        self, shape: LayerShape, tuned_CLX: Tensor, layers: tuple[int, ...]
    ) -> tuple[Tensor, tuple[int, ...]] | None:
        """Return the prefix that the network makes, of all layers."""
        assert isinstance(shape, LayerArrays)
        return made_prefix(shape, tuned_CLX.unbind(1)[0]), tuple(range(shape.num_layers))


def made_prefix(shape: LayerArrays, network_CX: Any) -> Tensor:
    """Return the prefix of all layers, [C, L, K, H, P, D]."""
    arrays = shape.split(network_CX)
    up = arrays["up.weight"]
    made = up.shape[1:-1]
    low_CPR = torch.tanh(arrays["embedding"] @ arrays["down.weight"].mT + arrays["down.bias"].unsqueeze(1))
    flat_CPX = low_CPR @ up.flatten(1, -2).mT + arrays["up.bias"].flatten(1).unsqueeze(1)
    return flat_CPX.unflatten(-1, made).permute(0, 2, 3, 4, 1, 5)

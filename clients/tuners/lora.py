"""LoRA: low-rank changes of frozen linear maps (Hu et al. 2022, arXiv 2106.09685); rsLoRA (Kalajdzievski 2023).

A linear map ``y = W x`` becomes ``y = W x + s B A x`` with trained A [rank, in] and B [out, rank], where s is alpha / rank, or
alpha / sqrt(rank) with rsLoRA. Names and shapes are PEFT's.

Shape suffixes: C clients, L tuned layers, X all trained numbers of a layer, R rank, I and O features in and out.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
from torch import Tensor, nn

from clients.tuners.client_rows import PackedRows, PaddedRows
from clients.tuners.config import TunerConfig
from clients.tuners.hooks import Hooks
from clients.tuners.linear_maps import Arrays, LinearMap, same_arrays
from clients.tuners.tuner import Tuner
from fedsim.core import seeds
from fedsim.core.layout import LayerArrays, LayerShape, PromptGeometry

A, B = "lora_A", "lora_B"


@dataclass(frozen=True)
class LoraTuner(Tuner):
    """Trains A and B of every target in each layer.

    Parameters
    ----------
    default_targets
        Ends of the names of the changed linear maps where ``tuner.targets`` is not given.
    """

    kind: ClassVar[str] = "lora"
    lora: TunerConfig
    default_targets: tuple[str, ...]

    @property
    def scale(self) -> float:
        """Scale of the changes."""
        rank = self.lora.rank
        return self.lora.alpha / (rank if self.lora.scaling == "standard" else math.sqrt(rank))

    def shape(self, keys: PromptGeometry, layers: nn.ModuleList) -> LayerArrays:
        """Return the arrays of a layer: ``NAME.lora_A`` [rank, in] and ``NAME.lora_B`` [out, rank] of each target.

        Raises
        ------
        ModelError
            If a target is not in every layer, or is no linear map, or differs in shape from layer to layer.
        """
        return same_arrays(layers, self._targets, self._arrays)

    def initial(self, shape: LayerShape, layer: int, seed: int) -> np.ndarray:
        """Draw a layer's A uniformly with bound 1 / sqrt(in), as PEFT does, and set its B to zero: training starts at W."""
        assert isinstance(shape, LayerArrays)
        pieces = []
        for name, dims in shape.arrays:
            rng = seeds.stream(seed, seeds.NO_ROUND, seeds.NO_CLIENT, f"lora/{layer}/{name}")
            bound = 1.0 / math.sqrt(dims[1])
            pieces.append(rng.uniform(-bound, bound, dims) if name.endswith(A) else np.zeros(dims))
        return np.concatenate([piece.reshape(-1) for piece in pieces])

    @contextmanager
    def inserted(
        self,
        shape: LayerShape,
        layers: nn.ModuleList,
        tuned: tuple[Tensor, tuple[int, ...]],
        rows: PaddedRows | PackedRows,
    ) -> Iterator[None]:
        """Add each target's change to its output for the length of a forward pass.

        Raises
        ------
        ModelError
            If a target never ran, so that it would silently not be trained.
        """
        assert isinstance(shape, LayerArrays)
        arrays = shape.split(tuned[0])
        targets = [name.removesuffix(f".{A}") for name, _ in shape.arrays if name.endswith(A)]
        with Hooks(layers, "LoRA") as hooks:
            for place, layer in enumerate(tuned[1]):
                for target in targets:
                    down_CIR = arrays[f"{target}.{A}"][:, place].mT * self.scale
                    up_CRO = arrays[f"{target}.{B}"][:, place].mT
                    hooks.output(layer, target, _change(rows, down_CIR, up_CRO))
            yield

    @property
    def _targets(self) -> tuple[str, ...]:
        return self.lora.targets or self.default_targets

    def _arrays(self, target: LinearMap) -> Arrays:
        rank = self.lora.rank
        return (f"{target.name}.{A}", (rank, target.size_in)), (f"{target.name}.{B}", (target.size_out, rank))


def _change(rows: PaddedRows | PackedRows, down_CIR: Tensor, up_CRO: Tensor) -> Callable[[Tensor, Tensor], Tensor]:
    """Return the change of a target's output."""
    return lambda read, output: output + rows.low_rank(read, down_CIR, up_CRO).to(output.dtype)

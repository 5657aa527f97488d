"""LoRA: low-rank changes of frozen linear maps (Hu et al. 2022, arXiv 2106.09685); rsLoRA (Kalajdzievski 2023).

A linear map ``y = W x`` becomes ``y = W x + s B A x`` with trained A [rank, in] and B [out, rank], where s is alpha / rank, or
alpha / sqrt(rank) with rsLoRA. Names and shapes are PEFT's.

Shape suffixes: C clients, L tuned layers, X all trained numbers of a layer, R rank, I and O features in and out.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

from clients.tuners.client_rows import PackedRows, PaddedRows
from clients.tuners.config import TunerConfig
from clients.tuners.tuner import Tuner
from fedsim.core import seeds
from fedsim.core.errors import ModelError, listed
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
    def described(self) -> str:
        """Name the rank and the changed maps."""
        name = "LoRA" if self.lora.scaling == "standard" else "rsLoRA"
        return f"{name} of rank {self.lora.rank} on {', '.join(self._targets)}"

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
        found = [self._arrays(layer) for layer in layers]
        if len(set(found)) > 1:
            raise ModelError(f"tuner.targets {listed(self._targets)} differ in shape from layer to layer of the model")
        return LayerArrays(len(layers), found[0])

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
        waiting: set[tuple[int, str]] = set()
        handles = []
        for place, layer in enumerate(tuned[1]):
            for target in targets:
                down_CIR = arrays[f"{target}.{A}"][:, place].mT * self.scale
                up_CRO = arrays[f"{target}.{B}"][:, place].mT
                hook = _change(rows, down_CIR, up_CRO, waiting, (layer, target))
                handles.append(layers[layer].get_submodule(target).register_forward_hook(hook))
        try:
            yield
        finally:
            for handle in handles:
                handle.remove()
        if waiting:
            layer, target = min(waiting)
            raise ModelError(f"{target} of layer {layer} never ran in a forward pass, so LoRA cannot change it")

    @property
    def _targets(self) -> tuple[str, ...]:
        return self.lora.targets or self.default_targets

    def _arrays(self, layer: nn.Module) -> tuple[tuple[str, tuple[int, ...]], ...]:
        linear = {name: module for name, module in layer.named_modules() if isinstance(module, nn.Linear | Conv1D)}
        arrays: list[tuple[str, tuple[int, ...]]] = []
        for target in self._targets:
            names = [name for name in linear if name == target or name.endswith(f".{target}")]
            if not names:
                raise ModelError(
                    f"tuner.targets names {target!r}, but no linear map of the model's layers has such a name; use some of: "
                    f"{', '.join(linear)}"
                )
            for name in names:
                size_in, size_out = _features(linear[name])
                arrays += [(f"{name}.{A}", (self.lora.rank, size_in)), (f"{name}.{B}", (size_out, self.lora.rank))]
        if len(dict(arrays)) != len(arrays):
            raise ModelError(f"tuner.targets {listed(self._targets)} name a linear map twice; use longer names")
        return tuple(arrays)


def _features(module: nn.Module) -> tuple[int, int]:
    """Return the features in and out of a linear map; GPT-2's keeps its weight transposed."""
    size_out, size_in = module.weight.shape  # type: ignore[misc]
    return (int(size_out), int(size_in)) if isinstance(module, Conv1D) else (int(size_in), int(size_out))


def _change(
    rows: PaddedRows | PackedRows,
    down_CIR: Tensor,
    up_CRO: Tensor,
    waiting: set[tuple[int, str]],
    place: tuple[int, str],
) -> Any:
    """Return the forward hook of a target, which is waited for until it has run."""
    waiting.add(place)

    def hook(module: nn.Module, arguments: tuple[Any, ...], output: Tensor) -> Tensor:
        waiting.discard(place)
        return output + rows.low_rank(arguments[0], down_CIR, up_CRO).to(output.dtype)

    return hook

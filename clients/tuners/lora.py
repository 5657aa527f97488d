"""LoRA: low-rank changes of frozen linear maps (Hu et al. 2022, arXiv 2106.09685); rsLoRA (Kalajdzievski 2023).

A linear map ``y = W x`` becomes ``y = W x + s B A x`` with trained A [rank, in] and B [out, rank], where s is alpha / rank, or
alpha / sqrt(rank) with rsLoRA. Names and shapes are PEFT's. Which of A and B are trained, and which travel, is in
:mod:`clients.tuners.lora_halves`.

Shape suffixes: C clients, L tuned layers, X all trained numbers of a layer, R rank, I and O features in and out.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, ClassVar

import numpy as np
import torch
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

from clients.tuners.client_rows import PackedRows, PaddedRows
from clients.tuners.config import TunerConfig
from clients.tuners.lora_halves import RESIDUAL, A, B, draw, frozen, low_rank, scale, shared, turns
from clients.tuners.tuner import Tuner
from fedsim.core.errors import ModelError, listed
from fedsim.core.layout import LayerArrays, LayerShape, PromptGeometry, VectorLayout
from fedsim.core.low_rank import LowRank


@dataclass(frozen=True)
class LoraTuner(Tuner):
    """Trains A and B of every target in each layer, or one of them.

    Parameters
    ----------
    default_targets
        Ends of the names of the changed linear maps where ``tuner.targets`` is not given.
    seed
        The run's seed, from which an untrained A or B is drawn wherever it is needed.
    """

    kind: ClassVar[str] = "lora"
    lora: TunerConfig
    default_targets: tuple[str, ...]
    seed: int = 0

    @property
    def scale(self) -> float:
        """Scale of the changes."""
        return scale(self.lora)

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
        return LayerArrays(len(layers), found[0], frozen(self.lora, found[0]))

    def initial(self, shape: LayerShape, layer: int, seed: int) -> np.ndarray:
        """Draw a layer's A uniformly with bound 1 / sqrt(in), as PEFT does, and set its B to zero: training starts at W."""
        assert isinstance(shape, LayerArrays)
        pieces = [draw(self.lora, layer, name, dims, seed) for name, dims in shape.trained]
        return np.concatenate([piece.reshape(-1) for piece in pieces]).astype(np.float64)

    def shared(self, shape: LayerShape) -> tuple[str, ...] | None:
        """Return the names of the arrays that travel (``tuner.exchange``)."""
        return shared(self.lora, shape)

    def turns(self, shape: LayerShape) -> tuple[tuple[str, ...], ...]:
        """Return the names of the arrays that rounds train in turn (``tuner.train: alternate``)."""
        return turns(self.lora, shape)

    def low_rank(self, layout: VectorLayout) -> tuple[LowRank, ...]:
        """Return where the changes lie whose products the server averages (``tuner.exact``)."""
        return low_rank(self.lora, layout)

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
        arrays = self._with_frozen(shape, shape.split(tuned[0]), tuned)
        targets = [name.removesuffix(f".{A}") for name, _ in shape.arrays if name.endswith(A)]
        waiting: set[tuple[int, str]] = set()
        handles = []
        for place, layer in enumerate(tuned[1]):
            for target in targets:
                down_CIR = arrays[f"{target}.{A}"][:, place].mT * self.scale
                up_CRO = arrays[f"{target}.{B}"][:, place].mT
                # Of all clients the same, and not trained.
                residual = arrays.get(f"{target}.{RESIDUAL}")
                dense_OI = None if residual is None else residual[0, place].detach()
                hook = _change(rows, down_CIR, up_CRO, dense_OI, waiting, (layer, target))
                handles.append(layers[layer].get_submodule(target).register_forward_hook(hook))
        try:
            yield
        finally:
            for handle in handles:
                handle.remove()
        if waiting:
            layer, target = min(waiting)
            raise ModelError(f"{target} of layer {layer} never ran in a forward pass, so LoRA cannot change it")

    def _with_frozen(
        self, shape: LayerArrays, arrays: dict[str, Tensor], tuned: tuple[Tensor, tuple[int, ...]]
    ) -> dict[str, Tensor]:
        """Return all arrays [C, L, ...]: trained ones, and untrained ones, which all clients share."""
        tuned_CLX, layers = tuned
        for name, dims in shape.arrays:
            if name in shape.frozen:
                drawn = [_drawn(self.lora, layer, name, dims, self.seed, tuned_CLX.device) for layer in layers]
                array = torch.stack(drawn) if drawn else tuned_CLX.new_empty((0, *dims))
                arrays[name] = array.to(tuned_CLX.dtype).expand(len(tuned_CLX), *array.shape)
        return arrays

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
                arrays += [(f"{name}.{RESIDUAL}", (size_out, size_in))] if self.lora.exact else []
        if len(dict(arrays)) != len(arrays):
            raise ModelError(f"tuner.targets {listed(self._targets)} name a linear map twice; use longer names")
        return tuple(arrays)


@lru_cache(maxsize=4096)
def _drawn(
    config: TunerConfig, layer: int, name: str, dims: tuple[int, ...], seed: int, device: torch.device
) -> Tensor:
    """Return an untrained array: the numbers that a trained one would start at."""
    return torch.from_numpy(draw(config, layer, name, dims, seed)).to(device)


def _features(module: nn.Module) -> tuple[int, int]:
    """Return the features in and out of a linear map; GPT-2's keeps its weight transposed."""
    size_out, size_in = module.weight.shape  # type: ignore[misc]
    return (int(size_out), int(size_in)) if isinstance(module, Conv1D) else (int(size_in), int(size_out))


def _change(
    rows: PaddedRows | PackedRows,
    down_CIR: Tensor,
    up_CRO: Tensor,
    dense_OI: Tensor | None,
    waiting: set[tuple[int, str]],
    place: tuple[int, str],
) -> Any:
    """Return the forward hook of a target, which is waited for until it has run."""
    waiting.add(place)

    def hook(module: nn.Module, arguments: tuple[Any, ...], output: Tensor) -> Tensor:
        waiting.discard(place)
        change = rows.low_rank(arguments[0], down_CIR, up_CRO)
        if dense_OI is not None:
            change = change + nn.functional.linear(arguments[0], dense_OI.to(arguments[0].dtype))
        return output + change.to(output.dtype)

    return hook

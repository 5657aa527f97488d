"""LoRA: low-rank changes of frozen linear maps (Hu et al. 2022, arXiv 2106.09685); rsLoRA (Kalajdzievski 2023).

A linear map ``y = W x`` becomes ``y = W x + s B A x`` with trained A [rank, in] and B [out, rank], where s is alpha / rank, or
alpha / sqrt(rank) with rsLoRA. Names and shapes are PEFT's. Which of A and B are trained, and which travel, is in
:mod:`clients.tuners.lora_halves`.

Shape suffixes: C clients, L tuned layers, X all trained numbers of a layer, R rank, I and O features in and out.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import lru_cache
from typing import TYPE_CHECKING, ClassVar

import numpy as np

from clients.tuners.config import TunerConfig
from clients.tuners.hooks import Hooks
from clients.tuners.linear_maps import Arrays, LinearMap, same_arrays
from clients.tuners.lora_halves import RESIDUAL, A, B, draw, frozen, low_rank, scale, shared, turns
from clients.tuners.tuner import Tuner
from fedsim.core.deferred import deferred
from fedsim.core.layout import LayerArrays, LayerShape, PromptGeometry, VectorLayout
from fedsim.core.low_rank import LowRank

if TYPE_CHECKING:
    import torch
    from torch import Tensor, nn

    from clients.tuners.client_rows import PackedRows, PaddedRows
else:
    torch = deferred("torch")
    nn = deferred("torch.nn")


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
    def described(self) -> str:
        """Name the rank and the changed maps."""
        name = "LoRA" if self.lora.scaling == "standard" else "rsLoRA"
        return f"{name} of rank {self.lora.rank} on {', '.join(self._targets)}"

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
        found = same_arrays(layers, self._targets, self._arrays)
        return LayerArrays(found.num_layers, found.arrays, frozen(self.lora, found.arrays))

    def initial(self, shape: LayerShape, layer: int, seed: int) -> np.ndarray:
        """Draw a layer's A uniformly with bound 1 / sqrt(in), as PEFT does, and set its B to zero: training starts at W."""
        assert isinstance(shape, LayerArrays)
        pieces = [draw(self.lora, layer, name, dims, seed) for name, dims in shape.trained]
        return np.concatenate([piece.reshape(-1) for piece in pieces]).astype(np.float64)

    def untrained(self, shape: LayerShape, layer: int) -> dict[str, np.ndarray]:
        """Return the half that is as it was drawn (``tuner.train``: a or b)."""
        assert isinstance(shape, LayerArrays)
        arrays = dict(shape.arrays)
        return {name: draw(self.lora, layer, name, arrays[name], self.seed) for name in shape.frozen}

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
        whole = self._with_frozen(shape, shape.split(tuned[0]), tuned)
        # unbind, not indexing: its gradient is one stack instead of a tensor of full size for each layer.
        arrays = {name: array.unbind(1) for name, array in whole.items()}
        targets = [name.removesuffix(f".{A}") for name, _ in shape.arrays if name.endswith(A)]
        with Hooks(layers, "LoRA") as hooks:
            for place, layer in enumerate(tuned[1]):
                for target in targets:
                    down_CIR = arrays[f"{target}.{A}"][place].mT * self.scale
                    up_CRO = arrays[f"{target}.{B}"][place].mT
                    # Of all clients the same, and not trained.
                    residual = arrays.get(f"{target}.{RESIDUAL}")
                    dense_OI = None if residual is None else residual[place][0].detach()
                    hooks.output(layer, target, _change(rows, down_CIR, up_CRO, dense_OI))
            yield

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

    def _arrays(self, target: LinearMap) -> Arrays:
        name, rank = target.name, self.lora.rank
        halves = ((f"{name}.{A}", (rank, target.size_in)), (f"{name}.{B}", (target.size_out, rank)))
        return (*halves, (f"{name}.{RESIDUAL}", (target.size_out, target.size_in))) if self.lora.exact else halves


@lru_cache(maxsize=4096)
def _drawn(
    config: TunerConfig, layer: int, name: str, dims: tuple[int, ...], seed: int, device: torch.device
) -> Tensor:
    """Return an untrained array: the numbers that a trained one would start at."""
    return torch.from_numpy(draw(config, layer, name, dims, seed)).to(device)


def _change(
    rows: PaddedRows | PackedRows, down_CIR: Tensor, up_CRO: Tensor, dense_OI: Tensor | None
) -> Callable[[Tensor, Tensor], Tensor]:
    """Return the change of a target's output."""

    def change(read: Tensor, output: Tensor) -> Tensor:
        added = rows.low_rank(read, down_CIR, up_CRO)
        if dense_OI is not None:
            added = added + nn.functional.linear(read, dense_OI.to(read.dtype))
        return output + added.to(output.dtype)

    return change

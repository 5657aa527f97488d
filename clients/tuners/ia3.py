"""IA³: learned vectors scale keys, values and the input of the feed-forward's second map (Liu et al. 2022, arXiv 2205.05638).

A linear map ``y = W x + b`` becomes ``y = l * (W x + b)``, or ``y = W (l * x) + b`` where it is a feed-forward target. Names,
shapes and default targets are PEFT's. What is trained and exchanged is the difference ``l - 1``: it starts at zero, so weight
decay pulls the scaled model to the frozen one, where decay of ``l`` itself would shut its maps. Prompt files and PEFT adapters
hold ``l``.

Shape suffixes: C clients, L tuned layers, X all trained numbers of a layer, G clients with rows, M rows, D features.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

import numpy as np

from clients.tuners.config import TunerConfig
from clients.tuners.hooks import Hooks
from clients.tuners.linear_maps import Arrays, LinearMap, linear_maps, same_arrays
from clients.tuners.tuner import Tuner
from fedsim.core.errors import ModelError
from fedsim.core.layout import LayerArrays, LayerShape, PromptGeometry

if TYPE_CHECKING:
    from torch import Tensor, nn

    from clients.tuners.client_rows import PackedRows, PaddedRows

VECTOR = "ia3_l"


@dataclass(frozen=True)
class Ia3Tuner(Tuner):
    """Trains a vector for every target in each layer.

    Parameters
    ----------
    default_targets
        Ends of the names of the scaled linear maps where ``tuner.targets`` is not given.
    default_feedforward
        Ends of the names of those whose input is scaled, where ``tuner.feedforward_targets`` is not given.
    """

    kind: ClassVar[str] = "ia3"
    ia3: TunerConfig
    default_targets: tuple[str, ...]
    default_feedforward: tuple[str, ...]

    def shape(self, keys: PromptGeometry, layers: nn.ModuleList) -> LayerArrays:
        """Return the arrays of a layer: ``NAME.ia3_l`` of each target, [out, 1], or [1, in] where the input is scaled.

        Raises
        ------
        ModelError
            If a target is not in every layer, is no linear map, or differs in shape from layer to layer; or if a feed-forward
            target is none of the targets.
        """
        targets = linear_maps(layers[0], self._targets)
        for name in self.ia3.feedforward_targets or ():
            if not any(target.ends_with((name,)) for target in targets):
                raise ModelError(
                    f"tuner.feedforward_targets names {name!r}, which is none of the targets; use some of: "
                    f"{', '.join(target.name for target in targets)}"
                )
        return same_arrays(layers, self._targets, self._arrays)

    def initial(self, shape: LayerShape, layer: int, seed: int) -> np.ndarray:
        """Return zeros: every vector starts at one, which is the frozen model."""
        return np.zeros(shape.layer_size)

    @contextmanager
    def inserted(
        self,
        shape: LayerShape,
        layers: nn.ModuleList,
        tuned: tuple[Tensor, tuple[int, ...]],
        rows: PaddedRows | PackedRows,
    ) -> Iterator[None]:
        """Scale the output or the input of each target for the length of a forward pass.

        Raises
        ------
        ModelError
            If a target never ran, so that it would silently not be trained.
        """
        assert isinstance(shape, LayerArrays)
        # unbind, not indexing: its gradient is one stack instead of a tensor of full size for each layer.
        arrays = {name.removesuffix(f".{VECTOR}"): array.unbind(1) for name, array in shape.split(tuned[0]).items()}
        with Hooks(layers, "IA3") as hooks:
            for place, layer in enumerate(tuned[1]):
                for target, of_layers in arrays.items():
                    scaled = _scaling(rows, of_layers[place].flatten(1))
                    if of_layers[place].shape[1] == 1:
                        hooks.input(layer, target, scaled)
                    else:
                        hooks.output(layer, target, _of_output(scaled))
            yield

    @property
    def _targets(self) -> tuple[str, ...]:
        return self.ia3.targets or self.default_targets

    def _arrays(self, target: LinearMap) -> Arrays:
        given = self.ia3.feedforward_targets
        if target.ends_with(self.default_feedforward if given is None else given):
            return ((f"{target.name}.{VECTOR}", (1, target.size_in)),)
        return ((f"{target.name}.{VECTOR}", (target.size_out, 1)),)


def _scaling(rows: PaddedRows | PackedRows, difference_CD: Tensor) -> Callable[[Tensor], Tensor]:
    # Added, not scaled by 1 + difference, which short number formats would round to steps of 1/128.
    return lambda tensor: tensor + rows.mapped(_product, tensor, difference_CD)


def _of_output(change: Callable[[Tensor], Tensor]) -> Callable[[Tensor, Tensor], Tensor]:
    return lambda read, output: change(output)


def _product(rows_GMD: Tensor, difference_GD: Tensor) -> Tensor:
    return rows_GMD * difference_GD.unsqueeze(1)

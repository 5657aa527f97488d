"""A tuner: what is trained in each layer of a frozen model, and how it acts in a forward pass.

Shape suffixes: C clients, L tuned layers, X the axes of one layer's trained numbers (``layer_shape`` of the tuner's shape),
K {key, value}, H key/value heads, P prompt length, D head dimension.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from contextlib import AbstractContextManager, nullcontext
from typing import Any, ClassVar

import numpy as np
from torch import Tensor, nn

from clients.tuners.client_rows import PackedRows, PaddedRows
from fedsim.core.layout import LayerShape, PromptGeometry, VectorLayout
from fedsim.core.low_rank import LowRank


class Tuner(ABC):
    """One kind of trainable parameters. It holds settings only, so it can be sent to workers."""

    kind: ClassVar[str]
    """Name in ``tuner.kind``."""
    offset: int = 0
    """Positions before the text that the tuner takes."""
    dropout: float = 0.0
    """Chance that a trained number is zero in a training step; see :mod:`clients.tuners.prompt_dropout`."""

    @abstractmethod
    def shape(self, keys: PromptGeometry, layers: nn.ModuleList) -> LayerShape:
        """Return what is trained in each layer.

        Parameters
        ----------
        keys
            Shape of the model's keys, with prompt length 0.
        layers
            The model's layers, possibly on the meta device.

        Raises
        ------
        ModelError
            If the tuner does not fit the model.
        """

    @abstractmethod
    def initial(self, shape: LayerShape, layer: int, seed: int) -> np.ndarray:
        """Draw the initial numbers of a layer, float64 of shape [layer_size]; independent of the other layers."""

    def shared(self, shape: LayerShape) -> tuple[str, ...] | None:
        """Return the names of the arrays that travel, where devices keep the others; None where all travel."""
        return None

    def turns(self, shape: LayerShape) -> tuple[tuple[str, ...], ...]:
        """Return the names of the arrays that rounds train in turn; none where every round trains all."""
        return ()

    def low_rank(self, layout: VectorLayout) -> tuple[LowRank, ...]:
        """Return where low-rank changes lie whose products, not only factors, the server averages; none where it does not."""
        return ()

    def accepts(self, shape: LayerShape, tuned_LX: tuple[int, ...]) -> bool:
        """Whether trained numbers of such a shape can act in a pass."""
        return tuned_LX[1:] == shape.layer_shape

    def prompts(self, tuned_CLX: Tensor) -> Tensor | None:
        """Return the prompts before keys and values [C, L, K, H, P, D]; None if the tuner has none."""
        return None

    def inserted(
        self,
        shape: LayerShape,
        layers: nn.ModuleList,
        tuned: tuple[Tensor, tuple[int, ...]],
        rows: PaddedRows | PackedRows,
    ) -> AbstractContextManager[Any]:
        """Let trained numbers act in the layers' modules for the length of one forward pass.

        Parameters
        ----------
        tuned
            Numbers [C, L, X] and the model layer of each.
        rows
            Client of each row of the pass.
        """
        return nullcontext()

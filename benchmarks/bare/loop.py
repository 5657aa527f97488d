"""One client after another on transformers' own frozen encoder, with what is trained around it or in it.

For single texts and a classifier, as the benchmark has them.

Shape suffixes: F entries of the exchanged vector, L tuned layers, X one layer's trained numbers, B examples, T tokens, D hidden
size.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from benchmarks.peers.work import PlainClients, Work
from fedsim.core.layout import LayerArrays
from fedsim.core.tokens import TokenTable


class EncoderLoop(PlainClients, ABC):
    """Trains clients one by one; a kind says how its arrays act in :meth:`hidden`.

    An array is one parameter for all layers, [L, ...]: with fewer parameters the optimizer takes fewer steps.
    """

    def __init__(self, work: Work) -> None:
        super().__init__(work)
        self.model: Any = self._backbone.detach().base_model
        geometry = self._layout.geometry
        assert isinstance(geometry, LayerArrays) and work.model.head.pooling in ("auto", "first", "mean")
        self._shape: LayerArrays = geometry

    @abstractmethod
    def hidden(self, arrays: dict[str, Tensor], ids_BT: Tensor, mask_BT: Tensor) -> Tensor:
        """Return the last hidden states of the texts [B, T, D]."""

    def parameters(self, vector_F: np.ndarray) -> dict[str, Tensor]:
        """Return a copy of the vector as the tensors that an optimizer trains, by name."""
        tuned_LX, head = self._layout.split(torch.tensor(vector_F))
        return {name: array.clone().requires_grad_() for name, array in {**self._shape.split(tuned_LX), **head}.items()}

    def vector(self, parameters: dict[str, Tensor]) -> np.ndarray:
        """Return the flat vector of trained tensors."""
        arrays = {name: array.detach() for name, array in parameters.items()}
        tuned_LX = torch.cat([arrays.pop(name).flatten(1) for name, _ in self._shape.trained], dim=1)
        return self._layout.join(tuned_LX.numpy(), {name: array.numpy() for name, array in arrays.items()})

    def losses(self, parameters: dict[str, Tensor], table: TokenTable, indices_B: np.ndarray) -> tuple[Tensor, Tensor]:
        """Return losses [B] and whether each prediction is right [B]."""
        batch = table.batch(indices_B)
        ids_BT, mask_BT, labels_B = map(torch.from_numpy, (batch.input_ids_BT, batch.attention_mask_BT, batch.labels_B))
        hidden_BTD = self.hidden(parameters, ids_BT, mask_BT)
        if self.work.model.head.pooling == "mean":
            own_BT1 = mask_BT.unsqueeze(2).to(hidden_BTD.dtype)
            pooled_BD = (hidden_BTD * own_BT1).sum(1) / own_BT1.sum(1)
        else:
            pooled_BD = hidden_BTD[:, 0]
        logits_BC = functional.linear(pooled_BD, parameters["head.weight"], parameters["head.bias"])
        return functional.cross_entropy(logits_BC, labels_B, reduction="none"), logits_BC.argmax(1) == labels_B

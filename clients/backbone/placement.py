"""Where the parts of a backbone are: on one device, or its layers in runs over several GPUs of an actor.

All that is in no layer (embeddings, rotary angles, last norm, heads) is on the first device, and so is all that is trained,
with its gradients, moments and sums: a local step is the same whatever the number of devices. A share of what is trained is
copied to the device of its layers inside the graph of a pass, which copies its gradient back.

Shape suffixes: C clients, L tuned layers, X all other axes.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from clients.backbone.splitting import split

if TYPE_CHECKING:
    from clients.backbone.shared_weights import SharedWeights


@dataclass(frozen=True)
class Placement:
    """The device of each part of a model."""

    first: torch.device
    """Device of everything that is in no layer."""
    of_layers: tuple[torch.device, ...]
    """Device that each layer runs on, from the lowest."""
    offload: bool = False
    """Whether the weights of layers rest in main memory between their runs."""

    @classmethod
    def on(cls, device: torch.device, num_layers: int) -> Placement:
        """Return the placement of a whole model on one device."""
        return cls(device, (device,) * num_layers)

    @classmethod
    def over(cls, devices: Sequence[torch.device], weights: SharedWeights, *, offload: bool = False) -> Placement:
        """Return the placement of a model over devices, balanced by bytes.

        With ``offload`` too: what passes keep of layers is balanced by it.

        Raises
        ------
        ModelError
            If the model has fewer layers than there are devices.
        """
        layer_bytes = weights.layer_bytes()
        counts = split(weights.nbytes - sum(layer_bytes), layer_bytes, len(devices))
        of_layers = (device for device, count in zip(devices, counts, strict=True) for _ in range(count))
        return cls(devices[0], tuple(of_layers), offload)

    @property
    def devices(self) -> tuple[torch.device, ...]:
        """All devices, the first one first."""
        return tuple(dict.fromkeys((self.first, *self.of_layers)))

    @property
    def is_one(self) -> bool:
        """Whether everything is on one device."""
        return len(self.devices) == 1

    def of_array(self, layer: int | None) -> torch.device:
        """Return the device of an array that belongs to a layer, or to none."""
        return self.first if layer is None else self.of_layers[layer]

    def places(self, layers: Sequence[int]) -> Iterator[tuple[torch.device, list[int]]]:
        """Yield every device that holds layers, and the places among ``layers`` of those that it holds."""
        for device in dict.fromkeys(self.of_layers):
            yield device, [place for place, layer in enumerate(layers) if self.of_layers[layer] == device]

    def shared_out(
        self, tensor_CLX: Tensor, layers: tuple[int, ...]
    ) -> Iterator[tuple[torch.device, Tensor, tuple[int, ...]]]:
        """Yield every device that holds layers, with the part of a tensor that is theirs, copied there, and these layers.

        Parameters
        ----------
        tensor_CLX
            Numbers for ``layers``.
        layers
            Model layer of each.
        """
        if self.is_one:
            yield self.first, tensor_CLX, layers
            return
        # unbind, not indexing: its gradient is one stack instead of a tensor of full size for each device.
        pieces = tensor_CLX.unbind(1)
        for device, places in self.places(layers):
            own_CLX = torch.stack([pieces[place] for place in places], 1) if places else tensor_CLX[:, :0]
            yield device, own_CLX.to(device), tuple(layers[place] for place in places)

"""Bare loops of what acts in the layers' own modules.

Shape suffixes: L tuned layers, B examples, T tokens, D features, R bottleneck.
"""

from __future__ import annotations

from abc import abstractmethod
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from benchmarks.bare.loop import EncoderLoop
from benchmarks.peers.work import Work
from clients.tuners.adapter import PLACES


class ModuleLoop(EncoderLoop):
    """What acts in the modules reads its arrays from :attr:`own`, which each pass sets."""

    def __init__(self, work: Work) -> None:
        super().__init__(work)
        self.own: dict[str, tuple[Tensor, ...]] = {}
        """The arrays of each tuned layer, by name."""
        for place, layer in enumerate(work.layers):
            self.change(place, self.model.encoder.layer[layer])

    @abstractmethod
    def change(self, place: int, layer: nn.Module) -> None:
        """Put what is trained into a layer's modules; its arrays are at ``place`` of each name."""

    def hidden(self, arrays: dict[str, Tensor], ids_BT: Tensor, mask_BT: Tensor) -> Tensor:
        """Return the last hidden states of the texts [B, T, D]."""
        self.own = {name: array.unbind() for name, array in self.acting(arrays).items()}
        hidden_BTD: Tensor = self.model(input_ids=ids_BT, attention_mask=mask_BT).last_hidden_state
        return hidden_BTD

    def acting(self, arrays: dict[str, Tensor]) -> dict[str, Tensor]:
        """Return the numbers that act, given the trained ones."""
        return arrays


class Ia3(ModuleLoop):
    """Vectors that multiply what linear maps return, or read."""

    def acting(self, arrays: dict[str, Tensor]) -> dict[str, Tensor]:
        """Return the vectors: what is trained is their difference from one."""
        return {name: 1 + array.flatten(1) for name, array in arrays.items() if not name.startswith("head.")}

    def change(self, place: int, layer: nn.Module) -> None:
        """Hook a layer's targets."""

        def read(name: str) -> Any:
            return lambda module, arguments: (arguments[0] * self.own[name][place],)

        def returned(name: str) -> Any:
            return lambda module, arguments, output: output * self.own[name][place]

        for name, (size_out, _) in self._shape.arrays:
            target = layer.get_submodule(name.removesuffix(".ia3_l"))
            if size_out == 1:
                target.register_forward_pre_hook(read(name))
            else:
                target.register_forward_hook(returned(name))


class Adapter(ModuleLoop):
    """Bottlenecks behind attention and feed-forward, and layer norms with weights of their own."""

    def change(self, place: int, layer: nn.Module) -> None:
        """Hook a layer's sub-layers, and replace its norms."""
        family = self.work.weights.family
        for name, path in zip(PLACES, family.sublayer_outputs, strict=True):
            layer.get_submodule(path).register_forward_hook(self._bottleneck(name, place))
        for path in family.norms if self.work.tuner.layer_norms else ():
            layer.set_submodule(path, TunedNorm(layer.get_submodule(path), self, path, place))

    def _bottleneck(self, name: str, place: int) -> Any:
        def add(module: nn.Module, arguments: tuple[Any, ...], output_BTD: Tensor) -> Tensor:
            down_RD, down_R, up_DR, up_D = (
                self.own[f"{name}.{part}"][place] for part in ("down.weight", "down.bias", "up.weight", "up.bias")
            )
            inner_BTR = functional.gelu(functional.linear(output_BTD, down_RD, down_R), approximate="tanh")
            return output_BTD + functional.linear(inner_BTR, up_DR, up_D)

        return add


class TunedNorm(nn.Module):
    """A layer norm whose weight and bias are the frozen ones plus the trained changes."""

    def __init__(self, norm: Any, loop: ModuleLoop, path: str, place: int) -> None:
        super().__init__()
        self._norm, self._loop, self._path, self._place = norm, loop, path, place

    def forward(self, hidden: Tensor) -> Tensor:
        """Return the normed hidden states."""
        weight_D, bias_D = (
            self._loop.own[f"{self._path}.{part}"][self._place] for part in ("weight_change", "bias_change")
        )
        norm = self._norm
        return torch.layer_norm(hidden, norm.normalized_shape, norm.weight + weight_D, norm.bias + bias_D, norm.eps)

"""Adapters: bottlenecks behind attention and feed-forward (Houlsby et al. 2019, arXiv 1902.00751).

Each sub-layer's output h becomes ``h + W2 gelu(W1 h + b1) + b2``, before the residual is added and normalised. As in
google-research/adapter-bert, gelu is its tanh approximation, W start truncated normal and b zero. The norms of a layer are
trained too, unless ``tuner.layer_norms`` is false. What is trained, exchanged and written to files is how their weight and bias
differ from the model's: it starts at zero whatever the model, and weight decay pulls to the model. Norms outside the layers (of
embeddings, a decoder's last one) and norms of queries and keys (Qwen3) stay frozen.

Shape suffixes: C clients, L tuned layers, X all trained numbers of a layer, G clients with rows, M rows, D hidden size, R
bottleneck.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

import numpy as np

from clients.tuners.config import TunerConfig
from clients.tuners.hooks import Hooks
from clients.tuners.linear_maps import Arrays, layer_width
from clients.tuners.tuner import Tuner
from fedsim.core import seeds
from fedsim.core.deferred import deferred
from fedsim.core.errors import ModelError
from fedsim.core.layout import LayerArrays, LayerShape, PromptGeometry

if TYPE_CHECKING:
    import torch
    from torch import Tensor, nn
    from torch.nn import functional

    from clients.tuners.client_rows import PackedRows, PaddedRows
else:
    torch = deferred("torch")
    nn = deferred("torch.nn")
    functional = deferred("torch.nn.functional")

INIT_STD = 1e-3
PLACES = ("attention", "feed_forward")
BOTTLENECK = ("down.weight", "down.bias", "up.weight", "up.bias")
CHANGES = ("weight_change", "bias_change")


@dataclass(frozen=True)
class AdapterTuner(Tuner):
    """Trains two bottlenecks in each layer, and its norms.

    Parameters
    ----------
    outputs
        Modules of a layer whose outputs are those of attention and of the feed-forward.
    norms
        Norms of a layer.
    """

    kind: ClassVar[str] = "adapter"
    adapter: TunerConfig
    outputs: tuple[str, str]
    norms: tuple[str, ...]

    def shape(self, keys: PromptGeometry, layers: nn.ModuleList) -> LayerArrays:
        """Return the arrays of a layer: weights and biases of both bottlenecks, and the changes of each norm.

        Raises
        ------
        ModelError
            If the layers lack a module, or differ in shape.
        """
        found = [self._arrays(layer) for layer in layers]
        if len(set(found)) > 1:
            raise ModelError("tuner.kind=adapter needs layers of one hidden size, but the model's differ")
        return LayerArrays(len(layers), found[0])

    def initial(self, shape: LayerShape, layer: int, seed: int) -> np.ndarray:
        """Draw a layer's weights: truncated normal with standard deviation 0.001; all else is zero."""
        assert isinstance(shape, LayerArrays)
        pieces = []
        for name, dims in shape.arrays:
            rng = seeds.stream(seed, seeds.NO_ROUND, seeds.NO_CLIENT, f"adapter/{layer}/{name}")
            pieces.append(INIT_STD * _truncated_normal(rng, dims) if len(dims) == 2 else np.zeros(dims))
        return np.concatenate([piece.reshape(-1) for piece in pieces])

    @contextmanager
    def inserted(
        self,
        shape: LayerShape,
        layers: nn.ModuleList,
        tuned: tuple[Tensor, tuple[int, ...]],
        rows: PaddedRows | PackedRows,
    ) -> Iterator[None]:
        """Run the bottlenecks and change the norms for the length of a forward pass.

        Raises
        ------
        ModelError
            If a module never ran, so that it would silently not be trained.
        """
        assert isinstance(shape, LayerArrays)
        # unbind, not indexing: its gradient is one stack instead of a tensor of full size for each layer.
        arrays = {name: array.unbind(1) for name, array in shape.split(tuned[0]).items()}
        with Hooks(layers, "an adapter") as hooks:
            for place, layer in enumerate(tuned[1]):
                own = {name: of_layers[place] for name, of_layers in arrays.items()}
                for name, path in zip(PLACES, self.outputs, strict=True):
                    hooks.output(layer, path, _adapted(rows, [own[f"{name}.{part}"] for part in BOTTLENECK]))
                for path in self._tuned_norms:
                    changes = [own[f"{path}.{part}"] for part in CHANGES if f"{path}.{part}" in own]
                    if changes:
                        hooks.output(layer, path, _renormed(rows, layers[layer].get_submodule(path), changes))
            yield

    @property
    def _tuned_norms(self) -> tuple[str, ...]:
        return self.norms if self.adapter.layer_norms else ()

    def _arrays(self, layer: nn.Module) -> Arrays:
        for path in (*self.outputs, *self.norms):
            if path not in dict(layer.named_modules()):
                raise ModelError(
                    f"tuner.kind=adapter needs a module {path} in each layer, which the model's layers lack"
                )
        hidden, bottleneck = layer_width(layer), self.adapter.width
        dims = ((bottleneck, hidden), (bottleneck,), (hidden, bottleneck), (hidden,))
        arrays = [(f"{name}.{part}", dim) for name in PLACES for part, dim in zip(BOTTLENECK, dims, strict=True)]
        for path in self._tuned_norms:
            norm = layer.get_submodule(path)
            names = [part for part, name in zip(CHANGES, ("weight", "bias"), strict=True) if _has(norm, name)]
            arrays += [(f"{path}.{part}", (hidden,)) for part in names]  # none where a norm has no numbers
        return tuple(arrays)


def _has(norm: nn.Module, name: str) -> bool:
    return getattr(norm, name, None) is not None


def _truncated_normal(rng: np.random.Generator, dims: tuple[int, ...]) -> np.ndarray:
    """Draw standard normal numbers, those beyond two deviations again."""
    drawn = rng.normal(size=dims)
    while (beyond := np.abs(drawn) > 2).any():
        drawn[beyond] = rng.normal(size=int(beyond.sum()))
    return drawn


def _adapted(rows: PaddedRows | PackedRows, arrays: list[Tensor]) -> Callable[[Tensor, Tensor], Tensor]:
    """Return the change of a sub-layer's output."""
    return lambda read, output: output + rows.mapped(_bottleneck, output, *arrays)


def _bottleneck(rows_GMD: Tensor, down_GRD: Tensor, down_bias_GR: Tensor, up_GDR: Tensor, up_bias_GD: Tensor) -> Tensor:
    inner_GMR = functional.gelu(rows_GMD @ down_GRD.mT + down_bias_GR.unsqueeze(1), approximate="tanh")
    return inner_GMR @ up_GDR.mT + up_bias_GD.unsqueeze(1)


def _renormed(
    rows: PaddedRows | PackedRows, norm: nn.Module, changes: list[Tensor]
) -> Callable[[Tensor, Tensor], Tensor]:
    """Return the change of a norm's output: its own, and what other weights and biases add to it."""
    return lambda read, output: output + rows.mapped(_affine, _normalised(norm, read), *changes).to(output.dtype)


def _normalised(norm: nn.Module, read: Tensor) -> Tensor:
    """Return what the norm multiplies by its weight."""
    if isinstance(norm, nn.LayerNorm):
        return functional.layer_norm(read, norm.normalized_shape, eps=norm.eps)
    wide = read.to(torch.float32)
    epsilon = norm.variance_epsilon if hasattr(norm, "variance_epsilon") else norm.eps
    scale = torch.rsqrt(wide.pow(2).mean(-1, keepdim=True) + epsilon)  # type: ignore[operator]
    return (wide * scale).to(read.dtype)


def _affine(rows_GMD: Tensor, weight_GD: Tensor, bias_GD: Tensor | None = None) -> Tensor:
    scaled_GMD = rows_GMD * weight_GD.unsqueeze(1)
    return scaled_GMD if bias_GD is None else scaled_GMD + bias_GD.unsqueeze(1)

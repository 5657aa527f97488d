"""Positions of what a tuner trains, and of the head, in a flat vector.

Shape suffixes: C clients, L layers, X axes of one layer's trained numbers (a prompt: K {key, value}, H key/value heads, P
prompt length, D head dimension), F entries of the flat vector.

A vector holds the trained numbers of some layers in ascending order, then the head's arrays. Clients and server exchange
such vectors; the server never needs to know what they mean.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np


class LayerShape(Protocol):
    """What is trained in the layers of a model, alike in all layers that have something."""

    @property
    def num_layers(self) -> int:
        """Layers of the model."""
        ...

    @property
    def tunable(self) -> tuple[int, ...]:
        """Layers that have trained numbers, ascending."""
        ...

    @property
    def layer_shape(self) -> tuple[int, ...]:
        """Axes of one layer's trained numbers."""
        ...

    @property
    def layer_size(self) -> int:
        """Number of one layer's trained numbers."""
        ...


@dataclass(frozen=True)
class LayerArrays:
    """Several named arrays in each layer, one after another; ``layer_shape`` is flat."""

    num_layers: int
    arrays: tuple[tuple[str, tuple[int, ...]], ...]
    """Name and shape of each array, in order."""
    frozen: tuple[str, ...] = ()
    """Names of arrays that act as they were drawn from the seed: they are not trained, and no vector holds them."""

    @property
    def trained(self) -> tuple[tuple[str, tuple[int, ...]], ...]:
        """Name and shape of each trained array, in order."""
        return tuple(array for array in self.arrays if array[0] not in self.frozen)

    def ending(self, suffix: str) -> tuple[str, ...]:
        """Return the names of the trained arrays that end so."""
        return tuple(name for name, _ in self.trained if name.endswith(suffix))

    @property
    def tunable(self) -> tuple[int, ...]:
        """Layers that have trained numbers: all."""
        return tuple(range(self.num_layers))

    @property
    def layer_size(self) -> int:
        """Number of one layer's trained numbers."""
        return sum(math.prod(shape) for _, shape in self.trained)

    @property
    def layer_shape(self) -> tuple[int, ...]:
        """Axes of one layer's trained numbers: one."""
        return (self.layer_size,)

    def split(self, tuned_X: Any) -> dict[str, Any]:
        """Return views of the arrays by name, [..., *shape] each, of NumPy or torch numbers [..., layer_size]."""
        parts = _parts(tuned_X, [math.prod(shape) for _, shape in self.trained])
        axes = tuned_X.shape[:-1]
        return {name: part.reshape(*axes, *shape) for (name, shape), part in zip(self.trained, parts, strict=True)}


@dataclass(frozen=True)
class OneLayer(LayerArrays):
    """Named arrays in one layer of a model; the others have none."""

    layer: int = 0

    @property
    def tunable(self) -> tuple[int, ...]:
        """Layers that have trained numbers."""
        return (self.layer,)


@dataclass(frozen=True)
class PromptGeometry:
    """Shape of the prompts that a backbone can take."""

    num_layers: int
    num_kv_heads: int
    prompt_length: int
    head_dim: int

    @property
    def tunable(self) -> tuple[int, ...]:
        """Layers that have trained numbers: all."""
        return tuple(range(self.num_layers))

    @property
    def layer_shape(self) -> tuple[int, int, int, int]:
        """Axes of one layer's prompt: [2, key/value heads, prompt length, head dimension]."""
        return (2, self.num_kv_heads, self.prompt_length, self.head_dim)

    @property
    def layer_size(self) -> int:
        """Number of parameters of one layer's prompt."""
        return math.prod(self.layer_shape)


@dataclass(frozen=True)
class VectorLayout:
    """Which layers' trained numbers and which head arrays a flat vector holds.

    Parameters
    ----------
    geometry
        Shape of one layer's trained numbers.
    layers
        Layers in the vector, ascending, each of ``geometry.tunable``.
    head_shapes
        ``(name, shape)`` of each head array, in their order behind the layers; empty for a head without trained
        parameters.
    arrays
        Names of the arrays of each layer that the vector holds; None for all.
    """

    geometry: LayerShape
    layers: tuple[int, ...]
    head_shapes: tuple[tuple[str, tuple[int, ...]], ...] = ()
    arrays: tuple[str, ...] | None = None

    def __post_init__(self) -> None:
        if list(self.layers) != sorted(set(self.layers)):
            raise ValueError(f"layers must ascend without repeats, got {self.layers}")
        if not set(self.layers) <= set(self.geometry.tunable):
            raise ValueError(f"layers {self.layers} are not all in {self.geometry.tunable}")

    @classmethod
    def full(cls, geometry: LayerShape, head_shapes: Sequence[tuple[str, tuple[int, ...]]] = ()) -> VectorLayout:
        """Return the layout of all layers that have trained numbers."""
        return cls(geometry, geometry.tunable, tuple(head_shapes))

    @property
    def tuned_size(self) -> int:
        """Number of parameters of all layers, without the head."""
        return len(self.layers) * self.layer_size

    @property
    def layer_size(self) -> int:
        """Number of one layer's parameters in the vector."""
        return sum(self._sizes.values())

    @property
    def size(self) -> int:
        """Length F of the vector."""
        return self.tuned_size + sum(math.prod(shape) for _, shape in self.head_shapes)

    @property
    def tuned_shape(self) -> tuple[int, ...]:
        """Shape [L, X] of the trained numbers of all layers of this layout."""
        return (len(self.layers), *(self.geometry.layer_shape if self.arrays is None else (self.layer_size,)))

    def split(self, vector_F: Any) -> tuple[Any, dict[str, Any]]:
        """Return views ``(tuned_LX, head arrays by name)`` of a NumPy or torch vector of length ``size``."""
        if tuple(vector_F.shape) != (self.size,):
            raise ValueError(f"expected a vector of shape ({self.size},), got {tuple(vector_F.shape)}")
        tuned, head = self.split_rows(vector_F[None])
        return tuned[0], {name: array[0] for name, array in head.items()}

    def split_rows(self, vector_CF: Any) -> tuple[Any, dict[str, Any]]:
        """Return views ``(tuned_CLX, head arrays by name, [C, *shape] each)`` of vectors [C, size] of several clients."""
        clients, size = vector_CF.shape
        if size != self.size:
            raise ValueError(f"expected vectors of length {self.size}, got {size}")
        shapes = [self.tuned_shape, *(shape for _, shape in self.head_shapes)]
        parts = _parts(vector_CF, [math.prod(shape) for shape in shapes])
        tuned_CLX, *head = (part.reshape(clients, *shape) for part, shape in zip(parts, shapes, strict=True))
        return tuned_CLX, {name: array for (name, _), array in zip(self.head_shapes, head, strict=True)}

    def join(self, tuned_LX: np.ndarray, head: Mapping[str, np.ndarray]) -> np.ndarray:
        """Return the flat vector of NumPy numbers [L, X] and head arrays; the reverse of :meth:`split`."""
        if tuple(tuned_LX.shape) != self.tuned_shape:
            raise ValueError(f"expected numbers of shape {self.tuned_shape}, got {tuple(tuned_LX.shape)}")
        pieces = [np.asarray(tuned_LX).reshape(-1)]
        pieces += [np.asarray(head[name]).reshape(-1) for name, _ in self.head_shapes]
        return np.concatenate(pieces)

    def exchanged(self, layers: Sequence[int]) -> VectorLayout:
        """Return the layout of what travels: those of ``layers`` and the whole head."""
        return VectorLayout(self.geometry, tuple(sorted(layers)), self.head_shapes, self.arrays)

    def holding(self, arrays: Sequence[str]) -> VectorLayout:
        """Return the layout of some arrays of each layer, and the whole head."""
        return VectorLayout(self.geometry, self.layers, self.head_shapes, tuple(arrays))

    def lacking(self, arrays: Sequence[str]) -> VectorLayout:
        """Return the layout of the other arrays of each layer, without the head."""
        others = tuple(name for name in self._sizes if name not in set(arrays))
        return VectorLayout(self.geometry, self.layers, (), others)

    def local(self, layers: Sequence[int]) -> VectorLayout:
        """Return the layout of what stays on the device: the layers of this layout that are not in ``layers``."""
        others = tuple(layer for layer in self.layers if layer not in set(layers))
        return VectorLayout(self.geometry, others, (), self.arrays)

    def positions(self, part: VectorLayout) -> np.ndarray:
        """Return the int64 positions, in a vector of this layout, of the entries of a vector of layout ``part``.

        Raises
        ------
        ValueError
            If ``part`` holds a layer, an array of a layer or a head array that this layout lacks.
        """
        sizes = self._sizes
        missing = (set(part.layers) - set(self.layers)) | (set(part._sizes) - set(sizes))
        if missing or (part.head_shapes and part.head_shapes != self.head_shapes):
            raise ValueError(f"{part} is not a part of {self}")
        inside = np.flatnonzero(np.repeat([name in part._sizes for name in sizes], list(sizes.values())))
        pieces = [self.layers.index(layer) * self.layer_size + inside for layer in part.layers]
        if part.head_shapes:
            pieces.append(np.arange(self.tuned_size, self.size))
        return np.concatenate(pieces) if pieces else np.empty(0, dtype=np.int64)

    def slices(self) -> dict[tuple[int, str], slice]:
        """Return where each array lies in the vector, by layer and name."""
        found, start = {}, 0
        for layer in self.layers:
            for name, size in self._sizes.items():
                found[layer, name] = slice(start, start + size)
                start += size
        return found

    def held(self, layer_X: np.ndarray) -> np.ndarray:
        """Return those of one layer's trained numbers, given flat, that the vector holds."""
        if self.arrays is None:
            return layer_X
        one = self.geometry.tunable[:1]
        return layer_X[VectorLayout(self.geometry, one).positions(VectorLayout(self.geometry, one, (), self.arrays))]

    @property
    def _sizes(self) -> dict[str, int]:
        """Size of each array of a layer that the vector holds, in order; one without a name where a layer is one array."""
        if not isinstance(self.geometry, LayerArrays):
            return {"": self.geometry.layer_size}
        arrays = self.geometry.trained
        return {name: math.prod(shape) for name, shape in arrays if self.arrays is None or name in self.arrays}


def _parts(array: Any, sizes: Sequence[int]) -> Sequence[Any]:
    """Return views of consecutive parts of the last axis of a NumPy or torch array."""
    if isinstance(array, np.ndarray):
        return np.split(array, np.cumsum(sizes)[:-1], axis=-1)
    # The gradient of a split is one concatenation; that of each slice would be as large as the whole.
    return array.split(list(sizes), -1)

"""Layout of the prompt and head parameters in a flat vector.

Shape suffixes: L layers, K {key, value}, H key/value heads, P prompt length (virtual tokens), D head dimension,
F entries of the flat vector.

A vector holds the prompts of some layers in ascending order, each as [K, H, P, D], then the head's arrays.
Clients and server exchange such vectors; the server never needs to know their contents.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np


@dataclass(frozen=True)
class PromptGeometry:
    """Shape of the prompts that a backbone can take."""

    num_layers: int
    num_kv_heads: int
    prompt_length: int
    head_dim: int

    @property
    def layer_size(self) -> int:
        """Number of parameters of one layer's prompt."""
        return 2 * self.num_kv_heads * self.prompt_length * self.head_dim


@dataclass(frozen=True)
class VectorLayout:
    """The layers' prompts and head arrays that a flat vector holds.

    Parameters
    ----------
    geometry
        Shape of one layer's prompt.
    layers
        Prompted layers in the vector, ascending, each in ``range(geometry.num_layers)``.
    head_shapes
        ``(name, shape)`` of each head array, in the order in which they follow the prompts; empty for a
        head without trained parameters.
    """

    geometry: PromptGeometry
    layers: tuple[int, ...]
    head_shapes: tuple[tuple[str, tuple[int, ...]], ...] = ()

    def __post_init__(self) -> None:
        if list(self.layers) != sorted(set(self.layers)):
            raise ValueError(f"layers must ascend without repeats, got {self.layers}")
        if self.layers and not 0 <= self.layers[0] <= self.layers[-1] < self.geometry.num_layers:
            raise ValueError(f"layers {self.layers} are not all in range({self.geometry.num_layers})")

    @classmethod
    def full(cls, geometry: PromptGeometry, head_shapes: Sequence[tuple[str, tuple[int, ...]]] = ()) -> VectorLayout:
        """Return the layout with a prompt in every layer."""
        return cls(geometry, tuple(range(geometry.num_layers)), tuple(head_shapes))

    @property
    def prompt_size(self) -> int:
        """Number of prompt parameters."""
        return len(self.layers) * self.geometry.layer_size

    @property
    def size(self) -> int:
        """Length F of the vector."""
        return self.prompt_size + sum(math.prod(shape) for _, shape in self.head_shapes)

    @property
    def prompt_shape_LKHPD(self) -> tuple[int, int, int, int, int]:
        """Shape of the prompts of all layers of this layout."""
        g = self.geometry
        return (len(self.layers), 2, g.num_kv_heads, g.prompt_length, g.head_dim)

    def split(self, vector_F: Any) -> tuple[Any, dict[str, Any]]:
        """Return views ``(prompt_LKHPD, head arrays by name)`` of a NumPy or torch vector of length ``size``."""
        if tuple(vector_F.shape) != (self.size,):
            raise ValueError(f"expected a vector of shape ({self.size},), got {tuple(vector_F.shape)}")
        prompt, head = self.split_rows(vector_F[None])
        return prompt[0], {name: array[0] for name, array in head.items()}

    def split_rows(self, vector_CF: Any) -> tuple[Any, dict[str, Any]]:
        """Return views ``(prompt_CLKHPD, head arrays by name, [C, *shape] each)`` of vectors [C, size] of several clients."""
        clients, size = vector_CF.shape
        if size != self.size:
            raise ValueError(f"expected vectors of length {self.size}, got {size}")
        prompt = vector_CF[:, : self.prompt_size].reshape(clients, *self.prompt_shape_LKHPD)
        head: dict[str, Any] = {}
        start = self.prompt_size
        for name, shape in self.head_shapes:
            stop = start + math.prod(shape)
            head[name] = vector_CF[:, start:stop].reshape(clients, *shape)
            start = stop
        return prompt, head

    def join(self, prompt_LKHPD: np.ndarray, head: Mapping[str, np.ndarray]) -> np.ndarray:
        """Return the flat vector of NumPy prompts and head arrays; the reverse of :meth:`split`."""
        if tuple(prompt_LKHPD.shape) != self.prompt_shape_LKHPD:
            raise ValueError(f"expected prompts of shape {self.prompt_shape_LKHPD}, got {tuple(prompt_LKHPD.shape)}")
        pieces = [np.asarray(prompt_LKHPD).reshape(-1)]
        pieces += [np.asarray(head[name]).reshape(-1) for name, _ in self.head_shapes]
        return np.concatenate(pieces)

    def exchanged(self, layers: Sequence[int]) -> VectorLayout:
        """Return the layout of what travels: the prompts of ``layers`` and the whole head."""
        return VectorLayout(self.geometry, tuple(sorted(layers)), self.head_shapes)

    def local(self, layers: Sequence[int]) -> VectorLayout:
        """Return the layout of what stays on the device: the prompts of this layout that are not in ``layers``."""
        return VectorLayout(self.geometry, tuple(layer for layer in self.layers if layer not in set(layers)))

    def positions(self, part: VectorLayout) -> np.ndarray:
        """Return the int64 positions, in a vector of this layout, of the entries of a vector of layout ``part``.

        Raises
        ------
        ValueError
            If ``part`` holds a layer or a head array that this layout lacks.
        """
        missing = set(part.layers) - set(self.layers)
        if missing or (part.head_shapes and part.head_shapes != self.head_shapes):
            raise ValueError(f"{part} is not a part of {self}")
        size = self.geometry.layer_size
        starts = [self.layers.index(layer) * size for layer in part.layers]
        pieces = [np.arange(start, start + size) for start in starts]
        if part.head_shapes:
            pieces.append(np.arange(self.prompt_size, self.size))
        return np.concatenate(pieces) if pieces else np.empty(0, dtype=np.int64)

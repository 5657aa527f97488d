"""Initial parameters of a run: random or from an earlier result.

Shape suffixes as in :mod:`fedsim.core.layout`; A = all parameters that a client can train.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np

from clients.config import HeadConfig
from clients.tuners.tuner import Tuner
from fedsim.core import seeds
from fedsim.core.errors import ModelError
from fedsim.core.layout import LayerShape, PromptGeometry, VectorLayout

InitialVector = Callable[[VectorLayout], np.ndarray]
"""Initial parameters of a layout, float32 of length ``layout.size``."""


@dataclass(frozen=True)
class StartingPoint:
    """A non-random starting point (``prompt.start_from``, ``tuner.start_from``), in the run's own position numbering."""

    source: str
    """The file or folder, as given by the user."""
    geometry: LayerShape
    layers: tuple[int, ...]
    """Layers with trained numbers in the source."""
    tuned_LX: np.ndarray
    """float32 trained numbers of ``layers``."""
    head: dict[str, np.ndarray] = field(default_factory=dict)
    """float32 arrays of the head by name; empty if the source has none."""
    left_out: tuple[str, ...] = ()
    """Names of a source's arrays that are not taken over."""
    key: str = "prompt.start_from"
    """The key that names it."""

    def fingerprint(self) -> str:
        """Return the hexadecimal SHA-256 of all arrays and their layers, independent of their source."""
        digest = hashlib.sha256(f"{self.geometry} {self.layers}".encode())
        for name, array in (("prompt", self.tuned_LX), *sorted(self.head.items())):
            digest.update(f"{name} {array.dtype} {array.shape}\n".encode())
            digest.update(np.ascontiguousarray(array).data)
        return digest.hexdigest()

    def tuned_of(self, layer: int) -> np.ndarray:
        """Return the trained numbers of a layer, float32 [X].

        Raises
        ------
        ModelError
            If the source has nothing for that layer: a random start would not continue from it.
        """
        if layer not in self.layers:
            what = "no prompt" if isinstance(self.geometry, PromptGeometry) else "nothing"
            raise ModelError(
                f"{self.key} {self.source} has {what} for layer {layer}, only for {list(self.layers)}; start from one with "
                f"every layer, or set layers.choose=fixed, layers.fixed={list(self.layers)} and "
                "layers.unselected=none"
            )
        tuned_X: np.ndarray = self.tuned_LX[self.layers.index(layer)]
        return tuned_X

    def has_head(self, layout: VectorLayout) -> bool:
        """Whether the layout has a trained head that matches the source's arrays in shape."""
        shapes = layout.head_shapes
        return bool(shapes) and all(name in self.head and self.head[name].shape == shape for name, shape in shapes)


def initial_vector(
    layout: VectorLayout, tuner: Tuner, head: HeadConfig, seed: int, start: StartingPoint | None = None
) -> np.ndarray:
    """Create the initial parameters, float32 of length ``layout.size``.

    Layers are those of ``start``, or else drawn by the tuner. The head is that of ``start`` if it has one of the same shape,
    or else its weights are normal with ``head.init_std`` and its biases zero. Each layer has its own random stream, so its
    numbers do not depend on which other layers are tuned.

    Raises
    ------
    ModelError
        If ``start`` lacks a layer.
    """
    pieces: list[np.ndarray] = []
    for layer in layout.layers:
        if start is not None:
            pieces.append(layout.held(start.tuned_of(layer).reshape(-1)))
        else:
            pieces.append(layout.held(tuner.initial(layout.geometry, layer, seed)))
    for name, shape in layout.head_shapes:
        if start is not None and start.has_head(layout):
            pieces.append(start.head[name].reshape(-1))
        elif len(shape) > 1:
            rng = seeds.stream(seed, seeds.NO_ROUND, seeds.NO_CLIENT, f"head/{name}")
            pieces.append(rng.normal(0.0, head.init_std, shape).reshape(-1))
        else:
            pieces.append(np.zeros(shape).reshape(-1))
    return np.concatenate(pieces).astype(np.float32) if pieces else np.empty(0, dtype=np.float32)

"""torch.compile for the layers of a frozen model: ``model.compile``.

What a layer does around its attention (projections, norms, activations, sums) is compiled into larger kernels; attention
with its prompts, whose buckets are others in every pass, runs as it is. Sizes are symbolic, so that passes of any number
of tokens share one graph.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import nn

from clients.tuners.prefix import keep_out_of_graphs
from fedsim.core.errors import ResourceError

_COMPILERS = ("g++", "clang++", "cl")


class CompiledLayers:
    """Layers that can be run compiled for the length of a pass; the first passes take the time to compile.

    Parameters
    ----------
    layers
        Of one model, all of one class.

    Raises
    ------
    ResourceError
        If there is no C++ compiler, which torch.compile needs.
    """

    def __init__(self, layers: nn.ModuleList) -> None:
        wanted = (os.environ.get("CXX"), *_COMPILERS)
        if not any(shutil.which(name) for name in wanted if name):
            raise ResourceError(
                "model.compile needs a C++ compiler, and there is none here; install g++ (or clang++, or set CXX), or set "
                "model.compile=false"
            )
        keep_out_of_graphs()
        self._layers = layers
        self._compiled = [torch.compile(layer.forward, dynamic=True) for layer in layers]

    @contextmanager
    def active(self) -> Iterator[None]:
        """Run the layers compiled in this block. A gradient of their gradient cannot be taken."""
        for layer, compiled in zip(self._layers, self._compiled, strict=True):
            layer.forward = compiled
        try:
            yield
        finally:
            for layer in self._layers:
                del layer.forward

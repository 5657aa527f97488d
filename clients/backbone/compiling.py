"""torch.compile for the layers of a frozen model: ``model.compile``.

Everything around attention (projections, norms, activations, sums) is compiled into larger kernels; attention with its
prompts, whose buckets differ in every pass, runs uncompiled. Sizes are symbolic, so that passes of any number of tokens
share one graph.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import nn

from clients.backbone.lean_imports import load_dynamo
from clients.tuners.prefix import keep_out_of_graphs
from fedsim.core.errors import ResourceError

_COMPILERS = ("g++", "clang++", "cl")


class CompiledLayers:
    """Layers that can run compiled during a pass; the first passes include compilation.

    Parameters
    ----------
    layers
        Layers of one model, all of the same class.

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
        load_dynamo()
        keep_out_of_graphs()
        self._layers = layers
        self._compiled = [torch.compile(layer.forward, dynamic=True) for layer in layers]

    @contextmanager
    def active(self) -> Iterator[None]:
        """Run the layers compiled in this block; second derivatives are not available."""
        for layer, compiled in zip(self._layers, self._compiled, strict=True):
            layer.forward = compiled
        try:
            yield
        finally:
            for layer in self._layers:
                del layer.forward

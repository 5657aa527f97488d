"""What a worker process need not import.

A model of transformers imports TorchDynamo, torch.distributed and Accelerate: more than a second and 70 MB in every process.
A worker is one process that runs its model as it is, so here transformers does as where PyTorch has no distributed package,
and TorchDynamo is imported when something uses it, such as ``model.compile``.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from fedsim.core.on_demand import OnDemand, on_demand

if TYPE_CHECKING:
    from torch import Tensor

_ABSENT = ("is_torch_distributed_available", "is_accelerate_available", "is_scipy_available")
"""Questions of transformers that a worker answers with no. Every model imports losses of object detection, which import SciPy."""
_SHAPES = "torch.fx.experimental.symbolic_shapes"
"""Imports SymPy: a third of a second and 50 MB."""
_MARKS = ("disable", "allow_in_graph", "assume_constant_result")
"""TorchDynamo's decorators in modules of torch and transformers: marks that have no meaning while nothing is compiled."""


@contextmanager
def lean_imports() -> Iterator[None]:
    """Import models of transformers in the block; this holds for the whole process, which runs one worker and nothing else."""
    from transformers import utils
    from transformers.utils import import_utils

    for name in _ABSENT:
        for module in (import_utils, utils):
            if hasattr(module, name):
                setattr(module, name, _no)
    on_demand("transformers.models")  # it would list all models' files, as transformers has done already
    shapes = on_demand(_SHAPES)
    if isinstance(shapes, OnDemand):
        vars(shapes)["expect_true"] = _expect_true
    dynamo = on_demand("torch._dynamo")
    if isinstance(dynamo, OnDemand):
        vars(dynamo).update(dict.fromkeys(_MARKS, _unmarked))
    yield
    if isinstance(dynamo, OnDemand):
        dynamo.close()


@contextmanager
def plain_meta() -> Iterator[None]:
    """Build models on the meta device in the block without PyTorch's decompositions, which import SymPy to find nothing to do.

    Weights there have no storage that could be drawn, and storage for a buffer needs its shape only.
    """
    import torch
    from torch.nn import init

    draw, empty_like = init.normal_, torch.empty_like

    def normal_(tensor: Tensor, *arguments: Any, **options: Any) -> Tensor:
        return tensor if tensor.is_meta else draw(tensor, *arguments, **options)

    def new(tensor: Tensor, **options: Any) -> Tensor:
        if tensor.is_meta and options.keys() == {"device"} and tensor.is_contiguous():
            return torch.empty(tensor.shape, dtype=tensor.dtype, device=options["device"])
        return empty_like(tensor, **options)

    init.normal_, torch.empty_like = normal_, new  # type: ignore[assignment]
    try:
        yield
    finally:
        init.normal_, torch.empty_like = draw, empty_like


def load_dynamo() -> None:
    """Import TorchDynamo, whose decorators have an effect from here on."""
    _load("torch._dynamo")


def _load(name: str) -> None:
    if isinstance(module := sys.modules.get(name), OnDemand):
        module.load()


def _no(*_: Any, **__: Any) -> bool:
    return False


def _expect_true(condition: Any, skip: int = 0) -> bool:
    """Answer what checks of plain operations ask of that module; a symbolic condition is for the module itself."""
    if isinstance(condition, bool):
        return condition
    _load(_SHAPES)
    answer: bool = sys.modules[_SHAPES].expect_true(condition, skip + 1)
    return answer


def _unmarked(function: Any = None, *_: Any, **__: Any) -> Callable[..., Any]:
    """Return the function that a decorator is applied to, with or without arguments."""
    return function if callable(function) else lambda decorated: decorated

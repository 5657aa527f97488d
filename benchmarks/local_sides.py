"""The ways to do the same local training that ``benchmarks/local_training.py`` compares, and the arithmetic each needs."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np

from benchmarks.flops import Shape, needed_flops, virtual_token_flops
from benchmarks.kinds import kind_of
from benchmarks.products import AUTOCAST, FLOAT32, named, of_fedsim
from clients.tuners.config import ONE_PLACE, VIRTUAL_TOKENS
from fedsim.configuration.schema import Config

if TYPE_CHECKING:
    from fedsim.core.layout import LayerShape


@dataclass(frozen=True)
class Side:
    """One way to do the work."""

    name: str
    kind: str
    """bare or fedsim."""
    threads: int = 1
    upper: bool = False
    """Whether only the upper half of the layers is tuned."""
    fuse: bool = False
    cached: bool = False
    products: str = FLOAT32
    """Number format of matrix products."""

    def computing_in(self, products: str) -> Side:
        """Return the side with its products in another format."""
        return replace(self, name=named(self.name, products), products=products)


_ALL = (
    Side("bare loop, 1 process, 2 threads", "bare", threads=2),
    Side("bare loop, 2 processes", "bare"),
    Side("fedsim one by one", "fedsim"),
    Side("fedsim fused", "fedsim", fuse=True),
)
_UPPER = (
    Side("bare loop, 2 processes, upper layers", "bare", upper=True),
    Side("fedsim fused, upper layers", "fedsim", fuse=True, upper=True),
    Side("fedsim fused, upper layers, layers below cached", "fedsim", fuse=True, upper=True, cached=True),
)
_CACHED = (Side("fedsim fused, frozen layers cached", "fedsim", fuse=True, cached=True),)


_PREFIX_LENGTHS: dict[str, Callable[[Config], int]] = {
    "prefix": lambda config: config.prompt.length,
    "projected_prefix": lambda config: config.tuner.length,
}


def sides(tuner: str, also_autocast: bool = False) -> tuple[Side, ...]:
    """Return the sides of a kind: without upper layers where there are none to choose.

    fedsim's sides come in each number format that it has for its products.

    Parameters
    ----------
    also_autocast
        The bare loop in two processes also under PyTorch's autocast.
    """
    plain = _ALL + _UPPER if tuner not in ONE_PLACE else _ALL + (_CACHED if kind_of(tuner).frozen_part else ())
    rounded = [
        side.computing_in(products)
        for products in (*(AUTOCAST,) * also_autocast, *of_fedsim()[1:])
        for side in plain
        if side.kind == ("bare" if products == AUTOCAST else "fedsim") and side.threads == 1
    ]
    return (*plain, *rounded)


def tuned_layers(shape: LayerShape, upper: bool) -> tuple[int, ...]:
    """Return the tuned layers of a side."""
    return shape.tunable[len(shape.tunable) // 2 if upper else 0 :]


def work_flops(config: Config, spec: Any, layers: tuple[int, ...], clients: list[int], side: Side) -> float:
    """Return the matrix-multiply operations that the mathematics of the work needs.

    Parameters
    ----------
    layers
        Tuned layers of the side.
    """
    values = json.loads(spec.weights.config_json)
    shape = Shape(values["hidden_size"], values["intermediate_size"], values["num_hidden_layers"])
    lengths_N = np.concatenate([spec.train.lengths_N[spec.shards.train(client)] for client in clients])
    epochs, one_read = config.client.epochs or 1, config.model.head.pooling != "mean"
    if config.tuner.kind in VIRTUAL_TOKENS:
        return epochs * virtual_token_flops(
            shape,
            lengths_N,
            config.tuner.length,
            min(layers),
            cached=side.cached,
            plain_pass=spec.tuner.reads_output,
            one_read=one_read,
        )
    return epochs * needed_flops(
        shape,
        lengths_N,
        _PREFIX_LENGTHS.get(config.tuner.kind, lambda config: 0)(config),
        min(layers),
        cached=side.cached,
        low_rank=kind_of(config.tuner.kind).numbers_per_token(config),
        one_read=one_read,
    )

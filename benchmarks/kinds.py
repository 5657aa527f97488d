"""What the benchmarks know of each ``tuner.kind``; a kind without a row is run with the defaults of :class:`Kind`.

To add a kind: give it a row, and where :func:`plain_loop` is not what a careful user would write for it, a loop of its own.
"""

from __future__ import annotations

import typing
from collections.abc import Callable
from dataclasses import dataclass
from importlib import import_module
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np

from clients.tuners.config import ONE_PLACE, TunerConfig
from fedsim.configuration.schema import Config
from fedsim.planning.model_shape import model_shape
from fedsim.planning.tuned_shape import tuned_shape

if TYPE_CHECKING:
    from benchmarks.peers.work import Work


class BareLoop(Protocol):
    """Trains one client at a time, as a user without fedsim would."""

    def train(self, round: int, client: int, vector_F: np.ndarray) -> tuple[np.ndarray, int]:
        """Train a client from the global vector; return its vector and its number of examples."""
        ...


def plain_loop(work: Work) -> BareLoop:
    """Return the plain loop: PyTorch's AdamW over padded batches, the trained numbers acting in the model's own modules.

    A prefix enters as keys and values, LoRA's products are added in forward hooks.
    """
    from benchmarks.peers.work import PlainClients

    return PlainClients(work)


def _bare(module: str, name: str) -> Callable[[Work], BareLoop]:
    """Return a loop of :mod:`benchmarks.bare`, imported where it runs."""

    def loop(work: Work) -> BareLoop:
        made: BareLoop = getattr(import_module(f"benchmarks.bare.{module}"), name)(work)
        return made

    return loop


def every_number(config: Config) -> int:
    """Return how many trained numbers of a layer each token is multiplied by: all of them."""
    model = model_shape(config.model)
    assert model is not None
    return tuned_shape(config, model).layer_size


def no_number(config: Config) -> int:
    """Return 0, for numbers that do not multiply tokens."""
    return 0


@dataclass(frozen=True)
class Kind:
    """How the benchmarks run a kind."""

    lr: float = 0.01
    """Local learning rate with which it learns the embedded task."""
    same: tuple[str, ...] = ("client.optimizer.lr=0.001", "client.optimizer.eps=1e-5")
    """Overrides with which rounding does not grow beyond what a check of equal work allows; a step takes as long at any
    size."""
    loop: Callable[[Work], BareLoop] = plain_loop
    numbers_per_token: Callable[[Config], int] = every_number
    frozen_part: bool = False
    """Whether the frozen model runs on texts alone in a part, which can be cached, though there are no layers to choose."""


KINDS = {
    "prefix": Kind(lr=0.04, same=(), numbers_per_token=no_number),
    "projected_prefix": Kind(lr=0.003, numbers_per_token=no_number),
    "soft_prompt": Kind(lr=0.04, loop=_bare("prompts", "SoftPrompt")),
    "late_prompt": Kind(lr=0.005, loop=_bare("prompts", "LatePrompt"), frozen_part=True),
    "generated_prompt": Kind(lr=0.01, loop=_bare("prompts", "GeneratedPrompt"), frozen_part=True),
    "prompt_mixture": Kind(lr=0.02, loop=_bare("prompts", "PromptMixture")),
    "lora": Kind(lr=0.01),
    "ia3": Kind(lr=0.01, loop=_bare("modules", "Ia3"), numbers_per_token=no_number),
    "adapter": Kind(lr=0.003, loop=_bare("modules", "Adapter")),
}
"""Learning rates are those of ``configs/methods``."""


def kind_of(name: str) -> Kind:
    """Return what the benchmarks know of a kind."""
    return KINDS.get(name, Kind())


def names() -> tuple[str, ...]:
    """Return all kinds of the schema."""
    found: Any = typing.get_args(TunerConfig.model_fields["kind"].annotation)
    return tuple(found)


def overrides(name: str) -> tuple[str, ...]:
    """Return the words that choose a kind, in all layers, whatever the file says in sections ``prompt`` and ``layers``."""
    (use, *_) = Config.uses["prompt"]
    layers = ("layers=",) if name in ONE_PLACE else ("layers=", "layers.choose=all")
    return (f"tuner.kind={name}", *layers, *(() if name in use.values else ("prompt=",)))

"""Schemas of the sections ``client.optimizer`` and ``client.schedule``."""

from __future__ import annotations

from typing import ClassVar, Literal

from pydantic import Field, NonNegativeFloat, NonNegativeInt, PositiveFloat, PositiveInt

from fedsim.core.schema import Schema
from fedsim.core.uses import Use, Uses

WITH_GRADIENTS = ("adamw", "adamw_published", "sgd")
"""Kinds of local optimizer that need gradients."""


class OptimizerConfig(Schema):
    """The local optimizer."""

    kind: Literal["adamw", "adamw_published", "sgd", "cma_es"] = "adamw"
    """adamw (Loshchilov & Hutter, as torch.optim.AdamW), adamw_published (epsilon before bias correction, decay after the
    step, as in the published code), sgd (with ``momentum``), or cma_es: forward passes only, no gradients; a local step ranks
    ``population`` candidates by their loss on the step's mini-batch (separable CMA-ES; Ros & Hansen 2008). It needs
    ``tuner.projection``; with ``server.kind: fedbpt`` it is FedBPT."""
    population: int | None = Field(default=None, ge=4, le=65536)
    """cma_es: candidates of a step; if not given 4 + 3 ln(``tuner.projection``), rounded down, as is usual."""
    sigma: PositiveFloat = 1.0
    """cma_es: standard deviation of the first candidates in a round, in every entry; with ``server.kind: fedbpt`` in the first
    round, and the server adapts it."""
    lr: PositiveFloat = 0.04
    """Local learning rate (eta)."""
    beta1: float = Field(default=0.9, ge=0.0, lt=1.0)
    """adamw: decay of the first moment."""
    beta2: float = Field(default=0.999, ge=0.0, lt=1.0)
    """adamw: decay of the second moment."""
    eps: PositiveFloat = 1e-8
    """adamw: added to the root of the second moment."""
    momentum: float = Field(default=0.0, ge=0.0, lt=1.0)
    """sgd: momentum."""
    weight_decay: NonNegativeFloat = 0.1
    """Decoupled weight decay."""
    clip_norm: PositiveFloat | None = 1.0
    """Largest norm of a client's gradient over all its layers; null for no clipping."""
    moments: Literal["restart", "keep"] = "restart"
    """Restart moments, step count and schedule every round, or keep the client's last ones (published code)."""

    uses: ClassVar[Uses] = {
        **dict.fromkeys(("lr", "weight_decay", "clip_norm", "moments"), (Use("kind", WITH_GRADIENTS),)),
        **dict.fromkeys(("population", "sigma"), (Use("kind", ("cma_es",)),)),
        **dict.fromkeys(("beta1", "beta2", "eps"), (Use("kind", ("adamw", "adamw_published")),)),
        "momentum": (Use("kind", ("sgd",)),),
    }


class ScheduleConfig(Schema):
    """Schedule of the local learning rate over a client's steps."""

    kind: Literal["constant", "linear", "cosine"] = "constant"
    """constant, linear decay to zero, or cosine decay to zero, over ``total_steps``."""
    warmup_steps: NonNegativeInt = 0
    """Steps over which the learning rate rises from zero."""
    total_steps: PositiveInt | Literal["all_data"] | None = None
    """Steps until zero; if not given, the steps of one local training. all_data: rounds times the batches in all training
    examples (published code), far more than a client takes, so the learning rate hardly falls."""

    uses: ClassVar[Uses] = {"total_steps": (Use("kind", ("linear", "cosine")),)}

    def resolved(self, rounds: int, num_examples: int, batch_size: int) -> ScheduleConfig:
        """Return the schedule with ``all_data`` as a number: ``rounds`` times the batches in ``num_examples``."""
        if self.total_steps != "all_data":
            return self
        return self.model_copy(update={"total_steps": rounds * -(-num_examples // batch_size)})

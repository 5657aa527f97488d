"""Schema of the section ``tuner``."""

from __future__ import annotations

from typing import ClassVar, Literal

from pydantic import Field, PositiveFloat, PositiveInt, field_validator

from fedsim.core.schema import Schema
from fedsim.core.uses import Use, Uses


class TunerConfig(Schema):
    """What is trained in each layer of the frozen model."""

    kind: Literal["prefix", "lora", "ia3", "adapter"] = "prefix"
    """prefix (key/value prompts; section ``prompt``), lora (low-rank changes of linear maps; Hu et al. 2022), ia3 (vectors that
    scale keys, values and feed-forward; Liu et al. 2022), or adapter (bottlenecks in each layer; Houlsby et al. 2019)."""
    rank: PositiveInt = Field(default=8, le=4096)
    """lora: rank of each change."""
    alpha: PositiveFloat = 16.0
    """lora: changes are scaled by alpha / rank, or with ``scaling: rslora`` by alpha / sqrt(rank)."""
    scaling: Literal["standard", "rslora"] = "standard"
    """lora: standard, or rslora (Kalajdzievski 2023), which keeps the size of changes when the rank grows."""
    targets: tuple[str, ...] | None = None
    """lora, ia3: linear maps to change, by the ends of their names within a layer, as in PEFT's ``target_modules``; if not
    given, PEFT's choice for the family: for lora query and value, in GPT-2 c_attn."""
    feedforward_targets: tuple[str, ...] | None = None
    """ia3: those of the targets whose input is scaled, not their output, as in PEFT's ``feedforward_modules``; [] for none. If
    not given, PEFT's choice for the family: the feed-forward's second map, in encoders by a name that attention's output
    projection ends with as well."""
    bottleneck: PositiveInt = Field(default=64, le=65536)
    """adapter: width of each bottleneck."""
    layer_norms: bool = True
    """adapter: train the norms of each layer too, as the paper does."""

    uses: ClassVar[Uses] = {
        **dict.fromkeys(("rank", "alpha", "scaling"), (Use("kind", ("lora",)),)),
        "targets": (Use("kind", ("lora", "ia3")),),
        "feedforward_targets": (Use("kind", ("ia3",)),),
        **dict.fromkeys(("bottleneck", "layer_norms"), (Use("kind", ("adapter",)),)),
    }

    @property
    def origin(self) -> float:
        """What prompt files add to the trained numbers: ia3 trains the difference of its vectors from 1."""
        return 1.0 if self.kind == "ia3" else 0.0

    @field_validator("feedforward_targets")
    @classmethod
    def _each_once(cls, targets: tuple[str, ...] | None) -> tuple[str, ...] | None:
        if targets is not None and (len(set(targets)) != len(targets) or not all(targets)):
            raise ValueError(
                f"feedforward_targets={list(targets)} must name linear maps, each once, none of them empty"
            )
        return targets

    @field_validator("targets")
    @classmethod
    def _some_targets(cls, targets: tuple[str, ...] | None) -> tuple[str, ...] | None:
        if targets is not None and (not targets or len(set(targets)) != len(targets) or not all(targets)):
            raise ValueError(
                f"targets={list(targets)} must name one or more linear maps, each once, none of them empty"
            )
        return targets

"""Schema of the section ``tuner``."""

from __future__ import annotations

from typing import ClassVar, Literal

from pydantic import Field, PositiveFloat, PositiveInt, field_validator

from fedsim.core.schema import PathText, Schema
from fedsim.core.uses import Use, Uses


class TunerConfig(Schema):
    """What is trained in each layer of the frozen model."""

    kind: Literal["prefix", "lora"] = "prefix"
    """prefix (key/value prompts; section ``prompt``), or lora (low-rank changes of linear maps; Hu et al. 2022)."""
    rank: PositiveInt = Field(default=8, le=4096)
    """lora: rank of each change."""
    alpha: PositiveFloat = 16.0
    """lora: changes are scaled by alpha / rank, or with ``scaling: rslora`` by alpha / sqrt(rank)."""
    scaling: Literal["standard", "rslora"] = "standard"
    """lora: standard, or rslora (Kalajdzievski 2023), which keeps the size of changes when the rank grows."""
    targets: tuple[str, ...] | None = None
    """lora: linear maps to change, by the ends of their names within a layer, as in PEFT's ``target_modules``; if not given,
    PEFT's choice for the family: query and value, in GPT-2 c_attn."""

    start_from: PathText | None = None
    """lora: start from a PEFT LoRA adapter (its folder) or an earlier run (its folder or prompt file) instead of at the
    frozen model; the head is loaded too if the source has one of the same shape. A prefix starts from ``prompt.start_from``."""

    uses: ClassVar[Uses] = {
        **dict.fromkeys(("rank", "alpha", "scaling", "targets"), (Use("kind", ("lora",)),)),
        "start_from": (Use("kind", ("lora",), words="it is a key of lora; a prefix has prompt.start_from"),),
    }

    @field_validator("targets")
    @classmethod
    def _some_targets(cls, targets: tuple[str, ...] | None) -> tuple[str, ...] | None:
        if targets is not None and (not targets or len(set(targets)) != len(targets) or not all(targets)):
            raise ValueError(
                f"targets={list(targets)} must name one or more linear maps, each once, none of them empty"
            )
        return targets

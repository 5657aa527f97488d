"""Schema of the section ``tuner``."""

from __future__ import annotations

from typing import ClassVar, Literal

from pydantic import Field, NonNegativeInt, PositiveFloat, PositiveInt, field_validator

from fedsim.core.schema import Schema
from fedsim.core.uses import Use, Uses

ONE_PLACE = ("soft_prompt", "late_prompt")
"""Kinds that train numbers at one place of the model, so that there are no layers to choose."""


class TunerConfig(Schema):
    """What is trained in each layer of the frozen model."""

    kind: Literal["prefix", "soft_prompt", "late_prompt", "lora", "ia3"] = "prefix"
    """prefix (key/value prompts; section ``prompt``), soft_prompt (input embeddings before the text; Lester et al. 2021),
    late_prompt (vectors before the text from a middle layer up; Liu, X. et al. 2022), lora (low-rank changes of linear maps; Hu
    et al. 2022), or ia3 (vectors that scale keys, values and feed-forward; Liu, H. et al. 2022)."""
    length: int = Field(default=8, gt=0, le=8192)
    """soft_prompt, late_prompt: virtual tokens before each text."""
    start: Literal["vocabulary", "label_words", "random"] = "vocabulary"
    """soft_prompt, and late_prompt without a generator: start from the input embeddings of drawn tokens, or of the label words
    and then of drawn tokens, or at random (soft_prompt: uniform within 0.5, late_prompt: normal)."""
    depth: NonNegativeInt | None = None
    """late_prompt: layers that run without the prompt, from the lowest; if not given, half of the model's."""
    generator: Literal["none", "npg", "appg", "mppg"] = "npg"
    """late_prompt: none trains the prompt itself; the others make it from each text: npg from the token that stands for it (the
    first in encoders, the last in decoders), appg and mppg from means or maxima over as many segments as virtual tokens."""
    bottleneck: PositiveInt | None = Field(default=None, le=65536)
    """late_prompt: size of the generator's bottleneck; if not given 128, as in its authors' code."""
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

    uses: ClassVar[Uses] = {
        "length": (Use("kind", ("soft_prompt", "late_prompt")),),
        "start": (
            Use("kind", ("soft_prompt", "late_prompt")),
            Use(
                "trains_prompt",
                (True,),
                by="generator",
                words="it is for a prompt that is trained itself (generator=none)",
            ),
        ),
        **dict.fromkeys(("depth", "generator"), (Use("kind", ("late_prompt",)),)),
        "bottleneck": (Use("kind", ("late_prompt",)), Use("generator", ("npg", "appg", "mppg"))),
        **dict.fromkeys(("rank", "alpha", "scaling"), (Use("kind", ("lora",)),)),
        "targets": (Use("kind", ("lora", "ia3")),),
        "feedforward_targets": (Use("kind", ("ia3",)),),
    }

    @property
    def trains_prompt(self) -> bool:
        """Whether virtual tokens are trained themselves, not made from the text."""
        return self.kind == "soft_prompt" or (self.kind == "late_prompt" and self.generator == "none")

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

"""Schema of the section ``tuner``."""

from __future__ import annotations

from typing import ClassVar, Literal

from pydantic import Field, PositiveFloat, PositiveInt, field_validator

from fedsim.core.schema import Schema
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

    train: Literal["both", "a", "b", "alternate"] = "both"
    """lora: which of A and B are trained. b (FFA-LoRA, Sun et al. 2024): all clients have the same random A that never changes
    and never travels, so the mean of the changes is the change of the mean, for half the bytes. a: B is the random one, drawn
    uniformly with bound 1 / sqrt(rank) (ours), and A starts at zero. alternate (RoLoRA, Chen et al. 2024): B in odd rounds, A
    in even ones; clients send what the round trains, the other does not move."""
    exchange: Literal["both", "a", "b"] = "both"
    """lora: which of A and B travel. a (FedSA-LoRA, Guo et al. 2024): A is averaged, and every client keeps a B of its own,
    as if it were a personal layer; b: the reverse. The head always travels. The global model then has the other half as
    at the start: look at personalised figures."""

    exact: bool = False
    """lora: FedEx-LoRA (Singhal et al. 2024). What the mean of the clients' changes has beyond the change of the mean A and B
    goes into the frozen maps, a full matrix for each, so nothing is lost in averaging. For ``server.kind: fedavg``."""

    uses: ClassVar[Uses] = {
        **dict.fromkeys(("rank", "alpha", "scaling", "targets", "train"), (Use("kind", ("lora",)),)),
        "exchange": (
            Use("kind", ("lora",)),
            Use("train", ("both",), words="give train=both, or leave exchange out"),
        ),
        "exact": (
            Use("kind", ("lora",)),
            Use("train", ("both",), words="give train=both; with one of A and B nothing is lost"),
            Use("exchange", ("both",), words="give exchange=both, or leave exact out"),
        ),
    }

    @field_validator("targets")
    @classmethod
    def _some_targets(cls, targets: tuple[str, ...] | None) -> tuple[str, ...] | None:
        if targets is not None and (not targets or len(set(targets)) != len(targets) or not all(targets)):
            raise ValueError(
                f"targets={list(targets)} must name one or more linear maps, each once, none of them empty"
            )
        return targets

"""Schema of the section ``tuner``."""

from __future__ import annotations

from typing import ClassVar, Literal

from pydantic import Field, NonNegativeInt, PositiveFloat, PositiveInt, field_validator

from fedsim.core.schema import PathText, Schema
from fedsim.core.uses import Use, Uses

ONE_PLACE = ("projected_prefix", "soft_prompt", "late_prompt", "generated_prompt", "prompt_mixture")
"""Kinds that train numbers at one place, not in each layer, so that there are no layers to choose."""

VIRTUAL_TOKENS = ("soft_prompt", "late_prompt", "generated_prompt", "prompt_mixture")
"""Kinds that put virtual tokens before each text in the hidden states."""
_NAMED = (*ONE_PLACE, "lora", "ia3", "adapter")
"""Kinds that train named arrays."""
_WIDTHS = {"projected_prefix": 512, "adapter": 64, "late_prompt": 128, "generated_prompt": 16, "prompt_mixture": 100}
"""Default size of the bottleneck, that of each method's authors."""


class TunerConfig(Schema):
    """What is trained in each layer of the frozen model."""

    kind: Literal[
        "prefix",
        "projected_prefix",
        "soft_prompt",
        "late_prompt",
        "generated_prompt",
        "prompt_mixture",
        "lora",
        "ia3",
        "adapter",
    ] = "prefix"
    """What is trained, by where it acts. Before the text: prefix (key/value prompts; section ``prompt``), projected_prefix
    (the same, made by one small network; Liu, X. et al. 2022), soft_prompt (input embeddings; Lester et al. 2021), late_prompt
    (LPT: from a middle layer up; Liu, X. et al. 2022), generated_prompt (IDPG: made from each text; Wu et al. 2022),
    prompt_mixture (ATTEMPT: mixed with frozen prompts; Asai et al. 2022). In the layers:
    lora (low-rank changes of linear maps; Hu et al. 2022), ia3 (vectors that scale keys, values and feed-forward; Liu, H. et
    al. 2022), adapter (bottlenecks; Houlsby et al. 2019)."""
    length: int = Field(default=8, gt=0, le=8192)
    """Prompts of section ``tuner``: virtual tokens before each text."""
    start: Literal["vocabulary", "label_words", "random"] = "vocabulary"
    """soft_prompt, and late_prompt without a generator: start from the input embeddings of drawn tokens, or of the label words
    and then of drawn tokens, or at random (soft_prompt: uniform within 0.5, late_prompt: normal)."""
    projection: PositiveInt | None = Field(default=None, le=65536)
    """soft_prompt: train so many numbers z, not the prompt itself, which is the start plus A z with a random A that all clients
    have from the seed and that never travels (Sun, T. et al. 2022); normal, so that a z of deviation 1 moves the prompt by the
    deviation of the input embeddings. What ``client.optimizer.kind: cma_es`` needs (FedBPT: 500)."""
    depth: NonNegativeInt | None = None
    """late_prompt: layers that run without the prompt, from the lowest; if not given, half of the model's."""
    generator: Literal["none", "npg", "appg", "mppg"] = "npg"
    """late_prompt: none trains the prompt itself; the others make it from each text: npg from the token that stands for it (the
    first in encoders, the last in decoders), appg and mppg from means or maxima over as many segments as virtual tokens."""
    bottleneck: PositiveInt | None = Field(default=None, le=65536)
    """adapter, late_prompt with a generator, generated_prompt, prompt_mixture, projected_prefix: size of the bottleneck; if not
    given that of the authors' code: 64, 128, 16, 100, 512."""
    terms: PositiveInt = 16
    """generated_prompt: each map of the generator is a sum of so many Kronecker products; 1 for ordinary maps."""
    sources: tuple[PathText, ...] | None = None
    """prompt_mixture: frozen source prompts: earlier runs (folders or prompt files) with soft_prompt, the same model and
    length; if not given they are random: ``random_sources`` prompts of drawn tokens' input embeddings."""
    random_sources: PositiveInt = Field(default=6, le=1024)
    """prompt_mixture: number of random source prompts."""
    temperature: PositiveFloat | None = None
    """prompt_mixture: scores of prompts are divided by it; if not given e times the hidden size, as in its authors' code."""
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
    layer_norms: bool = True
    """adapter: train the norms of each layer too, as the paper does."""

    train: Literal["both", "a", "b", "alternate"] = "both"
    """lora: which of A and B are trained. b (FFA-LoRA, Sun et al. 2024): all clients have the same random A that never changes
    and never travels, so the mean of the changes is the change of the mean, for half the bytes. a: B is the random one, drawn
    uniformly with bound 1 / sqrt(rank) (ours), and A starts at zero. alternate (RoLoRA, Chen et al. 2024): B in odd rounds, A
    in even ones; clients send what the round trains, the other does not move."""
    exchange: Literal["both", "a", "b"] = "both"
    """lora: which of A and B travel. a (FedSA-LoRA, Guo et al. 2024): A is averaged, and every client keeps a B of its own,
    as if it were a personal layer; b: the reverse. The head always travels. The global model then has the other half as
    at the start: look at personalised figures."""

    start_from: PathText | None = None
    """All kinds but prefix, which has ``prompt.start_from``: start from an earlier run of the same kind (its folder or prompt
    file), or with lora, ia3 and soft_prompt from a PEFT adapter (its folder; LORA, IA3, PROMPT_TUNING). The head is loaded too
    if the source has one of the same shape."""
    exact: bool = False
    """lora: FedEx-LoRA (Singhal et al. 2024). What the mean of the clients' changes has beyond the change of the mean A and B
    goes into the frozen maps, a full matrix for each, so nothing is lost in averaging. For ``server.kind: fedavg``."""

    uses: ClassVar[Uses] = {
        "length": (Use("kind", ONE_PLACE),),
        "start": (
            Use("kind", ("soft_prompt", "late_prompt")),
            Use(
                "made_by", ("none",), by="generator", words="it is for a prompt that is trained itself (generator=none)"
            ),
            Use("start_from", (None,), words="it is for a prompt that starts from no earlier one"),
        ),
        "projection": (Use("kind", ("soft_prompt",)),),
        **dict.fromkeys(("depth", "generator"), (Use("kind", ("late_prompt",)),)),
        "bottleneck": (
            Use("kind", ("adapter", "late_prompt", "generated_prompt", "prompt_mixture", "projected_prefix")),
            Use("generator", ("npg", "appg", "mppg")),
        ),
        "terms": (Use("kind", ("generated_prompt",)),),
        **dict.fromkeys(("sources", "temperature"), (Use("kind", ("prompt_mixture",)),)),
        "random_sources": (
            Use("kind", ("prompt_mixture",)),
            Use("sources", (None,), words="it is for sources that are not named"),
        ),
        **dict.fromkeys(("rank", "alpha", "scaling", "train"), (Use("kind", ("lora",)),)),
        "exchange": (
            Use("kind", ("lora",)),
            Use("train", ("both",), words="give train=both, or leave exchange out"),
        ),
        "targets": (Use("kind", ("lora", "ia3")),),
        "feedforward_targets": (Use("kind", ("ia3",)),),
        "start_from": (Use("kind", _NAMED, words="it is for the other kinds; a prefix has prompt.start_from"),),
        "layer_norms": (Use("kind", ("adapter",)),),
        "exact": (
            Use("kind", ("lora",)),
            Use("train", ("both",), words="give train=both; with one of A and B nothing is lost"),
            Use("exchange", ("both",), words="give exchange=both, or leave exact out"),
        ),
    }

    @property
    def width(self) -> int:
        """Size of the bottleneck."""
        return self.bottleneck or _WIDTHS[self.kind]

    @property
    def num_sources(self) -> int:
        """Source prompts of prompt_mixture."""
        return len(self.sources) if self.sources else self.random_sources

    @property
    def made_by(self) -> str:
        """Generator of the virtual tokens; none where they are trained themselves."""
        return "none" if self.kind == "soft_prompt" else self.generator

    @property
    def origin(self) -> float:
        """What prompt files add to the trained numbers: ia3 trains the difference of its vectors from 1."""
        return 1.0 if self.kind == "ia3" else 0.0

    @field_validator("sources")
    @classmethod
    def _some_sources(cls, sources: tuple[str, ...] | None) -> tuple[str, ...] | None:
        if sources is not None and not sources:
            raise ValueError("sources=[] must name one or more earlier runs; leave it out for random sources")
        return sources

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

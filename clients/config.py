"""Schemas of the sections ``model``, ``prompt``, ``client`` and ``attack``."""

from __future__ import annotations

import re
from typing import Annotated, Any, ClassVar, Literal

from pydantic import (
    BeforeValidator,
    Field,
    NonNegativeFloat,
    NonNegativeInt,
    PositiveFloat,
    PositiveInt,
    WithJsonSchema,
    field_validator,
    model_validator,
)

from clients.optimizer_config import WITH_GRADIENTS, OptimizerConfig, ScheduleConfig
from fedsim.core.attack import ATTACKS, Attack
from fedsim.core.method import CORRECTIONS
from fedsim.core.schema import PathText, Schema
from fedsim.core.uses import Use, Uses


class HeadConfig(Schema):
    """What is read from the backbone."""

    kind: Literal["verbalizer", "classifier", "generation"] = "verbalizer"
    """verbalizer: label-word scores of the frozen LM head at the mask (or last) token; classifier: a linear layer, trained and
    exchanged with the prompt; generation: losses of the tokens of a response (``data.task.response``), by the frozen LM head of
    a decoder."""
    pooling: Literal["auto", "first", "mean", "last"] = "auto"
    """classifier: hidden state to classify: that of the first token, the mean over tokens, or that of the last token; auto is
    first for encoders and last for decoders."""
    loss: Literal["labels", "vocabulary"] = "labels"
    """verbalizer: cross-entropy over the label words, or over the whole vocabulary (published code), where words of several
    tokens count by the mean over their tokens."""
    calibration: Literal["none", "empty_text"] = "none"
    """verbalizer: empty_text subtracts from the class scores those of the frozen model for the template without a text."""
    decoding: Literal["parallel", "stepwise"] = "parallel"
    """verbalizer, encoders: how label words of several tokens are predicted. parallel: all masks in one pass, as in training;
    stepwise: as PET predicts, each word at as many masks as it has tokens, one filled after the other, the most likely first,
    in as many passes as the longest word has tokens."""
    init_std: PositiveFloat = 0.02
    """classifier: standard deviation of the initial weights."""

    uses: ClassVar[Uses] = {
        **dict.fromkeys(("pooling", "init_std"), (Use("kind", ("classifier",)),)),
        **dict.fromkeys(("loss", "calibration", "decoding"), (Use("kind", ("verbalizer",)),)),
    }


class FrozenCacheConfig(Schema):
    """Frozen-layer cache: hidden states below the lowest prompted layer depend only on the examples, so compute them once."""

    dtype: Literal["auto", "off", "float32", "bfloat16", "float16"] = "auto"
    """Number format of the cache: auto is that of the model; a shorter one saves memory but rounds. off recomputes the states
    in every pass. Always off with ``client.dropout`` and with ``layers.unselected: local``."""
    memory_mb: int = Field(default=1024, ge=0, le=2**30)
    """Memory for caches kept between rounds, shared by all actors; with 0 a cache lasts for one local training. Does not change
    results."""

    uses: ClassVar[Uses] = {"memory_mb": (Use("dtype", ("auto", "float32", "bfloat16", "float16")),)}


class ModelConfig(Schema):
    """The frozen backbone."""

    path: PathText | None = None
    """``embedded`` (the tiny model in the repository), a folder with a Hugging Face model, or a name on the hub."""
    package: str | None = None
    """Installed Python package with the model in its folder ``model``; used if ``path`` is not given."""
    head: HeadConfig = HeadConfig()
    """Class scores from the backbone."""
    dtype: Literal["float32", "bfloat16", "float16", "float64"] = "float32"
    """Number format of the frozen weights. Prompts and messages are float32. With float64 everything is computed and
    sent in float64: slow, for exact comparisons. float16 is for GPUs: on CPUs it is many times slower than bfloat16."""
    autocast: Literal["off", "bfloat16", "float16"] = "off"
    """Compute matrix products in half precision, with weights and accumulation in float32: in training and evaluation, not in
    layer scores and spectra. Needs ``dtype: float32``; a half-precision ``dtype`` is faster and takes half the memory, autocast
    is more exact. bfloat16 is for GPUs that have it (Ampere and later) and for recent CPUs, float16 for older GPUs."""
    products: Literal["auto", "float32", "bfloat16", "float16"] = "auto"
    """Number format of matrix products with the frozen linear maps of the layers; everything else (norms, attention, what is
    trained, optimizer, sums) stays in float32. bfloat16 rounds their weights and inputs: half their memory, and twice the
    speed or more on processors with instructions for it (AVX-512 BF16, AMX). auto is bfloat16 on these for models with a
    hidden size of 128 or more, else float32, and float32 on a GPU; the choice is made at the start, recorded, and part of a
    result's identity. Layer scores and spectra are computed in float32, with the rounded weights."""
    quantize: Literal["none", "int8", "int4"] = "none"
    """Keep the frozen linear maps of the layers as small integers, made when the model is loaded: int8 with a scale for each
    output (a quarter of float32), or int4 with one for every 32 numbers (0.14 of it). Each product computes the numbers that
    they stand for, in the format of ``products`` (or ``dtype``): less memory, not less work. Embeddings, norms, biases, the LM
    head and what is trained are as without it. Part of a result's identity, as weights are rounded."""
    gradient_checkpointing: bool = False
    """Keep of each layer only what enters it, and compute the layer again for its gradients, its prompt or adapter included: a
    fraction of a training pass's memory for up to half more time. Results are the same."""
    offload: bool = False
    """Keep the frozen weights of the layers in main memory, and copy those of a layer to the GPU whenever it runs, and again
    for its gradients: a model that a GPU does not hold, at the speed of the bus. Embeddings and LM head stay on the GPU.
    Results are the same; it goes well with ``gradient_checkpointing`` and ``quantize``."""
    shared_beginnings: Literal["auto", "off"] = "auto"
    """Tokens with which several texts of a client begin in a pass, such as an instruction or a chat template: auto computes
    their layers once, in decoders, where that saves an eighth of a pass's tokens or more. Results are the same up to rounding.
    Not with ``client.dropout``, ``prompt.dropout``, ``compile`` or tuners that put virtual tokens before texts."""
    device: Literal["auto", "cpu", "cuda"] = "auto"
    """cpu, cuda (an error if there is no GPU), or auto: cuda if the actor was given a GPU, else cpu."""
    attention: Literal["sdpa", "eager"] = "sdpa"
    """Attention implementation that the prompts are prepended to."""
    compile: bool = False
    """Compile the layers with torch.compile, for training and evaluation: fewer, larger kernels but up to a minute more
    start-up in each actor. Worth a try on a GPU; needs a C++ compiler."""
    trunk_cache: FrozenCacheConfig = FrozenCacheConfig()
    """Frozen-layer cache of the layers below the lowest prompted one."""
    trust_remote_code: bool = False
    """Run Python code that comes with the model; leave it off unless you have read that code."""

    uses: ClassVar[Uses] = {
        "products": (
            Use("dtype", ("float32",), words="it is for float32 weights"),
            Use("autocast", ("off",), words="give one of the two"),
        ),
        "offload": (
            Use("device", ("auto", "cuda"), words="it brings weights from main memory to a GPU"),
            Use("compile", (False,), words="it has not been tried with compiled layers; set compile=false"),
            Use(
                "autocast", ("off",), words="autocast keeps a copy of each weight; give a half-precision dtype instead"
            ),
        ),
        "gradient_checkpointing": (
            Use("compile", (False,), words="it computes layers again as they are written; set compile=false"),
        ),
    }

    @property
    def has_products(self) -> bool:
        """Whether ``products`` has an effect."""
        return self.dtype == "float32" and self.autocast == "off"

    @property
    def product_dtype(self) -> str:
        """Number format of the layers' linear maps once ``products`` is settled: that of the weights unless it rounds them."""
        return self.products if self.has_products and self.products != "auto" else self.dtype

    @model_validator(mode="after")
    def _autocast_has_a_use(self) -> ModelConfig:
        if self.autocast != "off" and self.dtype != "float32":
            why = "exact comparisons" if self.dtype == "float64" else "weights that are half precision already"
            raise ValueError(
                f"autocast={self.autocast} is for float32 weights, but dtype={self.dtype} is for {why}; set autocast=off, or "
                "dtype=float32"
            )
        return self

    @model_validator(mode="after")
    def _quantized_maps_are_multiplied_as_they_are(self) -> ModelConfig:
        if self.quantize != "none" and self.autocast != "off":
            raise ValueError(
                f"quantize={self.quantize} multiplies in the format of products, not in that of autocast={self.autocast}; set "
                f"autocast=off and products={self.autocast}"
            )
        return self

    @property
    def exchange_dtype(self) -> str:
        """Number format of what clients and server exchange."""
        return "float64" if self.dtype == "float64" else "float32"

    @property
    def cache_dtype(self) -> str:
        """Number format of the frozen-layer cache."""
        return self.dtype if self.trunk_cache.dtype in ("auto", "off") else self.trunk_cache.dtype

    @property
    def location(self) -> str:
        """The model's path, ``package:NAME``, or ``embedded`` when neither is given."""
        return self.path or (f"package:{self.package}" if self.package else "embedded")


class PromptConfig(Schema):
    """The trainable prefix."""

    length: int = Field(default=8, gt=0, le=8192)
    """Virtual tokens per prompted layer."""
    init_std: NonNegativeFloat = 0.02
    """Standard deviation of the initial prompt."""
    dropout: float = Field(default=0.0, ge=0.0, lt=1.0)
    """Probability that a prompt entry is zeroed in a training step, drawn for every example and layer; the others are scaled up
    (published code: 0.1). Independent of ``client.dropout``, the backbone's own. Clients still share passes; scores, spectra
    and evaluation use whole prompts."""
    position_offset: Literal["none", "paper"] = "none"
    """Positions of the text start at 0 (none), or after the prefix, as in the published code and PEFT (paper)."""
    start_from: PathText | None = None
    """Start from a PEFT prefix-tuning adapter (its folder) or an earlier run (its folder or prompt file) instead of at random;
    the head is loaded too if the source has one of the same shape."""

    uses: ClassVar[Uses] = {"init_std": (Use("start_from", (None,), words="it is for a prompt that starts at random"),)}


def _on_failure(value: Any) -> Any:
    """Refuse all but ``raise``, ``drop`` and ``retry:N``."""
    if isinstance(value, str) and not re.fullmatch(r"raise|drop|retry:[1-9][0-9]{0,5}", value):
        raise ValueError(f"{value!r} is not raise, drop or retry:N, for example retry:3")
    return value


OnFailure = Annotated[
    str,
    BeforeValidator(_on_failure),
    WithJsonSchema({"type": "string", "pattern": r"^(raise|drop|retry:[1-9][0-9]{0,5})$"}),
]


class ClientConfig(Schema):
    """Local training on a device."""

    epochs: int | None = Field(default=2, gt=0, le=100_000)
    """Local passes over the client's examples in a round."""
    steps: int | None = Field(default=None, gt=0, le=10_000_000)
    """Local optimizer steps in a round, instead of ``epochs``."""
    batch_size: PositiveInt = 8
    """Examples in a local step."""
    optimizer: OptimizerConfig = OptimizerConfig()
    """The local optimizer."""
    schedule: ScheduleConfig = ScheduleConfig()
    """Warm-up and decay of the local learning rate."""
    correction: str = "auto"
    """Local correction: none; control adds c - c_i to every step (SCAFFOLD); preconditioner averages the clients' changes in a
    common metric, the mean of their Adam preconditioners (after Wang et al. 2021); proximal pulls toward the global vector
    (FedProx); auto is the one for ``server.kind``: preconditioner for fedpeptao, control for scaffold, proximal for fedprox."""
    proximal_mu: NonNegativeFloat = 0.001
    """proximal: strength of the pull. Adam normalises its input, so even 0.01 can outweigh small gradients: on the quickstart,
    nothing is learned with it."""
    fuse: PositiveInt | Literal["auto", "off"] = "auto"
    """Clients of a work group that train in shared passes through the backbone: a number, off (one by one), or auto: the whole
    group, unless a trial at the start shows that it needs too much memory or takes longer. The recorded config holds the number
    used, which may affect the last bits of results. With ``dropout`` clients train one by one."""
    micro_batch_tokens: PositiveInt | Literal["auto"] = "auto"
    """Most tokens in one pass through the backbone; larger steps are cut by length, which bounds memory and changes only last
    bits. Of a beginning that texts share (``model.shared_beginnings``) tokens count once. auto: on a CPU by the model's hidden
    size, from 256 to 4096 (512 for a hidden size of 384); on a GPU 16384."""
    dropout: bool = False
    """Keep the backbone's dropout active in training (published code). No effect on backbones without dropout, such as LLaMA;
    dropout on the prompt itself is ``prompt.dropout``."""
    shuffle: bool = True
    """Reshuffle a client's examples every local epoch."""
    threads: int = Field(default=1, gt=0, le=1024)
    """CPU threads per worker. Part of a result's identity: another number may change last bits."""
    on_failure: OnFailure = "raise"
    """Effect of a failed client on the run. raise: an error in its work stops the run with its traceback, and so does a work
    group that takes longer than ``ray.group_timeout_seconds``; a group whose actor is lost is sent again. retry:N: like raise,
    but a group whose actor is lost or that takes too long is sent again up to N times. drop: continue this round without the
    client; if a group loses its actor twice or takes too long, its clients are tried one by one. A client's own error is
    never retried, since the same work would raise it again."""

    uses: ClassVar[Uses] = {
        "epochs": (Use("steps", (None,), words="give one of the two"),),
        "schedule": (Use("optimizer.kind", WITH_GRADIENTS, words="it is for a learning rate"),),
        "dropout": (Use("optimizer.kind", WITH_GRADIENTS, words="it compares candidates on the same model"),),
    }

    @field_validator("correction")
    @classmethod
    def _known_correction(cls, name: str) -> str:
        if name != "auto" and name not in CORRECTIONS:
            raise ValueError(f"{CORRECTIONS.unknown(name)}, and auto")
        return name

    @model_validator(mode="after")
    def _consistent(self) -> ClientConfig:
        if self.epochs is None and self.steps is None:
            raise ValueError("give epochs or steps")
        if self.dropout and isinstance(self.fuse, int) and self.fuse > 1:
            raise ValueError(
                f"dropout draws from a separate random stream for each client, so clients cannot share passes; set fuse=off, "
                f"not {self.fuse}, or dropout=false"
            )
        return self


class AttackConfig(Schema):
    """Clients that attack, to study ``server.aggregation``; see docs/robustness.md."""

    kind: str = "none"
    """none, label_flip (attackers train on class C - 1 - y for class y of C), sign_flip (they send their change reversed and
    scaled by ``scale``), or noise (they add Gaussian noise to the vector that they send)."""
    clients: PositiveInt | tuple[NonNegativeInt, ...] | None = None
    """Attackers among all registered clients: their number, drawn with the seed, or a list of their ids, counted from 0."""
    scale: PositiveFloat = 1.0
    """sign_flip: length of the sent change, relative to the attacker's own."""
    std: PositiveFloat = 1.0
    """noise: standard deviation in every exchanged entry, in units of the prompt's entries, as for ``prompt.init_std``."""

    uses: ClassVar[Uses] = {
        "clients": (Use("kind", test=lambda kind: kind != "none", words="it is a key of all kinds except none"),),
        "scale": (Use("kind", ("sign_flip",)),),
        "std": (Use("kind", ("noise",)),),
    }

    @field_validator("kind")
    @classmethod
    def _known_attack(cls, name: str) -> str:
        if name != "none" and name not in ATTACKS:
            raise ValueError(f"{ATTACKS.unknown(name)}, and none")
        return name

    def attack(self, params: Any = None) -> Attack | None:
        """Return the attack, None if there is none."""
        return None if self.kind == "none" else ATTACKS[self.kind].of(self, params)

    @model_validator(mode="after")
    def _consistent(self) -> AttackConfig:
        if self.kind != "none" and not self.clients:
            raise ValueError(f"kind={self.kind} needs clients, the number of attackers or a list of their ids")
        if isinstance(self.clients, tuple) and len(set(self.clients)) != len(self.clients):
            raise ValueError(f"clients={list(self.clients)} must name each attacker once")
        return self

"""Schemas of the sections ``server``, ``sampling`` and ``layers``."""

from __future__ import annotations

import json
from collections.abc import Mapping
from functools import cache
from typing import Any, ClassVar, Literal

from pydantic import (
    Field,
    ModelWrapValidatorHandler,
    NonNegativeFloat,
    NonNegativeInt,
    PositiveFloat,
    PositiveInt,
    ValidationInfo,
    field_validator,
    model_validator,
)
from pydantic.fields import FieldInfo

from fedsim.core.method import METHODS, Correction, Method, MethodConfig
from fedsim.core.robust import ROBUST_RULES, RobustRule
from fedsim.core.schema import Schema
from fedsim.core.uses import EVERY_KEY, Use, Uses


class ServerConfig(Schema):
    """What the server does with what clients send.

    Besides these keys it has those of its ``kind``, which differ from kind to kind; a key that the kind does not have is
    refused. An instance is of a class of its own for each kind, which has all of them; this class makes it.
    """

    kind: str = "fedpeptao"
    """Server method: fedpeptao, fedpeptao_published, fedavg, fedavgm, fedadam, fedyogi, fedadagrad, scaffold, fedprox, feddyn,
    or one of a plug-in. Each has keys, and defaults, of its own, and says what ``client.correction: auto`` means."""
    weighting: Literal["examples", "uniform"] = "examples"
    """Weight of a client in averages: its number of training examples, or one."""
    aggregation: str = "mean"
    """How clients' results are taken together: by their weighted mean, or by a rule that bears with attackers
    (docs/robustness.md): median or trimmed_mean of each coordinate, norm_clipping (the weighted mean of changes no longer than
    ``clip_norm``), multi_krum (the mean of the clients nearest to each other). Rules other than the mean need
    ``client.correction`` none, control or proximal, and hold the vectors of the whole cohort at the server."""
    trim_share: float = Field(default=0.2, gt=0.0, lt=0.5)
    """trimmed_mean: share of the clients that is taken off at each end of a coordinate, rounded up."""
    clip_norm: PositiveFloat | Literal["median"] = "median"
    """norm_clipping: largest norm of a client's change, in units of the prompt's entries, or the median of the cohort's."""
    assumed_attackers: NonNegativeInt | None = None
    """multi_krum: attackers f assumed in a cohort of n >= 2 f + 3; as many as that allows if not given."""
    kept_clients: PositiveInt | None = None
    """multi_krum: clients m whose mean is taken; n - f - 2 if not given, 1 is Krum."""

    uses: ClassVar[Uses] = {
        "trim_share": (Use("aggregation", ("trimmed_mean",)),),
        "clip_norm": (Use("aggregation", ("norm_clipping",)),),
        **dict.fromkeys(("assumed_attackers", "kept_clients"), (Use("aggregation", ("multi_krum",)),)),
    }

    def __new__(cls, **values: Any) -> ServerConfig:
        """Make an instance of the kind's own class, which is then filled in as ever."""
        own = cls if cls is not ServerConfig else _class_of_kind(values) or cls
        return object.__new__(own)

    @model_validator(mode="wrap")
    @classmethod
    def _of_its_kind(cls, values: Any, handler: ModelWrapValidatorHandler[ServerConfig], info: ValidationInfo) -> Any:
        """Validate by the class of the kind, whose complaints keep the places of their keys."""
        if not isinstance(values, dict):
            return handler(values)
        given = {key: value for key, value in values.items() if value is not None}
        own = _class_of_kind(given) if cls is ServerConfig else None
        if own is None:  # it is that class already, or the kind is unknown, which is all that there is to be said then
            return handler(given if cls is not ServerConfig else {key: given[key] for key in given if key == "kind"})
        if info.mode == "json":
            return own.model_validate_json(json.dumps(given, default=str), strict=True)
        return own.model_validate(given)

    @field_validator("kind")
    @classmethod
    def _known_kind(cls, kind: str) -> str:
        if kind not in METHODS:
            raise ValueError(METHODS.unknown(kind))
        return kind

    @field_validator("aggregation")
    @classmethod
    def _known_rule(cls, name: str) -> str:
        if name != "mean" and name not in ROBUST_RULES:
            raise ValueError(f"{ROBUST_RULES.unknown(name)}, beside the plain mean")
        return name

    @model_validator(mode="after")
    def _rule_has_a_place(self) -> ServerConfig:
        method = self.method()
        if self.aggregation != "mean" and method.one_by_one:
            raise ValueError(f"aggregation={self.aggregation} is not defined with {method.in_turn}")
        return self

    def __reduce__(self) -> tuple[Any, ...]:
        """Let a copy in another process be made anew: the class of a kind has no name to be found by."""
        return ServerConfig.model_validate, (self.model_dump(),)

    def method(self, correction: Correction | None = None) -> Method:
        """Return the server's half of the method, with the device's halves that follow from the chosen correction."""
        kind = METHODS[self.kind]
        own = {key: getattr(self, key) for key in kind.Config.model_fields}
        return kind(kind.Config.model_validate(own, context=EVERY_KEY), correction)

    def rule(self, params: Any = None) -> RobustRule | None:
        """Return what takes clients together, None for the mean."""
        return None if self.aggregation == "mean" else ROBUST_RULES[self.aggregation].of(self, params)

    @classmethod
    def kinds_with(cls, key: str) -> tuple[str, list[str]]:
        """Return the key that names kinds, and those kinds that have a key."""
        return "kind", [kind for kind in METHODS if key in METHODS[kind].Config.model_fields]

    @classmethod
    def keys_of_kinds(cls) -> dict[str, FieldInfo]:
        """Return all keys that some kind has beside those of every server."""
        return {key: field for kind in METHODS for key, field in METHODS[kind].Config.model_fields.items()}


def _class_of_kind(values: Mapping[str, Any]) -> type[ServerConfig] | None:
    """Return the class of the kind that values name, None where there is no such kind."""
    kind = values.get("kind", ServerConfig.model_fields["kind"].default)
    return _class_with(METHODS[kind].Config) if isinstance(kind, str) and kind in METHODS else None


@cache
def _class_with(own: type[MethodConfig]) -> type[ServerConfig]:
    """Return the class of servers that have a kind's own keys as well."""
    return type(
        "ServerConfig",
        (own, ServerConfig),
        {"__module__": __name__, "__doc__": ServerConfig.__doc__, "uses": {**ServerConfig.uses, **own.uses}},
    )


class DelayConfig(Schema):
    """How long simulated devices take, to study stragglers; nothing waits for real.

    Times are drawn with the seed, log-normal around what the work asks for.
    """

    seconds_per_example: NonNegativeFloat = 0.0
    """Time that a device of middle speed takes for a training example of a visit; 0 simulates no time at all."""
    device_spread: float = Field(default=0.5, ge=0.0, le=5.0)
    """Standard deviation of the logarithm of devices' slowness, drawn once for each client; 0 makes all alike."""
    visit_spread: float = Field(default=0.1, ge=0.0, le=5.0)
    """The same from visit to visit."""
    deadline_seconds: PositiveFloat | None = None
    """Clients that take longer are left out of the round and recorded as late, no failure; the fastest client never is. null
    waits for the slowest."""

    uses: ClassVar[Uses] = dict.fromkeys(
        ("device_spread", "visit_spread"),
        (Use("seconds_per_example", test=lambda seconds: seconds > 0, words="it is for times above 0"),),
    )

    @model_validator(mode="after")
    def _deadline_of_no_time(self) -> DelayConfig:
        if self.deadline_seconds is not None and not self.seconds_per_example:
            raise ValueError(
                "deadline_seconds needs seconds_per_example above 0: nobody is late where no time is simulated"
            )
        return self


class SamplingConfig(Schema):
    """Which clients train in a round."""

    kind: Literal["uniform", "by_size", "round_robin"] = "uniform"
    """uniform, by_size (chance in proportion to the examples held), both without replacement, or round_robin."""
    clients_per_round: PositiveInt = 10
    """Size of the cohort."""
    dropout: float = Field(default=0.0, ge=0.0, lt=1.0)
    """Chance that a client of the cohort is out of reach in a round, drawn with the seed: a simulated dropout, recorded apart
    from real failures. One client at least is always in reach."""
    delay: DelayConfig = DelayConfig()
    """How long simulated devices take."""


class SpectrumConfig(Schema):
    """How the share of layers is estimated from the clients' spectra, after a warm-up that is then thrown away."""

    warmup_rounds: PositiveInt = 3
    """Rounds of FedAvg with prompts in all layers before the spectra are taken (published code: 10)."""
    clients: PositiveInt | None = None
    """Clients whose spectrum is taken, drawn with the seed; those of the last warm-up round if not given (published code)."""
    batch_size: PositiveInt = 16
    """Examples in the batch whose loss the Hessian is of."""
    lanczos_steps: int = Field(default=50, gt=0, le=10_000)
    """Steps of Lanczos, each a Hessian-vector product and a float64 vector as long as all prompts (published code: 50)."""
    probes: int = Field(default=1, gt=0, le=10_000)
    """Random vectors that Lanczos starts from, one after another; their densities are averaged (published code: 1)."""
    directions: int = Field(default=2, gt=0, le=10_000)
    """eigengap: random directions in which the change of the Hessian is measured, for the Lipschitz constant."""
    radius: PositiveFloat = 0.04
    """eigengap: how far to go in each direction, as the root mean square change of a prompt entry."""
    weighting: Literal["examples", "uniform"] = "examples"
    """Weight of a client's share in the mean: its number of training examples, or one (published code)."""


_RANKED = ("score", "top", "bottom", "random")
"""Choices of layers that take a share of them."""


class LayersConfig(Schema):
    """Which layers' prompts are exchanged (partial prompt tuning)."""

    choose: Literal["score", "all", "top", "bottom", "random", "fixed"] = "score"
    """score (by the layer score that ``score`` names, highest first), all, top (nearest the output), bottom, random, or
    ``fixed``."""
    score: Literal["cosine", "naswot", "l1", "l2"] = "cosine"
    """What the examples of a batch say of a layer. cosine, l1 and l2 are high where they look alike: by the eigenvalues of
    their cosine similarities, or of the largest distance minus each; naswot is high where they differ in which hidden states
    are positive. The published code runs cosine and also holds the others, as ours, ours-l1, ours-l2 and naswot."""
    share_rule: Literal["fixed", "density", "eigengap"] = "fixed"
    """How many layers: ``share`` of them (fixed), or what the clients' Hessian spectra ask for: by the threshold search of the
    published code (density), or by the first gap wider than four Lipschitz constants (eigengap, a rule that no source at hand
    confirms)."""
    share: float = Field(default=0.5, gt=0.0, le=1.0)
    """Share of the layers to exchange, rounded up; for score, top, bottom and random, where ``share_rule`` is fixed."""
    spectrum: SpectrumConfig = SpectrumConfig()
    """density, eigengap: how the share is estimated."""
    fixed: tuple[int, ...] | None = None
    """Layers to exchange, counted from 0, when ``choose`` is fixed."""
    unselected: Literal["none", "local"] = "none"
    """Layers not chosen: no prompt at all (the published GPT-2), or a personal prompt that stays on the device (the published
    RoBERTa with personalisation, and LLaMA)."""
    score_batch_size: PositiveInt = 16
    """Examples in the batch on which a client scores the layers. One alone has nothing to be compared with: all layers score
    the same."""
    score_clients: PositiveInt | None = None
    """Clients that score the layers, drawn with the seed; all if not given."""
    score_last: bool = True
    """Score the last layer as well; the published code leaves it out with its cosines, so that it ranks last."""
    score_padding: Literal["zero", "keep"] = "zero"
    """Hidden states of padding: set to zero (for naswot: agreeing with nothing), or kept as they are (published code)."""

    uses: ClassVar[Uses] = {
        **dict.fromkeys(
            ("score", "score_batch_size", "score_clients", "score_last", "score_padding"), (Use("choose", ("score",)),)
        ),
        "share_rule": (Use("choose", _RANKED),),
        "share": (Use("choose", _RANKED), Use("share_rule", ("fixed",))),
        "spectrum": (Use("share_rule", ("density", "eigengap")),),
        **dict.fromkeys(("spectrum.directions", "spectrum.radius"), (Use("share_rule", ("eigengap",)),)),
        "fixed": (Use("choose", ("fixed",)),),
        "unselected": (Use("choose", (*_RANKED, "fixed")),),
    }

    @model_validator(mode="after")
    def _consistent(self) -> LayersConfig:
        if self.choose == "fixed" and not self.fixed:
            raise ValueError("choose: fixed needs the key fixed, a list of layers counted from 0")
        if self.fixed is not None and (len(set(self.fixed)) != len(self.fixed) or min(self.fixed, default=0) < 0):
            raise ValueError(f"fixed: {list(self.fixed)} must name each layer once, counted from 0")
        return self

"""Schemas of the sections ``server``, ``sampling`` and ``layers``."""

from __future__ import annotations

import json
from collections.abc import Mapping
from functools import cache
from typing import Any, ClassVar, Literal

from pydantic import (
    Field,
    NonNegativeFloat,
    NonNegativeInt,
    PositiveFloat,
    PositiveInt,
    ValidationInfo,
    field_validator,
    model_validator,
)
from pydantic.fields import FieldInfo
from pydantic.functional_validators import ModelWrapValidatorHandler

from fedsim.core.method import METHODS, Correction, Method, MethodConfig
from fedsim.core.robust import ROBUST_RULES, RobustRule
from fedsim.core.schema import Schema
from fedsim.core.uses import EVERY_KEY, Use, Uses


class ServerConfig(Schema):
    """Server method and aggregation.

    Each ``kind`` adds its own keys; keys of other kinds are refused. Instances belong to a subclass per kind that has all its
    keys; this class creates it.
    """

    kind: str = "fedpeptao"
    """Server method: fedpeptao, fedpeptao_published, fedavg, fedavgm, fedadam, fedyogi, fedadagrad, scaffold, fedprox, feddyn,
    or one of a plug-in. Each has its own keys and defaults, and determines what ``client.correction: auto`` means."""
    weighting: Literal["examples", "uniform"] = "examples"
    """Weight of a client in averages: its number of training examples, or 1."""
    aggregation: str = "mean"
    """How clients' results are combined: by their weighted mean, or by a rule that tolerates attackers
    (docs/robustness.md): median or trimmed_mean of each coordinate, norm_clipping (the weighted mean of changes no longer than
    ``clip_norm``), multi_krum (the mean of the clients nearest to each other). Rules other than the mean need
    ``client.correction`` none, control or proximal, and keep the vectors of the whole cohort in the server's memory."""
    trim_share: float = Field(default=0.2, gt=0.0, lt=0.5)
    """trimmed_mean: share of the clients trimmed at each end of a coordinate, rounded up."""
    clip_norm: PositiveFloat | Literal["median"] = "median"
    """norm_clipping: largest norm of a client's change, in units of the prompt's entries; median: that of the cohort."""
    assumed_attackers: NonNegativeInt | None = None
    """multi_krum: attackers f assumed in a cohort of n >= 2 f + 3; the most that this allows if not given."""
    kept_clients: PositiveInt | None = None
    """multi_krum: number of clients m to average; n - f - 2 if not given, 1 is Krum."""

    uses: ClassVar[Uses] = {
        "trim_share": (Use("aggregation", ("trimmed_mean",)),),
        "clip_norm": (Use("aggregation", ("norm_clipping",)),),
        **dict.fromkeys(("assumed_attackers", "kept_clients"), (Use("aggregation", ("multi_krum",)),)),
    }

    def __new__(cls, **values: Any) -> ServerConfig:
        """Create an instance of the kind's subclass."""
        own = cls if cls is not ServerConfig else _class_of_kind(values) or cls
        return object.__new__(own)

    @model_validator(mode="wrap")
    @classmethod
    def _of_its_kind(cls, values: Any, handler: ModelWrapValidatorHandler[ServerConfig], info: ValidationInfo) -> Any:
        """Validate with the kind's subclass, so that errors name the right keys."""
        if not isinstance(values, dict):
            return handler(values)
        given = {key: value for key, value in values.items() if value is not None}
        own = _class_of_kind(given) if cls is ServerConfig else None
        if own is None:  # already the subclass, or an unknown kind, which is then the only error
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
            raise ValueError(f"{ROBUST_RULES.unknown(name)}, and mean")
        return name

    @model_validator(mode="after")
    def _rule_has_a_place(self) -> ServerConfig:
        method = self.method()
        if self.aggregation != "mean" and method.one_by_one:
            raise ValueError(f"aggregation={self.aggregation} is not defined with {method.in_turn}")
        return self

    def __reduce__(self) -> tuple[Any, ...]:
        """Pickle by value: the subclass of a kind cannot be imported by name."""
        return ServerConfig.model_validate, (self.model_dump(),)

    def method(self, correction: Correction | None = None) -> Method:
        """Return the server's half of the method, with the device's half given by the chosen correction."""
        kind = METHODS[self.kind]
        own = {key: getattr(self, key) for key in kind.Config.model_fields}
        return kind(kind.Config.model_validate(own, context=EVERY_KEY), correction)

    def rule(self, params: Any = None) -> RobustRule | None:
        """Return the robust rule, None for the mean."""
        return None if self.aggregation == "mean" else ROBUST_RULES[self.aggregation].of(self, params)

    @classmethod
    def kinds_with(cls, key: str) -> tuple[str, list[str]]:
        """Return the name of the key that chooses the kind, and the kinds that have ``key``."""
        return "kind", [kind for kind in METHODS if key in METHODS[kind].Config.model_fields]

    @classmethod
    def keys_of_kinds(cls) -> dict[str, FieldInfo]:
        """Return the keys that individual kinds add to the common ones."""
        return {key: field for kind in METHODS for key, field in METHODS[kind].Config.model_fields.items()}


def _class_of_kind(values: Mapping[str, Any]) -> type[ServerConfig] | None:
    """Return the subclass for the kind in ``values``, None for an unknown kind."""
    kind = values.get("kind", ServerConfig.model_fields["kind"].default)
    return _class_with(METHODS[kind].Config) if isinstance(kind, str) and kind in METHODS else None


@cache
def _class_with(own: type[MethodConfig]) -> type[ServerConfig]:
    """Return the subclass of ``ServerConfig`` with a kind's own keys."""
    return type(
        "ServerConfig",
        (own, ServerConfig),
        {"__module__": __name__, "__doc__": ServerConfig.__doc__, "uses": {**ServerConfig.uses, **own.uses}},
    )


class DelayConfig(Schema):
    """Simulated device times, to study stragglers; nothing actually waits.

    Times are drawn with the seed, log-normal around the time in proportion to the work.
    """

    seconds_per_example: NonNegativeFloat = 0.0
    """Time that a device of median speed takes per training example; 0 simulates no time."""
    device_spread: float = Field(default=0.5, ge=0.0, le=5.0)
    """Standard deviation of the logarithm of devices' slowness, drawn once per client; 0 makes all equal."""
    visit_spread: float = Field(default=0.1, ge=0.0, le=5.0)
    """The same, drawn anew for each local training."""
    deadline_seconds: PositiveFloat | None = None
    """Clients that take longer are left out of the round and recorded as late, not as failed; the fastest client is never late.
    null waits for the slowest."""

    uses: ClassVar[Uses] = dict.fromkeys(
        ("device_spread", "visit_spread"),
        (Use("seconds_per_example", test=lambda seconds: seconds > 0, words="it is for times above 0"),),
    )

    @model_validator(mode="after")
    def _deadline_of_no_time(self) -> DelayConfig:
        if self.deadline_seconds is not None and not self.seconds_per_example:
            raise ValueError(
                "deadline_seconds needs seconds_per_example above 0: without simulated time no client is late"
            )
        return self


class SamplingConfig(Schema):
    """Choice of the clients that train in a round."""

    kind: Literal["uniform", "by_size", "round_robin", "tiers", "oort", "power_of_choice"] = "uniform"
    """uniform, by_size (chance in proportion to the examples held), both without replacement, round_robin; tiers (clients of
    similar speed, TiFL), oort (by loss and speed), both for ``world.devices``; power_of_choice (the highest losses among
    ``candidates``)."""
    draw: Literal["fixed", "poisson"] = "fixed"
    """fixed (a cohort of ``clients_per_round``), or poisson: each client for itself, with the rate for which this is the
    expected size, so that a round may have no client. poisson has a tighter bound on what a private run reveals
    (docs/privacy.md)."""
    clients_per_round: PositiveInt = 10
    """Size of the cohort."""
    tiers: PositiveInt = 5
    """tiers: number of tiers, of equal size; a round's cohort is of one."""
    candidates: PositiveInt | None = None
    """power_of_choice: clients among which those with the highest losses are taken, drawn by their examples; twice the cohort
    if not given."""
    exploration: float = Field(default=0.1, ge=0.0, le=1.0)
    """oort: share of the cohort for clients that have not trained yet, drawn by their speed."""
    speed_penalty: NonNegativeFloat = 2.0
    """oort: exponent with which a visit that takes longer than the median one lowers a client's utility."""
    dropout: float = Field(default=0.0, ge=0.0, lt=1.0)
    """Probability that a client of the cohort is unavailable in a round, drawn with the seed: a simulated dropout, recorded
    separately from real failures. At least one client is always available."""
    delay: DelayConfig = DelayConfig()
    """Simulated device times."""

    uses: ClassVar[Uses] = {
        "tiers": (Use("kind", ("tiers",)),),
        "candidates": (Use("kind", ("power_of_choice",)),),
        **dict.fromkeys(("exploration", "speed_penalty"), (Use("kind", ("oort",)),)),
    }


class SpectrumConfig(Schema):
    """Estimation of the share of layers from the clients' spectra, after a warm-up whose result is discarded."""

    warmup_rounds: PositiveInt = 3
    """Rounds of FedAvg with prompts in all layers before the spectra are computed (published code: 10)."""
    clients: PositiveInt | None = None
    """Number of clients with a spectrum, drawn with the seed; those of the last warm-up round if not given (published code)."""
    batch_size: PositiveInt = 16
    """Examples in the batch for the Hessian of the loss."""
    lanczos_steps: int = Field(default=50, gt=0, le=10_000)
    """Lanczos steps; each takes a Hessian-vector product and a float64 vector as long as all prompts (published code: 50)."""
    probes: int = Field(default=1, gt=0, le=10_000)
    """Random start vectors for Lanczos, one after another; their densities are averaged (published code: 1)."""
    directions: int = Field(default=2, gt=0, le=10_000)
    """eigengap: random directions in which the change of the Hessian is measured, for the Lipschitz constant."""
    radius: PositiveFloat = 0.04
    """eigengap: distance to move in each direction, as the root mean square change of a prompt entry."""
    weighting: Literal["examples", "uniform"] = "examples"
    """Weight of a client's share in the mean: its number of training examples, or 1 (published code)."""


_RANKED = ("score", "top", "bottom", "random")
"""Choices that take a share of the layers."""


class LayersConfig(Schema):
    """Choice of the layers whose prompts are exchanged (partial prompt tuning)."""

    choose: Literal["score", "all", "top", "bottom", "random", "fixed"] = "score"
    """score (by the layer score that ``score`` names, highest first), all, top (nearest the output), bottom, random, or
    ``fixed``."""
    score: Literal["cosine", "naswot", "l1", "l2"] = "cosine"
    """Layer score on a batch of examples. cosine, l1 and l2 are high where the examples look alike: by the eigenvalues of their
    cosine similarities, or of the largest distance minus each; naswot is high where they differ in which hidden states are
    positive. The published code runs cosine and has all four, named ours, ours-l1, ours-l2 and naswot."""
    share_rule: Literal["fixed", "density", "eigengap"] = "fixed"
    """How many layers: ``share`` of them (fixed), or a share estimated from the clients' Hessian spectra: by the threshold
    search of the published code (density), or by the first gap wider than four Lipschitz constants (eigengap, a rule that no
    available source confirms)."""
    share: float = Field(default=0.5, gt=0.0, le=1.0)
    """Share of the layers to exchange, rounded up; for score, top, bottom and random, with ``share_rule: fixed``."""
    spectrum: SpectrumConfig = SpectrumConfig()
    """density, eigengap: how the share is estimated."""
    fixed: tuple[int, ...] | None = None
    """Layers to exchange, counted from 0, when ``choose`` is fixed."""
    unselected: Literal["none", "local"] = "none"
    """Layers not chosen: no prompt at all (the published GPT-2), or a personal prompt that stays on the device (the published
    RoBERTa with personalisation, and LLaMA)."""
    score_batch_size: PositiveInt = 16
    """Examples in the batch on which a client scores the layers. With a single example all layers score the same."""
    score_clients: PositiveInt | None = None
    """Number of clients that score the layers, drawn with the seed; all if not given."""
    score_last: bool = True
    """Score the last layer as well; the published code leaves it out for cosine, so it ranks last."""
    score_padding: Literal["zero", "keep"] = "zero"
    """Hidden states of padding: set to zero (for naswot: agreeing with nothing), or kept (published code)."""

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

"""Schemas of the sections ``server``, ``sampling`` and ``layers``."""

from __future__ import annotations

from typing import Any, ClassVar, Literal

from pydantic import Field, NonNegativeFloat, NonNegativeInt, PositiveFloat, PositiveInt, model_validator

from fedsim.core.schema import Schema
from fedsim.core.uses import Use, Uses

ServerKind = Literal[
    "fedpeptao", "fedpeptao_published", "fedavg", "fedavgm", "fedadam", "fedyogi", "fedadagrad", "scaffold", "fedprox"
]

_RECOMMENDED: dict[str, Any] = {
    "gradient": "pseudo",
    "base": "previous",
    "coupling": "independent",
    "momentum_form": "control_in_gradient",
    "debias": True,
    "control_form": "displacement",
    "control_timing": "before",
    "control_mean": "weights",
}
_DEFAULTS: dict[str, dict[str, Any]] = {
    "fedpeptao": {"lr": 1.0, "momentum": 0.5, **_RECOMMENDED},
    "fedpeptao_published": {"lr": 0.05, "lr_decay": 0.99, "momentum": 0.9},
    "fedavg": {"lr": 1.0},
    "fedprox": {"lr": 1.0},
    "scaffold": {"lr": 1.0},
    "fedavgm": {"lr": 1.0, "momentum": 0.5},
    "fedadam": {"lr": 0.2, "momentum": 0.9},
    "fedyogi": {"lr": 0.2, "momentum": 0.9},
    "fedadagrad": {"lr": 0.2, "momentum": 0.0},
}
_PUBLISHED: dict[str, Any] = {
    "gradient": "difference",
    "base": "average",
    "coupling": "chained",
    "momentum_form": "control_in_velocity",
    "debias": False,
    "control_form": "scaffold",
    "control_timing": "after",
    "control_mean": "steps",
}


class ServerConfig(Schema):
    """The server's optimizer. Keys left out take the default of ``kind``; keys that it has no use for are ignored."""

    kind: ServerKind = "fedpeptao"
    """Server method; fedpeptao, scaffold and fedprox also set ``client.correction``."""
    lr: PositiveFloat = 0.05
    """Server learning rate. The adaptive kinds divide a step by its own size, so theirs is about how far an entry moves in a
    round; their default, 0.2, suits local learning rates of some hundredths, and is the first key to tune."""
    lr_decay: float = Field(default=1.0, gt=0.0, le=1.0)
    """Factor on the learning rate after every round."""
    lr_min: NonNegativeFloat = 1e-4
    """Learning rate at which the decay stops."""
    momentum: float = Field(default=0.0, ge=0.0, lt=1.0)
    """Server momentum (beta, beta_1)."""
    beta2: float = Field(default=0.99, ge=0.0, lt=1.0)
    """fedadam, fedyogi: decay of the second moment."""
    tau: PositiveFloat = 1e-3
    """fedadam, fedyogi, fedadagrad: degree of adaptivity, added to the root of the second moment."""
    gradient: Literal["difference", "pseudo"] = "pseudo"
    """fedpeptao: difference of successive pseudo-gradients (published code), or the pseudo-gradient itself."""
    base: Literal["average", "previous"] = "previous"
    """fedpeptao: the step starts from the clients' average (published code), or from the previous global vector."""
    coupling: Literal["independent", "chained"] = "independent"
    """fedpeptao: every client steps from the same point, or client after client in sampling order (published code)."""
    momentum_form: Literal["control_in_velocity", "clean", "control_in_gradient"] = "control_in_gradient"
    """fedpeptao: the correction c - c_i is added to the velocity and fed back with it (published code), to the step outside
    of the velocity (clean), or to the gradient that the velocity averages."""
    debias: bool = False
    """fedpeptao: divide the velocity by 1 - momentum^t, so that the first rounds are not damped (as Adam does)."""
    control: bool = True
    """fedpeptao: use control variates in the server step."""
    control_form: Literal["scaffold", "displacement"] = "scaffold"
    """Control variates: per step and learning rate, c_i - c + (P_t - P_i)/(T_i eta) (SCAFFOLD, published code), or the client's
    last displacement P_t - P_i, in the units of the prompt."""
    control_mean: Literal["weights", "steps"] = "weights"
    """The server's control variate c: the mean of all clients' c_i with the weights of ``weighting``, kept exactly, or the
    published code's, which weighs by local steps and scales by the share of clients, and drifts where clients are unequal."""
    control_timing: Literal["after", "before"] = "after"
    """fedpeptao: the server steps with the variates updated in this round (published code), or with those from before it, whose
    difference c - c_i is zero on average over cohorts."""
    weighting: Literal["examples", "uniform"] = "examples"
    """Weight of a client in averages: its number of training examples, or one."""
    aggregation: Literal["mean", "median", "trimmed_mean", "norm_clipping", "multi_krum"] = "mean"
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
        "lr_min": (Use("lr_decay", test=lambda decay: decay < 1, words="it is for a decay below 1"),),
        "trim_share": (Use("aggregation", ("trimmed_mean",)),),
        "clip_norm": (Use("aggregation", ("norm_clipping",)),),
        **dict.fromkeys(("assumed_attackers", "kept_clients"), (Use("aggregation", ("multi_krum",)),)),
    }

    @model_validator(mode="before")
    @classmethod
    def _defaults_of_kind(cls, values: Any) -> Any:
        if not isinstance(values, dict):
            return values
        kind = values.get("kind", "fedpeptao")
        if not isinstance(kind, str) or kind not in _DEFAULTS:
            return values
        given = {key: value for key, value in values.items() if value is not None}
        if kind == "fedpeptao_published":
            clash = [key for key, value in _PUBLISHED.items() if given.get(key, value) != value]
            if clash:
                raise ValueError(
                    f"kind fedpeptao_published fixes {clash[0]} to {_PUBLISHED[clash[0]]!r}; "
                    f"use kind fedpeptao to choose it"
                )
            given.update(_PUBLISHED)
        return {**_DEFAULTS[kind], **given}

    @model_validator(mode="after")
    def _possible_step(self) -> ServerConfig:
        if self.needs_each_vector and self.needs_each_client:
            raise ValueError(
                f"aggregation={self.aggregation} is not defined with coupling=chained, in which clients step one after "
                "another; use aggregation=mean, or kind=fedpeptao with coupling=independent"
            )
        if not self.kind.startswith("fedpeptao"):
            return self
        if self.coupling == "chained" and (self.debias or self.momentum_form == "control_in_gradient"):
            key = "debias=true" if self.debias else "momentum_form=control_in_gradient"
            raise ValueError(f"{key} is not defined with coupling=chained; use coupling=independent")
        if self.debias and self.momentum_form == "control_in_velocity":
            raise ValueError(
                "debias=true is not defined with momentum_form=control_in_velocity; use another momentum_form"
            )
        return self

    def plain(self) -> ServerConfig:
        """Return FedAvg that takes clients together in the same way."""
        keys = {"weighting", "aggregation", "trim_share", "clip_norm", "assumed_attackers", "kept_clients"}
        return ServerConfig(kind="fedavg", **self.model_dump(include=keys))

    @property
    def uses_control(self) -> bool:
        """Whether clients keep a control variate c_i and the server keeps c."""
        return self.kind == "scaffold" or (self.kind.startswith("fedpeptao") and self.control)

    @property
    def needs_each_client(self) -> bool:
        """Whether the server step needs the clients' control variates one by one, in sampling order."""
        return self.kind.startswith("fedpeptao") and self.coupling == "chained"

    @property
    def needs_each_vector(self) -> bool:
        """Whether ``aggregation`` needs the clients' vectors, and control variates, one by one."""
        return self.aggregation != "mean"


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

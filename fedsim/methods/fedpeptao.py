"""FedPepTAO (Che et al. 2023, arXiv 2310.15080) as a set of choices, and the choices of the published code.

Symbols: P global vector P_t, P_bar average of the cohort's vectors, delta = P - P_bar (the pseudo-gradient), g the direction
of a step, v velocity, c and c_i control variates, beta momentum, eta server learning rate. See docs/method.md.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar, Literal

import numpy as np
from pydantic import Field, PositiveFloat, model_validator

from fedsim.core.messages import CombinedUpdate
from fedsim.core.method import METHODS, Correction, Method, ServerState, average_of
from fedsim.methods.control import CONTROL, ControlConfig, ControlForm, ControlMean, ControlVariates

_VELOCITY, _PREVIOUS = "velocity", "previous_delta"


class FedPepTAOConfig(ControlConfig):
    """Keys of fedpeptao."""

    momentum: float = Field(default=0.5, ge=0.0, lt=1.0)
    """Server momentum (beta)."""
    gradient: Literal["difference", "pseudo"] = "pseudo"
    """Difference of successive pseudo-gradients (published code), or the pseudo-gradient itself."""
    base: Literal["average", "previous"] = "previous"
    """Start of the step: the clients' average (published code), or the previous global vector."""
    coupling: Literal["independent", "chained"] = "independent"
    """All clients step from the same point, or one after another in sampling order (published code)."""
    momentum_form: Literal["control_in_velocity", "clean", "control_in_gradient"] = "control_in_gradient"
    """Where the correction c - c_i is added: to the velocity, which carries it on (published code), to the step outside the
    velocity (clean), or to the gradient that the velocity averages."""
    debias: bool = True
    """Divide the velocity by 1 - momentum^t, as Adam does, so that the first rounds are not damped."""
    control: bool = True
    """Use control variates in the server step."""
    control_form: ControlForm = "displacement"
    control_timing: Literal["after", "before"] = "before"
    """Variates that the server step uses: those updated in this round (published code), or those from before it, whose
    difference c - c_i is zero on average over cohorts."""

    @model_validator(mode="after")
    def _possible_step(self) -> FedPepTAOConfig:
        if self.coupling == "chained" and (self.debias or self.momentum_form == "control_in_gradient"):
            key = "debias=true" if self.debias else "momentum_form=control_in_gradient"
            raise ValueError(f"{key} is not defined with coupling=chained; use coupling=independent")
        if self.debias and self.momentum_form == "control_in_velocity":
            raise ValueError(
                "debias=true is not defined with momentum_form=control_in_velocity; use another momentum_form"
            )
        return self


@METHODS.register("fedpeptao")
class FedPepTAO(Method):
    """Momentum on a pseudo-gradient without the sampling noise of cohorts.

    The default is v = beta v + (1 - beta) (delta + c - sum w_i c_i), P - eta v / (1 - beta^t), as in FedVARP. With
    ``gradient=difference`` the first round has no previous pseudo-gradient: it takes P_bar without a step.
    """

    Config = FedPepTAOConfig
    correction = "preconditioner"
    in_turn = (
        "coupling=chained, in which clients step one after another; use aggregation=mean, or kind=fedpeptao with "
        "coupling=independent"
    )

    def parts(self, correction: Correction) -> tuple[Correction, ...]:
        """Return the chosen correction, with control variates if they are used."""
        config = self.config
        self._variates = None
        if not config.control:
            return (correction,)
        corrects = isinstance(correction, ControlVariates)
        before = config.control_timing == "before"
        self._variates = ControlVariates(config.control_form, config.control_mean, before, corrects)
        return (self._variates,) if corrects else (self._variates, correction)

    @property
    def one_by_one(self) -> bool:  # type: ignore[override]
        """Whether clients step one after another."""
        return bool(self.config.coupling == "chained")

    @property
    def serves(self) -> tuple[str, ...]:
        """c, if it is used."""
        return (CONTROL,) if self.config.control else ()

    def init(self, vector_F: np.ndarray) -> Mapping[str, np.ndarray]:
        """Return a zero velocity and, if used, a zero c."""
        return {name: np.zeros_like(vector_F) for name in (*self.serves, _VELOCITY)}

    def apply(self, state: ServerState, combined: CombinedUpdate) -> ServerState:
        """Return the state after a round."""
        if self._variates is None:
            return self._step(state, combined)
        control_F = self._variates.server_control_F(state, combined)
        if not self._variates.before:
            state = state.with_arrays(control=control_F)
        return self._step(state, combined).with_arrays(control=control_F)

    def _step(self, state: ServerState, combined: CombinedUpdate) -> ServerState:
        config = self.config
        average_F = average_of(state, combined)
        delta_F = state.vector_F - average_F
        if config.gradient == "difference":
            previous_F = state.arrays.get(_PREVIOUS)
            state = state.with_arrays(previous_delta=delta_F)
            if previous_F is None:
                return state.with_arrays(average_F)
            gradient_F = previous_F - delta_F
        else:
            gradient_F = delta_F
        base_F = average_F if config.base == "average" else state.vector_F
        coupled = self._chained if self.one_by_one else self._independent
        vector_F, velocity_F = coupled(state, combined, base_F, gradient_F)
        return state.with_arrays(vector_F, velocity=velocity_F)

    def _independent(
        self, state: ServerState, combined: CombinedUpdate, base_F: np.ndarray, gradient_F: np.ndarray
    ) -> tuple[np.ndarray, np.ndarray]:
        """Return (P_{t+1}, v+): all clients step from the same point, so only the mean of the control variates matters."""
        config = self.config
        correction_F = np.zeros_like(base_F)
        if config.control:
            correction_F = state.array(CONTROL) - combined.mean_F(CONTROL).astype(base_F.dtype)
        if config.momentum_form == "control_in_gradient":
            gradient_F = gradient_F + correction_F
        velocity_F = config.momentum * state.array(_VELOCITY) + (1.0 - config.momentum) * gradient_F
        step_F = velocity_F / self._accumulated_weight(state) if config.debias else velocity_F
        if config.momentum_form != "control_in_gradient":
            step_F = step_F + correction_F
        if config.momentum_form == "control_in_velocity":
            velocity_F = step_F
        return base_F - state.lr * step_F, velocity_F

    def _accumulated_weight(self, state: ServerState) -> float:
        """Return 1 - beta^t, the sum of the velocity's weights on gradients so far."""
        gradients = state.steps - 1 if self.config.gradient == "difference" else state.steps
        return float(1.0 - self.config.momentum**gradients)

    def _chained(
        self, state: ServerState, combined: CombinedUpdate, base_F: np.ndarray, gradient_F: np.ndarray
    ) -> tuple[np.ndarray, np.ndarray]:
        """Return (P_{t+1}, v+): client k steps from client k-1's point and velocity; the results are means over all clients."""
        config = self.config
        if combined.weights_k is None or (config.control and CONTROL not in combined.each):
            raise ValueError("server.coupling chained needs the clients one by one, but the update has only their sums")
        point_F, velocity_F = base_F, state.array(_VELOCITY)
        point_sum_F, velocity_sum_F = np.zeros_like(base_F), np.zeros_like(base_F)
        for k, weight in enumerate(combined.weights_k.tolist()):
            velocity_F = config.momentum * velocity_F + (1.0 - config.momentum) * gradient_F
            step_F = velocity_F
            if config.control:
                step_F = velocity_F + (state.array(CONTROL) - combined.each[CONTROL][k].astype(base_F.dtype))
            if config.momentum_form == "control_in_velocity":
                velocity_F = step_F
            point_F = point_F - state.lr * step_F
            point_sum_F += weight * point_F
            velocity_sum_F += weight * velocity_F
        weight_sum = float(combined.weights_k.sum())
        return point_sum_F / weight_sum, velocity_sum_F / weight_sum


class PublishedConfig(FedPepTAOConfig):
    """Keys of fedpeptao_published; most are fixed to the published code."""

    fixed: ClassVar[dict[str, Any]] = {
        "gradient": "difference",
        "base": "average",
        "coupling": "chained",
        "momentum_form": "control_in_velocity",
        "debias": False,
        "control_form": "scaffold",
        "control_timing": "after",
        "control_mean": "steps",
    }
    lr: PositiveFloat = 0.05
    lr_decay: float = Field(default=0.99, gt=0.0, le=1.0)
    momentum: float = Field(default=0.9, ge=0.0, lt=1.0)
    gradient: Literal["difference", "pseudo"] = "difference"
    base: Literal["average", "previous"] = "average"
    coupling: Literal["independent", "chained"] = "chained"
    momentum_form: Literal["control_in_velocity", "clean", "control_in_gradient"] = "control_in_velocity"
    debias: bool = False
    control_form: ControlForm = "scaffold"
    control_timing: Literal["after", "before"] = "after"
    control_mean: ControlMean = "steps"

    @model_validator(mode="after")
    def _is_as_published(self) -> PublishedConfig:
        for key, value in self.fixed.items():
            if getattr(self, key) != value:
                raise ValueError(f"kind fedpeptao_published fixes {key} to {value!r}; use kind fedpeptao to choose it")
        return self


@METHODS.register("fedpeptao_published")
class FedPepTAOPublished(FedPepTAO):
    """The published code, with its quirks."""

    Config = PublishedConfig
    correction = "none"

"""Control variates on both sides, and SCAFFOLD, which is built on them (Karimireddy et al. 2020, arXiv 1910.06378).

A client keeps c_i, the server c. Devices send the sums of s_i (c_i+ - c_i), with s_i a client's weight in c, and of w_i c_i+
or, if the server steps with the variates from before the round, of w_i c_i.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from types import MappingProxyType
from typing import Any, ClassVar, Literal

import numpy as np

from fedsim.core.messages import CombinedUpdate
from fedsim.core.method import (
    CORRECTIONS,
    METHODS,
    ClientRound,
    Correction,
    Entries,
    Local,
    Method,
    MethodConfig,
    Rule,
    ServerState,
    times,
)

ControlForm = Literal["scaffold", "displacement"]
ControlMean = Literal["weights", "steps"]

CONTROL, CHANGE, AFTER = "control", "control_change", "control_after"
"""c and c_i, and the sum of the variates that the step uses; the sum of their changes; c_i+ if the step uses c_i."""
_DRIFT = "drift"


def client_control(
    control_i_F: np.ndarray,
    control_F: np.ndarray,
    global_F: np.ndarray,
    local_F: np.ndarray,
    num_steps: int,
    lr: float,
    *,
    form: ControlForm = "scaffold",
    drift_applied: bool = False,
) -> np.ndarray:
    """Return c_i+, in the dtype of the arguments.

    ``scaffold``: c_i+ = c_i - c + (P_t - P_i) / (T_i eta), option II of SCAFFOLD, as FedPepTAO uses it. ``lr`` is the learning
    rate at the start of the round, even if a schedule lowers it. If the local steps were not corrected by c - c_i, as in
    FedPepTAO, the terms c_i - c subtract what was never added: after k rounds c_i holds k times the client's deviation from
    the others.

    ``displacement``: c_i+ = P_t - P_i, the client's displacement in its last round, in the units of the prompt; c_i - c is
    added only if the local steps were corrected (``drift_applied``). It is the memory of FedVARP (Jhunjhunwala et al. 2022,
    arXiv 2207.14130).
    """
    moved_F = global_F - local_F
    if form == "scaffold":
        result: np.ndarray = control_i_F - control_F + moved_F / (num_steps * lr)
        return result
    return moved_F + (control_i_F - control_F) if drift_applied else moved_F


def drift(control_i_F: np.ndarray, control_F: np.ndarray, num_steps: int, lr: float, form: ControlForm) -> np.ndarray:
    """Return c - c_i in the units of a local step (per step and learning rate), for either form of the variates."""
    difference_F: np.ndarray = control_F - control_i_F
    return difference_F if form == "scaffold" else difference_F / (num_steps * lr)


def control_by_weights(control_F: np.ndarray, change_sum_F: np.ndarray, population_weight: float) -> np.ndarray:
    """Return c+ = c + (sum of w_i (c_i+ - c_i) over the cohort) / (sum of w_i over all clients), in the dtype of ``control_F``.

    It keeps c equal to the w_i-weighted mean of all clients' variates, whoever takes part and for however many steps, so that
    c - c_i has mean zero over cohorts. If all weights are equal, it is the server's control variate of SCAFFOLD
    (eq. 5 of algorithm 1: c + |S|/N * mean of c_i+ - c_i).

    Parameters
    ----------
    control_F
        c before the round.
    change_sum_F
        Sum over the cohort of w_i (c_i+ - c_i).
    population_weight
        Sum of w_i over all clients.
    """
    result: np.ndarray = control_F + change_sum_F.astype(control_F.dtype) / population_weight
    return result


def control_by_steps(control_F: np.ndarray, change_sum_F: np.ndarray, steps_sum: int, sample_rate: float) -> np.ndarray:
    """Return c+ = c + rho * sum_i T_i (c_i+ - c_i) / sum_i T_i, in the dtype of ``control_F`` (FedPepTAO's published code).

    If all T_i are equal, this is the mean that :func:`control_by_weights` keeps with equal weights. Otherwise the T_i of a
    cohort are divided by their own sum, so a client later subtracts something other than what it added: c drifts away from
    the mean of the c_i and never returns.

    Parameters
    ----------
    control_F
        c before the round.
    change_sum_F
        Sum over the cohort of T_i (c_i+ - c_i).
    steps_sum
        Sum over the cohort of T_i.
    sample_rate
        rho, the share of the population in the cohort.

    Raises
    ------
    ValueError
        If no local step was taken.
    """
    if steps_sum <= 0:
        raise ValueError("a control variate needs at least one local step in the round")
    result: np.ndarray = control_F + sample_rate * (change_sum_F.astype(control_F.dtype) / float(steps_sum))
    return result


@CORRECTIONS.register("control")
class ControlVariates(Correction):
    """Keeps c_i, and adds c - c_i to every local step if it is the chosen correction.

    The drift is added to the step rather than to the gradient: c_i is a displacement per step and learning rate, so it has the
    units of a step with any optimizer (with plain SGD the two are the same, and this is SCAFFOLD).

    Parameters
    ----------
    form
        See :func:`client_control`.
    mean
        Whether c weights clients by w_i or by their local steps.
    before
        Whether the server steps with the variates from before the round.
    corrects
        Whether local steps are corrected.
    """

    reads = (CONTROL,)
    kept = (CONTROL,)
    sums = (CHANGE, CONTROL)
    words = MappingProxyType({CONTROL: "control variate", CHANGE: "control variate"})
    needs = "control variates"
    kept_by = "server.kind=scaffold or fedpeptao with server.control=true"

    def __init__(
        self, form: ControlForm = "scaffold", mean: ControlMean = "weights", before: bool = False, corrects: bool = True
    ) -> None:
        self.form, self.mean, self.before, self.corrects = form, mean, before, corrects

    # -- on the device -------------------------------------------------------------------------------------------------

    def down(self, client: Any) -> tuple[str, ...]:
        """Return c if it corrects local steps.

        c_i never travels: c_i+ follows from P_t, P_i, T_i, eta, c and c_i, all of which the server has.
        """
        return (CONTROL,) if self.corrects else ()

    def begin(self, client: ClientRound) -> Mapping[str, np.ndarray]:
        """Return the drift c - c_i."""
        if not self.corrects:
            return {}
        own_F, steps, lr = client.kept(CONTROL), client.num_steps, client.config.optimizer.lr
        return {_DRIFT: drift(own_F, client.read(CONTROL), steps, lr, self.form)}

    def step(self, local: Local, step_CA: Any) -> Any:
        """Add the drift."""
        return local.with_added(step_CA, local.begun(_DRIFT)) if self.corrects else step_CA

    def finish(self, client: ClientRound) -> Mapping[str, np.ndarray]:
        """Return c_i+."""
        control_F = client_control(
            client.kept(CONTROL),
            client.read(CONTROL),
            client.start_F,
            client.trained_F,
            client.num_steps,
            client.config.optimizer.lr,
            form=self.form,
            drift_applied=self.corrects,
        )
        return {CONTROL: control_F}

    def terms(self, client: ClientRound, weight: float, entries: Entries) -> Mapping[str, np.ndarray]:
        """Return the terms of both sums."""
        after, before = entries.float64(client.new[CONTROL]), entries.float64(client.kept(CONTROL))
        change = np.subtract(after, before, out=entries.scratch())
        return {
            CHANGE: times(change, client.num_steps if self.mean == "steps" else weight),
            CONTROL: times(before if self.before else after, weight),
        }

    def singles(self, *, robust: bool) -> tuple[str, ...]:
        """Return the variates that the server step uses and, for a robust rule, c_i+ as well."""
        return (CONTROL, AFTER) if robust and self.before else (CONTROL,)

    def single(self, client: ClientRound, name: str) -> np.ndarray:
        """Return c_i or c_i+."""
        return client.kept(CONTROL) if name == CONTROL and self.before else client.new[CONTROL]

    # -- on the server -------------------------------------------------------------------------------------------------

    def server_control_F(self, state: ServerState, combined: CombinedUpdate) -> np.ndarray:
        """Return c+."""
        if CHANGE not in combined.sums:
            raise ValueError("the method needs the clients' control variates, but the update has none")
        control_F, change_F = state.array(CONTROL), combined.sums[CHANGE]
        if self.mean == "weights":
            return control_by_weights(control_F, change_F, combined.population_weight)
        return control_by_steps(control_F, change_F, combined.steps_sum, combined.sample_rate)

    def remake(self, combined: CombinedUpdate, state: ServerState, rule: Rule) -> CombinedUpdate:
        """Update the server's variate from the clients' with c+ = c + share (rule(c_i+) - c).

        The share is the cohort's fraction of all weights. The form for the mean, c + share mean(c_i+ - c_i), requires that
        every term added is subtracted again later, which holds for no other rule: errors would stay in c forever.
        """
        if CONTROL not in state.arrays:  # as in the warm-up of layers.share_rule
            return combined
        control_F = state.array(CONTROL)
        if CONTROL not in combined.each:
            raise ValueError("a robust rule needs the clients' control variates one by one")
        used_F = rule(combined.each[CONTROL], control_F)
        new_F = rule(combined.each[AFTER], control_F) if self.before else used_F
        total = combined.steps_sum if self.mean == "steps" else combined.weight_sum
        return replace(
            combined,
            means={**combined.means, CONTROL: used_F},
            sums={**combined.sums, CHANGE: total * (new_F - control_F)},
        )


class ControlConfig(MethodConfig):
    """Keys of methods with control variates."""

    control_form: ControlForm = "scaffold"
    """Control variates: per step and learning rate, c_i - c + (P_t - P_i)/(T_i eta) (SCAFFOLD, published code), or the client's
    last displacement P_t - P_i, in the units of the prompt."""
    control_mean: ControlMean = "weights"
    """The server's control variate c: the exact mean of all clients' c_i with the weights of ``weighting``, or the published
    code's, which weights by local steps and scales by the share of clients, and drifts if clients are unequal."""


@METHODS.register("scaffold")
class Scaffold(Method):
    """FedAvg with local steps corrected by control variates."""

    Config = ControlConfig
    correction = "control"
    allowed = ("control",)
    instead: ClassVar[str] = "for no correction use server.kind=fedavg"

    def parts(self, correction: Correction) -> tuple[Correction, ...]:
        """Return the control variates in the form that the config asks for."""
        self._variates = ControlVariates(self.config.control_form, self.config.control_mean)
        return (self._variates,)

    @property
    def serves(self) -> tuple[str, ...]:
        """C."""
        return (CONTROL,)

    def init(self, vector_F: np.ndarray) -> Mapping[str, np.ndarray]:
        """Return a zero c."""
        return {CONTROL: np.zeros_like(vector_F)}

    def apply(self, state: ServerState, combined: CombinedUpdate) -> ServerState:
        """Return the state after a round."""
        control_F = self._variates.server_control_F(state, combined)
        return super().apply(state, combined).with_arrays(control=control_F)

"""Federated quadratics on which the server's own functions run: the problem of ``benchmarks.stability``.

N clients with losses 1/2 (x - a_i)' diag(lambda_i) (x - a_i) take T gradient steps of size eta; a cohort of m is drawn each
round; ``server.aggregation.combine``, ``server.step.step`` and ``fedsim.methods.control.client_control`` do the rest.

Losses are scaled so that T eta lambda_i is given. Local training then covers h_i = 1 - (1 - eta lambda_i)^T of the way to
a_i whatever T and eta are, plain FedAvg does the same in all settings, and what differs is due to eta_s / (T eta) alone.

Shape suffixes: N clients, F entries, k clients of a cohort, R rounds.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from fedsim.core.messages import VECTOR, CombinedUpdate, GroupUpdate
from fedsim.core.method import ServerState
from fedsim.methods.control import CHANGE, CONTROL, client_control
from server.aggregation import combine
from server.config import ServerConfig
from server.step import initial_state, step

COHORT = 10
ETA_S, BETA = 0.05, 0.9
"""Server learning rate and momentum of the published code and its example scripts."""
DIVERGED = 1e9
"""Size of an entry at which a run is stopped."""

PUBLISHED: dict[str, Any] = {
    "kind": "fedpeptao",
    "lr": ETA_S,
    "lr_decay": 0.99,
    "momentum": BETA,
    "gradient": "difference",
    "base": "average",
    "coupling": "chained",
    "momentum_form": "control_in_velocity",
    "debias": False,
    "control_form": "scaffold",
    "control_timing": "after",
    "control_mean": "steps",
}
"""``server.kind: fedpeptao_published``, written out so that each choice can be switched alone."""
RECOMMENDED: dict[str, Any] = {
    "kind": "fedpeptao",
    "lr": 1.0,
    "lr_decay": 1.0,
    "gradient": "pseudo",
    "base": "previous",
    "coupling": "independent",
    "momentum_form": "control_in_gradient",
    "debias": True,
    "control_form": "displacement",
    "control_timing": "before",
    "control_mean": "weights",
}


@dataclass(frozen=True)
class Setting:
    """Local training."""

    steps: int
    lr: float

    @property
    def kappa_one(self) -> float:
        """eta_s / (T eta): one client's correction as a share of its displacement."""
        return ETA_S / (self.steps * self.lr)


SCRIPT = Setting(168, 0.04)
"""That of the published example scripts, on SST-2: 67,349 examples over 100 clients, 2 epochs of batches of 8."""


@dataclass(frozen=True)
class Problem:
    """Quadratics of N clients."""

    progress_NF: np.ndarray
    """T eta lambda_i, about the share h_i where it is small."""
    centre_NF: np.ndarray
    """a_i."""

    @classmethod
    def draw(cls, seed: int, clients: int = 100, entries: int = 20, spread: float = 0.5) -> Problem:
        """Draw curvatures with a condition number of 25, times 1 +- ``spread`` for each client and entry."""
        rng = np.random.default_rng([seed, 1])
        curvature_F = np.geomspace(0.02, 0.5, entries)
        factor_NF = rng.uniform(1.0 - spread, 1.0 + spread, (clients, entries))
        return cls(curvature_F * factor_NF, rng.normal(size=(clients, entries)))

    @property
    def optimum_F(self) -> np.ndarray:
        """The minimum of the mean loss."""
        optimum_F: np.ndarray = (self.progress_NF * self.centre_NF).sum(axis=0) / self.progress_NF.sum(axis=0)
        return optimum_F

    def excess_loss(self, vector_F: np.ndarray) -> float:
        """Return the mean loss above its minimum, in units in which T eta = 1."""
        return float(0.5 * (self.progress_NF.mean(axis=0) * (vector_F - self.optimum_F) ** 2).sum())

    def train(self, clients_k: np.ndarray, vector_F: np.ndarray, setting: Setting) -> np.ndarray:
        """Return the clients' vectors after T gradient steps, [k, F]."""
        kept_kF = (1.0 - self.progress_NF[clients_k] / setting.steps) ** setting.steps
        local_kF: np.ndarray = self.centre_NF[clients_k] + kept_kF * (vector_F - self.centre_NF[clients_k])
        return local_kF


def simulate(
    problem: Problem, config: ServerConfig, setting: Setting, seed: int, start_F: np.ndarray, rounds: int
) -> np.ndarray:
    """Return P_0, P_1, ... [R + 1, F]; fewer rows if the run was stopped because it diverged."""
    method = config.method()
    state, controls_NF = initial_state(method, start_F), np.zeros_like(problem.centre_NF)
    path = [state.vector_F]
    for round, order in enumerate(cohorts(len(controls_NF), seed, rounds)):
        combined = job(problem, config, setting, state, controls_NF, order, round)
        state = step(method, state, combined, COHORT / len(controls_NF))
        path.append(state.vector_F)
        if np.abs(state.vector_F).max() > DIVERGED:
            break
    return np.array(path)


def cohorts(clients: int, seed: int, rounds: int) -> list[np.ndarray]:
    """Return each round's cohort in the order drawn."""
    rng = np.random.default_rng([seed, 2])
    return [rng.permutation(clients)[:COHORT] for _ in range(rounds)]


def job(
    problem: Problem,
    config: ServerConfig,
    setting: Setting,
    state: ServerState,
    controls_NF: np.ndarray,
    order: np.ndarray,
    round: int,
) -> CombinedUpdate:
    """Return a cohort's aggregate with equal weights; writes its new c_i into ``controls_NF``."""
    clients_k = np.sort(order)
    local_kF = problem.train(clients_k, state.vector_F, setting)
    sums, each = {VECTOR: local_kF.sum(axis=0)}, {}
    method = config.method()
    if CONTROL in method.serves:
        old_kF = controls_NF[clients_k]
        new_kF = client_control(
            old_kF, state.array(CONTROL), state.vector_F, local_kF, setting.steps, setting.lr, form=config.control_form
        )
        used_kF = old_kF if config.control_timing == "before" else new_kF
        share = setting.steps if config.control_mean == "steps" else 1
        sums |= {CHANGE: share * (new_kF - old_kF).sum(axis=0), CONTROL: used_kF.sum(axis=0)}
        if method.one_by_one:
            each = {CONTROL: used_kF}
        controls_NF[clients_k] = new_kF
    update = GroupUpdate(
        round=round,
        group=0,
        part=0,
        clients=tuple(clients_k.tolist()),
        weight_sum=float(len(order)),
        steps_sum=setting.steps * len(order),
        sums=sums,
        each=each,
        weights_k=np.ones(len(order)) if method.one_by_one else None,
    )
    return combine([update], order.tolist())

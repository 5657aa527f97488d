"""The server's optimizers: pure functions (config, state, combined update) -> next state, on the exchanged entries.

Symbols: P global vector P_t, P_bar average of the cohort's vectors, delta = P - P_bar (the pseudo-gradient), g the
direction of a FedPepTAO step, v velocity, c and c_i control variates, beta momentum, eta server learning rate.
Shape suffixes: F entries of the exchanged vector, k clients in the order in which the cohort was drawn.

The learning rate of round t, counted from 0, is ``max(lr * lr_decay**t, lr_min)`` for every kind; in round 0 it is
``lr`` itself, as in the published FedPepTAO code, and it is never raised.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, fields, replace

import numpy as np

from fedsim.core.errors import CheckpointError
from server.aggregation import CombinedUpdate
from server.config import ServerConfig
from server.control import control_by_steps, control_by_weights
from server.robust import robust_update


@dataclass(frozen=True)
class ServerState:
    """All that the server carries from round to round. Arrays have the dtype of ``vector_F`` (float64 in a run)."""

    vector_F: np.ndarray
    """P_t."""
    lr: float
    """Learning rate of the last round, or of the first if there was none."""
    steps: int = 0
    """Rounds taken."""
    control_F: np.ndarray | None = None
    """c, for methods with control variates."""
    velocity_F: np.ndarray | None = None
    """v or m, the first moment."""
    second_moment_F: np.ndarray | None = None
    """v of the adaptive methods."""
    previous_delta_F: np.ndarray | None = None
    """delta of the last round, for differences of pseudo-gradients; None before the first round."""


_ADAPTIVE = ("fedadam", "fedyogi", "fedadagrad")


def initial_state(config: ServerConfig, vector_F: np.ndarray) -> ServerState:
    """Return the state before the first round; moments start at zero, second moments at tau^2."""
    has_velocity = config.kind in ("fedavgm", *_ADAPTIVE) or config.kind.startswith("fedpeptao")
    return ServerState(
        vector_F=vector_F.copy(),
        lr=config.lr,
        control_F=np.zeros_like(vector_F) if config.uses_control else None,
        velocity_F=np.zeros_like(vector_F) if has_velocity else None,
        second_moment_F=np.full_like(vector_F, config.tau**2) if config.kind in _ADAPTIVE else None,
    )


def step(
    config: ServerConfig,
    state: ServerState,
    combined: CombinedUpdate,
    sample_rate: float,
    population_weight: float | None = None,
) -> ServerState:
    """Return the server's state after a round.

    Parameters
    ----------
    config
        The ``server`` section.
    state
        The state from which the round started.
    combined
        The cohort's sums and averages.
    sample_rate
        rho, the share of the population in a cohort.
    population_weight
        Sum of all clients' weights w_i. If not given, the clients are taken to weigh alike: the cohort's sum over rho.

    Raises
    ------
    ClientError
        If too few clients are left for ``server.aggregation``.
    ValueError
        If the update does not fit the state, or lacks what the method needs.
    """
    if combined.vector_F.shape != state.vector_F.shape:
        raise ValueError(
            f"an update of shape {combined.vector_F.shape} does not fit a vector of {state.vector_F.shape}"
        )
    if config.needs_each_vector:
        combined = robust_update(config, combined, state.vector_F, state.control_F)
    state = replace(state, lr=_learning_rate(config, state), steps=state.steps + 1)
    if config.uses_control:
        if combined.control_delta_sum_F is None or combined.control_F is None or state.control_F is None:
            raise ValueError(f"server.kind {config.kind} needs the clients' control variates, but the update has none")
        if config.control_mean == "weights":
            weight = population_weight or combined.weight_sum / sample_rate
            control_F = control_by_weights(state.control_F, combined.control_delta_sum_F, weight)
        else:
            control_F = control_by_steps(state.control_F, combined.control_delta_sum_F, combined.steps_sum, sample_rate)
        if config.control_timing == "after":
            state = replace(state, control_F=control_F)
        return replace(_RULES[config.kind](config, state, combined), control_F=control_F)
    return _RULES[config.kind](config, state, combined)


def _learning_rate(config: ServerConfig, state: ServerState) -> float:
    if state.steps == 0:
        return state.lr
    return min(state.lr, max(config.lr_decay * state.lr, config.lr_min))


def _average_F(state: ServerState, combined: CombinedUpdate) -> np.ndarray:
    """Return P_bar in the state's dtype."""
    return combined.vector_F.astype(state.vector_F.dtype)


def _fedavg(config: ServerConfig, state: ServerState, combined: CombinedUpdate) -> ServerState:
    """P - eta delta (McMahan et al. 2017); also the server side of SCAFFOLD and FedProx.

    Written as P_bar + (1 - eta) delta, so that eta = 1 gives P_bar to the last bit.
    """
    average_F = _average_F(state, combined)
    return replace(state, vector_F=average_F + (1.0 - state.lr) * (state.vector_F - average_F))


def _fedavgm(config: ServerConfig, state: ServerState, combined: CombinedUpdate) -> ServerState:
    """Server momentum: v = beta v + delta, P - eta v (Hsu et al. 2019, arXiv 1909.06335)."""
    delta_F = state.vector_F - _average_F(state, combined)
    velocity_F = config.momentum * _given(state.velocity_F) + delta_F
    return replace(state, vector_F=state.vector_F - state.lr * velocity_F, velocity_F=velocity_F)


def _adaptive(config: ServerConfig, state: ServerState, combined: CombinedUpdate) -> ServerState:
    """FedAdagrad, FedYogi and FedAdam (Reddi et al. 2021, arXiv 2003.00295, algorithm 2), without bias correction."""
    change_F = _average_F(state, combined) - state.vector_F
    first_F = config.momentum * _given(state.velocity_F) + (1.0 - config.momentum) * change_F
    second_F, square_F = _given(state.second_moment_F), change_F**2
    if config.kind == "fedadagrad":
        second_F = second_F + square_F
    elif config.kind == "fedyogi":
        second_F = second_F - (1.0 - config.beta2) * square_F * np.sign(second_F - square_F)
    else:
        second_F = config.beta2 * second_F + (1.0 - config.beta2) * square_F
    vector_F = state.vector_F + state.lr * first_F / (np.sqrt(second_F) + config.tau)
    return replace(state, vector_F=vector_F, velocity_F=first_F, second_moment_F=second_F)


def _fedpeptao(config: ServerConfig, state: ServerState, combined: CombinedUpdate) -> ServerState:
    """FedPepTAO (Che et al. 2023, arXiv 2310.15080), composed of choices; see ``ServerConfig`` and ``docs/method.md``.

    The default: v = beta v + (1 - beta) (delta + c - sum w_i c_i), P - eta v / (1 - beta^t), momentum on a pseudo-gradient that
    is freed of the noise of cohorts as in FedVARP. ``fedpeptao_published`` fixes the choices to the published code. With
    differences the first round has nothing to compare with: it takes P_bar and no step.
    """
    average_F = _average_F(state, combined)
    delta_F = state.vector_F - average_F
    if config.gradient == "difference":
        previous_F = state.previous_delta_F
        state = replace(state, previous_delta_F=delta_F)
        if previous_F is None:
            return replace(state, vector_F=average_F)
        gradient_F = previous_F - delta_F
    else:
        gradient_F = delta_F
    base_F = average_F if config.base == "average" else state.vector_F
    coupled = _chained if config.coupling == "chained" else _independent
    vector_F, velocity_F = coupled(config, state, combined, base_F, gradient_F)
    return replace(state, vector_F=vector_F, velocity_F=velocity_F)


def _independent(
    config: ServerConfig, state: ServerState, combined: CombinedUpdate, base_F: np.ndarray, gradient_F: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Return (P_{t+1}, v+): every client steps from the same point, so only the mean of the control variates enters."""
    correction_F = np.zeros_like(base_F)
    if config.control:
        correction_F = _given(state.control_F) - _given(combined.control_F).astype(base_F.dtype)
    if config.momentum_form == "control_in_gradient":
        gradient_F = gradient_F + correction_F
    velocity_F = config.momentum * _given(state.velocity_F) + (1.0 - config.momentum) * gradient_F
    step_F = velocity_F / _accumulated_weight(config, state) if config.debias else velocity_F
    if config.momentum_form != "control_in_gradient":
        step_F = step_F + correction_F
    if config.momentum_form == "control_in_velocity":
        velocity_F = step_F
    return base_F - state.lr * step_F, velocity_F


def _accumulated_weight(config: ServerConfig, state: ServerState) -> float:
    """Return 1 - beta^t, the sum of the weights that the velocity has given to gradients so far."""
    gradients = state.steps - 1 if config.gradient == "difference" else state.steps
    return 1.0 - config.momentum**gradients


def _chained(
    config: ServerConfig, state: ServerState, combined: CombinedUpdate, base_F: np.ndarray, gradient_F: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Return (P_{t+1}, v+): client k steps from client k-1's point and velocity; the means over all are kept."""
    if combined.weights_k is None or (config.control and combined.control_kF is None):
        raise ValueError("server.coupling chained needs the clients one by one, but the update has only their sums")
    point_F, velocity_F = base_F, _given(state.velocity_F)
    point_sum_F, velocity_sum_F = np.zeros_like(base_F), np.zeros_like(base_F)
    for k, weight in enumerate(combined.weights_k.tolist()):
        velocity_F = config.momentum * velocity_F + (1.0 - config.momentum) * gradient_F
        step_F = velocity_F
        if config.control:
            step_F = velocity_F + (_given(state.control_F) - _given(combined.control_kF)[k].astype(base_F.dtype))
        if config.momentum_form == "control_in_velocity":
            velocity_F = step_F
        point_F = point_F - state.lr * step_F
        point_sum_F += weight * point_F
        velocity_sum_F += weight * velocity_F
    weight_sum = float(combined.weights_k.sum())
    return point_sum_F / weight_sum, velocity_sum_F / weight_sum


_RULES: dict[str, Callable[[ServerConfig, ServerState, CombinedUpdate], ServerState]] = {
    "fedavg": _fedavg,
    "fedprox": _fedavg,
    "scaffold": _fedavg,
    "fedavgm": _fedavgm,
    "fedadam": _adaptive,
    "fedyogi": _adaptive,
    "fedadagrad": _adaptive,
    "fedpeptao": _fedpeptao,
    "fedpeptao_published": _fedpeptao,
}


def _given(array_F: np.ndarray | None) -> np.ndarray:
    if array_F is None:
        raise ValueError("the server state lacks an array that its method needs; was it made by another server.kind?")
    return array_F


def state_to_arrays(state: ServerState) -> dict[str, np.ndarray]:
    """Return the state as named arrays for a checkpoint; fields that are None are left out."""
    values = {field.name: getattr(state, field.name) for field in fields(state)}
    return {name: np.asarray(value) for name, value in values.items() if value is not None}


def state_from_arrays(arrays: Mapping[str, np.ndarray]) -> ServerState:
    """Return the state that :func:`state_to_arrays` wrote.

    Raises
    ------
    CheckpointError
        If an array is missing or unknown.
    """
    missing = {"vector_F", "lr", "steps"} - set(arrays)
    unknown = set(arrays) - {field.name for field in fields(ServerState)}
    if missing or unknown:
        problem = f"lacks {sorted(missing)[0]}" if missing else f"holds the unknown array {sorted(unknown)[0]}"
        raise CheckpointError(
            f"the server state of the checkpoint {problem}; it was written by another version of fedsim"
        )
    rest = {name: np.array(array) for name, array in arrays.items() if name not in ("lr", "steps")}
    return ServerState(lr=float(arrays["lr"]), steps=int(arrays["steps"]), **rest)

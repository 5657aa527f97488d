"""The server step that all methods share. Pure functions.

The learning rate of round t, counted from 0, is ``max(lr * lr_decay**t, lr_min)`` for every kind; in round 0 it is
``lr`` itself, as in the published FedPepTAO code, and it is never raised.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

import numpy as np

from fedsim.core.errors import CheckpointError, PluginError
from fedsim.core.messages import VECTOR, CombinedUpdate
from fedsim.core.method import Method, ServerState
from fedsim.core.plugin_source import blaming
from fedsim.core.robust import RobustRule
from server.robust import robust_update


def initial_state(method: Method, vector_F: np.ndarray) -> ServerState:
    """Return the state before the first round."""
    with blaming():
        arrays = dict(method.init(vector_F))
    return ServerState(vector_F.copy(), lr=method.config.lr, arrays=arrays)


def step(
    method: Method,
    state: ServerState,
    combined: CombinedUpdate,
    sample_rate: float,
    population_weight: float | None = None,
    rule: RobustRule | None = None,
) -> ServerState:
    """Return the server's state after a round.

    Parameters
    ----------
    state
        The state that the round started from.
    combined
        The cohort's sums.
    sample_rate
        rho, the share of the population in a cohort.
    population_weight
        Sum of all clients' weights w_i. If not given, estimated as the cohort's sum over rho.
    rule
        Robust rule that replaces the mean; None for the mean.

    Raises
    ------
    ClientError
        If too few clients are left for the rule.
    PluginError
        If a method or rule from a plug-in fails or returns the wrong type or shape.
    ValueError
        If the update does not fit the state or lacks something that the method needs.
    """
    if combined.vector_F.shape != state.vector_F.shape:
        raise ValueError(
            f"an update of shape {combined.vector_F.shape} does not fit a vector of {state.vector_F.shape}"
        )
    weight = population_weight or combined.weight_sum / sample_rate
    combined = replace(combined, sample_rate=sample_rate, population_weight=weight)
    with blaming():
        if rule is not None:
            combined = robust_update(rule, method.corrections, combined, state)
        state = replace(state, lr=_learning_rate(method, state), steps=state.steps + 1)
        made = method.apply(state, combined)
    if not isinstance(made, ServerState) or np.shape(made.vector_F) != state.vector_F.shape:
        raise PluginError(
            f"the server method {type(method).__name__} must return a ServerState of {len(state.vector_F)} entries"
        )
    return made


def _learning_rate(method: Method, state: ServerState) -> float:
    if state.steps == 0:
        return state.lr
    return min(state.lr, max(method.config.lr_decay * state.lr, method.config.lr_min))


def state_to_arrays(state: ServerState) -> dict[str, np.ndarray]:
    """Return the state as named arrays for a checkpoint."""
    return {VECTOR: state.vector_F, "lr": np.asarray(state.lr), "steps": np.asarray(state.steps), **state.arrays}


def state_from_arrays(arrays: Mapping[str, np.ndarray]) -> ServerState:
    """Return the state that :func:`state_to_arrays` wrote.

    Raises
    ------
    CheckpointError
        If an array is missing.
    """
    own = {VECTOR, "lr", "steps"}
    if missing := sorted(own - set(arrays)):
        raise CheckpointError(
            f"the server state of the checkpoint lacks {missing[0]}; it was written by another version of fedsim"
        )
    rest = {name: np.array(array) for name, array in arrays.items() if name not in own}
    return ServerState(np.array(arrays[VECTOR]), lr=float(arrays["lr"]), steps=int(arrays["steps"]), arrays=rest)

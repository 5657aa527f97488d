"""The server's control variate."""

from __future__ import annotations

import numpy as np


def control_by_weights(control_F: np.ndarray, control_delta_sum_F: np.ndarray, population_weight: float) -> np.ndarray:
    """Return c+ = c + sum over the cohort of w_i (c_i+ - c_i), over the sum of w_i of all clients; dtype of ``control_F``.

    It keeps c equal to the mean of all clients' variates in the weights w_i, whoever takes part and however long, so that
    c - c_i has mean zero over cohorts. Where all weights are equal, it is the server's control variate of SCAFFOLD
    (Karimireddy et al. 2020, arXiv 1910.06378, eq. 5 of algorithm 1: c + |S|/N * mean of c_i+ - c_i).

    Parameters
    ----------
    control_F
        c before the round.
    control_delta_sum_F
        Sum over the cohort of w_i (c_i+ - c_i).
    population_weight
        Sum of w_i over all clients.
    """
    result: np.ndarray = control_F + control_delta_sum_F.astype(control_F.dtype) / population_weight
    return result


def control_by_steps(
    control_F: np.ndarray, control_delta_sum_F: np.ndarray, steps_sum: int, sample_rate: float
) -> np.ndarray:
    """Return c+ = c + rho * sum_i T_i (c_i+ - c_i) / sum_i T_i, in the dtype of ``control_F`` (FedPepTAO's published code).

    Where all T_i are equal, this is the mean that :func:`control_by_weights` keeps with equal weights. Otherwise the T_i of
    a cohort are divided by their own sum, so that what a client adds and takes away later differ: c drifts off the mean of
    the c_i and never returns.

    Parameters
    ----------
    control_F
        c before the round.
    control_delta_sum_F
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
    result: np.ndarray = control_F + sample_rate * (control_delta_sum_F.astype(control_F.dtype) / float(steps_sum))
    return result

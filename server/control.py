"""The server's control variate."""

from __future__ import annotations

import numpy as np


def server_control(
    control_F: np.ndarray, control_delta_sum_F: np.ndarray, steps_sum: int, sample_rate: float
) -> np.ndarray:
    """Return c+ = c + rho * sum_i T_i (c_i+ - c_i) / sum_i T_i, in the dtype of ``control_F``.

    FedPepTAO weighs clients by their local steps T_i. Where all T_i are equal, this is the server's control variate of
    SCAFFOLD (Karimireddy et al. 2020, arXiv 1910.06378, eq. 5 of algorithm 1: c + |S|/N * mean of c_i+ - c_i).

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

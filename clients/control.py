"""The client's control variate."""

from __future__ import annotations

import numpy as np


def client_control(
    control_i_F: np.ndarray,
    control_F: np.ndarray,
    global_F: np.ndarray,
    local_F: np.ndarray,
    num_steps: int,
    lr: float,
) -> np.ndarray:
    """Return c_i+ = c_i - c + (P_t - P_i) / (T_i eta), in the dtype of the arguments.

    Option II of SCAFFOLD (Karimireddy et al. 2020, arXiv 1910.06378), as FedPepTAO uses it. ``lr`` is the learning rate
    at the start of the visit, also where a schedule lowers it.
    """
    result: np.ndarray = control_i_F - control_F + (global_F - local_F) / (num_steps * lr)
    return result

"""The client's control variate."""

from __future__ import annotations

from typing import Literal

import numpy as np

ControlForm = Literal["scaffold", "displacement"]


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

    ``scaffold``: c_i+ = c_i - c + (P_t - P_i) / (T_i eta), option II of SCAFFOLD (Karimireddy et al. 2020, arXiv
    1910.06378), as FedPepTAO uses it. ``lr`` is the learning rate at the start of the visit, also where a schedule lowers it.
    Where the local steps were not corrected by c - c_i, as in FedPepTAO, the terms c_i - c take away what was never added:
    after k visits c_i holds k times the client's deviation from the others.

    ``displacement``: c_i+ = P_t - P_i, what the client did in its last visit, in the units of the prompt; c_i - c is added only
    if the local steps were corrected (``drift_applied``). It is the memory of FedVARP (Jhunjhunwala et al. 2022, arXiv
    2207.14130).
    """
    moved_F = global_F - local_F
    if form == "scaffold":
        result: np.ndarray = control_i_F - control_F + moved_F / (num_steps * lr)
        return result
    return moved_F + (control_i_F - control_F) if drift_applied else moved_F


def drift(control_i_F: np.ndarray, control_F: np.ndarray, num_steps: int, lr: float, form: ControlForm) -> np.ndarray:
    """Return c - c_i as what is added to every local step: per step and learning rate, whatever the form of the variates."""
    difference_F: np.ndarray = control_F - control_i_F
    return difference_F if form == "scaffold" else difference_F / (num_steps * lr)

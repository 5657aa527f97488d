"""Whether arrays are finite, in one pass over them and without memory of their size."""

from __future__ import annotations

import numpy as np


def is_finite(array: np.ndarray) -> bool:
    """Whether all numbers of an array are finite."""
    flat = np.asarray(array).ravel()
    # NaN and infinity stay in the sum of squares. Large finite numbers can overflow it: only then is every number looked at.
    with np.errstate(all="ignore"):
        if np.isfinite(np.dot(flat, flat)):
            return True
    return bool(np.isfinite(flat).all())

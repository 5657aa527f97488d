"""How many layers: Lanczos, the smoothed spectral density, the share above a threshold, the search for a threshold."""

from __future__ import annotations

from collections.abc import Callable
from itertools import pairwise

import numpy as np

Array = np.ndarray
SHORT = 1e-6
"""What the published code adds to the length that it divides a vector by, whatever that length is."""


def lanczos(times: Callable[[Array], Array], probe: Array, steps: int) -> tuple[Array, Array]:
    """Return eigenvalues and squared first components of the eigenvectors of the Lanczos matrix.

    The published code's vectors are v / (|v| + 1e-6), shorter than one by 1e-6 / |v|: no rounding where |v|, the entry beside
    the diagonal, is small, as it is for a flat loss. Its matrix is float32, which is rounding and left out.

    Parameters
    ----------
    times
        The Hessian times a vector.
    probe
        Start vector of +1 and -1.
    """
    vectors, diagonal, beside = [unit(probe.astype(float))], [], []
    rest = np.zeros(len(probe))
    for step in range(steps):
        if step:
            beside.append(np.linalg.norm(rest))
            vectors.append(unit(without(rest, vectors)))
        rest = times(vectors[-1])
        diagonal.append(rest @ vectors[-1])
        rest = rest - diagonal[-1] * vectors[-1]
        if step:
            rest = rest - beside[-1] * vectors[-2]
    matrix = np.diag(diagonal) + np.diag(beside, 1) + np.diag(beside, -1)
    values, components = np.linalg.eigh(matrix)
    return values, components[0] ** 2


def unit(vector: Array) -> Array:
    return vector / (np.linalg.norm(vector) + SHORT)


def without(vector: Array, others: list[Array]) -> Array:
    """Return the vector without its parts along the others (full re-orthogonalisation)."""
    for other in others:
        vector = vector - (vector @ other) * other
    return vector


def density(eigenvalues: Array, weights: Array) -> tuple[Array, Array]:
    """Return the grid and the density on it, of eigenvalues and weights [runs, k]."""
    low, high = eigenvalues.min(1).mean() - 0.01, eigenvalues.max(1).mean() + 0.01
    grid = np.linspace(low, high, 10_000)
    variance = 1e-5 * max(1.0, high - low)
    total = np.zeros(len(grid))
    for run in range(len(eigenvalues)):
        for value, weight in zip(eigenvalues[run], weights[run], strict=True):
            total += weight * np.exp(-((grid - value) ** 2) / (2 * variance)) / np.sqrt(2 * np.pi * variance)
    total /= len(eigenvalues)
    step = grid[1] - grid[0]
    return grid, total / (total.sum() * step)


def ratio(grid: Array, values: Array, threshold: float) -> float:
    """Return the share of the density above a threshold."""
    below = sum(values[i] for i in range(len(grid) - 1) if grid[i + 1] <= threshold)
    return float(1.0 - below * (grid[1] - grid[0]))


def search(eigenvalues: Array, weights: Array) -> tuple[float, Array]:
    """Return the first plateau of the ratio above its half, and every (threshold, ratio) looked at.

    Raises
    ------
    AmbiguousError
        If the ratio falls below its half just where a plateau is complete: no trace of the published code says which counts.
    """
    grid, values = density(eigenvalues, weights)
    looked: list[tuple[float, float]] = []
    increment = 0.1
    while True:
        found = _pass(grid, values, increment, looked)
        if found is not None:
            return found, np.array(looked)
        increment /= 2


class AmbiguousError(Exception):
    """The formulas are undefined for these numbers."""


def _pass(grid: Array, values: Array, increment: float, looked: list[tuple[float, float]]) -> float | None:
    threshold, ratios = 0.0, [ratio(grid, values, 0.0)]
    looked.append((threshold, ratios[0]))
    while True:
        threshold += increment
        ratios.append(ratio(grid, values, threshold))
        looked.append((threshold, ratios[-1]))
        below = ratios[-1] < ratios[0] / 2
        plateau = len(ratios) >= 4 and all(abs(a - b) < 0.005 for a, b in pairwise(ratios[-4:]))
        if below and plateau:
            raise AmbiguousError
        if below:
            return None
        if plateau:
            return ratios[-1]

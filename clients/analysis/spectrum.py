"""Stochastic Lanczos quadrature: the spectrum of a large symmetric matrix known by matrix-vector products only.

Shape suffixes: A dimension of the matrix, R probes (runs of Lanczos), K steps of a run, G points of a grid.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import torch
from torch import Tensor

GRID_POINTS = 10_000
GRID_MARGIN = 0.01
"""Margin of the grid beyond the smallest and largest eigenvalue; the published code's value."""
VARIANCE = 1e-5
"""Variance of the smoothing per unit of the grid's width (at least one unit); the published code's value."""


def lanczos(
    matvec: Callable[[Tensor], Tensor], start_A: Tensor, num_steps: int, tolerance: float = 1e-12
) -> tuple[np.ndarray, np.ndarray]:
    """Run Lanczos with full re-orthogonalisation, in float64.

    The Ritz values and weights are a Gauss quadrature of the spectral measure of the start vector v: with enough steps, the
    sum of w_k p(theta_k) is v' p(H) v / v'v for every polynomial p of degree up to 2 K - 1 (Golub and Meurant 1994). For
    random signs v the mean of that is tr p(H) / A, so a weight is a share of the A parameters.

    Parameters
    ----------
    matvec
        Multiplies a float64 vector [A] with the symmetric matrix H.
    start_A
        Any non-zero vector.
    num_steps
        Most steps; never more than A.
    tolerance
        Stop where what is new in H q, relative to the largest entry of the tridiagonal matrix so far, is not more than this:
        the vectors so far span an invariant subspace, and what is left is rounding noise. No less than the relative
        rounding errors of ``matvec``.

    Returns
    -------
    tuple
        Ritz values, ascending, and their weights (squared first components of the eigenvectors, sum 1): float64 [K].

    Raises
    ------
    ArithmeticError
        If a product is not finite.
    """
    size = len(start_A)
    num_steps = min(num_steps, size)
    basis_KA = torch.empty(num_steps, size, dtype=torch.float64, device=start_A.device)
    vector_A = start_A.double() / torch.linalg.vector_norm(start_A.double())
    diagonal: list[float] = []
    beside: list[float] = []
    for step in range(num_steps):
        basis_KA[step] = vector_A
        done_KA = basis_KA[: step + 1]
        next_A = matvec(vector_A).double()
        diagonal.append(float(vector_A @ next_A))
        for _ in range(2):  # a second pass removes rounding errors of the first ("twice is enough")
            next_A = next_A - done_KA.T @ (done_KA @ next_A)
        norm = float(torch.linalg.vector_norm(next_A))
        if not np.isfinite([diagonal[-1], norm]).all():
            raise ArithmeticError(f"Lanczos met a product that is not finite in step {step + 1}")
        if step + 1 == num_steps or norm <= tolerance * max(abs(value) for value in (*diagonal, *beside, norm)):
            break
        beside.append(norm)
        vector_A = next_A / norm
    off = torch.tensor(beside, dtype=torch.float64)
    matrix = torch.diag(torch.tensor(diagonal, dtype=torch.float64)) + torch.diag(off, 1) + torch.diag(off, -1)
    values, vectors = torch.linalg.eigh(matrix)
    return values.numpy(), vectors[0].square().numpy()


def probe(
    matvec: Callable[[Tensor], Tensor],
    size: int,
    rng: np.random.Generator,
    num_probes: int,
    num_steps: int,
    tolerance: float = 1e-12,
    device: torch.device | str = "cpu",
) -> tuple[np.ndarray, np.ndarray]:
    """Run Lanczos from ``num_probes`` random sign vectors (Rademacher).

    Returns
    -------
    tuple
        Ritz values and weights, float64 [R, K], K of the longest run; a run that stopped early repeats its largest value
        with weight 0.
    """
    starts_RA = rng.integers(0, 2, (num_probes, size)) * 2.0 - 1.0
    runs = [lanczos(matvec, torch.from_numpy(start_A).to(device), num_steps, tolerance) for start_A in starts_RA]
    longest = max(len(values) for values, _ in runs)
    values_RK = np.stack([np.pad(values, (0, longest - len(values)), mode="edge") for values, _ in runs])
    weights_RK = np.stack([np.pad(weights, (0, longest - len(weights))) for _, weights in runs])
    return values_RK, weights_RK


@dataclass(frozen=True)
class SpectralDensity:
    """A density of eigenvalues on an even grid; its sum times the grid's step is 1."""

    grid_G: np.ndarray
    density_G: np.ndarray

    def share_above(self, threshold: float) -> float:
        """Return the share of eigenvalues above ``threshold``, in [0, 1]: the published code's ratio.

        Grid points count one step late there, so the mass at the last point stays above every threshold: nothing in a
        narrow spectrum, some percent where the grid is several tens wide.
        """
        # Grid points at or below the threshold, except the first: each closes one cell of the sum.
        cells = max(0, int(np.searchsorted(self.grid_G, threshold, side="right")) - 1)
        return min(max(1.0 - float(self._below_G[cells]), 0.0), 1.0)

    @cached_property
    def _below_G(self) -> np.ndarray:
        step = self.grid_G[1] - self.grid_G[0]
        return np.concatenate([[0.0], np.cumsum(self.density_G[:-1]) * step])


def spectral_density(values_RK: np.ndarray, weights_RK: np.ndarray) -> SpectralDensity:
    """Smooth Ritz values into a density by Gaussians, with the constants of the published code.

    Parameters
    ----------
    values_RK, weights_RK
        From :func:`probe`; the density is the mean over the R runs. The grid spans the means of the runs' smallest and
        largest values.

    Raises
    ------
    ArithmeticError
        If a value or weight is not finite, or no value lies on the grid (with probes that have little in common).
    """
    values_RK, weights_RK = np.atleast_2d(values_RK, weights_RK)
    if not (np.isfinite(values_RK).all() and np.isfinite(weights_RK).all()):
        raise ArithmeticError("the spectrum has values or weights that are not finite")
    low = values_RK.min(axis=1).mean() - GRID_MARGIN
    high = values_RK.max(axis=1).mean() + GRID_MARGIN
    grid_G = np.linspace(low, high, GRID_POINTS)
    variance = VARIANCE * max(1.0, high - low)
    density_G = np.zeros(GRID_POINTS)
    for values_K, weights_K in zip(values_RK, weights_RK, strict=True):
        bumps_KG = np.exp(-((grid_G - values_K[:, None]) ** 2) / (2.0 * variance))
        # Not a matrix product, whose last bits would depend on the number of threads.
        density_G += (weights_K[:, None] * bumps_KG).sum(axis=0)
    total = density_G.sum() * (grid_G[1] - grid_G[0])
    if not total > 0.0:
        raise ArithmeticError("the spectra of the probes have nothing in common; take more Lanczos steps")
    return SpectralDensity(grid_G, density_G / total)

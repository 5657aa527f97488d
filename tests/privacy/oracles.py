"""Epsilon computed from the formulas of the papers, with nothing of dp-accounting and nothing of fedsim."""

from __future__ import annotations

import math
from decimal import Decimal, getcontext

import numpy as np

ORDERS = [1 + x / 10 for x in range(1, 100)] + [11, 12]
"""The best order is among them wherever the tests look."""


def epsilon_of_divergences(divergences: list[float], orders: list[float], delta: float) -> float:
    """Canonne, Kamath and Steinke 2020 (arXiv 2004.00010), proposition 12."""
    return min(
        r + math.log1p(-1 / a) - math.log(delta * a) / (a - 1)
        for r, a in zip(divergences, orders, strict=True)
        if a > 1.01
    )


def poisson_divergence(rate: float, sigma: float, order: float) -> float:
    """Mironov, Talwar and Zhang 2019, theorem 5: E_Q (P/Q)^order, by the trapezoid rule."""
    x = np.linspace(-40 * sigma, 40 * sigma + order, 20_001)
    ratio = np.log1p(rate * np.expm1(np.minimum((2 * x - 1) / (2 * sigma**2), 700.0)))
    logs = order * ratio - x**2 / (2 * sigma**2)
    moment = np.trapezoid(np.exp(logs - logs.max()), x) / (sigma * math.sqrt(2 * math.pi))
    return (math.log(moment) + logs.max()) / (order - 1)


def fixed_divergences(rate: float, sigma: float, orders: list[float]) -> list[float]:
    """Wang, Balle and Kasiviswanathan 2019, theorem 27 and corollary 10, in 60 digits."""
    getcontext().prec = 60
    most = math.ceil(max(orders))
    moment = [(Decimal(i * (i - 1)) / Decimal(2 * sigma**2)).exp() for i in range(most + 3)]
    q = Decimal(rate)

    def difference(order: int) -> Decimal:
        return sum(((-1) ** i * math.comb(order, i) * moment[i] for i in range(order + 1)), Decimal(0))

    def log_moment(a: int) -> float:
        if a == 1:
            return 0.0
        total = Decimal(1) + math.comb(a, 2) * q**2 * min(4 * (moment[2] - 1), 2 * moment[2])
        for j in range(3, a + 1):
            both = (abs(difference(2 * (j // 2))) * abs(difference(2 * ((j + 1) // 2)))).sqrt()
            total += math.comb(a, j) * q**j * min(4 * both, 2 * moment[j])
        return float(total.ln())

    logs = {a: log_moment(a) for a in range(1, most + 1)}
    found = []
    for order in orders:
        low, high = math.floor(order), math.ceil(order)
        share = order - low
        found.append(((1 - share) * logs[low] + share * logs[high]) / (order - 1))
    return found


def poisson_epsilon(rate: float, sigma: float, rounds: int, delta: float) -> float:
    """Privacy loss distributions on a grid, composed by FFT; the larger epsilon of adding and removing."""
    return max(_composed(rate, sigma, rounds, delta, added) for added in (True, False))


def _composed(rate: float, sigma: float, rounds: int, delta: float, added: bool) -> float:
    step, size = 1e-3, 2**18
    losses = (np.arange(size) - size // 2) * step
    edges = losses - step / 2
    if added:  # log P/Q under P = (1 - q) N(0) + q N(1); rises with x
        cumulated = _mixture(_where(edges, rate, sigma), rate, sigma)
    else:  # log Q/P under Q = N(0): its values are those of -log P/Q
        cumulated = 1.0 - _normal(_where(-edges, rate, sigma) / sigma)
    masses = np.clip(np.diff(np.append(cumulated, 1.0)), 0.0, None)
    spectrum = np.fft.rfft(np.roll(masses, -(size // 2))) ** rounds
    total = np.roll(np.fft.irfft(spectrum, size), size // 2)
    low, high = 0.0, 60.0
    for _ in range(60):
        epsilon = (low + high) / 2
        above = losses > epsilon
        spent = float(np.sum(total[above] * -np.expm1(epsilon - losses[above])))
        low, high = (epsilon, high) if spent > delta else (low, epsilon)
    return high


def _where(loss: np.ndarray, rate: float, sigma: float) -> np.ndarray:
    """Return the x with log(1 - q + q exp((2 x - 1) / (2 s^2))) = loss; -inf below all losses."""
    with np.errstate(divide="ignore", invalid="ignore"):
        inner = np.log(np.maximum(np.expm1(np.minimum(loss, 600.0)) / rate + 1.0, 0.0))
    return inner * sigma**2 + 0.5


def _mixture(x: np.ndarray, rate: float, sigma: float) -> np.ndarray:
    return (1 - rate) * _normal(x / sigma) + rate * _normal((x - 1) / sigma)


def _normal(x: np.ndarray) -> np.ndarray:
    return 0.5 * np.vectorize(math.erfc)(-x / math.sqrt(2))

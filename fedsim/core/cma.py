"""Separable CMA-ES: search by ranks of losses, without gradients, in time linear in the size of the vector.

Candidates are drawn around a mean with a standard deviation of each entry's own; the better half moves the mean, and where
steps agree, or are longer than chance would have them, deviations grow. It is CMA-ES with a diagonal covariance (Ros & Hansen
2008, which speeds up its learning rates by (n + 2) / 3), with the constants of Hansen's tutorial (arXiv 1604.00772).

Shape suffixes: F entries of the vector, N candidates, U parents.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class Rates:
    """Learning rates for a vector of ``size`` entries; the parents' mean has 1 / ``parents`` of a candidate's variance."""

    size: int
    parents: float

    @property
    def path_sigma(self) -> float:
        """Of the path that tells whether steps are longer than chance."""
        return (self.parents + 2) / (self.size + self.parents + 5)

    @property
    def damping(self) -> float:
        """Damping of the step size."""
        return 1 + 2 * max(0.0, math.sqrt((self.parents - 1) / (self.size + 1)) - 1) + self.path_sigma

    @property
    def path_c(self) -> float:
        """Of the path that tells in which entries steps agree."""
        share = self.parents / self.size
        return (4 + share) / (self.size + 4 + 2 * share)

    @property
    def variances(self) -> tuple[float, float]:
        """Of variances, towards that path's square and towards the spread of the parents."""
        faster = (self.size + 2) / 3
        one = min(1.0, faster * 2 / ((self.size + 1.3) ** 2 + self.parents))
        wanted = faster * 2 * (self.parents - 2 + 1 / self.parents) / ((self.size + 2) ** 2 + self.parents)
        return one, max(0.0, min(1 - one, wanted))

    @property
    def chance(self) -> float:
        """Expected norm of a standard normal vector."""
        return math.sqrt(self.size) * (1 - 1 / (4 * self.size) + 1 / (21 * self.size**2))


@dataclass(frozen=True)
class Spread:
    """How far candidates lie around the mean, and what it is learned from."""

    deviation_F: np.ndarray
    """float64; standard deviation of each entry."""
    path_sigma_F: np.ndarray
    path_c_F: np.ndarray
    """Decayed sums of the mean's steps, in units of deviations."""

    @classmethod
    def of(cls, deviation_F: np.ndarray) -> Spread:
        """Return the spread before any step."""
        return cls(np.array(deviation_F, np.float64), np.zeros(len(deviation_F)), np.zeros(len(deviation_F)))

    def after(self, rates: Rates, moved_F: np.ndarray, squares_F: np.ndarray, steps: int) -> tuple[Spread, float]:
        """Return the spread after a step of the mean, and the factor of the step size alone.

        Parameters
        ----------
        moved_F
            The step, in units of its own deviation: standard normal if the parents were drawn by chance.
        squares_F
            Mean squares of the parents' steps, in units of the candidates' deviations.
        steps
            Steps before this one.
        """
        cs, cc, (c1, cmu) = rates.path_sigma, rates.path_c, rates.variances
        path_sigma_F = (1 - cs) * self.path_sigma_F + math.sqrt(cs * (2 - cs)) * moved_F
        norm = float(np.linalg.norm(path_sigma_F))
        # After a long step the other path waits, lest variances grow before the step size has.
        grown_up = math.sqrt(1 - (1 - cs) ** (2 * (steps + 1)))
        held = float(norm / grown_up < (1.4 + 2 / (rates.size + 1)) * rates.chance)
        path_c_F = (1 - cc) * self.path_c_F + held * math.sqrt(cc * (2 - cc)) * moved_F
        waiting = (1 - held) * cc * (2 - cc)
        factor_F = np.sqrt(1 - c1 - cmu + c1 * (path_c_F**2 + waiting) + cmu * squares_F)
        scale = math.exp(min(1.0, cs / rates.damping * (norm / rates.chance - 1)))
        # The path is kept in units of the new variances.
        return Spread(self.deviation_F * factor_F * scale, path_sigma_F, path_c_F / factor_F), scale


class SeparableCma:
    """A search that asks for the losses of candidates.

    Parameters
    ----------
    mean_F
        Where it starts.
    deviation_F
        Standard deviation of the first candidates.
    population
        Candidates of a step, N; :func:`usual_population` if not given.
    rng
        Draws them.
    """

    def __init__(
        self, mean_F: np.ndarray, deviation_F: np.ndarray, population: int | None, rng: np.random.Generator
    ) -> None:
        self.mean_F = np.array(mean_F, np.float64)
        self.walked = 0.0
        """Variance that chance alone would have given the mean, in units of the square of the first deviation."""
        self._spread, self._rng = Spread.of(deviation_F), rng
        self._population = population or usual_population(len(mean_F))
        ranks_U = np.arange(1, self._population // 2 + 1)
        self._weights_U = np.log((self._population + 1) / 2) - np.log(ranks_U)
        self._weights_U /= self._weights_U.sum()
        self._rates = Rates(len(mean_F), float(1 / np.square(self._weights_U).sum()))
        self._steps, self._scale = 0, 1.0

    @property
    def deviation_F(self) -> np.ndarray:
        """Standard deviation of the next candidates."""
        return self._spread.deviation_F

    def ask(self) -> np.ndarray:
        """Draw the candidates of a step, float64 [N, F]."""
        self._drawn_NF = self._rng.standard_normal((self._population, len(self.mean_F)))
        return self.mean_F + self._spread.deviation_F * self._drawn_NF

    def tell(self, losses_N: np.ndarray) -> None:
        """Take the step, given the loss of each candidate; one without a finite loss comes last."""
        losses_N = np.where(np.isfinite(losses_N), losses_N, np.inf)
        if np.isinf(losses_N).all():
            self.mean_F = np.full_like(self.mean_F, np.nan)  # nothing to go by: reported as a failed client
            return
        parents_UF = self._drawn_NF[np.argsort(losses_N, kind="stable")[: len(self._weights_U)]]
        step_F = self._weights_U @ parents_UF
        self.mean_F = self.mean_F + self._spread.deviation_F * step_F
        self.walked += self._scale**2 / self._rates.parents
        moved_F, squares_F = math.sqrt(self._rates.parents) * step_F, self._weights_U @ np.square(parents_UF)
        self._spread, scale = self._spread.after(self._rates, moved_F, squares_F, self._steps)
        self._scale *= scale
        self._steps += 1


def usual_population(size: int) -> int:
    """Return 4 + 3 ln(size), rounded down: Hansen's number of candidates."""
    return 4 + int(3 * math.log(size))

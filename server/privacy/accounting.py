"""Epsilon of a run, by Google's dp-accounting, which is imported here alone and when it is first needed.

A round's release is the noisy sum of changes clipped to C. Its noise has the standard deviation z C, with z the
``noise_multiplier``.

* ``sampling.draw: fixed``: a cohort of m of n clients without replacement. Neighbours differ in one client's data (replace
  one), which moves the sum by up to 2 C, so relative to what a neighbour changes the noise is z / 2. Bound: Rényi divergences
  of Wang, Balle and Kasiviswanathan 2019 (arXiv 1808.00087). With m = n nothing is drawn, and the
  Gaussian's own epsilon is exact.
* ``poisson``: each client with rate q. Neighbours differ by one client more (add or remove one), which moves the sum by up to
  C, so the noise is z. Privacy loss distributions, or Rényi divergences (Mironov, Talwar and Zhang 2019, arXiv 1908.10530).

With an adaptive norm a round also releases the noisy number of clients within it; see :attr:`Accounting.effective_multiplier`.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from importlib.util import find_spec
from typing import Any, Literal

from fedsim.core.errors import ConfigError

Accountant = Literal["rdp", "pld", "gaussian"]


@dataclass(frozen=True)
class Draws:
    """How the cohorts of a run are drawn."""

    poisson: bool
    clients: int
    """Of a cohort; expected, if ``poisson``."""
    population: int

    @property
    def rate(self) -> float:
        """Chance of a client to be drawn in a round."""
        return self.clients / self.population

    @property
    def relation(self) -> str:
        """What neighbouring populations differ in."""
        return "add_or_remove_one" if self.poisson else "replace_one"

    @property
    def sensitivity(self) -> int:
        """What a neighbour changes at most in the sum, in clipping norms."""
        return 1 if self.poisson else 2

    def accountant(self, asked: str) -> Accountant:
        """Return the accountant that the draws allow.

        Parameters
        ----------
        asked
            ``privacy.accountant``.

        Raises
        ------
        ConfigError
            If it does not fit.
        """
        if self.rate == 1.0 and asked != "rdp":
            return "gaussian"
        if asked == "pld" and not self.poisson:
            raise ConfigError(
                f"privacy.accountant=pld has no bound for cohorts of a fixed size ({self.clients} of {self.population} "
                f"clients); set privacy.accountant=rdp, or sampling.draw=poisson"
            )
        return "pld" if self.poisson and asked != "rdp" else "rdp"


@dataclass(frozen=True)
class Accounting:
    """Epsilon by number of rounds.

    Parameters
    ----------
    noise_multiplier
        z: standard deviation of the noise on the sum, divided by the clipping norm.
    bit_noise
        Standard deviation of the noise on the number of clients within an adaptive norm; None for a fixed norm.
    """

    draws: Draws
    kind: Accountant
    noise_multiplier: float
    delta: float
    bit_noise: float | None = None

    @property
    def effective_multiplier(self) -> float:
        """Return the z of a release of the sum alone that tells as much as the sum and the bits (Andrew et al. 2021)."""
        return combined_multiplier(self.noise_multiplier, self.bit_noise)

    def epsilon(self, rounds: int) -> float:
        """Return epsilon after ``rounds`` rounds; 0 after none."""
        if rounds not in self._known:
            self._known[rounds] = self._epsilon(rounds) if rounds else 0.0
        return self._known[rounds]

    @cached_property
    def _known(self) -> dict[int, float]:
        return {}

    def _epsilon(self, rounds: int) -> float:
        z = self.effective_multiplier / self.draws.sensitivity
        if self.kind == "gaussian":
            return float(_dp().get_epsilon_gaussian(z / math.sqrt(rounds), self.delta))
        if self.kind == "pld":
            return float(self._loss.self_compose(rounds).get_epsilon_for_delta(self.delta))
        return self._best_order(rounds)[0]

    def short_of_orders(self, rounds: int) -> bool:
        """Whether Rényi orders end too early for this much noise: the divergence is a small part of epsilon at the best one.

        Where orders are free, both parts of epsilon are about equal at the best order.
        """
        if self.kind != "rdp":
            return False
        epsilon, order = self._best_order(rounds)
        divergence = rounds * float(dict(zip(*self._divergences, strict=True))[order])
        return divergence < 0.25 * epsilon or epsilon == 0.0

    def _best_order(self, rounds: int) -> tuple[float, float]:
        """Return epsilon by Rényi divergences, and the order that gives it."""
        from dp_accounting import rdp

        orders, divergences = self._divergences
        epsilon, order = rdp.compute_epsilon(orders, rounds * divergences, self.delta)
        return float(epsilon), float(order)

    @cached_property
    def _loss(self) -> Any:
        """The privacy loss distribution of one round."""
        from dp_accounting.pld import privacy_loss_distribution

        z, rate = self.effective_multiplier, self.draws.rate
        # A hundredth of a round's typical loss: the bound is above the exact one by less than 1e-4 of it.
        interval = min(1e-3, max(1e-5, 0.01 * rate / z))
        return privacy_loss_distribution.from_gaussian_mechanism(
            z, sampling_prob=rate, value_discretization_interval=interval
        )

    @cached_property
    def _divergences(self) -> tuple[Any, Any]:
        """Rényi divergences of one round, and their orders."""
        from dp_accounting import rdp

        dp, draws = _dp(), self.draws
        release = dp.GaussianDpEvent(self.effective_multiplier / draws.sensitivity)
        if draws.poisson:
            relation, event = "ADD_OR_REMOVE_ONE", dp.PoissonSampledDpEvent(draws.rate, release)
        else:
            relation = "REPLACE_ONE"
            event = dp.SampledWithoutReplacementDpEvent(draws.population, draws.clients, release)
        with _quiet():
            accountant = rdp.RdpAccountant(neighboring_relation=dp.NeighboringRelation[relation]).compose(event)
        return accountant.orders, accountant.rdp


def combined_multiplier(noise_multiplier: float, bit_noise: float | None) -> float:
    """Return (z^-2 + (2 s)^-2)^-1/2, s the bit noise; z without bits."""
    return noise_multiplier if bit_noise is None else (noise_multiplier**-2 + (2.0 * bit_noise) ** -2) ** -0.5


def multiplier_beside_bits(effective: float, bit_noise: float | None) -> float:
    """Return the noise multiplier of the sum for that of sum and bits together: (z^-2 - (2 s)^-2)^-1/2.

    Raises
    ------
    ConfigError
        If the bits alone tell more.
    """
    if bit_noise is None:
        return effective
    if effective >= 2.0 * bit_noise:
        raise ConfigError(
            f"privacy.adaptive.bit_noise is {bit_noise:g}, but the noise asked for needs more than {effective / 2.0:.4g}; "
            f"raise privacy.adaptive.bit_noise or sampling.clients_per_round"
        )
    return float((effective**-2 - (2.0 * bit_noise) ** -2) ** -0.5)


def require_accounting() -> None:
    """Refuse a private run where dp-accounting is not installed.

    Raises
    ------
    ConfigError
        Naming what to install.
    """
    if find_spec("dp_accounting") is None:
        raise ConfigError('privacy needs the package dp-accounting; install it with: pip install "fedsim[privacy]"')


def _dp() -> Any:
    require_accounting()
    with _quiet():
        import dp_accounting
    return dp_accounting


@contextmanager
def _quiet() -> Iterator[None]:
    """Keep out warnings about single orders: what they leave out is not in the bound."""
    log = logging.getLogger("absl")
    before = log.level
    log.setLevel(logging.ERROR)
    try:
        yield
    finally:
        log.setLevel(before)

"""From the section ``privacy`` to a run's mechanism and its accounting."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import Any

from fedsim.core.errors import ConfigError
from server.config import SamplingConfig
from server.privacy.accounting import Accounting, Draws, multiplier_beside_bits, require_accounting
from server.privacy.config import PrivacyConfig
from server.privacy.mechanism import AdaptiveNorm, Mechanism

_MOST_NOISE = 1e6
_DIGITS = 1e-4
"""A noise multiplier that is found is rounded up to this precision, so that the last bits of a library do not matter."""


@dataclass(frozen=True)
class PrivacyPlan:
    """A run's mechanism, and what it spends."""

    mechanism: Mechanism
    accounting: Accounting
    notes: tuple[str, ...] = ()
    """What the user should know."""

    @classmethod
    @lru_cache(maxsize=4)
    def of(
        cls, privacy: PrivacyConfig, sampling: SamplingConfig, population: int, rounds: int, seed: int
    ) -> PrivacyPlan:
        """Return the plan of a run.

        Parameters
        ----------
        population
            Clients that can be drawn.
        rounds
            Rounds that ``target_epsilon`` is for.

        Raises
        ------
        ConfigError
            If there is no such mechanism, or dp-accounting is not installed.
        """
        require_accounting()
        draws = Draws(sampling.draw == "poisson", sampling.clients_per_round, population)
        if draws.clients > population:
            raise ConfigError(
                f"sampling.clients_per_round is {draws.clients}, but only {population} clients have training examples"
            )
        kind = draws.accountant(privacy.accountant)
        given, notes = privacy.adaptive, []
        bits = None if given is None else given.bit_noise or draws.clients / 20
        start = Accounting(draws, kind, 1.0, privacy.delta)
        if privacy.delta >= 1.0 / population:
            notes.append(
                f"privacy.delta={privacy.delta:g} is not below 1 / {population} clients, so the guarantee allows for a "
                "client's data to be published"
            )
        if privacy.noise_multiplier is None:
            assert privacy.target_epsilon is not None, "one of the two is given"
            effective = found_multiplier(start, privacy.target_epsilon, rounds)
            if replace(start, noise_multiplier=effective).short_of_orders(rounds):
                notes.append(_floor_note(privacy.target_epsilon, draws, effective))
            multiplier = multiplier_beside_bits(effective, bits)
        else:
            multiplier = privacy.noise_multiplier
        accounting = replace(start, noise_multiplier=multiplier, bit_noise=bits)
        adaptive = None if given is None or bits is None else AdaptiveNorm(given.quantile, given.lr, bits)
        at_clients = privacy.noise == "clients"
        mechanism = Mechanism(seed, draws.clients, privacy.clip_norm, multiplier, at_clients, adaptive)
        return cls(mechanism, accounting, tuple(notes))

    def described(self, rounds: int) -> dict[str, Any]:
        """Return what the summary says of the guarantee after ``rounds`` rounds."""
        accounting, mechanism = self.accounting, self.mechanism
        draws = accounting.draws
        return {
            "epsilon": accounting.epsilon(rounds),
            "delta": accounting.delta,
            "relation": draws.relation,
            "sensitivity_norms": draws.sensitivity,
            "noise_multiplier": mechanism.noise_multiplier,
            "effective_noise_multiplier": accounting.effective_multiplier,
            "noise_over_sensitivity": accounting.effective_multiplier / draws.sensitivity,
            "bit_noise": accounting.bit_noise,
            "draw": "poisson" if draws.poisson else "fixed",
            "clients_per_round": draws.clients,
            "population": draws.population,
            "accountant": accounting.kind,
            "noise": "clients" if mechanism.at_clients else "server",
            "assumptions": list(assumptions(self)),
        }


def assumptions(plan: PrivacyPlan) -> tuple[str, ...]:
    """Return what the guarantee rests on, in sentences."""
    draws = plan.accounting.draws
    drawn = (
        f"each of {draws.population} clients is drawn with rate {draws.rate:g}, apart from the others"
        if draws.poisson
        else f"{draws.clients} of {draws.population} clients are drawn uniformly, without replacement"
    )
    change = "adding or removing a client" if draws.poisson else "replacing a client's data"
    norms = "the clipping norm" if draws.sensitivity == 1 else "twice the clipping norm"
    holder = "each client adds its share of the noise" if plan.mechanism.at_clients else "the server adds the noise"
    return (
        f"neighbours differ by {change}, which moves the sum by up to {norms}",
        f"{drawn}, and who was drawn stays secret",
        f"{holder}, and nobody learns the seed of the noise",
        "what is released are the global states (and a clipping norm that adapts); losses, counts and norms of single clients "
        "in this run's records and logs are the experimenter's view and are not covered",
        "one run: a search, other seeds or a start from another run of the same clients add up",
    )


def found_multiplier(accounting: Accounting, target: float, rounds: int) -> float:
    """Return the least noise multiplier whose epsilon after ``rounds`` is at most ``target``, rounded up.

    Raises
    ------
    ConfigError
        If no noise is enough.
    """

    def spent(multiplier: float) -> float:
        return replace(accounting, noise_multiplier=multiplier).epsilon(rounds)

    low, high = 0.5, 1.0
    while spent(high) > target:
        low, high = high, high * 2.0
        if high > _MOST_NOISE:
            raise ConfigError(
                f"privacy.target_epsilon={target:g} is less than {accounting.kind} can show with any noise ({rounds} rounds, "
                f"delta {accounting.delta:g}); raise it, or set sampling.draw=poisson with privacy.accountant=auto"
            )
    while spent(low) <= target:
        low, high = low / 2.0, low
    from scipy.optimize import brentq  # dp-accounting has it

    near = math.exp(brentq(lambda x: spent(math.exp(x)) - target, math.log(low), math.log(high), xtol=_DIGITS / 10.0))
    unit = 10.0 ** math.floor(math.log10(near)) * _DIGITS
    found = float(f"{math.ceil(near / unit) * unit:.6g}")
    return found if spent(found) <= target else float(f"{found + unit:.6g}")


def _floor_note(target: float, draws: Draws, effective: float) -> str:
    return (
        f"privacy.target_epsilon={target:g} is in the range where Rényi accounting asks for far more noise than is needed "
        f"(here {effective:.4g}): its orders end too early"
        + ("; set privacy.accountant=auto" if draws.poisson else "; sampling.draw=poisson has a tighter accountant")
    )

"""Who is drawn among the clients in reach. Pure functions of seed, round and what earlier rounds taught.

Shape suffixes: N clients, T clients of a tier.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from fedsim.core import seeds
from fedsim.world.utility import Losses, oort_utility
from server.config import SamplingConfig
from server.sampling import cohort

_CUT = 0.95
"""oort: clients with a utility above this share of the last one chosen by rank can be drawn in its place."""


@dataclass(frozen=True)
class Selection:
    """Draws clients of a population, of which only some are in reach."""

    config: SamplingConfig
    seed: int
    sizes_N: np.ndarray
    """Training examples of each client; 0 for clients that can never be drawn."""
    seconds_N: np.ndarray | None = None
    """Length of a visit of each client; None without devices."""

    def pool(self, round: int) -> np.ndarray:
        """Return which clients a round's cohort may consist of: all that can be drawn, or those of one tier.

        Every tier has its turn once in so many rounds as there are tiers, in an order drawn anew each time: credits of one.
        """
        able_N: np.ndarray = self.sizes_N > 0
        if self.config.kind != "tiers":
            return able_N
        assert self.seconds_N is not None, "tiers need devices"
        able, tiers = np.flatnonzero(able_N), self.config.tiers
        by_speed = able[np.argsort(self.seconds_N[able], kind="stable")]
        turn, place = divmod(round, tiers)
        order = seeds.stream(self.seed, turn, seeds.NO_CLIENT, "tiers").permutation(tiers)
        tier_T = np.array_split(by_speed, tiers)[order[place]]
        return np.isin(np.arange(len(able_N)), tier_T)

    def draw(self, round: int, many: int, in_reach_N: np.ndarray, losses: Losses) -> np.ndarray:
        """Return up to ``many`` of the clients ``in_reach_N``, in draw order."""
        many = min(many, int(in_reach_N.sum()))
        if not many:
            return np.empty(0, dtype=np.int64)
        if self.config.kind == "round_robin":
            turns = seeds.stream(self.seed, seeds.NO_ROUND, seeds.NO_CLIENT, "cohort").permutation(
                np.flatnonzero(self.sizes_N > 0)
            )
            turns = np.roll(turns, -(round * many) % len(turns))
            return turns[in_reach_N[turns]][:many]
        if self.config.kind == "power_of_choice":
            return self._highest_losses(round, many, in_reach_N, losses)
        if self.config.kind == "oort":
            return self._oort(round, many, in_reach_N, losses)
        return self._plain("by_size" if self.config.kind == "by_size" else "uniform", round, many, in_reach_N)

    def _plain(self, kind: str, round: int, many: int, in_reach_N: np.ndarray) -> np.ndarray:
        config = self.config.model_copy(update={"kind": kind, "clients_per_round": many})
        return cohort(config, self.seed, round, np.where(in_reach_N, self.sizes_N, 0))

    def _highest_losses(self, round: int, many: int, in_reach_N: np.ndarray, losses: Losses) -> np.ndarray:
        """Power of choice: of candidates drawn by their examples, those with the highest last losses; unknown ones first."""
        asked = self.config.candidates or 2 * self.config.clients_per_round
        candidates = self._plain("by_size", round, min(max(asked, many), int(in_reach_N.sum())), in_reach_N)
        loss = losses.last(round, len(self.sizes_N))[0][candidates]
        return candidates[np.argsort(-np.where(np.isnan(loss), np.inf, loss), kind="stable")[:many]]

    def _oort(self, round: int, many: int, in_reach_N: np.ndarray, losses: Losses) -> np.ndarray:
        assert self.seconds_N is not None, "oort needs devices"
        loss_N, seen_N = losses.last(round, len(self.sizes_N))
        known, fresh = np.flatnonzero(in_reach_N & ~np.isnan(loss_N)), np.flatnonzero(in_reach_N & np.isnan(loss_N))
        explored = min(len(fresh), max(round_half_up(self.config.exploration * many), many - len(known)))
        usual = float(np.median(self.seconds_N[self.sizes_N > 0]))
        utility = oort_utility(loss_N, seen_N, self.sizes_N, self.seconds_N, round, usual, self.config.speed_penalty)[
            known
        ]
        kept = many - explored
        rng = seeds.stream(self.seed, round, seeds.NO_CLIENT, "utility")
        if kept < len(known) and kept:
            near = utility >= _CUT * np.sort(utility)[-kept]
            known, utility = known[near], utility[near]
        best = _race(rng, known, utility)[:kept]
        return np.concatenate([best, _race(rng, fresh, 1.0 / self.seconds_N[fresh])[:explored]])


def _race(rng: np.random.Generator, clients: np.ndarray, rates: np.ndarray) -> np.ndarray:
    """Return clients drawn without replacement in proportion to rates; those of rate 0 last."""
    with np.errstate(divide="ignore"):
        return clients[np.argsort(rng.standard_exponential(len(clients)) / rates, kind="stable")]


def round_half_up(value: float) -> int:
    """Return the nearest whole number, the higher one of two."""
    return int(np.floor(value + 0.5))

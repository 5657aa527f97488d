"""Robust aggregation: rules that replace the mean when some clients may send arbitrary values. Pure functions, float64.

A rule sees each client's vector and applies to their control variates in the same way: median and trimmed mean coordinate by
coordinate, multi-Krum with the same clients, norm clipping with the same factors.

Median, trimmed mean and multi-Krum weigh all clients equally, as their sources do, because clients report their own weights.
Norm clipping keeps the weights of ``server.weighting``. See ``docs/robustness.md`` for sources and limits.

Shape suffixes: F entries of the exchanged vector, k clients in draw order, B entries of a block.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import numpy as np

from fedsim.core.errors import ClientError, PluginError
from fedsim.core.messages import VECTOR, CombinedUpdate
from fedsim.core.method import Correction, Rule, ServerState
from fedsim.core.robust import ROBUST_RULES, RobustRule

_ENTRIES = 2**14
"""Entries processed at a time, so that the clients' float64 copies of a block stay in the CPU cache."""


def robust_update(
    rule: RobustRule, corrections: tuple[Correction, ...], combined: CombinedUpdate, state: ServerState
) -> CombinedUpdate:
    """Return a round's update with its means replaced by a robust rule.

    Parameters
    ----------
    corrections
        The active ones; each applies the rule to what it sends.
    combined
        The round's update, including each client's vector.
    state
        The server state that the round started from.

    Raises
    ------
    ClientError
        If too few clients are left for the rule.
    PluginError
        If the rule does not return one vector of the right length.
    """
    if VECTOR not in combined.each or combined.weights_k is None:
        raise ValueError("a robust rule needs each client's vector, but the update has only sums")
    many = len(combined.clients)
    if (problem := rule.problem(many)) is not None:
        raise ClientError(f"round {combined.round + 1}: {many} clients of its cohort are left, and {problem}")
    fitted = rule.fit(combined.each[VECTOR], combined.weights_k, state.vector_F)
    robust_F = fitted(combined.each[VECTOR], state.vector_F)
    if np.shape(robust_F) != state.vector_F.shape:
        raise PluginError(
            f"the robust rule {type(rule).__name__} must return one array of {len(state.vector_F)} entries"
        )
    robust = replace(combined, vector_F=robust_F)
    for correction in corrections:
        robust = correction.remake(robust, state, fitted)
    return replace(robust, each={})


# -- the rules ---------------------------------------------------------------------------------------------------------


@ROBUST_RULES.register("median")
class Median(RobustRule):
    """The median of each coordinate; all clients weigh the same."""

    def fit(self, vector_kF: np.ndarray, weights_k: np.ndarray, vector_F: np.ndarray) -> Rule:
        """Return :func:`median`."""
        return lambda values_kF, _: median(values_kF)


@ROBUST_RULES.register("trimmed_mean")
class TrimmedMean(RobustRule):
    """The mean of each coordinate without its extremes; all clients weigh the same.

    Parameters
    ----------
    share
        Share of the clients trimmed at each end, rounded up.
    """

    def __init__(self, share: float) -> None:
        self.share = share

    @classmethod
    def of(cls, server: Any, params: Any = None) -> RobustRule:
        """Create the rule from ``server.trim_share``."""
        return cls(server.trim_share)

    def problem(self, clients: int) -> str | None:
        """Describe the problem if no client would be left."""
        if 2 * (trim := trim_count(self.share, clients)) < clients:
            return None
        largest = (clients - 1) // 2 / clients
        right = f"give at most {math.floor(largest * 1000) / 1000:g}" if largest else "let at least 3 clients take part"
        return f"server.trim_share={self.share:g} trims {trim} of {clients} clients at each end; {right}"

    def fit(self, vector_kF: np.ndarray, weights_k: np.ndarray, vector_F: np.ndarray) -> Rule:
        """Return :func:`trimmed_mean` for this number of clients."""
        trim = trim_count(self.share, len(vector_kF))
        return lambda values_kF, _: trimmed_mean(values_kF, trim)


@ROBUST_RULES.register("norm_clipping")
class NormClipping(RobustRule):
    """The weighted mean of the clients' changes, clipped to a norm.

    Parameters
    ----------
    clip_norm
        In units of the prompt's entries; None for the median of the cohort's norms.
    """

    def __init__(self, clip_norm: float | None) -> None:
        self.clip_norm = clip_norm

    @classmethod
    def of(cls, server: Any, params: Any = None) -> RobustRule:
        """Create the rule from ``server.clip_norm``."""
        return cls(None if server.clip_norm == "median" else server.clip_norm)

    def fit(self, vector_kF: np.ndarray, weights_k: np.ndarray, vector_F: np.ndarray) -> Rule:
        """Return the weighted mean with each client's factor."""
        share_k = clip_factors(vector_kF, vector_F, self.clip_norm) * (weights_k / weights_k.sum())
        return lambda values_kF, origin_F: _changed(origin_F, values_kF, share_k)


@ROBUST_RULES.register("multi_krum")
class MultiKrum(RobustRule):
    """The mean of the clients nearest to each other; all kept clients weigh the same.

    Parameters
    ----------
    assumed_attackers, kept_clients
        f and m; None for as many as the cohort allows.
    """

    def __init__(self, assumed_attackers: int | None, kept_clients: int | None) -> None:
        self.assumed_attackers, self.kept_clients = assumed_attackers, kept_clients

    @classmethod
    def of(cls, server: Any, params: Any = None) -> RobustRule:
        """Create the rule from ``server.assumed_attackers`` and ``server.kept_clients``."""
        return cls(server.assumed_attackers, server.kept_clients)

    def numbers(self, clients: int) -> tuple[int, int]:
        """Return the number of attackers f assumed among ``clients`` and of clients m kept.

        Where not configured, f is the most that n >= 2 f + 3 allows, and m = n - f - 2.
        """
        attackers = self.assumed_attackers if self.assumed_attackers is not None else (clients - 3) // 2
        return attackers, self.kept_clients if self.kept_clients is not None else clients - attackers - 2

    def problem(self, clients: int) -> str | None:
        """Describe the problem if there are fewer than 2 f + 3 clients, or more would be kept than are honest."""
        assumed = self.assumed_attackers or 0
        if clients < 2 * assumed + 3:
            most = max(0, (clients - 3) // 2)
            right = f"give server.assumed_attackers={most}" if clients >= 3 else "let at least 3 clients take part"
            return (
                f"server.aggregation=multi_krum needs 2 f + 3 = {2 * assumed + 3} clients for "
                f"f={assumed} attackers, not {clients}; {right}"
            )
        attackers, kept = self.numbers(clients)
        if kept > clients - attackers:
            return (
                f"server.kept_clients={kept} of {clients} with {attackers} attackers assumed would keep attackers; give at "
                f"most {clients - attackers}"
            )
        return None

    def fit(self, vector_kF: np.ndarray, weights_k: np.ndarray, vector_F: np.ndarray) -> Rule:
        """Return the mean of the kept clients."""
        kept = krum_selection(vector_kF, *self.numbers(len(vector_kF)))
        share_k = np.full(len(kept), 1.0 / len(kept))
        return lambda values_kF, origin_F: _changed(origin_F, values_kF[kept], share_k)


# -- functions --------------------------------------------------------------------------------------------------------


def trim_count(share: float, clients: int) -> int:
    """Return how many clients are trimmed at each end: ``share`` of them, rounded up."""
    return math.ceil(round(share * clients, 9))


def trimmed_mean(values_kF: np.ndarray, trim: int) -> np.ndarray:
    """Return the mean of each coordinate without its ``trim`` smallest and ``trim`` largest values (Yin et al. 2018).

    Returns
    -------
    np.ndarray
        float64 [F]; the same bits for any order of the clients.
    """
    many, size = values_kF.shape
    result_F = np.empty(size)
    for block in _blocks(size):
        sorted_Bk = np.sort(values_kF[:, block].T, axis=1)
        result_F[block] = sorted_Bk[:, trim : many - trim].mean(axis=1, dtype=np.float64)
    return result_F


def median(values_kF: np.ndarray) -> np.ndarray:
    """Return the median of each coordinate, the mean of the middle two for an even number (Yin et al. 2018)."""
    return trimmed_mean(values_kF, (len(values_kF) - 1) // 2)


def clip_factors(vector_kF: np.ndarray, vector_F: np.ndarray, clip_norm: float | None) -> np.ndarray:
    """Return s_i = min(1, M / |P_i - P_t|) for each client (Sun et al. 2019), float64 [k].

    Parameters
    ----------
    clip_norm
        M, in the units of the prompt's entries; None for the median of the cohort's norms.
    """
    norms_k = np.array([math.sqrt(np.square(own_F - vector_F).sum()) for own_F in vector_kF])
    limit = float(np.median(norms_k)) if clip_norm is None else clip_norm
    return np.divide(limit, norms_k, out=np.ones_like(norms_k), where=norms_k > limit)


def krum_selection(vector_kF: np.ndarray, attackers: int, kept: int) -> np.ndarray:
    """Return the positions, ascending, of the ``kept`` clients with the lowest Krum score (Blanchard et al. 2017).

    A client's score is the sum of the squared distances to its n - f - 2 nearest neighbours, where f is ``attackers``. Ties
    go to the client drawn first.
    """
    many = len(vector_kF)
    distance_kk = squared_distances(vector_kF)
    np.fill_diagonal(distance_kk, np.inf)
    score_k = np.sort(distance_kk, axis=1)[:, : many - attackers - 2].sum(axis=1)
    return np.sort(np.argsort(score_k, kind="stable")[:kept])


def squared_distances(vector_kF: np.ndarray) -> np.ndarray:
    """Return the squared distances between clients, float64 [k, k].

    Differences are squared and added one by one, k^2 F / 2 of them: a matrix product would be faster, but it cancels digits
    where clients are close, and its bits depend on the number of threads: a client kept here could be left out there.
    """
    many, size = vector_kF.shape
    result_kk = np.zeros((many, many))
    for block in _blocks(size):
        own_kB = vector_kF[:, block].astype(np.float64)
        for i in range(many - 1):
            gap_kB = own_kB[i + 1 :] - own_kB[i]
            result_kk[i, i + 1 :] += np.einsum("kb,kb->k", gap_kB, gap_kB)
    return result_kk + result_kk.T


def _changed(origin_F: np.ndarray, values_kF: np.ndarray, share_k: np.ndarray) -> np.ndarray:
    """Return the origin plus the clients' changes from it, weighted by their shares and added in draw order."""
    change_F = np.zeros_like(origin_F)
    for value_F, share in zip(values_kF, share_k.tolist(), strict=True):
        change_F += share * (value_F - origin_F)
    return origin_F + change_F


def _blocks(size: int) -> Iterator[slice]:
    return (slice(start, start + _ENTRIES) for start in range(0, size, _ENTRIES))

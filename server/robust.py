"""Robust aggregation: rules that stand in for the mean where some clients may send anything. Pure functions, float64.

A rule looks at the clients' vectors one by one and is applied to their control variates in the same way: median and trimmed
mean coordinate by coordinate, multi-Krum with the same clients, norm clipping with the same factors.

Median, trimmed mean and multi-Krum count every client as one, as their sources do: a weight is a number that the client states
itself. Norm clipping keeps the weights of ``server.weighting``. Sources and limits stand in ``docs/robustness.md``.

Shape suffixes: F entries of the exchanged vector, k clients in the order in which the cohort was drawn, B entries of a block.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import replace

import numpy as np

from fedsim.core.errors import ClientError
from server.aggregation import CombinedUpdate
from server.config import ServerConfig

_ENTRIES = 2**14
"""Entries that are looked at at a time: the clients' float64 copies of a block stay in the processor's cache."""

Rule = Callable[[np.ndarray, np.ndarray], np.ndarray]
"""From the clients' vectors [k, F] and the server's own [F], which they are changes of, to one vector [F]."""


def robust_update(
    config: ServerConfig, combined: CombinedUpdate, vector_F: np.ndarray, control_F: np.ndarray | None
) -> CombinedUpdate:
    """Return a round's update with the averages replaced by ``server.aggregation``.

    The server's control variate follows the clients' with c+ = c + share (rule(c_i+) - c), share the cohort's part of all
    weights. The mean's form, c + share mean(c_i+ - c_i), relies on every term that was added being taken off again, which holds
    for no other rule: errors would stay in c for ever.

    Parameters
    ----------
    combined
        With the clients one by one.
    vector_F
        P_t.
    control_F
        c, or None if the method has none.

    Raises
    ------
    ClientError
        If so few clients are left that the rule is not defined.
    """
    if combined.vector_kF is None or combined.weights_k is None:
        raise ValueError(
            f"server.aggregation={config.aggregation} needs the clients one by one, but has only their sums"
        )
    many = len(combined.clients)
    if (problem := robust_problem(config, many)) is not None:
        raise ClientError(f"round {combined.round + 1}: of its cohort {many} clients are left, and {problem}")
    rule = _rule(config, combined.vector_kF, combined.weights_k, vector_F)
    result = replace(combined, vector_F=rule(combined.vector_kF, vector_F), vector_kF=None, control_kF=None)
    if control_F is None:
        return result
    if combined.control_kF is None:
        raise ValueError(f"server.aggregation={config.aggregation} needs the clients' control variates one by one")
    used_F = rule(combined.control_kF, control_F)
    new_F = used_F if combined.control_after_kF is None else rule(combined.control_after_kF, control_F)
    total = combined.steps_sum if config.control_mean == "steps" else combined.weight_sum
    return replace(result, control_F=used_F, control_delta_sum_F=total * (new_F - control_F), control_after_kF=None)


def robust_problem(config: ServerConfig, clients: int) -> str | None:
    """Return why the rule is not defined for a cohort of ``clients``, as half a sentence, or None where it is."""
    if config.aggregation == "trimmed_mean" and 2 * (trim := trim_count(config.trim_share, clients)) >= clients:
        largest = (clients - 1) // 2 / clients
        right = f"give at most {math.floor(largest * 1000) / 1000:g}" if largest else "let at least 3 clients take part"
        return f"server.trim_share={config.trim_share:g} takes {trim} of {clients} off each side; {right}"
    if config.aggregation == "multi_krum":
        assumed = config.assumed_attackers
        if clients < 2 * (assumed or 0) + 3:
            most = max(0, (clients - 3) // 2)
            right = f"give server.assumed_attackers={most}" if clients >= 3 else "let at least 3 clients take part"
            return (
                f"server.aggregation=multi_krum needs 2 f + 3 = {2 * (assumed or 0) + 3} clients for "
                f"f={assumed or 0} attackers, not {clients}; {right}"
            )
        attackers, kept = krum_numbers(config, clients)
        if kept > clients - attackers:
            return (
                f"server.kept_clients={kept} of {clients} with {attackers} attackers assumed would keep attackers; give at "
                f"most {clients - attackers}"
            )
    return None


def trim_count(share: float, clients: int) -> int:
    """Return how many clients are taken off each side: ``share`` of them, rounded up."""
    return math.ceil(round(share * clients, 9))


def krum_numbers(config: ServerConfig, clients: int) -> tuple[int, int]:
    """Return the attackers f that multi-Krum assumes among ``clients`` and the clients m that it keeps.

    f is the most that n >= 2 f + 3 allows and m = n - f - 2, where the config does not say.
    """
    attackers = config.assumed_attackers if config.assumed_attackers is not None else (clients - 3) // 2
    return attackers, config.kept_clients if config.kept_clients is not None else clients - attackers - 2


# -- the rules ---------------------------------------------------------------------------------------------------------


def trimmed_mean(values_kF: np.ndarray, trim: int) -> np.ndarray:
    """Return the mean of each coordinate without its ``trim`` smallest and ``trim`` largest values (Yin et al. 2018).

    Returns
    -------
    np.ndarray
        float64 [F]; the same bits in whatever order the clients stand.
    """
    many, size = values_kF.shape
    result_F = np.empty(size)
    for block in _blocks(size):
        sorted_Bk = np.sort(values_kF[:, block].T, axis=1)
        result_F[block] = sorted_Bk[:, trim : many - trim].mean(axis=1, dtype=np.float64)
    return result_F


def median(values_kF: np.ndarray) -> np.ndarray:
    """Return the median of each coordinate, of an even number the mean of the two in the middle (Yin et al. 2018)."""
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

    A client's score is the sum of the squared distances to its n - f - 2 nearest neighbours, f the ``attackers``. Of equal
    scores the client that was drawn first is kept.
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


def _rule(config: ServerConfig, vector_kF: np.ndarray, weights_k: np.ndarray, vector_F: np.ndarray) -> Rule:
    many = len(vector_kF)
    if config.aggregation == "median":
        return lambda values_kF, _: median(values_kF)
    if config.aggregation == "trimmed_mean":
        return lambda values_kF, _: trimmed_mean(values_kF, trim_count(config.trim_share, many))
    if config.aggregation == "multi_krum":
        kept = krum_selection(vector_kF, *krum_numbers(config, many))
        return lambda values_kF, origin_F: _changed(origin_F, values_kF[kept], np.full(len(kept), 1.0 / len(kept)))
    clip_norm = None if config.clip_norm == "median" else config.clip_norm
    share_k = clip_factors(vector_kF, vector_F, clip_norm) * (weights_k / weights_k.sum())
    return lambda values_kF, origin_F: _changed(origin_F, values_kF, share_k)


def _changed(origin_F: np.ndarray, values_kF: np.ndarray, share_k: np.ndarray) -> np.ndarray:
    """Return the origin plus the clients' changes from it in these shares, added in the order in which they were drawn."""
    change_F = np.zeros_like(origin_F)
    for value_F, share in zip(values_kF, share_k.tolist(), strict=True):
        change_F += share * (value_F - origin_F)
    return origin_F + change_F


def _blocks(size: int) -> Iterator[slice]:
    return (slice(start, start + _ENTRIES) for start in range(0, size, _ENTRIES))

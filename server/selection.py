"""Choice of the layers whose prompts are exchanged: combines the devices' layer scores, ranks and chooses.

Shape suffixes: L layers of the backbone, k clients.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

from fedsim.core import seeds
from fedsim.core.errors import ClientError, ConfigError
from server.config import LayersConfig


def combine_scores(
    scores_kL: Sequence[np.ndarray] | np.ndarray, num_examples: Sequence[int] | np.ndarray
) -> np.ndarray:
    """Return zeta_l = sum_i n_i zeta_il / sum_i n_i, float64 [L] (the published FedPepTAO code, layer scores).

    Parameters
    ----------
    scores_kL
        Scores of each client that did not fail.
    num_examples
        Training examples n_i of each client.

    Raises
    ------
    ClientError
        If there is no client, or a score is not finite.
    """
    scores_kL = np.asarray(scores_kL, dtype=np.float64)
    weights_k = np.asarray(num_examples, dtype=np.float64)
    if len(scores_kL) == 0 or weights_k.sum() <= 0:
        raise ClientError("no client scored the layers, so none can be chosen; layers.choose=all needs no scores")
    if scores_kL.ndim != 2 or weights_k.shape != scores_kL.shape[:1]:
        raise ValueError(f"scores of shape {scores_kL.shape} do not fit {weights_k.shape} numbers of examples")
    bad = int((~np.isfinite(scores_kL).all(axis=1)).sum())
    if bad:
        raise ClientError(f"the layer scores of {bad} of {len(scores_kL)} clients are NaN or infinite")
    combined: np.ndarray = weights_k @ scores_kL / weights_k.sum()
    return combined


def score_spread(scores_kL: Sequence[np.ndarray] | np.ndarray, num_examples: Sequence[int] | np.ndarray) -> np.ndarray:
    """Return between which scores the middle 80% of the clients are, float64 [2, L].

    Clients differ in their level, which ranks no layer: each client's mean over layers is moved to that of the combined scores
    first (the spread within clients of Cousineau 2005).

    Parameters
    ----------
    scores_kL, num_examples
        As for :func:`combine_scores`.
    """
    level = combine_scores(scores_kL, num_examples).mean()
    scores_kL = np.asarray(scores_kL, dtype=np.float64)
    centred_kL = scores_kL - scores_kL.mean(axis=1, keepdims=True)
    spread: np.ndarray = level + np.quantile(centred_kL, [0.1, 0.9], axis=0)
    return spread


def combine_shares(
    shares_k: Sequence[float] | np.ndarray, num_examples: Sequence[int] | np.ndarray, weighting: str
) -> float:
    """Return the clients' average share of the layers, in [0, 1].

    Parameters
    ----------
    shares_k
        Share that each client estimated.
    num_examples
        Training examples n_i of each client.
    weighting
        ``examples``: sum_i n_i s_i / sum_i n_i; ``uniform``: the plain mean (published code).

    Raises
    ------
    ClientError
        If there is no client, or a share is not a number from 0 to 1.
    """
    shares_k = np.asarray(shares_k, dtype=np.float64)
    weights_k = np.asarray(num_examples, dtype=np.float64) if weighting == "examples" else np.ones(len(shares_k))
    if len(shares_k) == 0 or weights_k.sum() <= 0:
        raise ClientError("no client estimated its share of the layers; layers.share_rule=fixed needs no estimates")
    if weights_k.shape != shares_k.shape:
        raise ValueError(f"{len(shares_k)} shares do not fit {len(weights_k)} numbers of examples")
    bad = int((~((shares_k >= 0.0) & (shares_k <= 1.0))).sum())
    if bad:
        raise ClientError(f"the shares of {bad} of {len(shares_k)} clients are not numbers from 0 to 1")
    return min(float(weights_k @ shares_k / weights_k.sum()), 1.0)


def rank(scores_L: np.ndarray) -> np.ndarray:
    """Return the layers in descending order of score; ties go to the lower layer."""
    return np.argsort(-np.asarray(scores_L, dtype=np.float64), kind="stable")


def num_chosen(share: float, num_layers: int) -> int:
    """Return the number of layers that make up ``share``, rounded up."""
    # The epsilon keeps 0.07 * 100 = 7.000000000000001 from being rounded up to 8.
    return min(num_layers, max(1, math.ceil(share * num_layers - 1e-9)))


def choose_layers(
    config: LayersConfig, num_layers: int, scores_L: np.ndarray | None, seed: int, share: float | None = None
) -> tuple[int, ...]:
    """Return the exchanged layers, ascending.

    Parameters
    ----------
    config
        The ``layers`` section.
    num_layers
        Layers of the backbone.
    scores_L
        Combined scores; needed if ``config.choose`` is score.
    seed
        The run's root seed, for ``choose: random``.
    share
        Estimated share of the layers; ``config.share`` if not given.

    Raises
    ------
    ConfigError
        If ``fixed`` names a layer that the backbone does not have.
    """
    count = num_chosen(config.share if share is None else share, num_layers)
    if config.choose == "fixed":
        return _fixed(config.fixed or (), num_layers)
    if config.choose == "all":
        return tuple(range(num_layers))
    if config.choose == "top":
        return tuple(range(num_layers - count, num_layers))
    if config.choose == "bottom":
        return tuple(range(count))
    if config.choose == "random":
        rng = seeds.stream(seed, seeds.NO_ROUND, seeds.NO_CLIENT, "layers")
        return _ascending(rng.permutation(num_layers)[:count])
    if scores_L is None or len(scores_L) != num_layers:
        raise ValueError(f"layers.choose=score needs one score for each of {num_layers} layers")
    return _ascending(rank(scores_L)[:count])


def _fixed(layers: Sequence[int], num_layers: int) -> tuple[int, ...]:
    outside = [layer for layer in layers if not 0 <= layer < num_layers]
    if outside:
        raise ConfigError(
            f"layers.fixed names layer {outside[0]}, but the model has {num_layers} layers; "
            f"name layers from 0 to {num_layers - 1}"
        )
    return tuple(sorted(layers))


def _ascending(layers: np.ndarray) -> tuple[int, ...]:
    return tuple(sorted(int(layer) for layer in layers))

"""How the published code deals examples out to clients, one example after another.

A deal is an int array [clients, classes] of counts. Where the published code would raise, there is no deal; where it
would go round forever, there is the part of the deal that it had made.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

Array = np.ndarray
REDRAWS = 100_000
"""Draws for one example, all of classes that are used up, after which a deal counts as stuck; the published code goes on."""


def iid(labels: Array, classes: int, clients: int, alpha: float, rng: np.random.Generator) -> tuple[Array, int]:
    """Equal sizes, examples in any order."""
    pieces = np.array_split(rng.permutation(labels), clients)
    return np.stack([np.bincount(piece, minlength=classes) for piece in pieces]), 0


def dirichlet_quantity(
    labels: Array, classes: int, clients: int, alpha: float, rng: np.random.Generator
) -> tuple[Array, int] | None:
    """Sizes from Dirichlet(alpha), examples in any order; refused if a client would be empty."""
    sizes = sizes_of(alpha, len(labels), clients, rng)
    if sizes.min() < 1:
        return None
    pieces = np.split(rng.permutation(labels), np.cumsum(sizes)[:-1])
    return np.stack([np.bincount(piece, minlength=classes) for piece in pieces]), 0


def dirichlet_label(
    labels: Array, classes: int, clients: int, alpha: float, rng: np.random.Generator
) -> tuple[Array, int]:
    """Sizes from Dirichlet(5), class priors of each client from Dirichlet(alpha); returns what stayed unplaced, too."""
    quota = sizes_of(5.0, len(labels), clients, rng)
    priors = rng.dirichlet(np.full(classes, alpha), clients).cumsum(1)
    left = np.bincount(labels, minlength=classes)
    counts = np.zeros((clients, classes), dtype=int)
    while left.sum():
        client = int(rng.integers(clients))
        if not quota[client]:
            continue
        label = draw_class(priors[client], left, rng)
        if label is None:
            return counts, int(left.sum())
        quota[client] -= 1
        left[label] -= 1
        counts[client, label] += 1
    return counts, 0


def draw_class(prior: Array, left: Array, rng: np.random.Generator) -> int | None:
    """Draw from a cumulative prior until a class comes that has examples left; None if none comes."""
    for start in range(0, REDRAWS, 1000):
        uniforms = rng.random(1 if start == 0 else 1000)
        for label in np.minimum(np.searchsorted(prior, uniforms), len(left) - 1):
            if left[label]:
                return int(label)
    return None


def sizes_of(alpha: float, examples: int, clients: int, rng: np.random.Generator) -> Array:
    """Return rounded sizes; the first client gets what rounding leaves over, or gives what it lacks."""
    sizes = np.rint(rng.dirichlet(np.full(clients, alpha)) * examples).astype(int)
    sizes[0] += examples - sizes.sum()
    return sizes


METHODS: dict[str, Callable] = {
    "iid": iid,
    "dirichlet_quantity": dirichlet_quantity,
    "dirichlet_label": dirichlet_label,
}


def summary(deals: list[Array]) -> dict[str, float]:
    """Return the figures that a description gives of the deals of one setting."""
    counts = np.concatenate(deals)
    sizes = counts.sum(1)
    shares = counts / np.maximum(sizes, 1)[:, None]
    entropy = np.array([-sum(p * np.log(p) for p in row if p > 0) for row in shares])

    def spread(values: Array) -> float:
        return float(values.reshape(len(deals), -1).std(1).mean())

    return {
        "size_mean": float(sizes.mean()),
        "size_std": spread(sizes),
        "size_min": int(sizes.min()),
        "size_max": int(sizes.max()),
        "entropy_mean": float(entropy.mean()),
        "entropy_std": spread(entropy),
        "top_class_share_mean": float(shares.max(1).mean()),
    }

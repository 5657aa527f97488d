"""Which tokens of packed examples a head reads, and what each of them has to predict.

Shape suffixes: Z packed tokens, B examples, U rows that are read, R reads: pairs of a row and a token that it has to predict.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class Reads:
    """What a head reads of packed examples, several tokens an example."""

    rows_U: np.ndarray
    """int64; rows of ``ids_Z`` whose hidden state is read, each once, ascending."""
    read_R: np.ndarray
    """int64; place in ``rows_U`` of the row of each read."""
    targets_R: np.ndarray
    """int64; token id that it has to predict."""
    groups_R: np.ndarray
    """int64; group whose mean it enters: the example, or the example's candidate word; ascending."""
    num_groups: int
    """Number of groups, each with one read or more."""


def of_responses(ids_Z: np.ndarray, lengths_B: np.ndarray, response_starts_B: np.ndarray) -> Reads:
    """Return the reads of examples that end in a response: the row of each token predicts the next one; a group an example.

    Parameters
    ----------
    ids_Z
        int64 token ids of the examples, one after another.
    lengths_B
        Tokens of each example.
    response_starts_B
        Position in its example of each response's first token: at least 1, as a token before it predicts it.

    Raises
    ------
    ValueError
        If a response has no token, or none before it.
    """
    counts_B = lengths_B - response_starts_B
    if (counts_B < 1).any() or (response_starts_B < 1).any():
        raise ValueError("a response needs a token, and a token before it")
    last_B = np.cumsum(lengths_B) - 1
    place_Z = np.arange(len(ids_Z))
    first_Z, last_Z = (np.repeat(edge_B, lengths_B) for edge_B in (last_B - counts_B, last_B))
    rows_U = np.flatnonzero((place_Z >= first_Z) & (place_Z < last_Z))
    return _next_tokens(ids_Z, rows_U, np.repeat(np.arange(len(lengths_B)), counts_B), len(lengths_B))


def of_learned(ids_Z: np.ndarray, lengths_B: np.ndarray, learned_Z: np.ndarray) -> Reads:
    """Return the reads of the tokens that are learned, each predicted by the row before it; a group an example.

    Parameters
    ----------
    ids_Z
        int64 token ids of the examples, one after another.
    lengths_B
        Tokens of each example.
    learned_Z
        bool; the tokens that are learned: one or more of each example, and never its first, before which there is nothing.

    Raises
    ------
    ValueError
        If an example has no such token, or its first token is one.
    """
    example_Z = np.repeat(np.arange(len(lengths_B)), lengths_B)
    groups_R = example_Z[learned_Z]
    first_B = np.cumsum(lengths_B) - lengths_B
    if len(np.unique(groups_R)) < len(lengths_B) or learned_Z[first_B].any():
        raise ValueError("an example needs a token that is learned, and a token before it")
    return _next_tokens(ids_Z, np.flatnonzero(learned_Z) - 1, groups_R, len(lengths_B))


def _next_tokens(ids_Z: np.ndarray, rows_U: np.ndarray, groups_R: np.ndarray, num_groups: int) -> Reads:
    """Return the reads of rows each of which predicts the token behind it."""
    targets_R = ids_Z[rows_U + 1].astype(np.int64)
    return Reads(rows_U, np.arange(len(rows_U)), targets_R, groups_R, num_groups)

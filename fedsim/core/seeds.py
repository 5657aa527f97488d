"""Random streams: every draw of a run comes from a stream named by (root seed, round, client, purpose).

A stream depends on nothing else, so the number of actors, the order in which they finish, a retry or a resume cannot
change a draw. No global random state is read or written.
"""

from __future__ import annotations

import hashlib

import numpy as np

NO_ROUND = -1
"""Round of draws that happen once per run (the partition, the initial prompt)."""

NO_CLIENT = -1
"""Client of draws that belong to no client (the cohort)."""


def _sequence(root: int, round: int, client: int, purpose: str) -> np.random.SeedSequence:
    digest = hashlib.sha256(purpose.encode()).digest()
    return np.random.SeedSequence([root, round + 1, client + 1, int.from_bytes(digest[:8], "little")])


def stream(root: int, round: int, client: int, purpose: str) -> np.random.Generator:
    """Return the random stream of one purpose.

    Parameters
    ----------
    root
        The run's ``seed``, not negative.
    round
        Round counted from 0, or ``NO_ROUND``.
    client
        Client id counted from 0, or ``NO_CLIENT``.
    purpose
        What the numbers are for, for example ``"shuffle"``. Two purposes share no numbers.
    """
    return np.random.Generator(np.random.PCG64(_sequence(root, round, client, purpose)))


def torch_seed(root: int, round: int, client: int, purpose: str) -> int:
    """Return a 63-bit seed for a ``torch.Generator``, from a stream named in the same way."""
    return int(_sequence(root, round, client, purpose).generate_state(1, np.uint64)[0] >> np.uint64(1))

"""What earlier rounds taught of the clients: their losses, for selection by utility. Part of every checkpoint."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

import numpy as np

from fedsim.core.messages import ClientReport

_UNCERTAINTY = 0.1
"""Weight of a client's age in Oort's utility, as published."""


class Losses:
    """Losses that clients reported, by round: the mean over the first local epoch, so nearly that of the state sent out."""

    def __init__(self) -> None:
        self._rounds: dict[int, tuple[np.ndarray, np.ndarray]] = {}
        """By round: clients, and their losses."""

    def learn(self, round: int, reports: Iterable[ClientReport]) -> None:
        """Take in the reports of a round, counted from 0; what was known of it is replaced."""
        usable = [(report.client, report.loss_first) for report in reports if report.failure is None]
        self._rounds[round] = np.array([c for c, _ in usable], dtype=np.int64), np.array([loss for _, loss in usable])

    def last(self, round: int, clients: int) -> tuple[np.ndarray, np.ndarray]:
        """Return each client's last loss before a round, NaN if there is none, and the round that it is of, -1 if none."""
        loss_N, seen_N = np.full(clients, np.nan), np.full(clients, -1, dtype=np.int64)
        for number in sorted(self._rounds):
            if number < round:
                ids, losses = self._rounds[number]
                loss_N[ids], seen_N[ids] = losses, number
        return loss_N, seen_N

    def arrays(self, before: int) -> dict[str, np.ndarray]:
        """Return what was learned of the rounds before one, for a checkpoint."""
        rounds = sorted(round for round in self._rounds if round < before)
        lengths = [len(self._rounds[round][0]) for round in rounds]
        empty = np.empty(0)
        return {
            "round": np.repeat(np.array(rounds, dtype=np.int64), lengths),
            "client": np.concatenate([empty.astype(np.int64), *(self._rounds[round][0] for round in rounds)]),
            "loss": np.concatenate([empty, *(self._rounds[round][1] for round in rounds)]),
        }

    def restore(self, arrays: Mapping[str, np.ndarray]) -> None:
        """Take in what a checkpoint holds in place of what is known."""
        self._rounds = {}
        if not arrays:
            return
        for round in np.unique(arrays["round"]).tolist():
            rows = arrays["round"] == round
            self._rounds[round] = arrays["client"][rows], arrays["loss"][rows]


def oort_utility(
    loss_N: np.ndarray,
    seen_N: np.ndarray,
    sizes_N: np.ndarray,
    seconds_N: np.ndarray,
    round: int,
    usual_seconds: float,
    penalty: float,
) -> np.ndarray:
    """Return Oort's utility: examples times loss, more for clients not seen for long, less for slow ones.

    The published utility has the root mean square of the examples' losses, of which devices report the mean alone.
    """
    age_N = np.sqrt(_UNCERTAINTY * np.log(round + 1.0) / np.maximum(seen_N + 1, 1))
    statistical_N = sizes_N * loss_N
    slowness_N = np.maximum(seconds_N / usual_seconds, 1.0)
    utility_N: np.ndarray = (statistical_N + age_N) * slowness_N**-penalty
    return utility_N

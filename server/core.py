"""The server: owns the global state, folds group sums and takes the optimizer's step.

A plain class: the local executor calls it directly, the Ray actor (``server/aggregator.py``) is a thin shell around it.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from fedsim.core.errors import CheckpointError, listed
from fedsim.core.low_rank import LowRank
from fedsim.core.messages import BlockUpdate, CombinedUpdate, GlobalState, GroupUpdate
from fedsim.core.method import Method, ServerState
from fedsim.core.plugin_source import blaming
from fedsim.core.robust import RobustRule
from server.blocks import place
from server.broadcasting import Broadcasting, Broadcasts
from server.held import Held, combined
from server.privacy.mechanism import Mechanism, nobody
from server.privacy.rounds import PrivateRounds
from server.residual import with_residuals
from server.step import initial_state, state_from_arrays, state_to_arrays, step
from server.turns import part_of, with_part

_BROADCASTS = "broadcasts/"
"""Prefix of what the server knows about its messages, in its arrays."""
_VERSION = "version/"
"""Prefix of the names of earlier versions in a checkpoint."""


@dataclass(frozen=True)
class StepReport:
    """What a server step did; travels to the driver, holds no tensor."""

    round: int
    clients: int
    """Clients in the average."""
    rejected_clients: tuple[int, ...]
    """Clients left out because their group's sums were not finite."""
    update_norm: float
    """Norm of P_{t+1} - P_t."""
    lr: float
    """Server learning rate after the step."""
    clip_norm: float | None = None
    """Norm to which the round's clients clipped their changes; None without privacy."""


class Server:
    """Holds the method's state in float64 and broadcasts it in the dtype of the initial vector.

    Parameters
    ----------
    method
        Takes the server's step.
    vector_F
        Initial exchanged vector, usually float32.
    layers
        Exchanged layers, ascending.
    sample_rate
        Share rho of the population that takes part in a round.
    population_weight
        Sum of the weights of all clients; see :func:`server.step.step`.
    rule
        Robust rule that replaces the mean; None for the mean.
    turns
        Positions that rounds train in turn; none if every round trains all.
    low_rank
        Changes whose products are averaged exactly; none if averages of their factors are all there is.
    broadcasting
        How what devices receive is compressed; None if it is not.
    mechanism
        Makes the rounds private; None without privacy.
    staleness_exponent
        ``buffer.staleness_exponent`` of buffered rounds, in which sums may come before the step that takes them in; None for
        synchronous rounds.
    """

    def __init__(
        self,
        method: Method,
        vector_F: np.ndarray,
        layers: tuple[int, ...],
        sample_rate: float,
        population_weight: float | None = None,
        rule: RobustRule | None = None,
        turns: tuple[np.ndarray, ...] = (),
        low_rank: tuple[LowRank, ...] = (),
        broadcasting: Broadcasting | None = None,
        mechanism: Mechanism | None = None,
        staleness_exponent: float | None = None,
    ) -> None:
        if staleness_exponent is not None and (method.broadcast or broadcasting is not None or mechanism is not None):
            raise ValueError(
                "in buffered rounds clients also begin from earlier versions, of which only the vector is kept"
            )
        self._method = method
        self._layers = layers
        self._sample_rate = sample_rate
        self._population_weight = population_weight
        self._rule = rule
        self._turns = turns
        self._low_rank = low_rank
        self._privacy = None if mechanism is None else PrivateRounds(mechanism)
        self._staleness_exponent = staleness_exponent
        self._round = 0
        self._held = Held()
        self._kept: dict[int, np.ndarray] = {}
        """Earlier versions of the vector, as broadcast, from which clients have begun that no step has taken in."""
        self._dtype = vector_F.dtype
        self._state: ServerState = initial_state(method, np.asarray(vector_F, dtype=np.float64))
        self._broadcasts = None if broadcasting is None else Broadcasts(broadcasting, self._dtype, self._state)

    def global_state(self, version: int | None = None) -> GlobalState:
        """Return what is broadcast at the start of the next round, or was at that of an earlier one that is kept.

        An earlier version is the vector alone, which is all that buffered rounds broadcast.
        """
        if version is not None and version != self._round:
            return GlobalState(version, self._layers, self._kept[version])
        names, sent = self._method.broadcast, self._broadcasts
        return GlobalState(
            round=self._round,
            layers=self._layers,
            vector_F=self._state.vector_F.astype(self._dtype),
            arrays={name: self._state.array(name).astype(self._dtype) for name in names}
            if sent is None
            else sent.arrays(names, self._state),
            downloads={} if sent is None else sent.downloads(self._state),
            clipping=None if self._privacy is None else self._privacy.clipping,
        )

    def fold(self, round: int, *updates: GroupUpdate | BlockUpdate | None) -> None:
        """Add groups' sums to those of a round; the state does not change until :meth:`apply`.

        Parameters
        ----------
        round
            Round that takes the updates in; must be the one that starts from the current state, in buffered rounds that or a
            later one.
        updates
            One entry per group, part or block, in any order, but all after those of earlier calls; None where it has no
            usable client.
        """
        if round != self._round and (self._staleness_exponent is None or round < self._round):
            raise ValueError(f"updates of round {round} do not fit the server's state of round {self._round}")
        for update in sorted((update for update in updates if update is not None), key=_by_version):
            self._held.add(round, update)

    def apply(
        self,
        round: int,
        order: tuple[int, ...],
        *updates: GroupUpdate | BlockUpdate | None,
        keep: tuple[int, ...] = (),
    ) -> StepReport:
        """Fold the remaining updates and take the step.

        Parameters
        ----------
        round, updates
            As for :meth:`fold`.
        order
            The cohort in draw order; the published, chained server step depends on it.
        keep
            Versions of the state, up to that of this round, from which clients have begun that are still to be taken in.

        Raises
        ------
        ClientError
            If no update is usable; with privacy a round may have no client.
        """
        self.fold(round, *updates)
        clip_norm = None if self._privacy is None else self._privacy.clip_norm
        before_F = self._state.vector_F
        update = self._combined(round, order)
        self._kept = {version: self._kept[version] for version in keep if version != round}
        if round in keep:
            self._kept[round] = before_F.astype(self._dtype)
        self._state = self._stepped(update)
        self._round += 1
        if self._broadcasts is not None:
            with blaming():
                self._state = self._broadcasts.sent(before_F, self._state, self._round)
        return StepReport(
            round=round,
            clients=len(update.clients),
            rejected_clients=update.rejected_clients,
            update_norm=float(np.linalg.norm(self._state.vector_F - before_F)),
            lr=self._state.lr,
            clip_norm=clip_norm,
        )

    def _combined(self, round: int, order: tuple[int, ...]) -> CombinedUpdate:
        """Return the round's sums, made private if they are to be."""
        folds, vector_F = self._held.take(round), self._state.vector_F
        exponent, average = self._staleness_exponent or 0.0, self._method.average
        if self._privacy is None:
            return combined(folds, round, order, vector_F, self._kept, exponent, average)
        start_F = vector_F.astype(self._dtype)
        start_F = start_F[self._turns[round % len(self._turns)]] if self._turns else start_F
        sums = combined(folds, round, order, vector_F, {}, 0.0, average) if order else nobody(round, len(start_F))
        return self._privacy.combined(round, sums, start_F)

    def _stepped(self, combined: CombinedUpdate) -> ServerState:
        """Return the state after a round's step on the entries that it trained."""
        rest = self._sample_rate, self._population_weight, self._rule
        if not self._turns:
            return step(self._method, self._state, combined, *rest)
        positions_T = self._turns[self._round % len(self._turns)]
        part = step(self._method, part_of(self._state, positions_T), combined, *rest)
        state = with_part(self._state, part, positions_T)
        if not self._low_rank:
            return state
        return state.with_arrays(with_residuals(state.vector_F, part.vector_F, combined, self._low_rank))

    def arrays(self) -> dict[str, np.ndarray]:
        """Return the whole state as arrays, for a checkpoint."""
        saved = {} if self._broadcasts is None else self._broadcasts.saved()
        sent = {f"{_BROADCASTS}{name}": array for name, array in saved.items()}
        kept = {f"{_VERSION}{version}": vector_F for version, vector_F in self._kept.items()}
        own = {} if self._privacy is None else self._privacy.arrays()
        return {"round": np.array(self._round, dtype=np.int64), **own, **state_to_arrays(self._state), **sent, **kept}

    def load_arrays(self, arrays: dict[str, np.ndarray]) -> int:
        """Load the state of a checkpoint and return its round.

        Raises
        ------
        CheckpointError
            If the state does not fit this method.
        """
        rest = dict(arrays) if self._privacy is None else self._privacy.load(arrays)
        sent, kept = _taken(rest, _BROADCASTS), _taken(rest, _VERSION)
        round, state = int(rest.pop("round")), state_from_arrays(rest)
        if missing := sorted(set(self._state.arrays) - set(state.arrays)):
            raise CheckpointError(
                f"the server state of the checkpoint lacks {listed(missing)}; it was written by another version of fedsim"
            )
        if self._broadcasts is not None:
            self._broadcasts.load(sent)
        self._kept = {int(version): np.array(vector_F) for version, vector_F in kept.items()}
        self._round, self._held, self._state = round, Held(), state
        return self._round


def _taken(arrays: dict[str, np.ndarray], prefix: str) -> dict[str, np.ndarray]:
    """Remove the arrays whose names begin with a prefix, and return them without it."""
    return {name.removeprefix(prefix): arrays.pop(name) for name in list(arrays) if name.startswith(prefix)}


def _by_version(update: GroupUpdate | BlockUpdate) -> tuple[int, int, int]:
    return update.round, *place(update)

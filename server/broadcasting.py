"""Compression on the way down: the server's vector is what devices hold, and what messages lose waits for the next one.

A step from P_t, which all devices hold, gives P'. The message holds P' - P_t + e. Devices and server add what is read from it
to P_t, which gives P_{t+1}, and e becomes what is then left: error feedback for the server's steps (Karimireddy et al. 2019,
arXiv 1901.09847). So every method, robust rule and evaluation sees the vector that clients start from. Arrays that corrections
read stay as they are on the server; devices hold a version of their own, which follows by compressed differences.

Shape suffixes: F entries of the exchanged vector, R messages.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from fedsim.core import seeds
from fedsim.core.compression.blocks import Blocks
from fedsim.core.compression.codec import Plain
from fedsim.core.compression.links import Link
from fedsim.core.compression.message import Packer
from fedsim.core.messages import VECTOR
from fedsim.core.method import ServerState
from fedsim.core.traffic import Download

_UNSENT, _HELD, _SENT = "unsent", "held/", "sent/"


@dataclass(frozen=True)
class Broadcasting:
    """What the server sends, and how; config values and the vector's blocks only."""

    link: Link
    names: tuple[str, ...]
    """Arrays that devices receive, the vector first."""
    positive: frozenset[str]
    """Those of them that are positive: each of their messages holds the whole array."""
    blocks: Blocks
    seed: int


class Broadcasts:
    """What devices hold, and the bytes that it took.

    Parameters
    ----------
    dtype
        Number format in which vectors travel.
    state
        The state before the first round.
    """

    def __init__(self, plan: Broadcasting, dtype: np.dtype, state: ServerState) -> None:
        self._plan, self._dtype = plan, dtype
        self._names = tuple(name for name in plan.names if name == VECTOR or name in state.arrays)
        self._whole = Packer(Plain(), "none", plan.link.changes.zstd)
        self._unsent_F = np.zeros_like(state.vector_F)
        self._held: dict[str, np.ndarray] = {}
        self._sent: dict[str, np.ndarray] = {name: np.zeros(1, np.int64) for name in self._names}
        if plan.link.exact:
            return
        for name in self._names[1:]:
            self._held[name] = state.array(name).astype(dtype)
            if name in plan.positive:
                self._held[name] = self._send(name, self._held[name], 0)

    def sent(self, before_F: np.ndarray, state: ServerState, round: int) -> ServerState:
        """Return the state after a step once its messages are out.

        Parameters
        ----------
        before_F
            The vector that devices hold.
        state
            After the step.
        round
            The round that begins.
        """
        if self._plan.link.exact:
            return state
        for name in self._names[1:]:
            array_F = state.array(name)
            if name in self._plan.positive:
                self._held[name] = self._send(name, array_F.astype(self._dtype), round)
            else:
                self._held[name] = self._held[name] + self._send(name, array_F - self._held[name], round)
        wanted_F = state.vector_F - before_F + self._unsent_F
        vector_F = (before_F.astype(self._dtype) + self._send(VECTOR, wanted_F, round)).astype(before_F.dtype)
        self._unsent_F = wanted_F - (vector_F - before_F)
        return state.with_arrays(vector_F)

    def _send(self, name: str, array_F: np.ndarray, round: int) -> np.ndarray:
        """Send an array, or its change, and return what is read."""
        array_F = array_F.astype(self._dtype)
        if not np.isfinite(array_F).all():
            return array_F  # the run's own checks report it
        packer = self._plan.link.packer(positive=name in self._plan.positive)
        message = packer.pack(array_F, self._plan.blocks, self._stream(name, round))
        sent_R = self._sent[name]
        self._sent[name] = np.append(sent_R, sent_R[-1] + len(message)) if round else sent_R + len(message)
        return packer.unpack(message, self._plan.blocks)

    def _stream(self, name: str, round: int) -> np.random.Generator:
        return seeds.stream(self._plan.seed, round, seeds.NO_CLIENT, f"compress {name}")

    def arrays(self, names: tuple[str, ...], state: ServerState) -> dict[str, np.ndarray]:
        """Return the arrays of these names that a round's clients work with, in the number format of messages."""
        held = self._held
        return {name: held[name] if name in held else state.array(name).astype(self._dtype) for name in names}

    def downloads(self, state: ServerState) -> Mapping[str, Download]:
        """Return the size of each array, and of the messages that lead to it."""
        found = {}
        for name in self._names:
            sent_R = self._sent[name]
            if name in self._plan.positive and not self._plan.link.exact:
                found[name] = Download(int(sent_R[-1] - (sent_R[-2] if len(sent_R) > 1 else 0)))
                continue
            array_F = state.vector_F if name == VECTOR else self.arrays((name,), state)[name]
            whole = len(self._whole.pack(array_F.astype(self._dtype), self._plan.blocks, self._stream(name, 0)))
            found[name] = Download(whole, None if self._plan.link.exact else sent_R)
        return found

    # -- checkpoints ---------------------------------------------------------------------------------------------------

    def saved(self) -> dict[str, np.ndarray]:
        """Return everything as arrays."""
        held = {f"{_HELD}{name}": array_F for name, array_F in self._held.items()}
        return {_UNSENT: self._unsent_F, **held, **{f"{_SENT}{name}": sent_R for name, sent_R in self._sent.items()}}

    def load(self, arrays: Mapping[str, np.ndarray]) -> None:
        """Load what :meth:`saved` returned."""
        self._unsent_F = arrays[_UNSENT]
        self._held = {name.removeprefix(_HELD): array for name, array in arrays.items() if name.startswith(_HELD)}
        self._sent = {name.removeprefix(_SENT): array for name, array in arrays.items() if name.startswith(_SENT)}

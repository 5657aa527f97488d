"""The two halves of a method: :class:`Method` on the server, :class:`Correction` on the device. No torch here.

Both declare, by name, the arrays they pass to each other; traffic, client states, sums, checkpoints, the memory plan and the
arrays open to a robust rule follow from that. They hold config values only, so the driver can build them and pass them to
workers and server, which never look up a name.

One round: the server broadcasts P_t and those of its arrays that a correction ``reads``. A device trains: ``begin``, then
``gradient``, ``step`` and ``stepped`` in every local step, then ``finish`` returns what it keeps. Its ``terms`` are summed in
float64 over the round's clients; :meth:`Method.apply` computes the next state from the sums.

Shape suffixes: F entries of the exchanged vector, A all parameters a client trains, C clients side by side, k clients of a
round in the order drawn.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any, ClassVar

import numpy as np
from pydantic import Field, NonNegativeFloat, PositiveFloat

from fedsim.core.correction import CORRECTIONS, ClientRound, Correction, Entries, Local, Rule, check_names, times
from fedsim.core.messages import VECTOR, CombinedUpdate
from fedsim.core.registry import Registry, subclass_of
from fedsim.core.schema import Schema
from fedsim.core.uses import Use, Uses

__all__ = [
    "CORRECTIONS",
    "METHODS",
    "ClientRound",
    "Correction",
    "Entries",
    "Local",
    "Method",
    "MethodConfig",
    "Rule",
    "ServerState",
    "average_of",
    "check_names",
    "plain",
    "times",
]


@dataclass(frozen=True)
class ServerState:
    """Everything the server keeps from round to round. Arrays have the dtype of ``vector_F`` (float64 in a run)."""

    vector_F: np.ndarray
    """P_t."""
    lr: float
    """Learning rate of the last round, or of the first if there was none."""
    steps: int = 0
    """Rounds taken."""
    arrays: Mapping[str, np.ndarray] = field(default_factory=dict)
    """What the method keeps, by name."""

    def array(self, name: str) -> np.ndarray:
        """Return one of the method's arrays."""
        if name not in self.arrays:
            raise ValueError(f"the server state lacks the array {name!r}; was it made by another server.kind?")
        return self.arrays[name]

    def with_arrays(self, vector_F: np.ndarray | None = None, **arrays: np.ndarray) -> ServerState:
        """Return a copy of the state with the given vector and arrays replaced."""
        return replace(self, vector_F=self.vector_F if vector_F is None else vector_F, arrays={**self.arrays, **arrays})


class MethodConfig(Schema):
    """Keys of section ``server`` that every kind has, each with its own defaults."""

    lr: PositiveFloat = 1.0
    """Server learning rate (eta). The adaptive kinds normalize each step, so theirs is roughly how far an entry moves in a
    round; their default, 0.2, suits local learning rates of a few hundredths and is the first key to tune."""
    lr_decay: float = Field(default=1.0, gt=0.0, le=1.0)
    """Factor on the learning rate after every round."""
    lr_min: NonNegativeFloat = 1e-4
    """Learning rate at which the decay stops."""

    uses: ClassVar[Uses] = {
        "lr_min": (Use("lr_decay", test=lambda decay: decay < 1, words="it applies to a decay below 1"),)
    }

    @classmethod
    def __pydantic_init_subclass__(cls, **_: Any) -> None:
        """Let a key that is redeclared only to change its default inherit its description."""
        for name, key in cls.model_fields.items():
            inherited = (base.model_fields.get(name) for base in cls.__mro__[1:] if issubclass(base, Schema))
            key.description = key.description or next((above.description for above in inherited if above), None)


class Method:
    """The server's half of a method; this base class is FedAvg, P - eta (P - P_bar) (McMahan et al. 2017).

    Its hooks are pure functions of records: everything kept from round to round is in the state's arrays.

    Parameters
    ----------
    config
        Its own keys.
    correction
        The local correction that the config chooses.
    """

    Config: ClassVar[type[MethodConfig]] = MethodConfig
    """The keys of section ``server`` for this kind, besides those of :class:`server.config.ServerConfig`."""
    correction: ClassVar[str] = "none"
    """The correction that ``client.correction: auto`` selects."""
    allowed: ClassVar[tuple[str, ...] | None] = None
    """Values of ``client.correction`` that it supports; None for all."""
    instead: ClassVar[str] = ""
    """What to use for another correction, as worded in error messages."""
    one_by_one: bool = False
    """The step processes clients one by one, in the order drawn, with weights ``w_k`` and its corrections' ``singles``."""
    in_turn: str = "steps that take clients one by one"
    """What makes it do so, as worded in error messages."""

    def __init__(self, config: MethodConfig | None = None, correction: Correction | None = None) -> None:
        self.config: Any = type(self).Config() if config is None else config
        self.corrections: tuple[Correction, ...] = self.parts(correction or Correction())
        """The active corrections."""

    def parts(self, correction: Correction) -> tuple[Correction, ...]:
        """Return the active corrections: the chosen one, and any others that the method needs on devices."""
        return (correction,)

    @property
    def serves(self) -> tuple[str, ...]:
        """Names of the server's arrays that corrections can read."""
        return ()

    def init(self, vector_F: np.ndarray) -> Mapping[str, np.ndarray]:
        """Return the server's arrays before the first round."""
        return {}

    def apply(self, state: ServerState, combined: CombinedUpdate) -> ServerState:
        """Return the state after a round; its learning rate and count of steps are already those of this round.

        Written as P_bar + (1 - eta) (P - P_bar), so that eta = 1 gives P_bar to the last bit.
        """
        average_F = average_of(state, combined)
        return replace(state, vector_F=average_F + (1.0 - state.lr) * (state.vector_F - average_F))

    # -- what follows from the declarations ----------------------------------------------------------------------------

    @property
    def broadcast(self) -> tuple[str, ...]:
        """Names of the server's arrays that devices receive."""
        return tuple(name for part in self.corrections for name in part.reads if name in self.serves)

    @property
    def combining(self) -> Correction | None:
        """The correction that combines clients' vectors in its own way, or None for their mean."""
        return next((part for part in self.corrections if VECTOR in part.sums), None)

    def average(self, sums: Mapping[str, np.ndarray], weight_sum: float) -> np.ndarray:
        """Return P_bar from a round's sums."""
        return (self.combining or Correction()).average(sums, weight_sum)

    def sums_are_enough(self, *, robust: bool) -> bool:
        """Whether the server's mathematics runs on a round's sums alone, as with secure aggregation, which shows it no more."""
        return self.singles(robust=robust) is None

    def singles(self, *, robust: bool) -> tuple[str, ...] | None:
        """Return the names of arrays sent to the server per client, or None if sums are enough."""
        if not robust and not self.one_by_one:
            return None
        names = tuple(name for part in self.corrections for name in part.singles(robust=robust))
        return (VECTOR, *names) if robust else names


def plain(corrections: tuple[Correction, ...]) -> Method:
    """Return FedAvg with these corrections on devices: the method of a warm-up, whose server keeps no arrays for them."""
    method = Method()
    method.corrections = corrections
    return method


def average_of(state: ServerState, combined: CombinedUpdate) -> np.ndarray:
    """Return P_bar in the state's dtype."""
    return combined.vector_F.astype(state.vector_F.dtype, copy=False)


METHODS: Registry[type[Method]] = Registry(
    "server method",
    "server.kind",
    ("fedsim.methods.averaging", "fedsim.methods.adaptive", "fedsim.methods.control", "fedsim.methods.proximal",
     "fedsim.methods.feddyn", "fedsim.methods.fedbpt", "fedsim.methods.fedpeptao"),
    subclass_of(Method),
)  # fmt: skip

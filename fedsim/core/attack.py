"""Attacks: what simulated attackers train on, and what they send. Built-in ones: :mod:`clients.attacks`."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, ClassVar

import numpy as np

from fedsim.core.registry import Registry, subclass_of
from fedsim.core.schema import Schema


@dataclass(frozen=True)
class Message:
    """What a client is about to send, exchanged entries [F]."""

    start_F: np.ndarray
    """P_t."""
    vector_F: np.ndarray
    """P_i."""
    displacements: Mapping[str, np.ndarray] = field(default_factory=dict)
    """What its steps subtracted from the vector, by name, if a correction sends that too."""


class Attack:
    """Behavior of an attacking client; this base class does nothing. Holds config values only.

    What an attacker keeps follows from what it sends: its control variate is computed from the falsified vector.
    """

    Config: ClassVar[type[Schema] | None] = None
    """Keys of a plug-in, in section ``params.NAME``; passed in as :attr:`params`."""
    params: Any = None
    """An instance of ``Config``, or None if there is none."""

    def __init__(self, params: Any = None) -> None:
        self.params = params

    @classmethod
    def of(cls, attack: Any, params: Any = None) -> Attack:
        """Build the attack from section ``attack`` and its ``Config`` (None if it has none); called by the driver."""
        return cls() if cls.Config is None else cls(params)

    def labels(self, labels_N: np.ndarray, num_classes: int) -> np.ndarray:
        """Return the classes the attacker trains on, in place of its examples' own."""
        return labels_N

    def send(self, message: Message, rng: np.random.Generator) -> Message:
        """Return what the attacker sends, without writing to the arrays it was given.

        Parameters
        ----------
        rng
            The client's own random stream, new in every round.
        """
        return message


ATTACKS: Registry[type[Attack]] = Registry("attack", "attack.kind", ("clients.attacks",), subclass_of(Attack))

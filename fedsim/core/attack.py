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
    """What its steps took away from the vector, by name, where a correction sends that as well."""


class Attack:
    """What a client does that attacks; this base class does nothing. Holds values of the config alone.

    What an attacker keeps follows from what it sends: its control variate is that of the falsified vector.
    """

    Config: ClassVar[type[Schema] | None] = None
    """Keys of a plug-in, in section ``params.NAME``; they come as :attr:`params`."""
    params: Any = None
    """Its ``Config``, None where it has none."""

    def __init__(self, params: Any = None) -> None:
        self.params = params

    @classmethod
    def of(cls, attack: Any, params: Any = None) -> Attack:
        """Make it from the section ``attack`` and from its ``Config``, None where it has none; called by the driver."""
        return cls() if cls.Config is None else cls(params)

    def labels(self, labels_N: np.ndarray, num_classes: int) -> np.ndarray:
        """Return the classes that the attacker trains on, in place of those of its examples."""
        return labels_N

    def send(self, message: Message, rng: np.random.Generator) -> Message:
        """Return what the attacker sends; it writes to no array that it was given.

        Parameters
        ----------
        rng
            A stream of the client's own, anew in every round.
        """
        return message


ATTACKS: Registry[type[Attack]] = Registry("attack", "attack.kind", ("clients.attacks",), subclass_of(Attack))

"""Robust aggregation: replaces the mean when some clients may send anything. Built-in rules: :mod:`server.robust`.

Shape suffixes: F entries of the exchanged vector, k clients in the order in which the cohort was drawn.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import Any, ClassVar

import numpy as np

from fedsim.core.method import Rule
from fedsim.core.registry import Registry, subclass_of
from fedsim.core.schema import Schema


class RobustRule(ABC):
    """Combines a round's clients; holds config values only.

    It is fitted to the individual client vectors, then applied in the same way to control variates or whatever else a
    correction sends.
    """

    Config: ClassVar[type[Schema] | None] = None
    """Keys of a plug-in, in section ``params.NAME``; passed in as :attr:`params`."""
    params: Any = None
    """An instance of ``Config``, or None if there is none."""

    def __init__(self, params: Any = None) -> None:
        self.params = params

    @classmethod
    def of(cls, server: Any, params: Any = None) -> RobustRule:
        """Build the rule from section ``server`` and its ``Config`` (None if it has none); called by the driver."""
        return cls() if cls.Config is None else cls(params)

    def problem(self, clients: int) -> str | None:
        """Return None if the rule is defined for a cohort of this size, else why it is not and what would be right."""
        return None

    @abstractmethod
    def fit(self, vector_kF: np.ndarray, weights_k: np.ndarray, vector_F: np.ndarray) -> Rule:
        """Inspect a round's vectors and return the rule that combines arrays of its clients.

        Parameters
        ----------
        vector_kF, weights_k
            P_i and w_i.
        vector_F
            P_t.
        """


ROBUST_RULES: Registry[type[RobustRule]] = Registry(
    "robust rule", "server.aggregation", ("server.robust",), subclass_of(RobustRule)
)

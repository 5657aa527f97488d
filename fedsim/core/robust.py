"""Robust aggregation: what stands in for the mean where some clients may send anything. Built-in rules: :mod:`server.robust`.

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
    """Takes a round's clients together; holds values of the config alone.

    It looks at the clients' vectors one by one, and is applied to their control variates, or whatever else a correction
    sends, in the same way.
    """

    Config: ClassVar[type[Schema] | None] = None
    """Keys of a plug-in, in section ``params.NAME``; they come as :attr:`params`."""
    params: Any = None
    """Its ``Config``, None where it has none."""

    def __init__(self, params: Any = None) -> None:
        self.params = params

    @classmethod
    def of(cls, server: Any, params: Any = None) -> RobustRule:
        """Make it from the section ``server`` and from its ``Config``, None where it has none; called by the driver."""
        return cls() if cls.Config is None else cls(params)

    def problem(self, clients: int) -> str | None:
        """Return why the rule is not defined for a cohort of so many clients and what would be right, or None if it is."""
        return None

    @abstractmethod
    def fit(self, vector_kF: np.ndarray, weights_k: np.ndarray, vector_F: np.ndarray) -> Rule:
        """Look at a round's vectors; return what takes arrays of its clients together.

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

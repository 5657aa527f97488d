"""Natural clients: one per value of a column."""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from typing import Any

import numpy as np

from fedsim.core.errors import PartitionError
from partitions.base import PARTITIONERS, Partitioner


@PARTITIONERS.register("by_column")
class ByColumn(Partitioner):
    """Makes each value of ``partition.column`` a client, in ascending order of the values.

    If the column has more values than ``partition.clients``, that many are drawn with the seed, among the values
    with at least ``partition.min_size`` examples; the examples of the others are not used. Without ``partition.clients``,
    all values with that many examples become clients.
    """

    keys = ("column",)

    def deal(self, labels_N: np.ndarray, column: Sequence[Any] | None, rng: np.random.Generator) -> list[np.ndarray]:
        """See :meth:`Partitioner.deal`."""
        config = self.config
        if config.column is None:
            raise PartitionError(
                "partition.kind=by_column needs partition.column, the column whose values are the clients"
            )
        if column is None:
            raise PartitionError(f"partition.column={config.column!r} is not a column of the training data")
        groups = _groups(column, config.column)
        large = [group for group in groups if len(group) >= config.min_size]
        asked = len(large) if config.clients is None else config.clients
        if len(large) < max(asked, 1):
            raise PartitionError(self._too_few(len(large), len(groups)))
        drawn = np.sort(rng.choice(len(large), asked, replace=False))
        return [large[position] for position in drawn]

    def _too_few(self, num_large: int, num_values: int) -> str:
        config = self.config
        at_least = f" with {config.min_size} or more examples" if num_large < num_values else ""
        remedy = f"set partition.clients={num_large} or less" if num_large else "lower partition.min_size"
        values = "value" if num_large == 1 else "values"
        asked = "" if config.clients is None else f"partition.clients is {config.clients} but "
        return f"{asked}column {config.column!r} has only {num_large} {values}{at_least}; {remedy}"


def _groups(column: Sequence[Any], name: str) -> list[np.ndarray]:
    """Return the example numbers of each distinct value, in ascending order of the values."""
    rows: dict[Any, list[int]] = {}
    for row, value in enumerate(column):
        # The second test finds NaN, which tables read from files hold for missing values.
        if value is None or value != value or value == "":
            raise PartitionError(f"column {name!r} has no value in training example {row} (counted from 0)")
        if not isinstance(value, Hashable):
            raise PartitionError(
                f"column {name!r} holds a {type(value).__name__} in training example {row} (counted from 0), which cannot "
                "name a client; give a column of strings or numbers"
            )
        rows.setdefault(value, []).append(row)
    # Values of different types cannot be compared, so sort by type first.
    values = sorted(rows, key=lambda value: (type(value).__name__, value))
    return [np.array(rows[value], dtype=np.int64) for value in values]

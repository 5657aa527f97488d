"""Optional TensorBoard events of a run; everything written here is in ``rounds.parquet`` too."""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from fedsim.core.errors import ConfigError
from fedsim.records.events import writing

_GROUPS = ("metric", "loss", "clients", "bytes", "seconds")


class TensorBoard:
    """Writes round records as TensorBoard scalars, grouped as metric, loss, clients, bytes, seconds and other.

    Parameters
    ----------
    path
        Folder of the event files.
    first_round
        First round of a resumed run: events that an earlier process wrote for it and later rounds are hidden.

    Raises
    ------
    ConfigError
        If the package tensorboard is not installed.
    ResourceError
        By all methods, if the folder cannot be written.
    """

    def __init__(self, path: Path, first_round: int = 0) -> None:
        try:
            from torch.utils.tensorboard import SummaryWriter
        except ImportError as error:
            raise ConfigError(
                "tracking.tensorboard needs the package tensorboard: pip install fedsim[tensorboard], or set it false"
            ) from error
        self._path = path
        self._open = lambda first_round: SummaryWriter(str(path), purge_step=first_round)
        with writing(path):
            self._writer = self._open(first_round)

    def round(self, record: Mapping[str, Any]) -> None:
        """Write the numbers of one round record; missing and non-finite values are left out."""
        with writing(self._path):
            for name, value in record.items():
                if name != "round" and value is not None and math.isfinite(value):
                    self._writer.add_scalar(_tag(name), float(value), global_step=int(record["round"]))

    def go_back(self, first_round: int) -> None:
        """Hide events of ``first_round`` and later rounds, which are repeated."""
        with writing(self._path):
            self._writer.close()
            self._writer = self._open(first_round)

    def flush(self) -> None:
        """Flush the events to disk."""
        with writing(self._path):
            self._writer.flush()

    def close(self) -> None:
        """Write pending events and close the event file."""
        with writing(self._path):
            self._writer.close()


def _tag(name: str) -> str:
    group = next((group for group in _GROUPS if group in name.split("_")), "other")
    return f"{group}/{name}"

"""``trackers.json``: the id of a run in each service, and the last round that it has; what a resume goes on from."""

from __future__ import annotations

import json
import threading
from contextlib import suppress
from pathlib import Path
from typing import Any

from fedsim.records.events import replaced

NAME = "trackers.json"


class TrackedState:
    """Reads and writes ``trackers.json``; threads may share it."""

    def __init__(self, folder: Path) -> None:
        self._path = folder / NAME
        self._lock = threading.Lock()
        self._values: dict[str, dict[str, Any]] = _read(self._path)

    @property
    def begun(self) -> bool:
        """Whether the run was tracked before."""
        return bool(self._values)

    def id(self, tracker: str) -> str | None:
        """Return the id of the run in a service, if it was tracked before."""
        found = self._values.get(tracker, {}).get("id")
        return found if isinstance(found, str) else None

    def last_round(self, tracker: str) -> int:
        """Return the last round that a service has; -1 for none."""
        found = self._values.get(tracker, {}).get("round")
        return found if isinstance(found, int) else -1

    def note(self, tracker: str, **values: Any) -> None:
        """Set values of a tracker. What cannot be written costs a resume some rounds sent twice, and this run nothing."""
        with self._lock:
            self._values[tracker] = {**self._values.get(tracker, {}), **values}
            with suppress(OSError), replaced(self._path) as file:
                file.write((json.dumps(self._values, indent=2) + "\n").encode())


def _read(path: Path) -> dict[str, dict[str, Any]]:
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    good = isinstance(values, dict) and all(isinstance(each, dict) for each in values.values())
    return values if good else {}

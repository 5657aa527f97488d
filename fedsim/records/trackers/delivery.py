"""Delivery of a run's calls to one tracker, in order, on a thread of its own, so that no round waits for a service."""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass

from fedsim.core.plugin_source import said
from fedsim.records.trackers.base import without_secrets

_LONGEST_REASON = 300


_TRIES = 2
"""Calls of the end are made this often, all others until they succeed or the end comes."""


@dataclass
class _Call:
    what: str
    act: Callable[[], object]
    needed: bool = False
    """Whether nothing can follow without it."""
    tries: int = 0


class Delivery:
    """Delivers calls in the background.

    A call that raises stays the first in line, and is made again when the next one comes, so that a service that was away
    for a while gets all it missed. At the end each call that is left has its last tries.

    Parameters
    ----------
    name
        Name of the tracker.
    most
        Calls that may wait; further ones are not delivered.

    Attributes
    ----------
    reason
        Why the first call that failed did so; None if none did.
    missed
        Calls that the tracker never got.
    """

    def __init__(self, name: str, most: int = 10_000) -> None:
        self.name = name
        self.reason: str | None = None
        self.missed = 0
        self._most = most
        self._waiting: deque[_Call] = deque()
        self._news = threading.Condition()
        self._closing = False
        self._has_news = False
        # A daemon: a service that never answers must not keep the process.
        self._thread = threading.Thread(target=self._serve, name=f"fedsim-tracker-{name}", daemon=True)
        self._thread.start()

    def put(self, what: str, act: Callable[[], object], *, needed: bool = False) -> None:
        """Add a call to the line; returns at once.

        Parameters
        ----------
        what
            Name of the call in messages.
        needed
            Whether the calls behind it make no sense without it.
        """
        with self._news:
            if len(self._waiting) >= self._most:
                self.missed += 1
                self._blame(f"{self._most} calls are waiting for it")
                return
            self._waiting.append(_Call(what, act, needed))
            self._has_news = True
            self._news.notify()

    def end(self) -> None:
        """Let the thread end when all is delivered; returns at once."""
        with self._news:
            self._closing = True
            self._news.notify()

    def wait(self, timeout_seconds: float) -> None:
        """Wait for the end of the thread; after the time, what is left counts as missed."""
        self._thread.join(max(0.0, timeout_seconds))
        with self._news:
            if self._thread.is_alive():
                self.missed += len(self._waiting)
                self._waiting.clear()
                self._blame("it did not take everything in time (tracking.flush_seconds)")

    def _serve(self) -> None:
        while True:
            with self._news:
                self._news.wait_for(lambda: self._has_news or self._closing)
                self._has_news, last = False, self._closing
            self._deliver(last)
            if last:
                return

    def _deliver(self, last: bool) -> None:
        while (call := self._first()) is not None:
            call.tries += 1
            try:
                call.act()
            except (
                BaseException
            ) as error:  # libraries raise KeyboardInterrupt and SystemExit too; this thread gets neither
                with self._news:
                    self._blame(f"{call.what}: {said(error)}")
                    if not last:
                        return
                    if call.tries < _TRIES:
                        continue
                    self.missed += len(self._waiting) if call.needed else 1
                    if call.needed:
                        self._waiting.clear()
            with self._news:
                if self._waiting:
                    self._waiting.popleft()

    def _first(self) -> _Call | None:
        with self._news:
            return self._waiting[0] if self._waiting else None

    def _blame(self, reason: str) -> None:
        if self.reason is None:
            self.reason = without_secrets(reason)[:_LONGEST_REASON]

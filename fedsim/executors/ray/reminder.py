"""Messages of a long wait: at once, and again as time passes."""

from __future__ import annotations

import time
from collections.abc import Callable

_FIRST_SECONDS, _LONGEST_SECONDS = 60.0, 600.0


class Reminder:
    """Tells the user what is waited for: at once, and then after 1, 2, 4, ... minutes, at most 10 apart.

    Parameters
    ----------
    note
        Called with messages for the user.
    clock
        Monotonic time in seconds.
    """

    def __init__(self, note: Callable[[str], None], clock: Callable[[], float] = time.monotonic) -> None:
        self._note = note
        self._clock = clock
        self._began: float | None = None
        self._next = 0.0
        self._pause = _FIRST_SECONDS

    def tell(self, sentence: str) -> None:
        """Say the sentence if it is time to."""
        now = self._clock()
        if self._began is None:
            self._began = self._next = now
        if now < self._next:
            return
        minutes = round((now - self._began) / 60)
        self._note(f"{sentence}; for {minutes} min now" if minutes else sentence)
        if minutes:
            self._pause = min(2 * self._pause, _LONGEST_SECONDS)
        self._next = now + self._pause

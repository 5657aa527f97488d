"""SIGINT and SIGTERM: the first asks the run to save and end, the second ends it at once."""

from __future__ import annotations

import signal
import threading
from types import FrameType, TracebackType
from typing import Any

SIGNALS = (signal.SIGINT, signal.SIGTERM)


def retake_signals() -> None:
    """Put Python's handlers in front again, where a native library has put its own (Ray does when it connects)."""
    if threading.current_thread() is threading.main_thread():
        for number in SIGNALS:
            handler = signal.getsignal(number)
            if handler is not None:
                signal.signal(number, handler)


class RunInterrupted(Exception):  # noqa: N818 - it is no error
    """The run was asked to end; raised at a point where nothing is half done.

    Attributes
    ----------
    signal_number
        The signal that asked.
    kept
        What is kept of a run, and how to go on, as half a sentence; empty where there is nothing to say.
    """

    def __init__(self, signal_number: int) -> None:
        super().__init__(signal.Signals(signal_number).name)
        self.signal_number = signal_number
        self.kept = ""


class InterruptWatch:
    """Context manager that turns signals into a question asked at safe points.

    Outside the main thread, where Python allows no handlers, it watches nothing.
    """

    def __init__(self) -> None:
        self._received: int | None = None
        self._before: dict[int, Any] = {}

    def __enter__(self) -> InterruptWatch:
        if threading.current_thread() is threading.main_thread():
            for number in SIGNALS:
                self._before[number] = signal.signal(number, self._receive)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)
        self._before.clear()

    def _receive(self, number: int, frame: FrameType | None) -> None:
        if self._received is not None:
            raise KeyboardInterrupt
        self._received = number

    def check(self) -> None:
        """Raise :class:`RunInterrupted` if a signal has come."""
        if self._received is not None:
            raise RunInterrupted(self._received)

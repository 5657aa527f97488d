"""SIGINT and SIGTERM: the first makes the run save and end, the second ends it at once."""

from __future__ import annotations

import signal
import threading
from types import FrameType, TracebackType
from typing import Any

SIGNALS = (signal.SIGINT, signal.SIGTERM)


def retake_signals() -> None:
    """Restore Python's signal handlers where a native library has replaced them, as Ray does when it connects."""
    if threading.current_thread() is threading.main_thread():
        for number in SIGNALS:
            handler = signal.getsignal(number)
            if handler is not None:
                signal.signal(number, handler)


class RunInterrupted(Exception):  # noqa: N818 - it is no error
    """The run was interrupted; raised only at points where no work is half done.

    Attributes
    ----------
    signal_number
        The signal received.
    kept
        A clause on what is saved of the run and how to continue; may be empty.
    """

    def __init__(self, signal_number: int) -> None:
        super().__init__(signal.Signals(signal_number).name)
        self.signal_number = signal_number
        self.kept = ""


class InterruptWatch:
    """Context manager that holds signals back until the next safe point, where :meth:`check` raises.

    Outside the main thread, where Python allows no signal handlers, it does nothing.
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
        """Raise :class:`RunInterrupted` if a signal was received."""
        if self._received is not None:
            raise RunInterrupted(self._received)

"""Run cases in separate processes with bounded memory, and record their outcomes."""

from __future__ import annotations

import faulthandler
import json
import os
import resource
import shutil
import signal
import sys
import tempfile
import time
import traceback
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import FrameType
from typing import Any

from hypothesis import HealthCheck, Phase, given, settings, strategies
from hypothesis import seed as seeded

from benchmarks.forking import forked
from benchmarks.fuzzing.judgement import judged, place
from benchmarks.fuzzing.kinds import KINDS
from benchmarks.fuzzing.small_runs import small_data, workshop
from fedsim.core.imports import large_imports

MEMORY_BYTES = 3 * 2**30
"""Address space that a process may have beyond what it has at its start."""
CHUNK = 500
"""Cases in a process."""


class Hang(BaseException):
    """A case takes too long; not an Exception, so that nothing catches it on the way."""


@dataclass
class Figures:
    """Outcomes of the cases of one kind."""

    outcomes: Counter[str] = field(default_factory=Counter)
    seconds: float = 0.0
    slowest: tuple[float, int] = (0.0, 0)
    findings: list[tuple[int, str]] = field(default_factory=list)

    def enter(self, number: int, outcome: str, seconds: float) -> None:
        self.seconds += seconds
        self.slowest = max(self.slowest, (seconds, number))
        if outcome.startswith("FINDING"):
            self.findings.append((number, outcome.removeprefix("FINDING ")))
            outcome = "finding"
        self.outcomes[outcome] += 1


def measure(name: str, examples: int, seed: int) -> Figures:
    """Try ``examples`` cases of a kind, or every one, in processes of at most ``CHUNK``."""
    every = KINDS[name].every
    numbers = range(len(every())) if every is not None else drawn(examples, f"{seed}/{name}")
    _make_ready(name)
    figures = Figures()
    while (done := figures.outcomes.total()) < len(numbers):
        _chunk(name, numbers[done : done + CHUNK], figures)
        print(f"\r{name}: {figures.outcomes.total()} of {len(numbers)}", end="", file=sys.stderr, flush=True)
    print(file=sys.stderr)
    return figures


def drawn(many: int, seed: str) -> list[int]:
    """Return numbers that Hypothesis draws, no two alike."""
    numbers: dict[int, None] = {}
    attempt = 0
    while len(numbers) < many:

        @seeded(f"{seed}/{attempt}")
        @settings(
            max_examples=many - len(numbers),
            phases=[Phase.generate],
            database=None,
            deadline=None,
            suppress_health_check=list(HealthCheck),
        )
        @given(strategies.integers(0, 2**63))
        def one(number: int) -> None:
            numbers[number] = None

        one()
        attempt += 1
    return list(numbers)


def _make_ready(name: str) -> None:
    """Import, and make, what the processes share; torch must not compute here, since its threads would be lost in the fork."""
    with large_imports():
        import clients.worker  # noqa: F401
        import fedsim.executors.local
        import fedsim.prompts.peft_adapter
        import fedsim.records.results
        import fedsim.simulation.loop  # noqa: F401
    workshop()
    small_data()
    make = KINDS[name].made_once
    if make is not None and os.waitpid(forked(make), 0)[1]:
        sys.exit("error: the undamaged run failed")


def _chunk(name: str, numbers: Sequence[int], figures: Figures) -> None:
    reading, writing = os.pipe()

    def work() -> None:
        os.close(reading)
        _work(name, numbers, writing)

    pid = forked(work)
    os.close(writing)
    begun: int | None = None
    with os.fdopen(reading) as lines:
        for line in lines:
            record = json.loads(line)
            begun = record.get("begun")
            if begun is None:
                figures.enter(**record)
    status = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
    if status and begun is None:
        sys.exit("error: a process failed outside of its cases")
    if begun is not None:
        figures.enter(begun, f"FINDING the process died with status {status}", 0.0)


def _work(name: str, numbers: Sequence[int], pipe: int) -> None:
    _, hard = resource.getrlimit(resource.RLIMIT_AS)
    pages = int(Path("/proc/self/statm").read_text().split()[0])
    resource.setrlimit(resource.RLIMIT_AS, (pages * resource.getpagesize() + MEMORY_BYTES, hard))
    signal.signal(signal.SIGALRM, _interrupt)

    def write(**record: Any) -> None:
        os.write(pipe, (json.dumps(record) + "\n").encode())

    for number in numbers:
        write(begun=number)
        started = time.monotonic()
        outcome = tried(name, number)
        write(number=number, outcome=outcome, seconds=time.monotonic() - started)


def _interrupt(number: int, frame: FrameType | None) -> None:
    raise Hang


def tried(name: str, number: int, show: bool = False) -> str:
    """Return a case's outcome: ``taken``, ``refused``, or FINDING and why; ``show`` prints a traceback, without limit."""
    limit = KINDS[name].limit_seconds
    folder = Path(tempfile.mkdtemp(prefix="fedsim-fuzz-case-"))
    # What holds up native code, and so the signal too, ends the process.
    faulthandler.dump_traceback_later(3 * limit, exit=True)
    signal.setitimer(signal.ITIMER_REAL, 0 if show else limit)
    try:
        KINDS[name].case(number, folder)
        return "taken"
    except Hang as hang:
        return f"FINDING more than {limit:g} s, in {place(hang)}"
    except BaseException as error:
        if show:
            traceback.print_exc()
        return judged(error)
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        faulthandler.cancel_dump_traceback_later()
        shutil.rmtree(folder, ignore_errors=True)

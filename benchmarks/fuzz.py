"""Damaged configs, data files, models, checkpoints and prompts: each is taken, or refused with one sentence of ours.

    python -m benchmarks.fuzz --examples 10000 --seed 0
    python -m benchmarks.fuzz --case config:8316     # one case again, with its traceback

Cases are numbers that Hypothesis draws; a case is made from its number alone. They are tried in processes of their own with
bounded memory, so that a crash, or memory without bound, is a finding as well and not the end. A finding is an exception that
is not ours, a sentence that is none (:func:`flaw`), more than ``LIMIT_SECONDS``, or a process that dies. Exit status 1 if
there is any.
"""

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
import warnings
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from types import FrameType
from typing import Annotated, Any

import typer

WHOLE = "key"
"""Kind of which every case is tried once, whatever ``--examples`` says: each key of the schema with each of many values."""
SHARES = {"config": 0.71, "data": 0.25, "run": 0.01, "model": 0.01, "resume": 0.01, "prompt": 0.005, "peft": 0.005}
"""Part of the examples that each kind gets: those that load a model are slow."""
LIMIT_SECONDS = {"key": 3.0, "config": 3.0, "data": 3.0}
SLOW_LIMIT_SECONDS = 20.0
"""Longest time for a case of the other kinds, each of which loads a model."""
MEMORY_BYTES = 3 * 2**30
"""Address space that a process may have beyond what it has at its start."""
LONGEST_SENTENCE = 600
CHUNK = 500
"""Cases in a process."""


class Hang(BaseException):
    """A case takes too long; no Exception, lest it be caught on its way."""


@dataclass
class Figures:
    """What came of the cases of one kind."""

    outcomes: Counter[str] = field(default_factory=Counter)
    seconds: float = 0.0
    slowest: tuple[float, int] = (0.0, 0)
    findings: list[tuple[int, str]] = field(default_factory=list)


def main(
    examples: Annotated[int, typer.Option(help="Cases in all.")] = 10_000,
    seed: Annotated[int, typer.Option(help="Of the cases.")] = 0,
    kinds: Annotated[str, typer.Option(help="Kinds of input, with commas.")] = ",".join((WHOLE, *SHARES)),
    case: Annotated[str | None, typer.Option(help="Try one case alone: KIND:NUMBER.")] = None,
) -> None:
    """Try damaged inputs."""
    prepare()
    if case is not None:
        kind, _, number = case.partition(":")
        print(_tried(kind, int(number), show=True))
        return
    chosen = kinds.split(",")
    total = sum(SHARES.get(kind, 0.0) for kind in chosen)
    started = time.monotonic()
    found = {
        kind: measure(kind, _all_keys() if kind == WHOLE else round(examples * SHARES[kind] / total), seed)
        for kind in chosen
    }
    report(found, time.monotonic() - started)
    raise typer.Exit(1 if any(figures.findings for figures in found.values()) else 0)


def _all_keys() -> int:
    from benchmarks.fuzz_targets import one_key_cases

    return len(one_key_cases())


def prepare() -> None:
    """Set what all cases share; called before anything large is imported."""
    os.environ["HF_HUB_OFFLINE"] = "1"
    os.environ["TOKENIZERS_PARALLELISM"] = "false"
    warnings.simplefilter("ignore")


def measure(kind: str, examples: int, seed: int) -> Figures:
    """Try ``examples`` cases of a kind, in processes of at most ``CHUNK``."""
    _import_for(kind)
    figures = Figures()
    attempt = 0
    while (done := figures.outcomes.total()) < examples:
        _chunk(kind, min(CHUNK, examples - done), f"{seed}/{kind}/{attempt}", done, figures)
        attempt += 1
        print(f"\r{kind}: {figures.outcomes.total()} of {examples}", end="", file=sys.stderr, flush=True)
    print(file=sys.stderr)
    return figures


def _chunk(kind: str, examples: int, seed: str, done: int, figures: Figures) -> None:
    reading, writing = os.pipe()
    pid = os.fork()
    if pid == 0:
        os.close(reading)
        status = 1
        try:
            _work(kind, examples, seed, done, writing)
            status = 0
        except BaseException:
            traceback.print_exc()
        finally:
            os._exit(status)
    os.close(writing)
    begun: int | None = None
    with os.fdopen(reading) as lines:
        for line in lines:
            record = json.loads(line)
            if "begun" in record:
                begun = record["begun"]
                continue
            begun = None
            _enter(figures, record["number"], record["outcome"], record["seconds"])
    status = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
    if status and begun is None:
        sys.exit("error: a process failed outside of its cases")
    if begun is not None:
        _enter(figures, begun, f"FINDING the process died with status {status}", 0.0)


def _enter(figures: Figures, number: int, outcome: str, seconds: float) -> None:
    figures.seconds += seconds
    figures.slowest = max(figures.slowest, (seconds, number))
    if outcome.startswith("FINDING"):
        figures.findings.append((number, outcome.removeprefix("FINDING ")))
        outcome = "finding"
    figures.outcomes[outcome] += 1


def _work(kind: str, examples: int, seed: str, done: int, pipe: int) -> None:
    from hypothesis import HealthCheck, Phase, given, settings, strategies
    from hypothesis import seed as seeded

    _, hard = resource.getrlimit(resource.RLIMIT_AS)
    pages = int(Path("/proc/self/statm").read_text().split()[0])
    resource.setrlimit(resource.RLIMIT_AS, (pages * resource.getpagesize() + MEMORY_BYTES, hard))
    signal.signal(signal.SIGALRM, _interrupt)

    def write(record: dict[str, Any]) -> None:
        os.write(pipe, (json.dumps(record) + "\n").encode())

    def one(number: int) -> None:
        write({"begun": number})
        started = time.monotonic()
        outcome = _tried(kind, number)
        write({"number": number, "outcome": outcome, "seconds": time.monotonic() - started})

    if kind == WHOLE:
        for number in range(done, done + examples):
            one(number)
        return

    @seeded(seed)
    @settings(
        max_examples=examples,
        phases=[Phase.generate],
        database=None,
        deadline=None,
        suppress_health_check=list(HealthCheck),
    )
    @given(strategies.integers(0, 2**63))
    def cases(number: int) -> None:
        one(number)

    cases()


def _interrupt(number: int, frame: FrameType | None) -> None:
    raise Hang


def _tried(kind: str, number: int, show: bool = False) -> str:
    """Return what came of a case: ``taken``, ``refused``, or FINDING and why."""
    from benchmarks.fuzz_targets import TARGETS

    limit = LIMIT_SECONDS.get(kind, SLOW_LIMIT_SECONDS)
    folder = Path(tempfile.mkdtemp(prefix="fedsim-fuzz-case-"))
    # What holds up native code, and so the signal too, ends the process.
    faulthandler.dump_traceback_later(3 * limit, exit=True)
    signal.setitimer(signal.ITIMER_REAL, 0 if show else limit)
    try:
        TARGETS[kind](number, folder)
        return "taken"
    except Hang:
        return f"FINDING more than {limit:g} s, in {_place(sys.exc_info()[1])}"
    except BaseException as error:
        if show:
            traceback.print_exc()
        return _judged(error)
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        faulthandler.cancel_dump_traceback_later()
        shutil.rmtree(folder, ignore_errors=True)


def _judged(error: BaseException) -> str:
    from fedsim.core.errors import FedsimError

    if not isinstance(error, FedsimError):
        return f"FINDING {type(error).__name__}: {str(error)[:200]!r}, in {_place(error)}"
    wrong = flaw(error)
    return "refused" if wrong is None else f"FINDING the sentence {wrong}: {str(error)[:300]!r}, in {_place(error)}"


def flaw(error: Exception) -> str | None:
    """Return why an error of ours is not one plain sentence, or None."""
    from fedsim.core.errors import ClientError

    text = str(error)
    if not text.strip():
        return "is empty"
    if isinstance(error, ClientError):  # ends with the traceback of the client's own work
        return None
    if len(text.splitlines()) > 1:
        return "has several lines"
    if len(text) > LONGEST_SENTENCE:
        return f"has {len(text)} characters"
    words = ("Traceback (most", 'File "', "object at 0x", "For further information visit", "pydantic")
    return next((f"says {word}" for word in words if word in text), None)


def _place(error: BaseException | None) -> str:
    """Return the innermost place in this project that an exception came through."""
    frames = traceback.extract_tb(error.__traceback__) if error is not None else []
    root = str(Path(__file__).parents[1]) + "/"
    own = [frame for frame in frames if frame.filename.startswith(root) and frame.name != "_interrupt"]
    return f"{own[-1].filename.removeprefix(root)}:{own[-1].lineno}" if own else "nowhere"


def _import_for(kind: str) -> None:
    """Import, and make, what the processes share; nothing of torch may compute here, lest threads be lost by the fork."""
    import benchmarks.fuzz_targets as targets
    from fedsim.core.imports import large_imports

    with large_imports():
        import clients.worker  # noqa: F401
        import fedsim.executors.local
        import fedsim.peft_adapter
        import fedsim.results
        import fedsim.runner
        import fedsim.simulation  # noqa: F401
    targets.workshop()
    targets.small_data()
    made_once = {"resume": targets.finished_run, "prompt": targets.finished_run, "peft": targets.adapter}
    if kind in made_once:
        pid = os.fork()
        if pid == 0:
            status = 1
            try:
                made_once[kind]()
                status = 0
            except BaseException:
                traceback.print_exc()
            finally:
                os._exit(status)
        if os.waitpid(pid, 0)[1]:
            sys.exit("error: the undamaged run failed")


def report(found: dict[str, Figures], seconds: float) -> None:
    """Print counts, times and findings, those from one place together."""
    for kind, figures in found.items():
        counts = ", ".join(f"{many} {outcome}" for outcome, many in sorted(figures.outcomes.items()))
        slowest, number = figures.slowest
        total = figures.outcomes.total()
        print(f"{kind:7} {total:6} cases: {counts}; {figures.seconds:.0f} s, slowest {slowest:.2f} s ({number})")
        places = Counter(_kind_of(text) for _, text in figures.findings)
        for place, many in places.most_common():
            number, text = next(item for item in figures.findings if _kind_of(item[1]) == place)
            print(f"  {many} x {text}\n      {kind}:{number}")
    print(f"{sum(figures.outcomes.total() for figures in found.values())} cases in {seconds:.0f} s")


def _kind_of(text: str) -> str:
    return text.partition(":")[0] + text.rpartition(", in ")[2]


if __name__ == "__main__":
    typer.run(main)

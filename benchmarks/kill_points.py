"""Kill a run at random moments and resume it: it ends with the bytes of an uninterrupted run.

    python -m benchmarks.kill_points                  # 20 moments
    python -m benchmarks.kill_points --points 5 --seed 3

Every run is a process forked from one that has imported everything, so that a moment costs only seconds; it is killed
by SIGKILL at a moment drawn uniformly from the rounds of an undisturbed run, and continued with ``--resume``. One
killed before its first checkpoint starts again. Exit status 1 if any ends with other bytes or records.
"""

from __future__ import annotations

import json
import os
import random
import signal
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated, Any

import typer

from benchmarks.forking import forked

ROUNDS = 20
KEPT = ("round", "global_metric", "global_loss", "train_loss_last", "clients_ok", "bytes_up", "update_norm")
LIMIT_SECONDS = 120.0


@dataclass(frozen=True)
class Point:
    """A moment at which a run was killed, and the outcome."""

    seconds: float
    """After the start of the run."""
    rounds_recorded: int
    """Rounds that the records held when it was killed."""
    resumed_after: int
    """Round of the newest checkpoint then; 0 where there was none."""
    same_prompt: bool
    same_records: bool


def main(
    points: Annotated[int, typer.Option(help="Moments.")] = 20,
    seed: Annotated[int, typer.Option(help="Of the moments.")] = 0,
    as_json: Annotated[bool, typer.Option("--json", help="One line of JSON.")] = False,
) -> None:
    """Kill and resume runs."""
    found = measure(points, seed)
    same = sum(point.same_prompt and point.same_records for point in found)
    if as_json:
        print(json.dumps([asdict(point) for point in found]))
    else:
        for point in found:
            print(
                f"killed after {point.seconds:5.2f} s, {point.rounds_recorded:2} rounds on record, resumed after round "
                f"{point.resumed_after:2}: prompt {'same' if point.same_prompt else 'OTHER'}, records "
                f"{'same' if point.same_records else 'OTHER'}"
            )
        print(f"{same} of {points} the same")
    raise typer.Exit(0 if same == points else 1)


def measure(points: int, seed: int) -> list[Point]:
    """Return the outcome of every moment."""
    _import_everything()
    with tempfile.TemporaryDirectory() as folder:
        whole = Path(folder) / "whole"
        started = time.monotonic()
        if _ended(lambda: _run(whole, resume=False)) != 0:
            sys.exit("error: the undisturbed run failed")
        seconds = time.monotonic() - started
        rng = random.Random(seed)
        moments = [rng.uniform(_first_group_seconds(whole, seconds), seconds) for _ in range(points)]
        return [_point(Path(folder) / f"run-{i}", whole, moment) for i, moment in enumerate(moments)]


def _first_group_seconds(folder: Path, seconds: float) -> float:
    """Return when, of the time that a run took, its first group was trained."""
    events = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    first, end = (
        next(event["seconds"] for event in events if event["event"] == kind) for kind in ("first_group", "end")
    )
    return max(0.0, seconds - (end - first))


def _point(folder: Path, whole: Path, moment: float) -> Point:
    _ended(lambda: _run(folder, resume=False), kill_after=moment)
    recorded = len(_records(folder))
    checkpoints = sorted(path.stem for path in folder.glob("checkpoints/round-*.sha256"))
    if _ended(lambda: _run(folder, resume=True)) != 0:
        sys.exit(f"error: the run killed after {moment:.3f} s could not be resumed")
    prompt = Path("prompt") / "global.safetensors"
    return Point(
        seconds=moment,
        rounds_recorded=recorded,
        resumed_after=int(checkpoints[-1].removeprefix("round-")) if checkpoints else 0,
        same_prompt=(folder / prompt).read_bytes() == (whole / prompt).read_bytes(),
        same_records=_records(folder) == _records(whole),
    )


def _import_everything() -> None:
    """Import what a run imports; nothing may compute here, since threads would be lost in the fork."""
    import clients.worker  # noqa: F401


def _run(folder: Path, resume: bool) -> None:
    from rich.console import Console

    import fedsim
    from fedsim.configuration.schema import build_config

    config = build_config(
        {
            "rounds": ROUNDS,
            "group_size": 2,
            "executor": "local",
            "output": str(folder),
            "data": {"train_examples": 240, "validation_examples": 60},
            "partition": {"clients": 12, "holdout_fraction": 0.2},
            "sampling": {"clients_per_round": 5},
            "prompt": {"length": 4},
            "layers": {"score_batch_size": 8},
            # fuse is fixed: a fuse trial could decide differently in a restarted run and change last bits.
            "client": {"epochs": 1, "fuse": 2},
            "tracking": {"plots": False},
        }
    )
    fedsim.run(config, resume=resume, progress=False, console=Console(file=open(os.devnull, "w")))  # noqa: PTH123, SIM115


def _ended(work: Callable[[], None], kill_after: float | None = None) -> int:
    """Run ``work`` in a separate process; return its exit status, negative for a signal."""
    pid = forked(work)
    if kill_after is not None:
        time.sleep(kill_after)
        os.kill(pid, signal.SIGKILL)
    deadline = time.monotonic() + LIMIT_SECONDS
    while time.monotonic() < deadline:
        ended, status = os.waitpid(pid, os.WNOHANG)
        if ended:
            return os.waitstatus_to_exitcode(status)
        time.sleep(0.01)
    os.kill(pid, signal.SIGKILL)
    os.waitpid(pid, 0)
    sys.exit(f"error: a run did not end within {LIMIT_SECONDS:g} s")


def _records(folder: Path) -> list[dict[str, Any]]:
    file = folder / "metrics.jsonl"
    events = []
    for line in file.read_text().splitlines() if file.exists() else []:
        try:
            events.append(json.loads(line))
        except ValueError:  # the last line of a killed run may be torn
            continue
    return [{key: event[key] for key in KEPT} for event in events if event["event"] == "round"]


if __name__ == "__main__":
    typer.run(main)

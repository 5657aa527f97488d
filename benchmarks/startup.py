"""How long a run takes to start: from the command to the first trained group, and to the end of round 1.

Every measurement is a separate process. The bound is what any simulator on Ray with a transformers backbone needs: a
process that imports torch, transformers and Ray, starts Ray, and waits until one actor has imported the same.

    python -m benchmarks.startup [--json FILE] [--repeats 5] [--config configs/quickstart.yaml] [KEY=VALUE]...

A run is started with an empty cache, as the first one of its kind, and with what a run of the same config has kept.
"""

from __future__ import annotations

import json
import subprocess
import sys
import time
from datetime import datetime
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Annotated

import typer

from benchmarks.measure import RUNS, Row, compare, in_turn, present

_BOUND = """
import logging, os, time
os.environ.update(RAY_USAGE_STATS_ENABLED="0", RAY_worker_niceness="0")
import ray, torch
from transformers import RobertaForMaskedLM

@ray.remote
class Actor:
    def ready(self):
        import torch
        from transformers import RobertaForMaskedLM

ray.init(
    address="local", include_dashboard=False, log_to_driver=False, logging_level=logging.ERROR, object_store_memory=2**28
)
ray.get(Actor.remote().ready.remote())
print(time.time())
"""
_BOUND_NAME = "torch, transformers, Ray and one actor"
_FIRST_GROUP, _FIRST_ROUND = "first group trained", "end of round 1"
_REPEAT_GROUP, _REPEAT_ROUND = "first group trained, in a repeat", "end of round 1, in a repeat"


def bound_seconds() -> float:
    """Return the seconds from the command until the bound's actor has imported everything."""
    started = time.time()
    process = subprocess.run([sys.executable, "-c", _BOUND], check=True, capture_output=True, text=True)
    return float(process.stdout) - started


def run_seconds(words: list[str], cache: Path | None = None) -> tuple[float, float]:
    """Run one round of a config; return the seconds from the command to the first trained group and to the round's end.

    Without ``cache``, the run has an empty one of its own.
    """
    with TemporaryDirectory() as folder:
        output = Path(folder) / "run"
        kept = [f"output={output}", f"cache.folder={cache or Path(folder) / 'cache'}"]
        command = [sys.executable, "-m", "fedsim", "run", *words, *kept, "rounds=1", "tracking.plots=false"]
        started = time.time()
        subprocess.run(command, check=True, capture_output=True)
        lines = (output / "metrics.jsonl").read_text(encoding="utf-8").splitlines()
    at = {event["event"]: datetime.fromisoformat(event["time"]).timestamp() for event in map(json.loads, lines)}
    return at["first_group"] - started, at["round"] - started


def measure(words: list[str], repeats: int) -> list[Row]:
    """Measure runs and bound in turn."""
    groups: dict[str, list[float]] = {_FIRST_GROUP: [], _REPEAT_GROUP: []}

    def whole_round(name: str, cache: Path | None = None) -> float:
        group, end = run_seconds(words, cache)
        groups[name].append(group)
        return end

    with TemporaryDirectory() as folder:
        cache = Path(folder)
        run_seconds(words, cache)
        sides = {
            _BOUND_NAME: bound_seconds,
            _FIRST_ROUND: lambda: whole_round(_FIRST_GROUP),
            _REPEAT_ROUND: lambda: whole_round(_REPEAT_GROUP, cache),
        }
        rounds = in_turn(sides, repeats)
    figures = {_BOUND_NAME: rounds.pop(_BOUND_NAME)}
    for group, end in ((_FIRST_GROUP, _FIRST_ROUND), (_REPEAT_GROUP, _REPEAT_ROUND)):
        figures |= {group: groups[group], end: rounds[end]}
    return compare("startup", figures, "s", _BOUND_NAME)


def main(
    overrides: Annotated[list[str] | None, typer.Argument(metavar="[KEY=VALUE]...", show_default=False)] = None,
    records_file: Annotated[Path | None, typer.Option("--json", help="Write one line of JSON a figure.")] = None,
    repeats: Annotated[int, typer.Option(min=1, help="Runs of each side.")] = RUNS,
    config: Annotated[Path, typer.Option(help="The run to start.")] = Path("configs/quickstart.yaml"),
) -> None:
    """Measure, and print the table."""
    present(measure([str(config), *(overrides or [])], repeats), records_file, f"start-up of {config}")


if __name__ == "__main__":
    typer.run(main)

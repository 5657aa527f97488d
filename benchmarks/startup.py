"""How long a run takes to start: from the command to the first trained group, and to the end of round 1.

Every measurement is a separate process. The bound is what any simulator on Ray with a transformers backbone needs: a
process that imports torch, transformers and Ray, starts Ray, and waits until one actor has imported the same.

    python -m benchmarks.startup [--json FILE] [--repeats 5] [--config configs/quickstart.yaml]
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


def bound_seconds() -> float:
    """Return the seconds from the command until the bound's actor has imported everything."""
    started = time.time()
    process = subprocess.run([sys.executable, "-c", _BOUND], check=True, capture_output=True, text=True)
    return float(process.stdout) - started


def run_seconds(config: Path) -> tuple[float, float]:
    """Run one round of a config; return the seconds from the command to the first trained group and to the round's end."""
    with TemporaryDirectory() as folder:
        output = Path(folder) / "run"
        command = [sys.executable, "-m", "fedsim", "run", str(config), f"output={output}", "rounds=1"]
        started = time.time()
        subprocess.run([*command, "tracking.plots=false"], check=True, capture_output=True)
        lines = (output / "metrics.jsonl").read_text(encoding="utf-8").splitlines()
    at = {event["event"]: datetime.fromisoformat(event["time"]).timestamp() for event in map(json.loads, lines)}
    return at["first_group"] - started, at["round"] - started


def measure(config: Path, repeats: int) -> list[Row]:
    """Measure run and bound in turn."""
    first_group: list[float] = []

    def whole_round() -> float:
        group, end = run_seconds(config)
        first_group.append(group)
        return end

    figures = in_turn({_BOUND_NAME: bound_seconds, _FIRST_ROUND: whole_round}, repeats)
    figures = {_BOUND_NAME: figures[_BOUND_NAME], _FIRST_GROUP: first_group, _FIRST_ROUND: figures[_FIRST_ROUND]}
    return compare("startup", figures, "s", _BOUND_NAME)


def main(
    records_file: Annotated[Path | None, typer.Option("--json", help="Write one line of JSON a figure.")] = None,
    repeats: Annotated[int, typer.Option(min=1, help="Runs of each side.")] = RUNS,
    config: Annotated[Path, typer.Option(help="The run to start.")] = Path("configs/quickstart.yaml"),
) -> None:
    """Measure, and print the table."""
    present(measure(config, repeats), records_file, f"start-up of {config}")


if __name__ == "__main__":
    typer.run(main)

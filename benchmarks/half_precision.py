"""Frozen products in float32 and in bfloat16: what ``model.products`` does to accuracy.

    python -m benchmarks.half_precision --data FOLDER [--tasks sst2,subj,trec] [--seeds 0,1,2,3,4,5] [--rounds 20] [--json FILE]

FOLDER holds a folder of each task with train.jsonl and validation.jsonl. MiniLM, 100 clients, ``configs/minilm_sst2.yaml`` with
prompts in all layers; both sides of a pair have the same seed, data, cohorts and mini-batches. Finished runs are recorded and
skipped when the command is given again.
"""

from __future__ import annotations

import os
import statistics
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.table import Table

from benchmarks.methods import spread
from benchmarks.studies import END_ALONE, Records, Work, execute

CONFIG = Path(__file__).resolve().parents[1] / "configs" / "minilm_sst2.yaml"
FORMATS = ("float32", "bfloat16")
COMMON = ("client.fuse=5", "layers.choose=all")


def works(data: Path, tasks: Sequence[str], seeds: Sequence[int], rounds: int) -> list[Work]:
    """Return the runs: each task, seed and number format."""
    return [
        Work(
            str(CONFIG),
            {"study": f"rounds={rounds}", "task": task, "products": products, "seed": seed},
            (
                *END_ALONE,
                *COMMON,
                f"rounds={rounds}",
                f"seed={seed}",
                f"data.task={task}",
                f"data.path={(data / task).absolute()}",
            ),
            (f"model.products={products}",),
        )
        for seed in seeds
        for task in tasks
        for products in FORMATS
    ]


def table(records: Records, study: str, tasks: Sequence[str], seeds: Sequence[int]) -> Table:
    """Return a row for each task: accuracy in both formats, and the difference of runs with the same seed."""
    result = Table("task", *FORMATS, "difference by seed", "mean ± sd")
    for task in tasks:
        values = {}
        for products in FORMATS:
            rows = [records.find(study=study, task=task, products=products, seed=seed)[-1] for seed in seeds]
            values[products] = [float(row["value"]) for row in rows]
        apart = [half - whole for whole, half in zip(*values.values(), strict=True)]
        result.add_row(
            task,
            *(spread(found) for found in values.values()),
            " ".join(f"{one:+.3f}" for one in apart),
            f"{statistics.fmean(apart):+.4f} ± {statistics.stdev(apart) if len(apart) > 1 else 0.0:.4f}",
        )
    return result


def main(
    data: Annotated[Path, typer.Option(help="A folder with a folder of each task.")],
    tasks: Annotated[str, typer.Option(help="Tasks, with commas.")] = "sst2,subj,trec",
    seeds: Annotated[str, typer.Option(help="Seeds, with commas.")] = "0,1,2,3,4,5",
    rounds: Annotated[int, typer.Option(help="Rounds of each run.", min=1)] = 20,
    records_file: Annotated[Path, typer.Option("--json", help="Records; finished runs are skipped.")] = Path(
        "half_precision.jsonl"
    ),
    processes: Annotated[int, typer.Option(help="Parallel runs.", min=1)] = os.cpu_count() or 1,
) -> None:
    """Run and print the table."""
    console = Console(highlight=False, width=140)
    chosen, numbers, records = tasks.split(","), [int(seed) for seed in seeds.split(",")], Records(records_file)
    planned = works(data, chosen, numbers, rounds)
    execute("half_precision", planned, records, processes, console)
    console.print(table(records, f"rounds={rounds}", chosen, numbers))


if __name__ == "__main__":
    typer.run(main)

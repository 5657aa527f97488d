"""Ablation of the method's accuracy on real text: ``python -m benchmarks.ablation --data FOLDER``.

Every arm has the same small tuning budget: its local learning rate is chosen among a few values on rows of the first dataset's
training file that are never reported. Then each arm runs with every seed and is evaluated on the validation file.
"""

from __future__ import annotations

import os
import random
import statistics
import tempfile
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.table import Table

from benchmarks.ablation_arms import ARMS, BASE, CONFIG, DATASETS, LEARNING_RATES, TUNING, TUNING_ROWS, TUNING_SEED
from benchmarks.studies import Arm, Records, Work, execute


@dataclass(frozen=True)
class Job:
    """One run."""

    case: str
    dataset: str
    stage: str
    """tune, or report."""
    lr: float
    seed: int


def tuning_folder(data: Path, dataset: str, work: Path) -> Path:
    """Split tuning rows off the training file; return a folder with them as validation file."""
    rows = (data / dataset / "train.jsonl").read_text(encoding="utf-8").splitlines()
    random.Random(0).shuffle(rows)
    cut = min(TUNING_ROWS, len(rows) // 6)
    folder = work / f"{dataset}-tuning"
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "validation.jsonl").write_text("\n".join(rows[:cut]) + "\n", encoding="utf-8")
    (folder / "train.jsonl").write_text("\n".join(rows[cut:]) + "\n", encoding="utf-8")
    return folder


def work_of(job: Job, folder: Path, arm: Arm) -> Work:
    """Return the run of a job with its arm."""
    keys = (
        f"data.path={folder}",
        f"data.task={job.dataset}",
        f"seed={job.seed}",
        f"client.optimizer.lr={job.lr}",
    )
    return Work(CONFIG, asdict(job), (*BASE, *(TUNING if job.stage == "tune" else ()), *keys), arm.overrides)


def best_lr(records: Records, arm: Arm) -> float:
    """Return the learning rate with the highest metric on the tuning rows; ties go to the lower loss."""
    rows = records.find(case=arm.name, stage="tune")
    return min(rows, key=lambda row: (-row["value"], row["loss"]))["lr"]


def table(records: Records, dataset: str, seeds: Sequence[int]) -> Table:
    """Return the table of one dataset: mean and standard deviation over seeds, and the difference to the first arm by seed."""
    result = Table("", "arm", "lr", "layers", "metric by seed", "mean ± sd", "difference ± sd", "loss", title=dataset)
    first = {row["seed"]: row["value"] for row in records.find(case=ARMS[0].name, dataset=dataset, stage="report")}
    for arm in ARMS:
        rows = sorted(records.find(case=arm.name, dataset=dataset, stage="report"), key=lambda row: row["seed"])
        rows = [row for row in rows if row["seed"] in seeds]
        if len(rows) < 2:
            continue
        values = [row["value"] for row in rows]
        gaps = [row["value"] - first[row["seed"]] for row in rows]
        layers = {" ".join(map(str, row["layers"])) for row in rows}
        result.add_row(
            arm.group,
            arm.name,
            f"{rows[0]['lr']:g}",
            layers.pop() if len(layers) == 1 else "by seed",
            " ".join(f"{value:.3f}" for value in values),
            f"{statistics.mean(values):.3f} ± {statistics.stdev(values):.3f}",
            f"{statistics.mean(gaps):+.3f} ± {statistics.stdev(gaps):.3f}",
            f"{statistics.mean(row['loss'] for row in rows):.3f}",
        )
    return result


def main(
    data: Annotated[Path, typer.Option(help="Folder with sst2/, mrpc/, rte/, each train.jsonl and validation.jsonl.")],
    records_file: Annotated[Path, typer.Option("--json", help="Records; finished runs are skipped.")] = Path(
        "ablation.jsonl"
    ),
    seeds: Annotated[str, typer.Option(help="Seeds of the reported runs.")] = "0,1,2",
    processes: Annotated[int, typer.Option(help="Parallel runs.")] = os.cpu_count() or 1,
    datasets: Annotated[str, typer.Option(help="Datasets, the first is tuned on.")] = ",".join(DATASETS),
) -> None:
    """Tune, run and print the ablation."""
    console = Console(highlight=False, width=180)
    chosen_seeds, names = [int(seed) for seed in seeds.split(",")], datasets.split(",")
    records = Records(records_file)
    with tempfile.TemporaryDirectory() as scratch:
        folder = tuning_folder(data, names[0], Path(scratch))
        tuning = [
            work_of(Job(arm.name, names[0], "tune", lr, TUNING_SEED), folder, arm)
            for arm in ARMS
            for lr in LEARNING_RATES
        ]
        execute("ablation", tuning, records, processes, console)
    for number, name in enumerate(names):
        arms = [arm for arm in ARMS if number == 0 or arm.everywhere]
        reported = [
            work_of(Job(arm.name, name, "report", best_lr(records, arm), seed), data / name, arm)
            for seed in chosen_seeds
            for arm in arms
        ]
        execute("ablation", reported, records, processes, console)
        console.print(table(records, name, chosen_seeds))


if __name__ == "__main__":
    typer.run(main)

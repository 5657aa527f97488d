"""What each part of the method does to accuracy on real text: ``python -m benchmarks.ablation --data FOLDER``.

Every arm has the same small tuning budget: its local learning rate is chosen among a few on rows of the first dataset's
training file that are never reported. Then each arm runs with every seed; the metric is that of the validation file. One line
of JSON a run goes to the records, and a run that stands there already is not run again, so an interrupted study goes on.
"""

from __future__ import annotations

import json
import multiprocessing
import os
import random
import statistics
import tempfile
import time
from collections.abc import Iterable, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.table import Table

from benchmarks.studies import ARMS, BASE, CONFIG, DATASETS, LEARNING_RATES, TUNING, TUNING_ROWS, TUNING_SEED, Arm


@dataclass(frozen=True)
class Job:
    """One run."""

    case: str
    dataset: str
    stage: str
    """tune, or report."""
    lr: float
    seed: int


def run(job: Job, folder: str, overrides: Sequence[str]) -> dict[str, Any]:
    """Run a job and return its record; executed in a process of its own."""
    from fedsim.config import read_config
    from fedsim.runner import run_config

    with tempfile.TemporaryDirectory() as scratch, Path(os.devnull).open("w") as nowhere:
        keys = (
            f"data.path={folder}",
            f"data.task={job.dataset}",
            f"seed={job.seed}",
            f"output={scratch}/run",
            f"client.optimizer.lr={job.lr}",
        )
        started = time.monotonic()
        summary = run_config(
            read_config(CONFIG, [*BASE, *(TUNING if job.stage == "tune" else ()), *keys, *overrides]),
            console=Console(file=nowhere),
            quiet=True,
        )
        loss = [json.loads(line) for line in Path(scratch, "run/metrics.jsonl").read_text().splitlines()]
    losses = [event["global_loss"] for event in loss if event.get("global_loss") is not None]
    return {
        "benchmark": "ablation",
        **asdict(job),
        "value": summary["global_metric"],
        "unit": summary["metric_name"],
        "ratio": None,
        "ratio_to": None,
        "runs": 1,
        "start": summary["first_global_metric"],
        "loss": losses[-1],
        "personalised": summary["personalised_metric"],
        "layers": summary["layers"],
        "megabytes_up": summary["bytes_up"] / 1e6,
        "seconds": time.monotonic() - started,
        "overrides": list(overrides),
    }


def tuning_folder(data: Path, dataset: str, work: Path) -> Path:
    """Cut rows off the training file to tune on; return a folder whose validation file they are."""
    rows = (data / dataset / "train.jsonl").read_text(encoding="utf-8").splitlines()
    random.Random(0).shuffle(rows)
    cut = min(TUNING_ROWS, len(rows) // 6)
    folder = work / f"{dataset}-tuning"
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "validation.jsonl").write_text("\n".join(rows[:cut]) + "\n", encoding="utf-8")
    (folder / "train.jsonl").write_text("\n".join(rows[cut:]) + "\n", encoding="utf-8")
    return folder


class Records:
    """The JSON lines of finished runs."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self.rows: list[dict[str, Any]] = []
        if path.exists():
            self.rows = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]

    def find(self, **fields: Any) -> list[dict[str, Any]]:
        """Return the records with these values."""
        return [row for row in self.rows if all(row[key] == value for key, value in fields.items())]

    def add(self, row: dict[str, Any]) -> None:
        """Append a record."""
        self.rows.append(row)
        with self._path.open("a", encoding="utf-8") as file:
            file.write(json.dumps(row) + "\n")


def execute(jobs: Iterable[tuple[Job, Path, Arm]], records: Records, processes: int, console: Console) -> None:
    """Run the jobs that have no record yet, each process with one thread."""
    missing = [(job, folder, arm) for job, folder, arm in jobs if not records.find(**asdict(job))]
    os.environ["OMP_NUM_THREADS"] = "1"
    with ProcessPoolExecutor(processes, mp_context=multiprocessing.get_context("spawn")) as pool:
        running = {pool.submit(run, job, str(folder), arm.overrides): job for job, folder, arm in missing}
        for done, future in enumerate(as_completed(running), 1):
            row = future.result()
            records.add(row)
            what = f"{row['stage']:6} {row['dataset']} lr {row['lr']:g} seed {row['seed']} {row['case']}"
            console.print(f"{done}/{len(running)} {what}: {row['value']:.4f} ({row['seconds']:.0f} s)")


def best_lr(records: Records, arm: Arm) -> float:
    """Return the learning rate with the highest metric on the tuning rows; of equal ones that with the lower loss."""
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
    records_file: Annotated[Path, typer.Option("--json", help="Records; finished runs are not run again.")] = Path(
        "ablation.jsonl"
    ),
    seeds: Annotated[str, typer.Option(help="Seeds of the reported runs.")] = "0,1,2",
    processes: Annotated[int, typer.Option(help="Runs at a time.")] = os.cpu_count() or 1,
    datasets: Annotated[str, typer.Option(help="Datasets, the first is tuned on.")] = ",".join(DATASETS),
) -> None:
    """Tune, run and print the ablation."""
    console = Console(highlight=False, width=180)
    chosen_seeds, names = [int(seed) for seed in seeds.split(",")], datasets.split(",")
    records = Records(records_file)
    with tempfile.TemporaryDirectory() as work:
        folder = tuning_folder(data, names[0], Path(work))
        tuning = [
            (Job(arm.name, names[0], "tune", lr, TUNING_SEED), folder, arm) for arm in ARMS for lr in LEARNING_RATES
        ]
        execute(tuning, records, processes, console)
    for number, name in enumerate(names):
        arms = [arm for arm in ARMS if number == 0 or arm.everywhere]
        jobs = [
            (Job(arm.name, name, "report", best_lr(records, arm), seed), data / name, arm)
            for seed in chosen_seeds
            for arm in arms
        ]
        execute(jobs, records, processes, console)
        console.print(table(records, name, chosen_seeds))


if __name__ == "__main__":
    typer.run(main)

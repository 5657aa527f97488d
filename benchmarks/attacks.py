"""What attackers do to accuracy under each rule of aggregation: ``python -m benchmarks.attacks``.

The quickstart, with fewer rounds, once for every rule, attack and seed; the metric is that of the validation examples after the
last round. One line of JSON a run goes to the records, and a run that stands there already is not run again.
"""

from __future__ import annotations

import multiprocessing
import os
import statistics
import tempfile
import time
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.table import Table

from benchmarks.ablation import Records
from benchmarks.studies import Arm

CONFIG = "configs/quickstart.yaml"
BASE = (
    "rounds=12",
    "client.correction=none",
    "executor=local",
    "checkpoint.every=1000000",
    "evaluation.every=1000000",
    "tracking.plots=false",
    "tracking.client_records=false",
)
RULES = (
    Arm("mean", "rule"),
    Arm("median", "rule", ("server.aggregation=median",)),
    Arm("trimmed mean, 0.3", "rule", ("server.aggregation=trimmed_mean", "server.trim_share=0.3")),
    Arm("norm clipping, median", "rule", ("server.aggregation=norm_clipping",)),
    Arm("multi-Krum, f=3, m=5", "rule", ("server.aggregation=multi_krum", "server.assumed_attackers=3")),
)
ATTACKS = (
    Arm("none", "attack"),
    Arm("label flip", "attack", ("attack.kind=label_flip",)),
    Arm("sign flip, 5", "attack", ("attack.kind=sign_flip", "attack.scale=5")),
    Arm("noise, 10", "attack", ("attack.kind=noise", "attack.std=10")),
)


def run(fields: dict[str, Any], overrides: Sequence[str]) -> dict[str, Any]:
    """Run the quickstart with overrides and return its record; executed in a process of its own."""
    from fedsim.config import read_config
    from fedsim.runner import run_config

    started = time.monotonic()
    with tempfile.TemporaryDirectory() as scratch:
        summary = run_config(read_config(CONFIG, [*overrides, f"output={scratch}/run"]), quiet=True)
    return {
        "benchmark": "attacks",
        **fields,
        "value": summary["global_metric"],
        "unit": summary["metric_name"],
        "ratio": None,
        "ratio_to": None,
        "runs": 1,
        "start": summary["first_global_metric"],
        "seconds": time.monotonic() - started,
        "overrides": list(overrides),
    }


def execute(records: Records, seeds: Sequence[int], attackers: int, processes: int, console: Console) -> None:
    """Run what has no record yet, each process with one thread."""
    missing = []
    for seed in seeds:
        for attack in ATTACKS:
            for rule in RULES:
                fields = {"case": f"{rule.name}; {attack.name}", "seed": seed, "attackers": attackers}
                if not records.find(**fields):
                    keys = (f"seed={seed}", f"attack.clients={attackers}")
                    missing.append((fields, (*BASE, *rule.overrides, *attack.overrides, *keys)))
    os.environ["OMP_NUM_THREADS"] = "1"
    with ProcessPoolExecutor(processes, mp_context=multiprocessing.get_context("spawn")) as pool:
        running = [pool.submit(run, *job) for job in missing]
        for done, future in enumerate(as_completed(running), 1):
            row = future.result()
            records.add(row)
            what = f"{row['case']}, seed {row['seed']}"
            console.print(f"{done}/{len(running)} {what}: {row['value']:.3f} ({row['seconds']:.0f} s)")


def table(records: Records, seeds: Sequence[int], attackers: int) -> Table:
    """Return the metric of every rule under every attack: mean over seeds, and the lowest and the highest."""
    title = f"{attackers} attackers; mean over seeds {', '.join(map(str, seeds))} (lowest to highest)"
    result = Table("rule", *(attack.name for attack in ATTACKS), title=title)
    for rule in RULES:
        cells = []
        for attack in ATTACKS:
            rows = records.find(case=f"{rule.name}; {attack.name}", attackers=attackers)
            values = [row["value"] for row in rows if row["seed"] in seeds]
            mean = f"{statistics.mean(values):.3f} ({min(values):.3f} to {max(values):.3f})" if values else "-"
            cells.append(mean)
        result.add_row(rule.name, *cells)
    return result


def main(
    records_file: Annotated[Path, typer.Option("--json", help="Records; finished runs are not run again.")] = Path(
        "attacks.jsonl"
    ),
    seeds: Annotated[str, typer.Option(help="Seeds of the runs.")] = "0,1,2",
    attackers: Annotated[int, typer.Option(help="Attackers among the 100 clients.")] = 20,
    processes: Annotated[int, typer.Option(help="Runs at a time.")] = os.cpu_count() or 1,
) -> None:
    """Run every rule under every attack and print the table."""
    console = Console(highlight=False, width=180)
    chosen = [int(seed) for seed in seeds.split(",")]
    records = Records(records_file)
    execute(records, chosen, attackers, processes, console)
    console.print(table(records, chosen, attackers))


if __name__ == "__main__":
    typer.run(main)

"""Accuracy under attack for each aggregation rule: ``python -m benchmarks.attacks``.

The quickstart, with fewer rounds, once for every rule, attack and seed; the metric is that of the validation examples after the
last round.
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

from benchmarks.studies import END_ALONE, Arm, Records, Work, execute

CONFIG = "configs/quickstart.yaml"
BASE = ("rounds=12", "client.correction=none", *END_ALONE)
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


def works(seeds: Sequence[int], attackers: int) -> list[Work]:
    """Return the run of every rule, attack and seed."""
    return [
        Work(
            CONFIG,
            {"case": f"{rule.name}; {attack.name}", "seed": seed, "attackers": attackers},
            (*BASE, f"seed={seed}", *([f"attack.clients={attackers}"] if attack.overrides else [])),
            (*rule.overrides, *attack.overrides),
        )
        for seed in seeds
        for attack in ATTACKS
        for rule in RULES
    ]


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
    records_file: Annotated[Path, typer.Option("--json", help="Records; finished runs are skipped.")] = Path(
        "attacks.jsonl"
    ),
    seeds: Annotated[str, typer.Option(help="Seeds of the runs.")] = "0,1,2",
    attackers: Annotated[int, typer.Option(help="Attackers among the 100 clients.")] = 20,
    processes: Annotated[int, typer.Option(help="Parallel runs.")] = os.cpu_count() or 1,
) -> None:
    """Run every rule under every attack and print the table."""
    console = Console(highlight=False, width=180)
    chosen = [int(seed) for seed in seeds.split(",")]
    records = Records(records_file)
    execute("attacks", works(chosen, attackers), records, processes, console)
    console.print(table(records, chosen, attackers))


if __name__ == "__main__":
    typer.run(main)

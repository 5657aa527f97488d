"""Every server method with its defaults on one config: ``python -m benchmarks.methods [CONFIG] [OVERRIDES]``.

A first comparison without tuning: only ``server.kind`` changes.
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
from fedsim.core.method import METHODS

BASE = "fedavg"
"""Baseline for seed-by-seed differences."""
ARMS = (
    # FedBPT has no gradients and no layers to choose: docs/tuners.md has what it reaches.
    *(Arm(kind, "", (f"server.kind={kind}",)) for kind in METHODS if kind != "fedbpt"),
    Arm("fedavg, all layers", "", ("server.kind=fedavg", "layers.choose=all")),
)


def works(config: Path, overrides: Sequence[str], seeds: Sequence[int]) -> list[Work]:
    """Return the runs: every method with every seed."""
    study = " ".join((str(config), *overrides))
    return [
        Work(
            str(config),
            {"study": study, "case": arm.name, "seed": seed},
            (*END_ALONE, "client.fuse=5", *overrides, f"seed={seed}"),
            arm.overrides,
        )
        for seed in seeds
        for arm in ARMS
    ]


def table(records: Records, study: str, seeds: Sequence[int]) -> Table:
    """Return mean and standard deviation over seeds, the difference to :data:`BASE` seed by seed, and the traffic."""
    rows = {
        arm.name: [row for seed in seeds for row in records.find(study=study, case=arm.name, seed=seed)] for arm in ARMS
    }
    base = {row["seed"]: row["value"] for row in rows[BASE]}
    result = Table("method", "metric by seed", "mean ± sd", f"minus {BASE}", "personalised", "MB up", "MB down")
    for name, found in sorted(rows.items(), key=lambda item: -statistics.mean(row["value"] for row in item[1])):
        values = [row["value"] for row in found]
        result.add_row(
            name,
            " ".join(f"{value:.3f}" for value in values),
            spread(values),
            spread([row["value"] - base[row["seed"]] for row in found], sign="+"),
            f"{statistics.mean(row['personalised'] for row in found):.3f}",
            f"{found[0]['megabytes_up']:.2f}",
            f"{found[0]['megabytes_down']:.2f}",
        )
    return result


def spread(values: Sequence[float], sign: str = "") -> str:
    """Format mean ± standard deviation, or a single value alone."""
    mean = f"{statistics.mean(values):{sign}.3f}"
    return f"{mean} ± {statistics.stdev(values):.3f}" if len(values) > 1 else mean


def main(
    config: Annotated[Path, typer.Argument(help="The config that all methods run.")] = Path("configs/quickstart.yaml"),
    overrides: Annotated[list[str] | None, typer.Argument(help="Changes for all methods.")] = None,
    records_file: Annotated[Path, typer.Option("--json", help="Records; finished runs are skipped.")] = Path(
        "methods.jsonl"
    ),
    seeds: Annotated[str, typer.Option(help="Seeds.")] = "0,1,2",
    processes: Annotated[int, typer.Option(help="Parallel runs.")] = os.cpu_count() or 1,
) -> None:
    """Run and print the comparison."""
    console = Console(highlight=False, width=140)
    records, chosen_seeds = Records(records_file), [int(seed) for seed in seeds.split(",")]
    planned = works(config, overrides or [], chosen_seeds)
    execute("methods", planned, records, processes, console)
    console.print(table(records, planned[0].fields["study"], chosen_seeds))


if __name__ == "__main__":
    typer.run(main)

"""Every kind of tuner on the embedded task: ``python -m benchmarks.tuners [--kinds prefix,lora] [--seeds 0,1,2]``.

100 clients, 40 rounds of FedAvg, in all layers where a kind has layers to choose, each kind with a learning rate of its own
(``benchmarks/kinds.py``). Finished runs are recorded and skipped when the command is given again.
"""

from __future__ import annotations

import os
import statistics
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.table import Table

from benchmarks.kinds import kind_of, names, overrides
from benchmarks.methods import spread
from benchmarks.studies import END_ALONE, Records, Work, execute
from fedsim.display.report import format_bytes

CONFIG = Path(__file__).resolve().parents[1] / "configs" / "quickstart.yaml"
COMMON = ("partition.clients=100", "server.kind=fedavg", "client.fuse=5")
ROUNDS, TARGET = 40, 0.85


def works(kinds: Sequence[str], seeds: Sequence[int], rounds: int, changes: Sequence[str] = ()) -> list[Work]:
    """Return the runs: every kind with every seed."""
    study = " ".join((f"rounds={rounds}", *changes))
    return [
        Work(
            str(CONFIG),
            {"study": study, "kind": kind, "seed": seed},
            (*END_ALONE, "evaluation.every=1", *COMMON, f"rounds={rounds}", *overrides(kind), f"seed={seed}"),
            (f"client.optimizer.lr={kind_of(kind).lr}", *changes),
        )
        for seed in seeds
        for kind in kinds
    ]


def rounds_to(course: Sequence[float], target: float) -> int | None:
    """Return the first round whose metric reaches the target; ``course`` begins before the first round."""
    return next((round for round, value in enumerate(course) if value >= target), None)


def table(records: Records, study: str, kinds: Sequence[str], seeds: Sequence[int], target: float) -> Table:
    """Return a row for each kind: metric over seeds, rounds to the target, what is exchanged."""
    result = Table(
        "kind", "lr", "metric by seed", "mean ± sd", f"rounds to {target:g}", "parameters", "up a round", "down a round"
    )
    for kind in kinds:
        rows = [row for seed in seeds for row in records.find(study=study, kind=kind, seed=seed)[-1:]]
        values = [row["value"] for row in rows]
        first, rounds = rows[0], len(rows[0]["course"]) - 1
        result.add_row(
            kind,
            f"{kind_of(kind).lr:g}",
            " ".join(f"{value:.3f}" for value in values),
            spread(values),
            _rounds([rounds_to(row["course"], target) for row in rows]),
            f"{first['parameters']:,}",
            *(format_bytes(first[f"megabytes_{way}"] * 1e6 / rounds) for way in ("up", "down")),
        )
    return result


def _rounds(found: Sequence[int | None]) -> str:
    """Return the median over seeds; seeds that never got there are counted apart."""
    reached = [rounds for rounds in found if rounds is not None]
    if not reached:
        return "never"
    missing = f" ({len(found) - len(reached)} never)" if len(reached) < len(found) else ""
    return f"{statistics.median(reached):g}{missing}"


def chosen_kinds(words: str | None) -> tuple[str, ...]:
    """Return the kinds of an option; all if it is not given."""
    known = names()
    chosen = known if words is None else tuple(words.split(","))
    for kind in chosen:
        if kind not in known:
            raise typer.BadParameter(f"--kinds {kind} is not one of {', '.join(known)}")
    return chosen


def main(
    changes: Annotated[list[str] | None, typer.Argument(metavar="OVERRIDES", help="Changes for all kinds.")] = None,
    kinds: Annotated[str | None, typer.Option(help="Kinds, with commas; if not given, all.")] = None,
    seeds: Annotated[str, typer.Option(help="Seeds, with commas.")] = "0,1,2",
    rounds: Annotated[int, typer.Option(help="Rounds of each run.", min=1)] = ROUNDS,
    target: Annotated[float, typer.Option(help="Metric whose round is named.")] = TARGET,
    records_file: Annotated[Path, typer.Option("--json", help="Records; finished runs are skipped.")] = Path(
        "tuners.jsonl"
    ),
    processes: Annotated[int, typer.Option(help="Parallel runs.", min=1)] = os.cpu_count() or 1,
) -> None:
    """Run and print the table."""
    console = Console(highlight=False, width=140)
    chosen, records = chosen_kinds(kinds), Records(records_file)
    chosen_seeds = [int(seed) for seed in seeds.split(",")]
    planned = works(chosen, chosen_seeds, rounds, changes or ())
    execute("tuners", planned, records, processes, console)
    study: Any = planned[0].fields["study"]
    console.print(table(records, study, chosen, chosen_seeds, target))


if __name__ == "__main__":
    typer.run(main)

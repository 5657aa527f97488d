"""What a GPU does with fedsim's work, part by part.

    python -m benchmarks.gpu_report [--out FOLDER] [--parts parity,tests,...] [--minutes 6] [--runs 3] [--small]

Models have random weights and the shapes of RoBERTa-large and of a LLaMA with 1.2 billion weights, and texts are random, with
lengths like those of SST-2, so no network is needed. A prefix of 20 tokens is trained, or LoRA of rank 8, in all layers, by
clients with two mini-batches of 8. Parts run in order of their worth, each within its share of the time and what earlier ones
left over of theirs.

FOLDER/figures.jsonl takes every cell as soon as it is measured. The same command again skips what is there, so that a call
that was cut off is continued; FOLDER/report.txt is the table that is printed. ``--small`` runs the same code with tiny models,
on a CPU where there is no GPU, to see that it works.
"""

from __future__ import annotations

import signal
import sys
import tempfile
from pathlib import Path
from typing import Annotated

import torch
import typer
from rich.console import Console

from benchmarks.gpu_report.figures import Ledger
from benchmarks.gpu_report.parts import ABOUT, FULL, SHARES, TINY, cells
from benchmarks.gpu_report.running import Budget, run_cells
from benchmarks.gpu_report.shapes import Models
from benchmarks.gpu_report.speed import Bench
from benchmarks.gpu_report.table import show
from clients.backbone.device import make_deterministic
from fedsim.core.errors import FedsimError


def main(
    out: Annotated[Path, typer.Option(help="Folder for figures and report.")] = Path(".bench/gpu_report"),
    parts: Annotated[str, typer.Option(help="Parts to run, with commas.")] = ",".join(SHARES),
    minutes: Annotated[float, typer.Option(help="Time for all parts together.", min=0.05)] = 6.0,
    runs: Annotated[int, typer.Option(help="Measurements of each side.", min=1)] = 3,
    small: Annotated[bool, typer.Option(help="Tiny models, to see that it works; also without a GPU.")] = False,
) -> None:
    """Measure what is not on file, and print the report; the exit status tells whether all was measured."""
    chosen = [part.strip() for part in parts.split(",") if part.strip()]
    for part in chosen:
        if part not in SHARES:
            raise typer.BadParameter(f"--parts knows {', '.join(SHARES)}, not {part!r}")
    if "peak" not in chosen:  # shares of the peak need it, and it takes a second
        chosen = ["peak", *chosen]
    if not torch.cuda.is_available() and not small:
        sys.exit("torch sees no GPU here, so nothing is measured; run this where there is one, or with --small")
    try:
        sys.exit(0 if report(out, chosen, minutes, runs, small) else 1)
    except FedsimError as error:
        sys.exit(f"error: {error}")


def report(out: Path, parts: list[str], minutes: float, runs: int, small: bool) -> bool:
    """Measure, print and save; return whether all of the parts is on file and was measured."""
    gpu = torch.cuda.get_device_name() if torch.cuda.is_available() else None
    device, sizes = torch.device("cpu" if gpu is None else "cuda"), TINY if small else FULL
    setting = f"{gpu or 'the CPU'}, {'small' if small else 'full'} size, torch {torch.__version__}"
    out.mkdir(parents=True, exist_ok=True)
    ledger = Ledger(out / "figures.jsonl", setting)
    ordered = [part for part in SHARES if part in parts]
    budget = Budget(60 * minutes, {part: SHARES[part] for part in ordered})
    make_deterministic(device)  # as a worker does, before the first product
    console = Console(highlight=False, markup=False, stderr=True)
    with tempfile.TemporaryDirectory(prefix="gpu-report-") as folder:
        bench = Bench(device, Models(device, Path(folder)), sizes.counts, runs)
        todo = cells(ordered, sizes, bench, gpu)
        left_out = run_cells(todo, ledger, budget, console.print, out / "failures.txt")
    printed = Console(highlight=False, markup=False, width=200, record=True)
    printed.print("\n".join(f"{part}: {ABOUT[part]}" for part in ordered))
    show(printed, ledger.cells(), f"fedsim on {setting}", left_out, judged=gpu is not None and not small)
    (out / "report.txt").write_text(printed.export_text(), encoding="utf-8")
    return all(ledger.has(cell.part, cell.name) for cell in todo)


if __name__ == "__main__":
    # Where time is up, what the cell has started ends with it.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))
    typer.run(main)

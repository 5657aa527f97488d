"""Damaged configs, data files, models, checkpoints and prompts: each is accepted, or refused with one sentence.

    python -m benchmarks.fuzz --examples 10000 --seed 0
    python -m benchmarks.fuzz --case config:8316     # one case again, with its traceback

Cases are distinct numbers drawn by Hypothesis; a case is a function of its number. They run in separate processes with bounded
memory, so that crashes and unbounded memory are findings too and do not stop the command. A finding is an exception that is not
a FedsimError, a message that is not one sentence (``fuzzing.judgement``), more time than the kind's limit
(``fuzzing.kinds``), or a process that dies. Exit status 1 if there is any.
"""

from __future__ import annotations

import os
import time
import warnings
from collections import Counter
from typing import Annotated

import typer

from benchmarks.fuzzing.kinds import KINDS
from benchmarks.fuzzing.processes import Figures, measure, tried


def main(
    examples: Annotated[int, typer.Option(help="Cases in all.")] = 10_000,
    seed: Annotated[int, typer.Option(help="Of the cases.")] = 0,
    kinds: Annotated[str, typer.Option(help="Kinds of input, with commas.")] = ",".join(KINDS),
    case: Annotated[str | None, typer.Option(help="Try one case alone: KIND:NUMBER.")] = None,
) -> None:
    """Try damaged inputs."""
    prepare()
    if case is not None:
        kind, _, number = case.partition(":")
        print(tried(kind, int(number), show=True))
        return
    chosen = kinds.split(",")
    total = sum(KINDS[kind].share for kind in chosen) or 1.0
    started = time.monotonic()
    found = {kind: measure(kind, round(examples * KINDS[kind].share / total), seed) for kind in chosen}
    report(found, time.monotonic() - started)
    raise typer.Exit(1 if any(figures.findings for figures in found.values()) else 0)


def prepare() -> None:
    """Set what all cases share; called before anything large is imported."""
    os.environ["HF_HUB_OFFLINE"] = "1"
    os.environ["TOKENIZERS_PARALLELISM"] = "false"
    warnings.simplefilter("ignore")


def report(found: dict[str, Figures], seconds: float) -> None:
    """Print counts, times and findings, grouped by location."""
    for kind, figures in found.items():
        counts = ", ".join(f"{many} {outcome}" for outcome, many in sorted(figures.outcomes.items()))
        slowest, number = figures.slowest
        total = figures.outcomes.total()
        print(f"{kind:7} {total:6} cases: {counts}; {figures.seconds:.0f} s, slowest {slowest:.2f} s ({number})")
        places = Counter(_kind_of(text) for _, text in figures.findings)
        for place, many in places.most_common():
            number, text = next(item for item in figures.findings if _kind_of(item[1]) == place)
            print(f"  {many} x {text}\n      {kind}:{number}")
    print(f"{sum(figures.outcomes.total() for figures in found.values())} cases in {seconds:.0f} s")


def _kind_of(text: str) -> str:
    return text.partition(":")[0] + text.rpartition(", in ")[2]


if __name__ == "__main__":
    typer.run(main)

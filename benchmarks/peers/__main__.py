"""fedsim, Flower's simulation engine, pfl-research and BlazeFL on the same work: ``python -m benchmarks.peers --data FOLDER``.

W1
    MiniLM on SST-2, six prompted layers, 100 clients, 10 a round, 2 epochs of batches of 8, an evaluation after every round;
    fedsim also with prompts in the upper three layers only and the layers below cached, which is less work. (W1u: these layers
    on all sides.)
W2
    The same cohorts on a random model of 4 layers with hidden size 128.
W3
    No training: 100 and 1,000 clients receive a float32 vector of 25,000 and 1,000,000 elements, add one and return it.

All sides have two processes with one thread each, and in W1 and W2 the same model, data, shards, cohorts, batches and
optimizer; the final vectors are compared, so that the work is known to be the same. Each repetition starts every side anew, in
turn. A round's time is that of the rounds after the first; the first, with all before it, is a figure of its own.

All compute their products in float32 unless their name says otherwise: fedsim also in its own ``model.products=bfloat16`` where
the config has that key, the peers with ``--also-autocast`` also under PyTorch's autocast. Vectors from rounded products may
differ by more.
"""

from __future__ import annotations

import re
import sys
import tempfile
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from datetime import date
from importlib.metadata import version
from pathlib import Path
from typing import Annotated

import numpy as np
import typer
from rich.console import Console

from benchmarks.measure import RUNS, Row, numbers, present
from benchmarks.peers.cases import W3, Carrying, Case, minilm, minilm_upper, tiny
from benchmarks.peers.comparison import BENCHMARK, SAME, Comparison, Figure, Side
from benchmarks.peers.sides import Outcome, carrying, fedsim_tuning, peer_tuning
from benchmarks.peers.venvs import PEERS, python_of
from benchmarks.products import APART, AUTOCAST, BFLOAT16, FLOAT32, named, of_fedsim, override
from fedsim.core.errors import ConfigError, FedsimError

FEDSIM = "fedsim"
ROUNDS = {"W1": 3, "W1u": 3, "W2": 10, "W3": 3}
"""Rounds after the first one in each run."""
CARRIERS = {"flower": ("flower",), "pfl": ("pfl", "pfl-bare"), "blazefl": ("blazefl",)}
"""Ways in which a peer carries vectors: pfl as a model that is averaged, and by an algorithm without a model."""


def tuning(
    case: Case,
    peers: Mapping[str, Path],
    repeats: int,
    rounds: int,
    console: Console,
    also_autocast: bool = False,
) -> list[Row]:
    """Compare the sides on a case of prompt tuning: round, first round, and whether they did the same."""
    comparison = Comparison(case.name)
    with tempfile.TemporaryDirectory(prefix="peers-work-") as folder:
        sides = _fedsim_sides(case, rounds + 1)
        theirs = _peer_sides(case, peers, rounds + 1, Path(folder), also_autocast)
        sides |= theirs
        comparison.run(sides, repeats, console)
    in_float32 = [peer for peer in theirs if peer in peers]
    rounded = [name for name in (*theirs, named(FEDSIM, BFLOAT16)) if name in sides and name not in peers]
    differences = comparison.difference_rows(in_float32, FEDSIM)
    differences += comparison.difference_rows(rounded, FEDSIM, APART)
    measures: tuple[tuple[str, Figure], ...] = (
        ("round", lambda outcome: outcome.round_seconds),
        ("first round after the command", lambda outcome: outcome.first_round_seconds),
    )
    rows: list[Row] = []
    for what, figure in measures:
        for base in comparison.ran(name for name in sides if name not in theirs):
            rows.append(comparison.row(what, "s", figure, base))
            rows += [comparison.row(what, "s", figure, peer, base) for peer in comparison.ran(theirs)]
    return [*rows, *differences, *comparison.failure_rows()]


def _fedsim_sides(case: Case, rounds: int) -> dict[str, Side]:
    """Return the runs of fedsim by name, in each number format of its own."""
    variants = {FEDSIM: (), **{f"{FEDSIM}, {name}": keys for name, keys in case.fedsim_only}}
    return {
        named(name, products): fedsim_tuning(case, (*keys, *override(products)), rounds)
        for name, keys in variants.items()
        for products in of_fedsim()
    }


def _peer_sides(
    case: Case, peers: Mapping[str, Path], rounds: int, folder: Path, also_autocast: bool
) -> dict[str, Side]:
    """Return the runs of the peers by name, once what they read is in ``folder``."""
    sides: dict[str, Side] = {}
    for products in (FLOAT32, AUTOCAST) if also_autocast else (FLOAT32,):
        work = folder / products
        if peers:
            work.mkdir()
            save_work(case, rounds, work, autocast=products == AUTOCAST)
        sides |= {named(peer, products): peer_tuning(peer, python, work, rounds) for peer, python in peers.items()}
    return sides


def save_work(case: Case, rounds: int, folder: Path, *, autocast: bool = False) -> None:
    """Write what the peers need of a case to a folder."""
    from benchmarks.peers.work import Work

    work, plan = Work.of(case.read(override(FLOAT32)), rounds)
    replace(work, autocast=autocast).save(folder)
    plan.save(folder)


def orchestration(case: Carrying, peers: Mapping[str, Path], repeats: int, rounds: int, console: Console) -> list[Row]:
    """Compare the sides on carrying vectors: client-updates a second, and memory."""
    pythons = {FEDSIM: Path(sys.executable)}
    pythons |= {carrier: python for peer, python in peers.items() for carrier in CARRIERS[peer]}
    sides = {name: carrying(name, python, case, rounds + 1) for name, python in pythons.items()}
    comparison = Comparison(case.name)
    comparison.run(sides, repeats, console)
    for name in comparison.ran(sides):
        if not all(np.allclose(outcome.vector_F, rounds + 1, rtol=SAME) for outcome in comparison.outcomes[name]):
            comparison.fail(name, f"the final vector of {name} is not {rounds + 1} everywhere, one for each round")
    rows: list[Row] = []
    carriers = comparison.ran(name for name in sides if name != FEDSIM)

    def rate(outcome: Outcome) -> float:
        return case.clients / outcome.round_seconds

    def megabytes(outcome: Outcome) -> float:
        return outcome.peak_memory_bytes / 1e6

    rows += [comparison.row("client-updates", "1/s", rate, name) for name in carriers]
    for name in comparison.ran([FEDSIM]):
        rows += [comparison.row("client-updates", "1/s", rate, name, carrier) for carrier in carriers]
    rows += [comparison.row("peak memory, all processes", "MB", megabytes, name) for name in comparison.ran(sides)]
    return [*rows, *comparison.failure_rows()]


def case_of(work: str, data: Path | None, folder: Path) -> Case:
    """Return W1, W1u or W2; the model of W2 is written to ``folder``.

    Raises
    ------
    ConfigError
        If W1 has no data.
    """
    if work == "W2":
        return tiny(folder)
    if data is None:
        raise ConfigError(f"{work} needs --data FOLDER, with sst2/train.jsonl and sst2/validation.jsonl in it")
    return minilm(data) if work == "W1" else minilm_upper(data)


def measure(
    works: Sequence[str],
    data: Path | None,
    peers: Mapping[str, Path],
    repeats: int,
    rounds: int | None,
    carried: Sequence[Carrying] = W3,
    also_autocast: bool = False,
) -> list[Row]:
    """Return the rows of all works; ``carried`` are the cases of W3."""
    console, rows = Console(highlight=False, stderr=True), []
    with tempfile.TemporaryDirectory(prefix="peers-model-") as folder:
        for work in works:
            count = rounds or ROUNDS[work]
            if work == "W3":
                for case in carried:
                    rows += orchestration(case, peers, repeats, count, console)
            else:
                rows += tuning(case_of(work, data, Path(folder)), peers, repeats, count, console, also_autocast)
    return rows


def main(
    data: Annotated[
        Path | None, typer.Option(help="Folder with sst2/, for W1: train.jsonl and validation.jsonl.")
    ] = None,
    records_file: Annotated[Path | None, typer.Option("--json", help="Write one line of JSON a figure.")] = None,
    work: Annotated[str, typer.Option(help="What to compare: W1, W1u, W2, W3.")] = "W1,W2,W3",
    peers: Annotated[str, typer.Option(help=f"Whom to compare with: {', '.join(PEERS)}; or nothing.")] = ",".join(
        PEERS
    ),
    repeats: Annotated[int, typer.Option(min=1, help="Runs of every side.")] = RUNS,
    rounds: Annotated[int | None, typer.Option(min=1, help="Rounds of a run after the first.")] = None,
    clients: Annotated[str, typer.Option(help="W3: numbers of clients.")] = "100,1000",
    elements: Annotated[str, typer.Option(help="W3: lengths of the vector, multiples of 200.")] = "25000,1000000",
    also_autocast: Annotated[
        bool, typer.Option("--also-autocast", help="W1, W2: also the peers' loop under torch.autocast in bfloat16.")
    ] = False,
    venvs: Annotated[Path, typer.Option(help="Where the peers' virtual environments are made and kept.")] = Path(
        ".bench/venvs"
    ),
) -> None:
    """Run the comparison and print its table; the exit status tells whether all sides ran."""
    try:
        works = chosen("--work", work, ROUNDS)
        pythons = {peer: python_of(peer, venvs) for peer in chosen("--peers", peers, PEERS)}
        carried = [Carrying(count, size) for size in numbers(elements, 200) for count in numbers(clients)]
        rows = measure(works, data, pythons, repeats, rounds, carried, also_autocast)
    except FedsimError as error:
        sys.exit(f"error: {error}")
    setting = Row(BENCHMARK, setting_of(pythons), None, "setting", runs=0)
    present(
        [*rows, setting], records_file, "fedsim and its peers; products in float32 unless a side names another format"
    )
    if any(row.value is None for row in rows):
        sys.exit(1)


def setting_of(peers: Iterable[str]) -> str:
    """Return the date, and the versions of all that took part."""
    own = [f"{name} {version(name)}" for name in (FEDSIM, "torch", "transformers")]
    theirs = [re.sub(r"\[.*\]", "", PEERS[peer]).replace("==", " ") for peer in peers]
    return "; ".join([date.today().isoformat(), *own, *theirs])


def chosen(option: str, words: str, known: Mapping[str, object]) -> list[str]:
    """Return the words of an option.

    Raises
    ------
    ConfigError
        If one of them is not known.
    """
    given = [word.strip() for word in words.split(",") if word.strip()]
    for word in given:
        if word not in known:
            raise ConfigError(f"{option} knows {', '.join(known)}, not {word!r}")
    return given


if __name__ == "__main__":
    typer.run(main)

"""Cells that compare sides of local training: one by one, in shared passes, PEFT's loop, number formats, compiled layers."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch

from benchmarks.gpu_report.figures import Figure
from benchmarks.gpu_report.shapes import Models, ModelSize, weight_bytes
from benchmarks.gpu_report.timing import Measured, measure
from benchmarks.gpu_report.training import Work, different_work

AIM_OVER_ONE_BY_ONE, AIM_OVER_PEFT, AIM_OF_PEAK = 8.0, 5.0, 0.4


@dataclass(frozen=True)
class Counts:
    """Clients of the sides."""

    shared: tuple[int, ...]
    """In shared passes."""
    alone: int
    """One after another: their rate does not depend on how many follow."""
    aimed: int
    """In shared passes, where the aims are set."""


@dataclass(frozen=True)
class Bench:
    """What all cells of this kind need."""

    device: torch.device
    models: Models
    counts: Counts
    runs: int


def shared_passes(bench: Bench, size: ModelSize, tuner: str) -> list[Figure]:
    """Compare clients one by one with clients in shared passes."""
    counts, backbone = bench.counts, bench.models.backbone(size, tuner)
    work = Work(size, tuner, backbone.geometry, max(counts.shared))
    alone = f"one by one ({counts.alone} clients)"
    sides: dict[str, _Side] = {alone: _Side(lambda: work.train(backbone, counts.alone, together=False), counts.alone)}
    for clients in counts.shared:
        sides[f"{clients} in shared passes"] = _Side(
            lambda clients=clients: work.train(backbone, clients, together=True), clients
        )
    figures = _compare(bench, work, sides, dict.fromkeys(sides, weight_bytes(backbone.model)), alone)
    aimed = f"{counts.aimed} in shared passes"
    aims = {"ratio": AIM_OVER_ONE_BY_ONE, "share": AIM_OF_PEAK}
    return [replace(figure, aims=aims) if figure.name == aimed else figure for figure in figures]


def over_peft(bench: Bench, size: ModelSize, tuner: str) -> list[Figure]:
    """Compare shared passes with a loop of PEFT, one client after another."""
    counts, backbone, plain = bench.counts, bench.models.backbone(size, tuner), bench.models.plain(size)
    work = Work(size, tuner, backbone.geometry, max(counts.aimed, counts.alone))
    held = {"PEFT": weight_bytes(plain), "fedsim": weight_bytes(backbone.model)}
    loop = work.peft_loop(plain)
    theirs, ours = f"loop of PEFT ({counts.alone} clients)", f"{counts.aimed} in shared passes"
    sides = {
        theirs: _Side(lambda: work.train_with_peft(loop, counts.alone), counts.alone),
        ours: _Side(lambda: work.train(backbone, counts.aimed, together=True), counts.aimed),
    }
    figures = _compare(bench, work, sides, {theirs: held["PEFT"], ours: held["fedsim"]}, theirs)
    return [figures[0], replace(figures[1], aims={"ratio": AIM_OVER_PEFT})]


def against_plain(bench: Bench, size: ModelSize, tuner: str, name: str, model: Mapping[str, Any]) -> list[Figure]:
    """Compare shared passes on a model built otherwise with those on bfloat16 weights, as they are.

    Parameters
    ----------
    model
        Keys of section ``model``, which ``name`` describes.
    """
    clients = bench.counts.aimed
    plain, other = bench.models.backbone(size, tuner), bench.models.backbone(size, tuner, **model)
    work = Work(size, tuner, plain.geometry, clients)
    base, changed = f"bfloat16, {clients} in shared passes", f"{name}, {clients} in shared passes"
    sides = {
        base: _Side(lambda: work.train(plain, clients, together=True), clients),
        changed: _Side(lambda: work.train(other, clients, together=True), clients),
    }
    held = {base: weight_bytes(plain.model), changed: weight_bytes(other.model)}
    figures = _compare(bench, work, sides, held, base)
    if model.get("compile"):
        torch.compiler.reset()
    return figures


@dataclass(frozen=True)
class _Side:
    train: Callable[[], Sequence[Any]]
    clients: int


def _compare(bench: Bench, work: Work, sides: Mapping[str, _Side], held: Mapping[str, int], base: str) -> list[Figure]:
    """Measure the sides in turn, and check that they do the same work.

    Parameters
    ----------
    held
        Bytes of each side's own weights.
    base
        The side with which the others are compared.
    """
    results: dict[str, Sequence[Any]] = {}

    def keep(name: str) -> None:
        results[name] = sides[name].train()

    taken = measure({name: lambda name=name: keep(name) for name in sides}, bench.device, bench.runs)
    mismatch = different_work(results)
    splits = f"{work.splits} passes cut in two by memory" if work.splits else ""
    return [
        Figure(
            name,
            "s",
            taken[name].seconds,
            work.tokens(side.clients),
            work.flops(side.clients),
            _memory(taken[name], held[name]),
            "" if name == base or mismatch else base,  # no ratio of different work
            note="; ".join(word for word in (mismatch, f"first run {taken[name].first_seconds:.1f} s", splits) if word),
        )
        for name, side in sides.items()
    ]


def _memory(taken: Measured, held_bytes: int) -> int | None:
    return None if taken.added_bytes is None else held_bytes + taken.added_bytes

"""The page of a run, from its records alone."""

from __future__ import annotations

import shlex
from collections.abc import Iterator, Mapping
from pathlib import PurePath
from typing import TYPE_CHECKING, Any

import numpy as np

from fedsim import __version__
from fedsim.configuration.changed import changed, value_text
from fedsim.display.course import chance, metric_words, with_final, with_generated
from fedsim.display.page.client_figure import client_figure
from fedsim.display.page.parts import Block, Commands, Facts, Figures, Page, Section, Sentences, Table, text_cells
from fedsim.display.page.render import render
from fedsim.display.page.run_figures import course, label_figures, score_figures
from fedsim.display.page.text_samples import text_samples
from fedsim.display.page.world_figures import world_figures
from fedsim.display.report import MISSING, final_rows, format_bytes, format_clock, format_metric, format_seconds
from fedsim.display.run_words import group_words, model_words, partition_words, run_words
from fedsim.records.recorded_run import RecordedRun
from fedsim.study.per_client import client_figures as figures_of_clients

if TYPE_CHECKING:
    from fedsim.configuration.schema import Config


def run_page(run: RecordedRun) -> str:
    """Return the page of a run, finished or in progress, as HTML."""
    summary = run.summary or {}
    metric_name = str(summary.get("metric_name") or "metric")
    labels = run.labels
    guessing = chance(metric_name, len(labels[1]) if labels else None)
    rounds = with_final(
        {name: run.rounds[name].to_numpy() for name in run.rounds.column_names}, summary.get("personalised_metric")
    )
    rounds = with_generated(rounds, summary.get("generated"))
    page = Page(
        kind="run",
        title=str(run.config.name or PurePath(run.location).name),
        lead=tuple(_lead(run, summary, metric_name, guessing)),
        tiles=tuple(_tiles(summary, metric_name)),
        sections=tuple(_sections(run, summary, rounds, metric_name, guessing)),
        foot=f"{run_words(run.config, summary.get('task'))}. Written by fedsim {__version__}.",
    )
    return render(page)


def _lead(run: RecordedRun, summary: Mapping[str, Any], metric_name: str, guessing: float | None) -> Iterator[str]:
    config = run.config
    if not summary:
        so_far = max(0, run.rounds.num_rows - 1)
        yield f"{config.server.kind} with {model_words(config)}; not finished, {so_far} rounds on record."
        return
    what = f"{summary['method']} on {summary['task']}: {summary.get('trained', 'prompts')} of {model_words(config)}"
    partition = partition_words(config.partition)
    rounds = "1 round" if summary["rounds"] == 1 else f"{summary['rounds']} rounds"
    yield f"{what}, trained for {rounds} over {summary['clients']:,} clients ({partition})."
    last, first = summary.get("global_metric"), summary.get("first_global_metric")
    if last is not None:
        name = metric_words(metric_name).capitalize()
        course = f"is {last:.3f}" if first is None else f"{_went(first, last)} from {first:.3f} to {last:.3f}"
        against = "" if guessing is None else f" (chance is {guessing:.3g})"
        best, at = summary.get("best_global_metric"), summary.get("best_global_round")
        best_words = "" if best is None or best == last else f", at best {best:.3f} after round {at}"
        own = summary.get("personalised_metric")
        own_words = "" if own is None else f" With their own models the clients reach {own:.3f} on held-out examples."
        yield f"{name} {course}{against}{best_words}.{own_words}"
    if summary.get("stopped"):
        yield f"Stopped early: {summary['stopped']['reason']}."


def _went(first: float, last: float) -> str:
    return "rose" if last > first else "fell" if last < first else "went"


def _tiles(summary: Mapping[str, Any], metric_name: str) -> Iterator[tuple[str, str, str]]:
    name = metric_words(metric_name)
    for key, label, remark in (
        ("global_metric", f"last {name}", "global model"),
        ("best_global_metric", f"best {name}", f"round {summary.get('best_global_round')}"),
        ("personalised_metric", f"personalised {name}", "held-out examples"),
    ):
        if (text := format_metric(summary.get(key), 3)) != MISSING:
            yield text, label, remark
    yield from _written_tile(summary.get("generated") or {})
    if summary:
        total = summary["bytes_down"] + summary["bytes_up"]
        yield format_bytes(total), "traffic", f"{format_bytes(summary['bytes_up'])} of it up"
        workers = len(summary.get("workers") or [])
        if (simulated := summary.get("seconds_simulated")) is not None:
            yield format_clock(simulated), "simulated time", "virtual clock at the end"
        yield format_seconds(summary["seconds_total"]), "wall time", f"{workers} worker{'s' * (workers != 1)}"


def _written_tile(generated: Mapping[str, Any]) -> Iterator[tuple[str, str, str]]:
    """Yield the main text metric of what the global model wrote last, the first one of the summary."""
    about = ("examples", "tokens", "ended", "personal", "start")
    name = next((name for name in generated if name not in about), None)
    if name is not None and (text := format_metric(generated[name], 3)) != MISSING:
        before = (generated.get("start") or {}).get(name)
        remark = "written responses" if before is None else f"written responses, {before:.3f} before"
        yield text, metric_words(name), remark


def _sections(
    run: RecordedRun,
    summary: Mapping[str, Any],
    rounds: Mapping[str, np.ndarray],
    metric_name: str,
    guessing: float | None,
) -> Iterator[Section]:
    if curves := course(rounds, metric_name, guessing):
        yield Section("course", "Course of the run", (curves,))
    if world := world_figures(run):
        title = "Simulated devices" if run.devices.num_rows else "Buffered rounds"
        yield Section("world", title, (world,), _WORLD if run.devices.num_rows else "")
    choices = run.events("layers")
    if choices and (scores := score_figures(choices[-1])):
        intro = "Layers are ranked by their score; those with the highest are tuned and exchanged."
        yield Section("layers", "Layers", (scores,), intro)
    if clients := _clients(run, metric_name):
        yield Section("clients", "Clients", (clients,), "Who holds what, and how each fares.")
    if samples := text_samples(run.generations.to_pylist(), summary.get("generated")):
        yield Section("responses", "Responses", samples, "What the model writes by itself, token by token.")
    if summary:
        rows = [(name, value) for name, value in final_rows(summary) if name not in ("folder",)]
        yield Section("facts", "Facts", (Facts(tuple(rows)),))
    yield Section("config", "Config", (_changes(run.config),))
    yield Section("repeat", "Repeat it", tuple(_repeat(run, summary)))


_WORLD = "What the clients' devices did on the virtual clock, and whose results count: who was left out, by speed and by label."


def _clients(run: RecordedRun, metric_name: str) -> Figures | None:
    """Return what the clients hold and how they fare, as far as it is on record."""
    words = group_words(run.config.model.head.kind)
    held = label_figures(*run.labels, words=words) if run.labels is not None else Figures(())
    spread = client_figure(figures_of_clients(run.personal)["clients"], metric_name)
    figures = (*held.figures, *([spread] if spread is not None else []))
    return Figures(figures, held.legend) if figures else None


def _changes(config: Config) -> Table:
    rows = tuple(text_cells(key, value_text(value), value_text(default)) for key, value, default in changed(config))
    return Table("Keys that differ from their defaults", ("key", "value", "default"), rows)


def _repeat(run: RecordedRun, summary: Mapping[str, Any]) -> Iterator[Block]:
    yield Sentences(("The same versions, data and weights give the same prompt, byte for byte:",))
    yield Commands((repeat_command(run, summary),))
    if summary:
        about = [("versions", ", ".join(f"{name} {version}" for name, version in summary["versions"].items()))]
        about += [("plug-in", f"{name}, SHA-256 {sha}") for name, sha in (summary.get("plugins") or {}).items()]
        about += [("config, SHA-256", summary["config_hash"])]
        about += [(f"{name.replace('_', ' ')}, SHA-256", str(sha)) for name, sha in summary["contents"].items() if sha]
        yield Facts((*about, ("folder", summary["folder"])))


def repeat_command(run: RecordedRun, summary: Mapping[str, Any]) -> str:
    """Return the command that repeats a run to the same bytes, from the config that it has on record."""
    loads = [word for name in summary.get("plugins") or {} for word in ("--load", name)]
    name = run.config.name or "run"
    return shlex.join(["fedsim", "run", f"{run.location}/config.yaml", f"output=runs/{name}-again", *loads])

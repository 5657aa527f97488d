"""What the page of a run shows while the run goes on."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import UTC, datetime
from typing import TYPE_CHECKING

from markupsafe import Markup, escape

from fedsim import __version__
from fedsim.display.course import metric_words
from fedsim.display.page.parts import Cell, Figure, Figures, Page, Section, Table, number_cell, text_cells, thinned
from fedsim.display.report import format_bytes, format_clock, format_metric, format_seconds
from fedsim.display.run_words import model_words, partition_words, run_words

if TYPE_CHECKING:
    from fedsim.configuration.schema import Config
    from fedsim.display.watch.run_state import RunState

_WIDTH, _HEIGHT, _LEFT, _BOTTOM = 420.0, 190.0, 52.0, 26.0
_POINTS = 400
"""Points of a curve; more are thinned out."""
_ROUNDS = 20


def live_page(run: RunState, config: Config, ended: str, refresh_seconds: float | None) -> Page:
    """Return the page of a run that goes on, or has just ended early.

    Parameters
    ----------
    ended
        How it ended; empty if it goes on.
    refresh_seconds
        After this time a browser loads the page again; None if it will not change.
    """
    name, metrics = metric_words(config_metric(config)), run.metrics
    what = f"{config.server.kind} with {model_words(config)} ({partition_words(config.partition)})"
    state = (
        ended or f"Going on: round {run.last_round} of {config.rounds}, {_left(run)} left. The page reloads by itself."
    )
    tiles = [
        (format_metric(metrics[-1] if metrics else None, 3), f"last {name}", f"round {run.last_round}"),
        (format_metric(max(metrics, default=None), 3), f"best {name}", "so far"),
        (format_bytes(run.total("bytes_down") + run.total("bytes_up")), "traffic", "both ways"),
        (format_seconds(run.seconds_per_round), "a round", "mean of the last ones"),
    ]
    now = datetime.now(UTC).strftime("%Y-%m-%d %H:%M:%S UTC")
    return Page(
        kind="run",
        title=str(config.name or "run"),
        lead=(f"{what}.", state, f"As of {now}."),
        tiles=tuple(tiles),
        sections=(
            Section("course", "Course of the run", (_curves(run, name),)),
            Section("rounds", "Last rounds", (_rounds(run, name),)),
            Section("events", "Events", (_events(run),)),
        ),
        foot=f"{run_words(config)}. Written by fedsim {__version__} while the run was going on.",
        refresh_seconds=None if refresh_seconds is None else max(1, round(refresh_seconds)),
    )


def config_metric(config: Config) -> str:
    """Return the name of a run's metric."""
    from fedsim.data.tasks import resolve_task

    return resolve_task(config.data.task).metric


def _left(run: RunState) -> str:
    return format_clock(run.seconds_left)


def _curves(run: RunState, name: str) -> Figures:
    measured = [(each["round"], each["global_metric"]) for each in run.rounds if each.get("global_metric") is not None]
    if run.first_metric is not None:
        measured.insert(0, (0, run.first_metric))
    losses = [
        (each["round"], each["train_loss_last"]) for each in run.rounds if each.get("train_loss_last") is not None
    ]
    figures = [
        _figure("metric", name.capitalize(), f"{name.capitalize()} of the global model by round.", measured),
        _figure("loss", "Training loss", "Mean training loss of a round's clients.", losses),
    ]
    if written := run.written_course:
        title = f"Written responses: {metric_words(run.text_metrics[0])}"
        figures.append(_figure("generated", title, "Mean over what the global model wrote by itself.", written))
    return Figures(tuple(figures))


def _figure(key: str, title: str, text: str, points: Sequence[tuple[int, float]]) -> Figure:
    rows = thinned([(Cell(str(round), round), number_cell(value)) for round, value in points])
    return Figure(key, title, _svg(key, title, text, points), text, Table(title, ("round", title), tuple(rows)))


def _svg(key: str, title: str, text: str, points: Sequence[tuple[int, float]]) -> Markup:
    """Return a line over rounds."""
    head = Markup(
        '<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {w:g} {h:g}" role="img" aria-labelledby="{k}-title {k}-desc">'
        '<title id="{k}-title">{t}</title><desc id="{k}-desc">{d}</desc>'
    ).format(w=_WIDTH, h=_HEIGHT, k=key, t=title, d=text)
    if len(points) < 2:
        return head + Markup('<text x="{x:g}" y="{y:g}">no rounds yet</text></svg>').format(x=_LEFT, y=_HEIGHT / 2)
    step = -(-len(points) // _POINTS)
    kept = [*points[::step], points[-1]]
    (first, last), values = (kept[0][0], kept[-1][0]), [value for _, value in kept]
    low, high = min(values), max(values)
    width, height = _WIDTH - _LEFT - 12, _HEIGHT - _BOTTOM - 12

    def place(round: float, value: float) -> str:
        across = (round - first) / max(1, last - first)
        up = (value - low) / (high - low) if high > low else 0.5
        return f"{_LEFT + across * width:.1f},{12 + (1 - up) * height:.1f}"

    line = " ".join(place(*point) for point in kept)
    base = _HEIGHT - _BOTTOM
    parts = [
        f'<path d="M{_LEFT:g},12V{base:g}H{_WIDTH - 12:g}" fill="none" style="stroke: var(--c777777)"/>',
        f'<polyline points="{line}" fill="none" stroke-width="2" style="stroke: var(--c0072b2)"/>',
        _label(_LEFT - 6, 20, f"{high:.3g}", "end"),
        _label(_LEFT - 6, base, f"{low:.3g}", "end"),
        _label(_LEFT, _HEIGHT - 8, f"round {first}", "start"),
        _label(_WIDTH - 12, _HEIGHT - 8, f"round {last}", "end"),
    ]
    return head + Markup("".join(parts)) + Markup("</svg>")


def _label(x: float, y: float, text: str, anchor: str) -> str:
    style = f"fill: var(--c444444); font-size: 12px; text-anchor: {anchor}"
    return f'<text x="{x:g}" y="{y:g}" style="{style}">{escape(text)}</text>'


def _rounds(run: RunState, name: str) -> Table:
    columns = ("round", name, "training loss", "clients", "failed", "seconds", "down", "up")
    rows = [
        (
            Cell(str(line.round), line.round),
            number_cell(line.metric),
            number_cell(line.loss),
            Cell(str(line.clients_ok), line.clients_ok),
            Cell(str(line.clients_failed), line.clients_failed),
            number_cell(line.seconds, "{:.2f}"),
            Cell(format_bytes(line.bytes_down), line.bytes_down),
            Cell(format_bytes(line.bytes_up), line.bytes_up),
        )
        for line in reversed(run.lines(_ROUNDS))
    ]
    return Table(f"The last {len(rows)} rounds, the newest first", columns, tuple(rows))


def _events(run: RunState) -> Table:
    rows = [text_cells(time.replace("T", " ")[:19], words) for time, _, words in reversed(run.told[-_ROUNDS:])]
    return Table("What happened, the newest first", ("time, UTC", "event"), tuple(rows), sortable=False)

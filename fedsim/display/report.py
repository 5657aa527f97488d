"""Formatting: bytes and durations, and the tables that the command line prints."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from rich import box
from rich.table import Table
from rich.text import Text

from clients.tuners.config import ONE_PLACE
from fedsim.display.run_words import CLASSES, GroupWords

MISSING = "-"
"""Shown for a value that was not measured."""
_LISTED_CLASSES = 20
"""Number of classes, the largest, with their own row."""


def format_bytes(num_bytes: float | None) -> str:
    """Format a number of bytes in decimal units, for example ``1.25 MB``."""
    if num_bytes is None or not math.isfinite(num_bytes):
        return MISSING
    value, unit = float(num_bytes), "B"
    for larger in ("kB", "MB", "GB", "TB", "PB"):
        if abs(value) < 999.5:
            break
        value, unit = value / 1000, larger
    return f"{value:.0f} B" if unit == "B" else f"{value:.3g} {unit}"


def format_seconds(seconds: float | None) -> str:
    """Format a duration, for example ``85 ms``, ``3.2 s``, ``2 min 05 s`` or ``1 h 07 min``."""
    if seconds is None or not math.isfinite(seconds):
        return MISSING
    if seconds < 0.0995:
        return f"{seconds * 1000:.0f} ms"
    if seconds < 9.95:
        return f"{seconds:.1f} s"
    if seconds < 59.5:
        return f"{seconds:.0f} s"
    if seconds < 3599.5:
        minutes, rest = divmod(round(seconds), 60)
        return f"{minutes} min {rest:02d} s"
    hours, rest = divmod(round(seconds / 60), 60)
    return f"{hours} h {rest:02d} min"


def format_clock(seconds: float | None) -> str:
    """Format a duration as ``h:mm:ss``."""
    if seconds is None or not math.isfinite(seconds):
        return MISSING
    minutes, rest = divmod(round(max(seconds, 0.0)), 60)
    return f"{minutes // 60}:{minutes % 60:02d}:{rest:02d}"


def format_metric(value: float | None, digits: int = 4) -> str:
    """Format a metric or a loss with ``digits`` decimals."""
    return MISSING if value is None or not math.isfinite(value) else f"{value:.{digits}f}"


def format_layers(layers: Sequence[int], num_layers: int | None = None) -> str:
    """Format layer numbers with ranges, for example ``0, 3-5 (4 of 12)``."""
    runs: list[list[int]] = []
    for layer in sorted(layers):
        if runs and layer == runs[-1][-1] + 1:
            runs[-1].append(layer)
        else:
            runs.append([layer])
    text = ", ".join(f"{run[0]}-{run[-1]}" if len(run) > 1 else f"{run[0]}" for run in runs)
    return f"{text} ({len(layers)} of {num_layers})" if num_layers else text


def final_table(summary: Mapping[str, Any]) -> Table:
    """Return the table printed at the end of a run; see :func:`final_rows`."""
    table = Table(box=box.SIMPLE_HEAD, show_header=False, padding=(0, 1), title_justify="left", title_style="bold")
    table.title = "Run interrupted" if summary.get("interrupted") else "Run finished"
    table.add_column(style="dim", no_wrap=True)
    table.add_column(overflow="fold")
    for name, value in final_rows(summary):
        table.add_row(name, Text(value, style="bold" if name == _metric_name(summary) else ""))
    return table


def final_rows(summary: Mapping[str, Any]) -> list[tuple[str, str]]:
    """Return names and values of the table at the end of a run.

    Parameters
    ----------
    summary
        Contents of ``summary.json``; read are, where present, ``metric_name``, ``method``, ``trained``, ``task``,
        ``model``, ``clients``, ``executor``, ``workers`` (a list), ``layers``, ``num_layers``, ``rounds``, ``stopped``,
        ``first_global_metric``, ``select_on``, ``selected_round``, ``selected_global_metric``,
        ``global_metric``, ``best_global_metric``, ``best_global_round``, ``personalised_metric``,
        ``first_global_perplexity``, ``global_perplexity``, ``personalised_perplexity``,
        ``best_personalised_metric``, ``best_personalised_round``, ``client_updates``, ``clients_failed``, ``client_steps``,
        ``bytes_down``, ``bytes_up``, ``seconds_total``, ``seconds_per_round_median``, ``seconds_published``,
        ``seconds_simulated``, ``device_utilisation``, ``participation_by_speed``, ``clients_too_small``, ``fuse``,
        ``padding_share``, ``trunk_cache``, ``generated``, ``privacy``, ``folder`` and ``interrupted``. Missing values
        and NaN get no row.
    """
    metric_name = _metric_name(summary)
    rows: list[tuple[str, str | None]] = [
        ("method", _text(summary, "method")),
        ("trained", _text(summary, "trained")),
        ("task", _text(summary, "task")),
        ("model", _text(summary, "model")),
        ("clients", _number(summary, "clients")),
        ("executor", _executor(summary)),
        ("exchanged layers", None if summary.get("tuner") in ONE_PLACE else _layers(summary)),
        ("rounds", _number(summary, "rounds")),
        ("stopped", _stopped(summary)),
        (metric_name, _course(summary)),
        (f"best {metric_name}", _best(summary, "global")),
        (f"{metric_name} by held-out examples", _selected(summary)),
        (f"personalised {metric_name}", _metric(summary, "personalised_metric")),
        (f"best personalised {metric_name}", _best(summary, "personalised")),
        ("perplexity", _perplexity(summary)),
        ("personalised perplexity", _metric(summary, "personalised_perplexity")),
        ("responses", _generated(summary)),
        ("responses of clients' models", _generated(summary, "personal")),
        ("privacy", _privacy(summary)),
        ("client updates", _visits(summary)),
        ("local steps", _number(summary, "client_steps")),
        ("shared passes", _passes(summary)),
        ("frozen-layer cache", _frozen_cache(summary)),
        ("traffic", _traffic(summary)),
        ("time", _time(summary)),
        ("published time", _published_time(summary)),
        ("simulated time", _simulated_time(summary)),
        ("visits by speed", _by_speed(summary)),
        ("folder", _text(summary, "folder")),
    ]
    return [(name, value) for name, value in rows if value is not None]


def generated_words(generated: Mapping[str, Any]) -> str:
    """Return how responses compare to those of the data: their metrics, after those before any training where these are known,
    and of how many they are.
    """
    about, start = ("examples", "tokens", "ended", "personal", "start"), generated.get("start") or {}
    scores = [
        f"{name.replace('_', ' ')} {format_metric(start[name], 3) + ' -> ' if name in start else ''}{format_metric(value, 3)}"
        for name, value in generated.items()
        if name not in about
    ]
    ended = generated.get("ended")
    share = [] if ended is None else [f"{ended:.0%} ended by the model"]
    return ", ".join([*scores, *share, f"of {generated['examples']:,} written"])


def _generated(summary: Mapping[str, Any], part: str | None = None) -> str | None:
    found = summary.get("generated") or {}
    found = found if part is None else found.get(part) or {}
    return generated_words(found) if found.get("examples") else None


def layers_table(scores_L: Sequence[float] | np.ndarray, share: float, chosen: Sequence[int]) -> Table:
    """Return the table of ``fedsim layers``: score, rank and whether it is exchanged, per layer.

    Parameters
    ----------
    scores_L
        Score of each layer; higher ranks first, a score that is not a number ranks last.
    share
        Requested share of the layers.
    chosen
        Layers that are exchanged.
    """
    scores = np.asarray(scores_L, dtype=np.float64)
    order = np.argsort(-np.nan_to_num(scores, nan=-np.inf, posinf=np.inf, neginf=-np.inf), kind="stable")
    ranks = {int(layer): rank for rank, layer in enumerate(order, start=1)}
    title = f"Exchanged layers: {format_layers(chosen, len(scores))}, share {share:g}"
    table = Table(title=title, min_width=len(title), box=box.SIMPLE_HEAD, title_justify="left", title_style="bold")
    for name in ("layer", "score", "rank"):
        table.add_column(name, justify="right")
    table.add_column("exchanged", justify="center")
    for layer, score in enumerate(scores):
        taken = layer in set(chosen)
        figure = f"{score:,.4f}" if np.isfinite(score) else MISSING
        table.add_row(str(layer), figure, str(ranks[layer]), "yes" if taken else "", style="bold" if taken else "dim")
    return table


def share_table(choice: Mapping[str, Any], spectra: Sequence[Mapping[str, Any]]) -> Table:
    """Return the table of ``fedsim layers`` on how the layer share was derived.

    Parameters
    ----------
    choice
        The event ``layers`` of a run: ``share``, ``share_rule``, ``share_cost``, ``layers`` and ``num_layers``.
    spectra
        The events ``spectrum``, one per client.
    """
    cost = choice["share_cost"]
    shares_k = np.array([entry["share"] for entry in spectra])
    spread = f"min {shares_k.min():.3f}, median {np.median(shares_k):.3f}, max {shares_k.max():.3f}"
    without = sum(entry["threshold"] is None for entry in spectra)
    rows = [
        ("rule", choice["share_rule"]),
        ("share", f"{choice['share']:.4f}, so {len(choice['layers'])} of {choice['num_layers']} layers"),
        ("shares of the clients", f"{spread} ({len(spectra)} clients)"),
        ("no gap", f"{without} of {len(spectra)} clients, which keep all layers" if without else None),
        (
            "warm-up",
            f"{cost['warmup_rounds']} rounds, {cost['client_visits']:,} client updates, {cost['client_steps']:,} local steps",
        ),
        ("Hessian-vector products", f"{cost['hessian_vector_products']:,}"),
        ("traffic", f"{format_bytes(cost['bytes_down'])} down, {format_bytes(cost['bytes_up'])} up"),
        (
            "time",
            f"{format_seconds(cost['seconds_warmup'])} warm-up, {format_seconds(cost['seconds_spectra'])} spectra",
        ),
    ]
    table = Table(box=box.SIMPLE_HEAD, show_header=False, padding=(0, 1), title_justify="left", title_style="bold")
    table.title = "Layer share"
    table.add_column(style="dim", no_wrap=True)
    table.add_column(overflow="fold")
    for name, value in rows:
        if value is not None:
            table.add_row(name, Text(value, style="bold" if name == "share" else ""))
    return table


def partition_table(counts_NC: np.ndarray, class_names: Sequence[str], words: GroupWords = CLASSES) -> Table:
    """Return the table of ``fedsim partition``: sizes and label skew of the clients; sizes alone where there is one group.

    Parameters
    ----------
    counts_NC
        Number of examples of each client (N) and class (C).
    class_names
        Name of each class.
    words
        What the classes are called.
    """
    counts = np.asarray(counts_NC, dtype=np.float64)
    sizes_N = counts.sum(axis=1)
    shares_NC = counts / np.maximum(sizes_N, 1)[:, None]
    # Entropy over log C: 1 if a client holds all classes equally, 0 if it holds only one.
    terms_NC = np.where(shares_NC > 0, shares_NC * np.log(np.maximum(shares_NC, 1e-300)), 0.0)
    evenness_N = np.abs(terms_NC.sum(axis=1)) / math.log(max(len(class_names), 2))
    table = Table(box=box.SIMPLE_HEAD, title_justify="left", title_style="bold")
    groups = f", {len(class_names)} {words.several}" if len(class_names) > 1 else ""
    table.title = f"{len(counts):,} clients, {int(sizes_N.sum()):,} examples{groups}"
    table.add_column("over the clients")
    for name in ("min", "median", "mean", "max"):
        table.add_column(name, justify="right")
    _add_spread(table, "examples", sizes_N, "{:,.0f}")
    if not groups:
        return table
    _add_spread(table, f"{words.several} held", (counts > 0).sum(axis=1), "{:,.0f}")
    _add_spread(table, f"share of the largest {words.one}", shares_NC.max(axis=1), "{:.3f}")
    _add_spread(table, "label entropy / log C", evenness_N, "{:.3f}")
    table.add_section()
    largest = np.argsort(-counts.sum(axis=0), kind="stable")
    listed = sorted(largest[: _LISTED_CLASSES if len(largest) > _LISTED_CLASSES + 1 else None])
    for number in listed:
        _add_spread(table, f"share of {class_names[number]}", shares_NC[:, number], "{:.3f}")
    if rest := len(largest) - len(listed):
        others_N = np.delete(shares_NC, listed, axis=1).sum(axis=1)
        _add_spread(table, f"share of the other {rest} {words.several}", others_N, "{:.3f}")
    return table


def _add_spread(table: Table, name: str, values_N: np.ndarray, form: str) -> None:
    figures = (values_N.min(), np.median(values_N), values_N.mean(), values_N.max())
    table.add_row(Text(name), *(form.format(figure) for figure in figures))


def _metric_name(summary: Mapping[str, Any]) -> str:
    return str(summary.get("metric_name") or "metric")


def _text(summary: Mapping[str, Any], key: str) -> str | None:
    value = summary.get(key)
    return None if value is None else str(value)


def _number(summary: Mapping[str, Any], key: str) -> str | None:
    value = summary.get(key)
    return None if value is None else f"{value:,}"


def _metric(summary: Mapping[str, Any], key: str) -> str | None:
    text = format_metric(summary.get(key))
    return None if text == MISSING else text


def _executor(summary: Mapping[str, Any]) -> str | None:
    executor, workers = summary.get("executor"), summary.get("workers")
    if executor is None or not workers:
        return executor
    return f"{executor}, {len(workers)} {'worker' if len(workers) == 1 else 'workers'}"


def _layers(summary: Mapping[str, Any]) -> str | None:
    layers = summary.get("layers")
    return None if layers is None else format_layers(layers, summary.get("num_layers"))


def _course(summary: Mapping[str, Any]) -> str | None:
    first, last = _metric(summary, "first_global_metric"), _metric(summary, "global_metric")
    return f"{first} -> {last}" if first and last else last


def _perplexity(summary: Mapping[str, Any]) -> str | None:
    first, last = _metric(summary, "first_global_perplexity"), _metric(summary, "global_perplexity")
    return f"{first} -> {last}" if first and last else last


def _best(summary: Mapping[str, Any], which: str) -> str | None:
    best, best_round = _metric(summary, f"best_{which}_metric"), summary.get(f"best_{which}_round")
    return f"{best} (round {best_round})" if best and best_round is not None else best


def _privacy(summary: Mapping[str, Any]) -> str | None:
    """Say what a private run guarantees."""
    spent = summary.get("privacy")
    if not spent:
        return None
    relation = "replacing a client" if spent["relation"] == "replace_one" else "adding or removing a client"
    return (
        f"epsilon {spent['epsilon']:.4g} at delta {spent['delta']:g} for {relation} ({spent['accountant']}, {spent['draw']} "
        f"cohorts, noise {spent['noise_multiplier']:.4g} x clipping norm)"
    )


def _stopped(summary: Mapping[str, Any]) -> str | None:
    stopped = summary.get("stopped")
    return str(stopped["reason"]) if stopped else None


def _selected(summary: Mapping[str, Any]) -> str | None:
    """Return the metric on the validation examples after the round that the held-out examples chose."""
    value, round = _metric(summary, "selected_global_metric"), summary.get("selected_round")
    return f"{value} (round {round})" if value and summary.get("select_on") == "holdout" else None


def _visits(summary: Mapping[str, Any]) -> str | None:
    updates, failed = summary.get("client_updates"), summary.get("clients_failed")
    if updates is None:
        return None
    return f"{updates:,}" if failed is None else f"{updates:,} ok, {failed:,} failed"


def _traffic(summary: Mapping[str, Any]) -> str | None:
    down, up = summary.get("bytes_down"), summary.get("bytes_up")
    return None if down is None or up is None else f"{format_bytes(down)} down, {format_bytes(up)} up"


def _passes(summary: Mapping[str, Any]) -> str | None:
    fuse, padding = summary.get("fuse"), summary.get("padding_share")
    if not isinstance(fuse, int):
        return None
    clients = f"{fuse} clients" if fuse > 1 else "1 client"
    return clients if padding is None else f"{clients} per pass, {padding:.0%} padding in attention"


def _frozen_cache(summary: Mapping[str, Any]) -> str | None:
    counts = summary.get("trunk_cache")
    if not counts or not counts["hits"] + counts["misses"]:
        return None
    evicted = f", {counts['evictions']} evicted" if counts["evictions"] else ""
    return f"{counts['hits']} of {counts['hits'] + counts['misses']} hits, {format_bytes(counts['bytes'])}{evicted}"


def _time(summary: Mapping[str, Any]) -> str | None:
    total, median = summary.get("seconds_total"), summary.get("seconds_per_round_median")
    if total is None:
        return None
    text = format_seconds(total)
    return text if median is None else f"{text}, {format_seconds(median)} per round (median)"


def _simulated_time(summary: Mapping[str, Any]) -> str | None:
    seconds, used = summary.get("seconds_simulated"), summary.get("device_utilisation")
    if seconds is None:
        return None
    return format_clock(seconds) + ("" if used is None else f", devices at work {used:.2%} of it")


def _by_speed(summary: Mapping[str, Any]) -> str | None:
    shares = summary.get("participation_by_speed")
    if not shares:
        return None
    small = summary.get("clients_too_small") or 0
    never = f"; {small:,} clients never drawn for want of memory" if small else ""
    return f"{' '.join(f'{share:.0%}' for share in shares)} of fifths of the clients, fastest first{never}"


def _published_time(summary: Mapping[str, Any]) -> str | None:
    seconds = summary.get("seconds_published")
    return None if seconds is None else f"{format_seconds(seconds)}, the longest client of each round"

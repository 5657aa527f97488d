"""Figure of how the clients fare, before and after."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from fedsim.display.client_plot import Line, draw_clients
from fedsim.display.course import metric_words
from fedsim.display.figure import BLUE, GREY, drawn
from fedsim.display.page.parts import Cell, Figure, Table, number_cell, thinned, thinned_note
from fedsim.display.page.small import as_figure, legend_above, small

Clients = Mapping[int, Mapping[str, float]]
"""By client: ``examples`` held out, ``before``, ``after`` and ``rounds``, as in :class:`fedsim.study.figures.CellFigures`."""


@drawn
def client_figure(clients: Clients, metric_name: str) -> Figure | None:
    """Return the spread of the metric over clients, before any tuning and at the end; None if it was not measured."""
    before, after = (np.array([each.get(name, np.nan) for each in clients.values()]) for name in ("before", "after"))
    if not np.isfinite(after).any():
        return None
    name = metric_words(metric_name)
    figure, axes = small("clients, the worst first", f"{name} on held-out examples")
    lines: list[Line] = [
        ("without tuning", before, {"color": GREY, "ls": (0, (5, 2))}),
        ("own model, at the end", after, {"color": BLUE}),
    ]
    draw_clients(axes, lines)
    legend_above(axes, 1)
    both = np.isfinite(before) & np.isfinite(after)
    known = after[np.isfinite(after)]
    text = f"The median client reaches {np.median(known):.3f}, the worst decile {np.quantile(known, 0.1):.3f}."
    if both.any():
        better, worse = ((sign * (after[both] - before[both]) > 0).mean() for sign in (1, -1))
        text += f" {better:.0%} are better off than without tuning, {worse:.0%} worse."
    rows = [
        (
            Cell(str(client), client),
            number_cell(each.get("examples"), "{:,.0f}"),
            number_cell(each.get("rounds"), "{:,.0f}"),
            number_cell(each.get("before")),
            number_cell(each.get("after")),
        )
        for client, each in clients.items()
    ]
    columns = ("client", "held-out examples", "rounds trained in", "without tuning", "at the end")
    data = Table(f"{name.capitalize()} of each client", columns, thinned(rows), thinned_note(rows, "personal.parquet"))
    return as_figure(figure, "clients", f"{name.capitalize()} of each client", text, data)

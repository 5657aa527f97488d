"""The first rounds on the virtual clock: who trained when, and who was left out, drawn on given axes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from fedsim.display.figure import BLUE, FAINT, INK, ORANGE

if TYPE_CHECKING:
    from matplotlib.axes import Axes

ROUNDS, MOST_CLIENTS = 5, 40
"""First rounds that are drawn, and clients at most."""
LEFT_OUT = {"late": ("late", ORANGE, "x"), "absent": ("out of reach", INK, "|")}
"""Events of clients that a round does without: word, colour and marker."""
_UNITS = ((86_400.0, "days"), (3_600.0, "hours"), (60.0, "minutes"), (1.0, "seconds"))


def draw_timeline(
    axes: Axes, rounds: Mapping[str, np.ndarray], clients: Mapping[str, np.ndarray], events: Sequence[Mapping[str, Any]]
) -> str | None:
    """Draw a line for each client of the first rounds; return the unit of time, or None if there was no clock.

    Parameters
    ----------
    rounds
        Columns ``round`` and ``clock_seconds`` of ``rounds.parquet``.
    clients
        Columns ``round``, ``client``, ``began_seconds`` and ``arrived_seconds`` of ``clients.parquet``.
    events
        Events ``late`` and ``absent``; those clients are marked where the round ends.
    """
    known = np.isfinite(clients["began_seconds"].astype(float)) & (clients["round"] <= ROUNDS)
    if not known.any():
        return None
    ends = dict(zip(rounds["round"].tolist(), rounds["clock_seconds"].astype(float).tolist(), strict=True))
    last = max(float(ends[int(number)]) for number in clients["round"][known])
    factor, unit = next(((f, u) for f, u in _UNITS if last >= 2 * f), _UNITS[-1])
    marked = [(event["event"], event["round"], client) for event in events if event["event"] in LEFT_OUT
              for client in event["clients"] if event["round"] in ends and event["round"] <= ROUNDS]  # fmt: skip
    order = list(dict.fromkeys([*clients["client"][known].tolist(), *(client for _, _, client in marked)]))[
        :MOST_CLIENTS
    ]
    row = {client: place for place, client in enumerate(order)}
    for client, began, arrived in zip(
        *(clients[name][known] for name in ("client", "began_seconds", "arrived_seconds")), strict=True
    ):
        if client in row:
            axes.plot(
                [began / factor, arrived / factor], [row[client]] * 2, color=BLUE, lw=4, solid_capstyle="butt", zorder=3
            )
    for kind, number, client in marked:
        if client in row:
            _, color, marker = LEFT_OUT[kind]
            axes.plot(ends[number] / factor, row[client], color=color, marker=marker, ms=6, mew=1.6, ls="", zorder=4)
    for number in range(1, ROUNDS + 1):
        if number in ends and np.isfinite(ends[number]):
            axes.axvline(ends[number] / factor, color=FAINT, lw=0.9, ls=(0, (1, 2)), zorder=1.5)
    _explain(axes, {kind for kind, _, _ in marked})
    axes.set_yticks(range(len(order)), [str(client) for client in order], fontsize=7)
    axes.set_ylim(len(order) - 0.5, -0.5)
    axes.set_xlim(left=0)
    return unit


def _explain(axes: Axes, kinds: set[str]) -> None:
    axes.plot([], [], color=BLUE, lw=4, label="visit")
    for kind, (word, color, marker) in LEFT_OUT.items():
        if kind in kinds:
            axes.plot([], [], color=color, marker=marker, mew=1.6, ls="", label=f"{word}, at the round's end")
    axes.plot([], [], color=FAINT, lw=0.9, ls=(0, (1, 2)), label="end of a round")

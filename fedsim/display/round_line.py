"""A recorded round as a line, and the last rounds as a table, of the progress display."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from rich import box
from rich.table import Table

from fedsim.display.report import MISSING, format_bytes, format_clock, format_metric, format_seconds

START_LOSS, TRAIN_LOSS = "validation_loss", "train_loss"
"""What the losses of lines are called: before any training that of the validation examples, then that of a round's clients."""


@dataclass(frozen=True)
class RoundLine:
    """Progress line of one round."""

    round: int
    """Round number, from 1."""
    metric: float | None
    """Global metric after the round; None if it was not evaluated."""
    loss: float | None
    """Mean training loss of the round's clients, in their last local epoch."""
    clients_ok: int
    clients_failed: int
    seconds: float
    """Wall time of the round."""
    bytes_up: int
    bytes_down: int
    clients_retried: int = 0
    """Retries of a client's work after a lost actor or a missed deadline."""
    clock_seconds: float | None = None
    """The virtual clock at the end of the round; None without simulated devices."""
    eta_seconds: float | None = None
    """Time until the last round is done; if None, estimated from recent rounds."""
    epsilon: float | None = None
    """What a private run has spent."""
    generated: tuple[str, float] | None = None
    """Main text metric of what the global model wrote after the round, and its value; None if it did not write."""

    @classmethod
    def of(cls, event: Mapping[str, Any], generated: tuple[str, float] | None = None) -> RoundLine:
        """Return the line of a recorded round, from the fields of its event; what an earlier version did not write counts as
        0.
        """
        return cls(
            round=event["round"],
            metric=event.get("global_metric"),
            loss=event.get("train_loss_last"),
            clients_ok=event.get("clients_ok") or 0,
            clients_failed=event.get("clients_failed") or 0,
            clients_retried=event.get("clients_retried") or 0,
            seconds=event.get("seconds_round") or 0.0,
            bytes_up=event.get("bytes_up") or 0,
            bytes_down=event.get("bytes_down") or 0,
            clock_seconds=event.get("clock_seconds"),
            epsilon=event.get("epsilon"),
            generated=generated,
        )


def plain_line(line: RoundLine, total_rounds: int, metric_name: str) -> str:
    """Return the round as one line of name-value pairs; ``-`` where not measured."""
    digits = len(str(total_rounds))
    pairs = [
        ("round", f"{line.round}/{total_rounds}".rjust(2 * digits + 1)),
        (metric_name, format_metric(line.metric).rjust(7)),
        *([] if line.generated is None else [(line.generated[0], format_metric(line.generated[1]))]),
        (TRAIN_LOSS, format_metric(line.loss).rjust(7)),
        ("ok", f"{line.clients_ok:>3}"),
        ("failed", f"{line.clients_failed}"),
        ("retried", f"{line.clients_retried}"),
        ("seconds", f"{line.seconds:6.2f}"),
        ("MB_down", f"{line.bytes_down / 1e6:8.3f}"),
        ("MB_up", f"{line.bytes_up / 1e6:8.3f}"),
        *([] if line.clock_seconds is None else [("clock", format_clock(line.clock_seconds))]),
        ("eta", format_clock(line.eta_seconds)),
    ]
    if line.epsilon is not None:
        pairs.append(("epsilon", f"{line.epsilon:.4g}"))
    return "  ".join(f"{name} {value}" for name, value in pairs)


def _epsilon(value: float | None) -> str:
    return MISSING if value is None else f"{value:.4g}"


def recent_table(lines: Sequence[RoundLine], metric_name: str, width: int) -> Table:
    """Return the last rounds, with as many columns as fit ``width``."""
    columns = [
        ("round", [str(line.round) for line in lines]),
        (metric_name, [format_metric(line.metric) for line in lines]),
        *_generated(lines),
        (TRAIN_LOSS.replace("_", "\n"), [format_metric(line.loss) for line in lines]),
        ("ok", [str(line.clients_ok) for line in lines]),
        ("failed", [str(line.clients_failed) for line in lines]),
        ("time", [format_seconds(line.seconds) for line in lines]),
        *([] if lines[-1].epsilon is None else [("epsilon", [_epsilon(line.epsilon) for line in lines])]),
        *([] if lines[-1].clock_seconds is None else [("clock", [format_clock(line.clock_seconds) for line in lines])]),
        ("down", [format_bytes(line.bytes_down) for line in lines]),
        ("up", [format_bytes(line.bytes_up) for line in lines]),
    ]
    table = Table(box=box.SIMPLE_HEAD, padding=(0, 1), pad_edge=False, header_style="dim")
    rows: list[list[str]] = [[] for _ in lines]
    used = 1
    for name, cells in columns:
        used += max(map(len, (*name.split("\n"), *cells))) + 3
        if used > width:
            break
        table.add_column(name, justify="right", no_wrap=True)
        for row, cell in zip(rows, cells, strict=True):
            row.append(cell)
    for row, line in zip(rows, lines, strict=True):
        table.add_row(*row, style="red" if line.clients_failed else "")
    return table


def main_metric(columns: Mapping[str, Any], names: Sequence[str]) -> tuple[str, float] | None:
    """Return name and value of the first text metric among the columns of a round; None if the model did not write.

    Parameters
    ----------
    names
        The text metrics, the main one first.
    """
    found = ((name, columns.get(f"generated_{name}")) for name in names)
    return next(((name, value) for name, value in found if value is not None), None)


def _generated(lines: Sequence[RoundLine]) -> Iterator[tuple[str, list[str]]]:
    """Yield the column of the main text metric, where a line has one."""
    name = next((line.generated[0] for line in lines if line.generated is not None), None)
    if name is not None:
        yield name, [format_metric(None if line.generated is None else line.generated[1]) for line in lines]

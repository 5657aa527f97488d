"""A study's summary as files: markdown, LaTeX, CSV and Parquet."""

from __future__ import annotations

import csv
import io
import json
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fedsim.core.errors import ConfigError, ResourceError, listed
from fedsim.records.events import replaced
from fedsim.study.figures import CellFigures, CurvePoint, FailedCell
from fedsim.study.markup import latex, markdown
from fedsim.study.outcome import Difference, PairSummary, StudySummary

if TYPE_CHECKING:
    import pyarrow as pa

Rows = Sequence[Mapping[str, Any]]

_KINDS = {
    "str": "string",
    "bool": "bool",
    "int": "int64",
    "int | None": "int64",
    "float": "float64",
    "Verdict": "string",
}
"""Arrow type by annotation; all others become JSON in a string, unless they have a type of their own below."""
_CLIENT = {"client": "int32", "examples": "float64", "before": "float64", "after": "float64", "rounds": "float64"}
_POINT = {f.name: _KINDS[str(f.type)] for f in fields(CurvePoint)}
_LISTS: dict[str, str | dict[str, str]] = {"clients": _CLIENT, "curve": _POINT, "layers": "int32", "scores": "float64"}
"""Columns that hold lists, of numbers or of structures; in Parquet alone."""


def export(summary: StudySummary, kind: str, folder: Path) -> tuple[Path, ...]:
    """Write a study's summary into a folder, and return the files.

    Parameters
    ----------
    kind
        ``md`` (study.md), ``latex`` (study.tex), ``csv`` or ``parquet``. The last two are two tables: ``cells`` with one row
        per cell, failed ones too, and ``pairs`` with one row per data set, arm and metric that is compared with the reference.
        CSV leaves out curves, clients, layers and scores.

    Raises
    ------
    ConfigError
        If the kind is unknown.
    ResourceError
        If a file cannot be written.
    """
    if kind not in EXPORTS:
        raise ConfigError(f"{kind!r} is no kind of file; one of {listed(EXPORTS)}")
    found = []
    for name, content in EXPORTS[kind](summary).items():
        path = folder / name
        try:
            folder.mkdir(parents=True, exist_ok=True)
            with replaced(path) as file:
                file.write(content)
        except OSError as error:
            raise ResourceError(f"{path} cannot be written: {error.strerror or error}") from error
        found.append(path)
    return tuple(found)


def cell_columns() -> dict[str, str]:
    """Return the columns of the table of cells, by Arrow type; those that hold lists are ``list``."""
    rest = {f.name: _kind(f.name, str(f.type)) for f in fields(CellFigures)}
    return {"dataset": "string", "arm": "string", "seed": "int64", "status": "string", "sentence": "string", **rest}


def cell_rows(summary: StudySummary) -> Rows:
    """Return one row per cell, in the order of the summary's rows, failed cells after the finished ones of their arm."""
    rows = []
    for row in summary.rows:
        here = (row.dataset, row.arm)
        rows += [_cell_row(cell) for cell in summary.cells if (cell.dataset, cell.arm) == here]
        rows += [_failed_row(cell) for cell in row.failed]
    return rows


def pair_columns() -> dict[str, str]:
    """Return the columns of the table of pairs, by Arrow type."""
    columns = {f.name: _kind(f.name, str(f.type)) for f in fields(PairSummary)}
    difference = {f.name: _kind(f.name, str(f.type)) for f in fields(Difference)}
    before = {name: columns.pop(name) for name in ("dataset", "reference", "arm", "measure")}
    del columns["difference"]
    return {**before, **difference, **columns}


def pair_rows(summary: StudySummary) -> Rows:
    """Return one row per comparison; ``values`` are the differences by seed."""
    rows = []
    for pair in summary.pairs:
        row = asdict(pair)
        row |= row.pop("difference")
        rows.append({name: _value(kind, row[name]) for name, kind in pair_columns().items()})
    return rows


def _cell_row(cell: CellFigures) -> dict[str, Any]:
    values = asdict(cell)
    values["clients"] = [{"client": client, **found} for client, found in cell.clients.items()]
    columns = {name: kind for name, kind in cell_columns().items() if name in values}
    return {"status": "finished", **{name: _value(kind, values[name]) for name, kind in columns.items()}}


def _failed_row(cell: FailedCell) -> dict[str, Any]:
    return {"status": "failed", **asdict(cell)}


def _kind(name: str, annotation: str) -> str:
    return "list" if name in _LISTS else _KINDS.get(annotation, "json")


def _value(kind: str, value: Any) -> Any:
    """Return a value as a table holds it: numbers that are none are null."""
    if kind == "json":
        return None if value is None else json.dumps(value, default=str)
    if kind == "list":
        return [_finite(item) for item in value]
    return _finite(value)


def _finite(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _finite(item) for key, item in value.items()}
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _csv(columns: Mapping[str, str], rows: Rows) -> bytes:
    text = io.StringIO()
    names = [name for name, kind in columns.items() if kind != "list"]
    writer = csv.DictWriter(text, names, restval="", extrasaction="ignore", lineterminator="\n")
    writer.writeheader()
    writer.writerows({**row} for row in rows)
    return text.getvalue().encode()


def _parquet(columns: Mapping[str, str], rows: Rows) -> bytes:
    import pyarrow as pa
    import pyarrow.parquet as pq

    schema = pa.schema([(name, _arrow(name, kind)) for name, kind in columns.items()])
    file = io.BytesIO()
    pq.write_table(pa.Table.from_pylist([dict(row) for row in rows], schema=schema), file)
    return file.getvalue()


def _arrow(name: str, kind: str) -> pa.DataType:
    import pyarrow as pa

    if kind != "list":
        return pa.string() if kind == "json" else pa.type_for_alias(kind)
    item = _LISTS[name]
    if isinstance(item, str):
        return pa.list_(pa.type_for_alias(item))
    return pa.list_(pa.struct([(field, pa.type_for_alias(alias)) for field, alias in item.items()]))


def _tables(
    write: Callable[[Mapping[str, str], Rows], bytes], ending: str
) -> Callable[[StudySummary], dict[str, bytes]]:
    return lambda summary: {
        f"cells.{ending}": write(cell_columns(), cell_rows(summary)),
        f"pairs.{ending}": write(pair_columns(), pair_rows(summary)),
    }


EXPORTS: dict[str, Callable[[StudySummary], dict[str, bytes]]] = {
    "md": lambda summary: {"study.md": markdown(summary).encode()},
    "latex": lambda summary: {"study.tex": latex(summary).encode()},
    "csv": _tables(_csv, "csv"),
    "parquet": _tables(_parquet, "parquet"),
}
"""Contents of the files of each kind, by name."""

"""The command ``fedsim report``: finds out what a folder holds, and writes its report."""

from __future__ import annotations

import csv
import io
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fedsim.core.errors import ConfigError, ResourceError
from fedsim.display.figure import told
from fedsim.display.sheet import Sheet, to_latex, to_markdown
from fedsim.records.events import replaced
from fedsim.records.folder_check import what_is_in
from fedsim.records.remote import is_url, refuse_url

ENDINGS = {"html": "html", "md": "md", "latex": "tex", "csv": "csv", "parquet": "parquet"}
"""Forms of a report, and how their files end."""
Note = Callable[[str], None]


@dataclass(frozen=True)
class Reported:
    """What a report is made of; each part is made when it is wanted."""

    page: Callable[[], str]
    sheets: Callable[[], list[Sheet]]
    """Tables of texts, for Markdown and LaTeX."""
    rows: Callable[[], list[dict[str, Any]]]
    """Figures by name, for CSV and Parquet: one row for a run or a point."""


def write_report(place: str, to: str, output: Path | None, note: Note) -> list[Path]:
    """Write the report of a run, a study or a scaling study, and return its files.

    Parameters
    ----------
    place
        Folder, or URL of a run.
    to
        One of :data:`ENDINGS`.
    output
        File to write; if None, ``report.EXT`` in the folder. For the tables of a study in CSV and Parquet, which are several
        files, a folder.
    note
        Called with warnings about pictures.

    Raises
    ------
    ConfigError
        If the folder holds none of them.
    ResourceError
        If the file cannot be written.
    """
    from fedsim.study.loading import holds_study

    refuse_url(output, "--output")
    if output is None and is_url(place):
        raise ConfigError(f"{place} is a URL; give a local file for the report with --output")
    study = not is_url(place) and holds_study(Path(place))
    if output is not None and output.is_dir() and (not study or to == "html"):
        raise ConfigError(f"--output {output} is a folder; give a file, such as {output / f'report.{ENDINGS[to]}'}")
    if study:
        return _study(Path(place), to, output, note)
    path = output or Path(place) / f"report.{ENDINGS[to]}"
    reported = _reported(place)
    with told(note, path):
        content = _content(reported, to)
    _write(path, content)
    return [path]


def _reported(place: str) -> Reported:
    """Return the report of what a folder holds; a new kind of folder is added here."""
    from fedsim.scaling.load import is_scaling_study

    folder = Path(place)
    if is_url(place) or what_is_in(folder) == "run":
        return _run(place)
    if is_scaling_study(folder):
        return _scaling(folder)
    _refuse_without_subject(folder)
    missing = f"there is no folder {place}" if not folder.exists() else f"{place} holds nothing to report"
    raise ConfigError(
        f"{missing}: give the folder of a run (it has metrics.jsonl, from fedsim run), of a study (from "
        "fedsim compare) or of a scaling study (it has study.json, from fedsim scale)"
    )


def _refuse_without_subject(folder: Path) -> None:
    """Say how a study, or a comparison of runs, gets its ``study.json`` back."""
    from fedsim.study.existing import holds_results
    from fedsim.study.folder import holds_cells

    if holds_cells(folder):
        raise ConfigError(
            f"{folder} holds the runs of a study, but its study.json is gone or damaged; fedsim compare STUDY.yaml --output "
            f"{folder} writes it anew, and does no finished run again"
        )
    if holds_results(folder):
        raise ConfigError(
            f"{folder} holds results, but nothing says of which runs; fedsim compare RUN RUN ... --output {folder} writes them "
            "anew"
        )


def _study(folder: Path, to: str, output: Path | None, note: Note) -> list[Path]:
    """Write the report of a study; all but the page may be several files, with ``output`` as their folder."""
    from fedsim.display.page.study_page import study_page
    from fedsim.study.exports import EXPORTS, export
    from fedsim.study.loading import commands_of, load_search, load_study

    study, summary = load_study(folder)
    if to in ("md", "latex") and output is not None and not output.is_dir():
        (content,) = EXPORTS[to](summary).values()
        _write(output, content)
        return [output]
    if to != "html":
        return list(export(summary, to, output or folder))
    path = output or folder / "report.html"
    with told(note, path):
        search = load_search(study, folder)
        page = study_page(
            summary, summary.cells, study, folder=str(folder), search=search, commands=commands_of(folder)
        )
    _write(path, page.encode())
    return [path]


def _run(place: str) -> Reported:
    from fedsim.display.page.run_page import run_page
    from fedsim.display.report import final_rows
    from fedsim.records.recorded_run import load_run

    run = load_run(place)

    def summary() -> Mapping[str, Any]:
        if run.summary is None:
            raise ConfigError(
                f"{place} holds a run that is not finished: its tables come with its summary; --to html works"
            )
        return run.summary

    def sheets() -> list[Sheet]:
        rows = tuple(final_rows(summary()))
        return [Sheet(str(summary().get("name") or place), ("", "value"), rows)]

    return Reported(lambda: run_page(run), sheets, lambda: [_flat(summary())])


def _scaling(folder: Path) -> Reported:
    from fedsim.display.page.scaling_page import scaling_page
    from fedsim.scaling.load import load_scaling
    from fedsim.scaling.table import scaling_sheets

    study = load_scaling(folder)
    return Reported(
        lambda: scaling_page(study, folder.resolve().name, str(folder)),
        lambda: scaling_sheets(study),
        lambda: [_flat(point.record()) for point in study.points],
    )


def _flat(record: Mapping[str, Any], above: str = "") -> dict[str, Any]:
    """Return the numbers and texts of a record with dotted names; lists are left out."""
    found: dict[str, Any] = {}
    for name, value in record.items():
        if isinstance(value, Mapping):
            found |= _flat(value, f"{above}{name}.")
        elif not isinstance(value, list | tuple):
            found[f"{above}{name}"] = value
    return found


def _content(reported: Reported, to: str) -> bytes:
    if to == "html":
        return reported.page().encode()
    if to in ("md", "latex"):
        return (to_markdown if to == "md" else to_latex)(reported.sheets()).encode()
    rows = reported.rows()
    names = list(dict.fromkeys(name for row in rows for name in row))
    return _csv(names, rows) if to == "csv" else _parquet(names, rows)


def _csv(names: list[str], rows: list[dict[str, Any]]) -> bytes:
    text = io.StringIO()
    table = csv.DictWriter(text, names, lineterminator="\n")
    table.writeheader()
    table.writerows(rows)
    return text.getvalue().encode()


def _parquet(names: list[str], rows: list[dict[str, Any]]) -> bytes:
    import pyarrow as pa
    import pyarrow.parquet as pq

    file = io.BytesIO()
    pq.write_table(pa.table({name: _column([row.get(name) for row in rows]) for name in names}), file)
    return file.getvalue()


def _column(values: list[Any]) -> Any:
    """Return a column; of values of several types, all as text."""
    import pyarrow as pa

    try:
        column = pa.array(values)
    except (pa.ArrowInvalid, pa.ArrowTypeError):
        return pa.array([None if value is None else str(value) for value in values], pa.string())
    return column if not pa.types.is_null(column.type) else column.cast(pa.string())


def _write(path: Path, content: bytes) -> None:
    try:
        with replaced(path) as file:
            file.write(content)
    except OSError as error:
        raise ResourceError(f"the report {path} cannot be written: {error.strerror or error}") from error

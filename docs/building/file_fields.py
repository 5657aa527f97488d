"""The reference of files and columns, made from the dictionaries in the code."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

import study_fields
from words import cell

from fedsim.records import columns, fields
from fedsim.records.columns import Column

TABLES: dict[str, tuple[str, Mapping[str, Column]]] = {
    "rounds.parquet": ("One row per round.", columns.ROUNDS),
    "clients.parquet": ("One row per client and round, unless `tracking.client_records=false`.", columns.CLIENTS),
    "visits.parquet": (
        "One row per visit of a simulated device, unless `tracking.client_records=false`.",
        columns.VISITS,
    ),
    "devices.parquet": ("One row per client, with simulated devices.", columns.DEVICES),
    "personal.parquet": ("One row per client that holds out examples.", columns.PERSONAL),
    "predictions.parquet": (
        "One row per validation example, with `evaluation.keep_predictions=true`.",
        columns.PREDICTIONS,
    ),
    "generations.parquet": (
        "One row per response that the model wrote, with `evaluation.generate`.",
        columns.GENERATIONS,
    ),
    "labels.parquet": ("One row per client and class: who holds what.", columns.LABELS),
}
"""The tables of a run, with what a row is."""
JSON: dict[str, tuple[str, Mapping[str, Column]]] = {
    "summary.json": ("Final and best figures, and all that is needed to repeat the run.", fields.SUMMARY),
    "prompt/global.safetensors, prompt/best.safetensors": (
        "Metadata `fedsim`, a text in JSON; the arrays are `prompt.LAYER` of a prefix, `KIND.LAYER.NAME` of other tuners, and "
        "those of the head.",
        fields.PROMPT,
    ),
    "prompt/personal.safetensors": (
        "Metadata `fedsim`; the arrays are `clients` (numbers) and `personal` (a row per client).",
        fields.PERSONAL_PROMPT,
    ),
    "checkpoints/round-ROUND.safetensors": (
        "Metadata `fedsim`; the arrays are `server/…` (its state), `clients/…` (what clients keep), `best/vector` and "
        "`learned/…`. The file beside it, `.sha256`, holds its checksum.",
        fields.CHECKPOINT,
    ),
}
"""Files of a run with named fields."""
STUDIES: dict[str, tuple[str, Mapping[str, Column]]] = {
    "summary.json of a study": ("What `fedsim compare` found.", study_fields.study()),
    "cells.parquet, cells.csv": ("One row per run, failed ones too. CSV leaves out lists.", study_fields.cells()),
    "an entry of the column curve": ("One per evaluated round.", study_fields.curve()),
    "pairs.parquet, pairs.csv": ("One row per comparison with the reference.", study_fields.pairs()),
    "scaling.parquet": ("One row per point, repeat and round of `fedsim scale`.", study_fields.scaling()),
    "scaling.json": ("The summary of `fedsim scale`.", study_fields.scaling_summary()),
    "progress.json of a scaling study": ("How far it is, for `fedsim watch`.", fields.SCALING_PROGRESS),
    "an entry of points in scaling.json": ("Medians over rounds and repeats.", study_fields.scaling_point()),
}
"""Files of studies."""


def markdown() -> str:
    """Return a table of each file's columns or fields."""
    return "\n".join(_all()) + "\n"


def _all() -> Iterator[str]:
    yield "## Tables of a run\n"
    for name, (what, found) in TABLES.items():
        yield from _table(name, what, found)
    yield "## JSON and safetensors of a run\n"
    for name, (what, found) in JSON.items():
        yield from _table(name, what, found)
    yield "## Events\n\n`metrics.jsonl` has one event a line. Every event has\n"
    yield from _rows(fields.EVENT)
    for kind, (what, found) in fields.EVENTS.items():
        own = {name: column for name, column in found.items() if name not in columns.ROUNDS or kind != "round"}
        yield from _table(kind, what, own)
    yield "## Studies\n"
    for name, (what, found) in STUDIES.items():
        yield from _table(name, what, found)


def _table(name: str, what: str, found: Mapping[str, Column]) -> Iterator[str]:
    yield f"### {', '.join(f'`{part}`' if '.' in part else part for part in name.split(', '))}\n\n{what}\n"
    yield from _rows(found)


def _rows(found: Mapping[str, Column]) -> Iterator[str]:
    yield "| name | meaning | type | unit |\n|---|---|---|---|"
    for name, column in found.items():
        yield f"| `{name}` | {cell(column.meaning)} | {cell(column.kind)} | {column.unit} |"
    yield ""

"""The dictionary of files: what runs and studies write is in it, column by column, and nothing else is."""

import dataclasses
import json
import re
from collections import defaultdict

import file_fields
import pyarrow.parquet as pq
import pytest
import study_fields
from byte_guard.models import save_model
from safetensors import safe_open
from study_cells import summary_of
from support import ROOT, make_tiny

import fedsim
from fedsim.core.messages import FuseTrial
from fedsim.data.text_metrics import TEXT_METRICS
from fedsim.records import columns, fields
from fedsim.scaling.accounting import ActorSeconds
from fedsim.scaling.points import Point
from fedsim.scaling.records import SCALING_COLUMNS
from fedsim.scaling.summary import PointSummary, StudySummary
from fedsim.study.exports import export

SOMETIMES = {"round", "privacy"}
"""Fields of metadata that the run below has no reason for."""

OF_TRIALS = {field.name for field in dataclasses.fields(FuseTrial)}
"""Fields of the event ``fuse``, where the number was not given."""


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """Return the folder of a run that writes every table: on devices, with personal layers and kept predictions."""
    path = tmp_path_factory.mktemp("files") / "run"
    config = make_tiny(
        output=str(path),
        executor="local",
        rounds=1,
        layers={"choose": "fixed", "fixed": [3], "unselected": "local"},
        client={"fuse": 2},
        world={"devices": {}},
        evaluation={"keep_predictions": True, "personalised_start": True},
    )
    fedsim.run(config, progress=False)
    return path


@pytest.fixture(scope="module")
def writing(tmp_path_factory):
    """Return the folder of a run whose model writes responses."""
    path = tmp_path_factory.mktemp("texts")
    config = make_tiny(
        output=str(path / "run"),
        executor="local",
        rounds=1,
        model={"path": save_model("llama", path / "model"), "head": {"kind": "generation"}},
        data={"task": "questions"},
        layers={"choose": "fixed", "fixed": [2]},
        evaluation={"generate": {"every": 1, "examples": 2, "max_new_tokens": 2}},
    )
    fedsim.run(config, progress=False)
    return path / "run"


@pytest.mark.parametrize("name", file_fields.TABLES)
def test_a_table_has_the_columns_of_the_dictionary(run, writing, name):
    schema = pq.read_schema((writing if name == "generations.parquet" else run) / name)
    found = {field.name: re.sub(r"dictionary<values=(\w+).*", r"\1", str(field.type)) for field in schema}
    written = {
        known: {"double": "float64", "list<element: int64>": "list<int64>"}.get(kind, kind)
        for known, kind in found.items()
    }
    assert written == columns.kinds(file_fields.TABLES[name][1])


def test_a_summary_has_the_fields_of_the_dictionary(run, writing):
    expected = [name for name in fields.SUMMARY if name not in fields.OF_RESPONSES]
    assert list(json.loads((run / "summary.json").read_text())) == expected
    devices = ("participation_by", "clients_never", "clients_too", "device_")
    expected = [name for name in fields.SUMMARY if not name.startswith(devices)]
    assert list(json.loads((writing / "summary.json").read_text())) == expected


def test_events_have_the_fields_of_the_dictionary(run, writing):
    events = defaultdict(set)
    for folder in (run, writing):
        for line in (folder / "metrics.jsonl").read_text().splitlines():
            event = json.loads(line)
            events[event["event"]] |= set(event)
    for kind, found in events.items():
        known = set(fields.EVENT) | set(fields.EVENTS[kind][1])
        assert found <= known and known - found <= OF_TRIALS | set(TEXT_METRICS), kind
    assert {"created", "layers", "start", "round", "generated", "end"} <= set(events)


def test_the_dictionary_has_the_kinds_of_events_that_the_code_writes():
    source = "".join(path.read_text() for path in (ROOT / "fedsim").rglob("*.py") if path.name != "fields.py")
    written = set(re.findall(r"\bevent\(\s*\"(\w+)\"", source)) | set(re.findall(r"_event\(\s*\"(\w+)\"", source))
    written |= {"created", "attack", "stopped", "absent", "late"}  # by a name
    assert written == set(fields.EVENTS)


def test_safetensors_have_the_metadata_of_the_dictionary(run):
    described = {
        "prompt/global.safetensors": fields.PROMPT,
        "prompt/best.safetensors": fields.PROMPT,
        "prompt/personal.safetensors": fields.PERSONAL_PROMPT,
        "checkpoints/round-000001.safetensors": fields.CHECKPOINT,
    }
    assert {path.relative_to(run).as_posix() for path in run.rglob("*.safetensors")} <= {
        *described,
        "checkpoints/round-000000.safetensors",
    }
    for name, known in described.items():
        with safe_open(run / name, "numpy") as file:
            held = set(json.loads(file.metadata()["fedsim"]))
        assert held <= set(known) and set(known) - held <= SOMETIMES, name


def test_a_run_writes_no_file_that_is_not_in_the_dictionary(run, writing):
    named = {*file_fields.TABLES, *(part for name in file_fields.JSON for part in name.split(", ")), "metrics.jsonl"}
    named = {re.sub("ROUND", "*", name) for name in named} | {"checkpoints/round-*.sha256", "config.yaml"}
    lost = [
        path
        for folder in (run, writing)
        for path in folder.rglob("*")
        if path.is_file() and not any(path.relative_to(folder).match(n) for n in named)
    ]
    assert not lost


def test_tables_of_studies_have_the_columns_of_the_dictionary(tmp_path):
    summary = summary_of({"data": {"a": [0.5, 0.6, "failed"], "b": [0.7, 0.6, 0.8]}})
    export(summary, "parquet", tmp_path)
    assert pq.read_schema(tmp_path / "cells.parquet").names == list(study_fields.cells())
    assert pq.read_schema(tmp_path / "pairs.parquet").names == list(study_fields.pairs())
    curve = pq.read_schema(tmp_path / "cells.parquet").field("curve").type.value_type
    assert [field.name for field in curve] == list(study_fields.curve())
    assert list(summary.record()) == list(study_fields.study())


def test_files_of_scaling_studies_have_the_fields_of_the_dictionary():
    assert set(SCALING_COLUMNS) == set(study_fields.SCALING)
    parts = ActorSeconds(compute=1.0)
    point = PointSummary(
        Point(1, 1, 1), 1, 1, 1, False, *[1.0] * 4, (1.0,), 1.0, 1.0, parts, parts, *[1.0] * 5, False, 1, 1, 1
    )
    record = StudySummary((point,), (), (), (), (), (), {}).record()
    assert set(record) == set(study_fields.SCALING_SUMMARY)
    assert set(record["points"][0]) == set(study_fields.scaling_point())


def test_every_entry_has_a_meaning():
    groups = [
        *file_fields.TABLES.values(),
        *file_fields.JSON.values(),
        *file_fields.STUDIES.values(),
        *fields.EVENTS.values(),
    ]
    assert not [name for _, found in groups for name, column in found.items() if not column.meaning or not column.kind]

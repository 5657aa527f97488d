from __future__ import annotations

import json
import math
import os
import shutil
import signal
import subprocess
import sys
import textwrap
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from support import limited_files

from fedsim.core.errors import CheckpointError, ConfigError, ResourceError
from fedsim.core.messages import ClientFailure, ClientReport
from fedsim.records.events import EventLog, plain
from fedsim.records.run_folder import CLIENT_COLUMNS, ROUND_COLUMNS, RunFolder
from fedsim.records.tables import ParquetRows, read_columns, read_table
from fedsim.records.trackers.config import TrackingConfig


def lines(folder: Path) -> list[dict]:
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text(encoding="utf-8").splitlines()]


def report(client: int, round: int, failure: ClientFailure | None = None) -> ClientReport:
    return ClientReport(
        client, round, num_examples=30 + client, num_steps=8, num_tokens=90, loss_first=0.7, loss_last=0.6, seconds=0.25,
        bytes_down=4096, bytes_up=2048, node="n1", pid=77, failure=failure,
    )  # fmt: skip


def fill(folder: RunFolder, rounds: range, clients: int = 3) -> None:
    for round in rounds:
        folder.event("round", round=round, global_metric=0.5)
        folder.round_record({"round": round, "global_metric": 0.5 + round / 100, "bytes_up": 10**12 + round})
        folder.client_records(round, [report(client, round) for client in range(clients)])


# -- the folder --------------------------------------------------------------------------------------------------------


def test_new_folder_is_made_with_parents_and_names_what_stands_in_it(tmp_path):
    with RunFolder.create(tmp_path / "runs" / "a") as folder:
        folder.write_config("rounds: 3\n")
    assert folder.path.is_dir() and folder.config.read_text() == "rounds: 3\n"
    names = [folder.rounds, folder.clients, folder.summary, folder.metrics]
    assert [path.name for path in names] == ["rounds.parquet", "clients.parquet", "summary.json", "metrics.jsonl"]
    (created,) = lines(folder.path)
    assert created["event"] == "created"


def test_empty_folder_is_taken(tmp_path):
    RunFolder.create(tmp_path).close()
    assert lines(tmp_path)


@pytest.mark.parametrize(
    "files",
    [
        {"notes.txt": "mine"},
        {"config.yaml": "a: 1\n", "metrics.jsonl": '{"loss": 0.5}\n'},  # of another program
        {"config.yaml": "a: 1\n", "metrics.jsonl": "not json\n"},
        {"metrics.jsonl": "[1, 2]\n", "plots": None},
    ],
)
@pytest.mark.parametrize("options", [{}, {"resume": True}, {"overwrite": True}])
def test_foreign_folder_is_refused_and_left_untouched(tmp_path, files, options):
    for name, text in files.items():
        (tmp_path / name).mkdir() if text is None else (tmp_path / name).write_text(text)
    with pytest.raises(ConfigError, match=r"holds files but no fedsim run.*output=FOLDER"):
        RunFolder.create(tmp_path, **options)
    assert {path.name for path in tmp_path.iterdir()} == set(files)
    assert all(text is None or (tmp_path / name).read_text() == text for name, text in files.items())


def test_file_in_place_of_a_folder_is_refused(tmp_path):
    (tmp_path / "a").write_text("x")
    with pytest.raises(ConfigError, match="no fedsim run"):
        RunFolder.create(tmp_path / "a")
    with pytest.raises(ConfigError, match=r"cannot be (written|read)"):
        RunFolder.create(tmp_path / "a" / "b")


def test_existing_run_is_refused_with_the_two_ways_out(tmp_path):
    with RunFolder.create(tmp_path / "a") as folder:
        fill(folder, range(1, 3))
    with pytest.raises(ConfigError, match=r"already holds a run.*--resume.*output=FOLDER"):
        RunFolder.create(tmp_path / "a")
    assert len(lines(tmp_path / "a")) == 3


@pytest.mark.parametrize("there", [True, False])
def test_resume_of_nothing_is_refused(tmp_path, there):
    if there:
        (tmp_path / "a").mkdir()
    with pytest.raises(ConfigError, match="holds no run to resume"):
        RunFolder.create(tmp_path / "a", resume=True)


def test_resume_and_overwrite_exclude_each_other(tmp_path):
    with pytest.raises(ConfigError, match="not both"):
        RunFolder.create(tmp_path, resume=True, overwrite=True)


def test_overwrite_removes_the_run_and_nothing_else(tmp_path):
    with RunFolder.create(tmp_path / "a") as folder:
        fill(folder, range(1, 3))
        folder.write_config("x: 1\n")
        folder.write_summary({"rounds": 2})
        for sub in (folder.plots, folder.checkpoints, folder.prompt):
            sub.mkdir()
            (sub / "file").write_text("old")
    (folder.path / "my notes.txt").write_text("keep")
    with RunFolder.create(folder.path, overwrite=True):
        assert {path.name for path in folder.path.iterdir()} == {"metrics.jsonl", "my notes.txt"}
    assert len(lines(folder.path)) == 1


def test_second_writer_is_refused_while_the_first_is_open(tmp_path):
    with RunFolder.create(tmp_path / "a") as folder:
        fill(folder, range(1, 2))
        for options in ({"resume": True}, {"overwrite": True}):
            with pytest.raises(ConfigError, match="in use by a run"):
                RunFolder.create(tmp_path / "a", **options)
    RunFolder.create(tmp_path / "a", resume=True).close()


def test_summary_keeps_order_and_has_no_nan(tmp_path):
    with RunFolder.create(tmp_path / "a") as folder:
        assert not folder.finished
        folder.write_summary({"rounds": np.int64(3), "best": math.nan, "alpha": np.float32(0.5), "layers": (1, 2)})
        assert folder.finished
    summary = json.loads(folder.summary.read_text())
    assert list(summary.items()) == [("rounds", 3), ("best", None), ("alpha", 0.5), ("layers", [1, 2])]
    assert not list(folder.path.glob(".*"))


def test_tracking_config_refuses_unknown_keys():
    assert TrackingConfig() == TrackingConfig(tensorboard=False, plots=True, client_records=True)
    with pytest.raises(ValueError, match="tensorbord"):
        TrackingConfig(tensorbord=True)


@pytest.mark.parametrize("logs", [True, False])
def test_a_folder_that_holds_no_more_than_a_refused_start_is_used_again(tmp_path, logs):
    with RunFolder.create(tmp_path / "a") as folder:
        folder.write_config("rounds: 3\n")
        folder.event("attack", round=0, kind="sign_flip", clients=[1])
        folder.event("stopped", reason="ResourceError", message="3 actors do not fit")
        if logs:
            folder.ray_logs.mkdir()
    with pytest.raises(ConfigError, match="holds no run to resume"):
        RunFolder.create(folder.path, resume=True)
    with RunFolder.create(folder.path) as again:
        assert [event["event"] for event in lines(again.path)] == ["created"]
        assert {path.name for path in again.path.iterdir()} == {"metrics.jsonl"}
        again.event("layers", layers=[1])
    with pytest.raises(ConfigError, match="already holds a run"):
        RunFolder.create(folder.path)


@pytest.mark.parametrize("more", ["checkpoints", "notes.txt"])
def test_a_refused_start_with_anything_beside_it_is_kept(tmp_path, more):
    RunFolder.create(tmp_path / "a").close()
    (tmp_path / "a" / more).mkdir()
    with pytest.raises(ConfigError, match="already holds a run"):
        RunFolder.create(tmp_path / "a")


def test_a_claim_keeps_others_out_and_leaves_nothing_if_the_run_never_begins(tmp_path):
    with RunFolder.claim(tmp_path / "a"), pytest.raises(ConfigError, match="in use by a run"):
        RunFolder.claim(tmp_path / "a")
    assert list((tmp_path / "a").iterdir()) == []
    with RunFolder.claim(tmp_path / "a") as folder:
        folder.begin()
    before = folder.metrics.read_bytes()
    RunFolder.claim(tmp_path / "a").close()
    assert folder.metrics.read_bytes() == before


# -- a disk that is full, a folder that is gone ------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "act"),
    [
        ("metrics.jsonl", lambda folder: folder.event("round", round=9)),
        ("rounds.parquet", lambda folder: folder.flush()),
        ("rounds.parquet", lambda folder: folder.truncate(9)),
        (r"(rounds|clients)\.parquet", lambda folder: folder.close()),
    ],
)
def test_a_full_disk_is_a_sentence_that_names_the_file_and_costs_no_record(tmp_path, name, act):
    with RunFolder.create(tmp_path / "a") as folder:
        fill(folder, range(1, 3))
        sentence = rf"a/{name} cannot be written: File too large; fix this, then continue with --resume$"
        with limited_files(folder.metrics.stat().st_size + 10), pytest.raises(ResourceError, match=sentence):
            act(folder)
        assert {path.name for path in folder.path.iterdir()} <= {"metrics.jsonl", "clients.parquet"}  # and nothing half
        if name == "metrics.jsonl":
            assert len(lines(folder.path)) == 3
            folder.event("end")
            assert [event["event"] for event in lines(folder.path)] == ["created", "round", "round", "round", "end"]
    if name != r"(rounds|clients)\.parquet":  # what is closed writes no more
        assert pq.read_table(folder.rounds)["round"].to_pylist() == [1, 2]


@pytest.mark.parametrize("act", [lambda folder: folder.event("end"), lambda folder: folder.flush()])
def test_a_folder_that_was_removed_is_a_sentence(tmp_path, act):
    sentence = r"cannot be written: (No such file|it was removed during the run)"
    with pytest.raises(ResourceError, match=sentence), RunFolder.create(tmp_path / "a") as folder:
        fill(folder, range(1, 3))
        shutil.rmtree(folder.path)
        act(folder)
    assert not folder.path.exists()


def test_what_cannot_be_written_at_the_end_does_not_hide_why_the_run_ends(tmp_path):
    with pytest.raises(ZeroDivisionError), RunFolder.create(tmp_path / "a") as folder:
        fill(folder, range(1, 3))
        shutil.rmtree(folder.path)
        raise ZeroDivisionError


# -- events ------------------------------------------------------------------------------------------------------------


def test_event_is_one_readable_line_at_once(tmp_path):
    with RunFolder.create(tmp_path / "a") as folder:
        folder.event(
            "client_failure", kind="error", round=np.int32(4), loss=np.float32("nan"), worst=-math.inf,
            scores=np.array([1.0, np.inf]), flag=np.bool_(True), path=Path("x/y"), message="one\ntwo\u2028three \u00e9",
            nested={"a": (1, None)},
        )  # fmt: skip
        raw = folder.metrics.read_text(encoding="utf-8").split("\n")
        event = json.loads(raw[1])
        assert raw[2:] == [""]
    assert event.pop("time").endswith("Z") and event.pop("seconds") >= 0
    assert event == {
        "event": "client_failure", "kind": "error", "round": 4, "loss": None, "worst": None, "scores": [1.0, None],
        "flag": True, "path": "x/y", "message": "one\ntwo\u2028three \u00e9", "nested": {"a": [1, None]},
    }  # fmt: skip
    assert folder.path.exists()


@pytest.mark.parametrize("taken", ["event", "time", "seconds"])
def test_event_fields_cannot_hide_the_common_ones(tmp_path, taken):
    with RunFolder.create(tmp_path / "a") as folder, pytest.raises(ValueError, match=taken):
        folder.event("round", **{taken: 1})


def test_value_without_a_form_in_json_is_an_error_that_leaves_no_half_line(tmp_path):
    with RunFolder.create(tmp_path / "a") as folder:
        with pytest.raises(TypeError, match="object"):
            folder.event("round", round=1, what=object())
        folder.event("round", round=1)
    assert [event["event"] for event in lines(folder.path)] == ["created", "round"]
    with pytest.raises(TypeError):
        plain({1, 2})


@pytest.mark.parametrize(
    "torn",
    ['{"event": "round", "rou', '{"event": "round", "seconds": 9, "round": 3}', "\x00\x00\x00", "garbage\n", "7\n"],
)
def test_torn_last_line_is_cut_off_on_resume(tmp_path, torn):
    with RunFolder.create(tmp_path / "a") as folder:
        fill(folder, range(1, 3))
    with folder.metrics.open("a") as file:
        file.write(torn)
    with RunFolder.create(folder.path, resume=True) as again:
        again.event("resumed")
    assert [event["event"] for event in lines(folder.path)] == ["created", "round", "round", "resumed"]


def test_damage_before_the_last_line_is_an_error_that_names_the_line(tmp_path):
    with RunFolder.create(tmp_path / "a") as folder:
        fill(folder, range(1, 4))
    text = folder.metrics.read_text().split("\n")
    text[2] = text[2][:10]
    folder.metrics.write_text("\n".join(text))
    with pytest.raises(CheckpointError, match=r"metrics\.jsonl, line 3 is not a fedsim event"):
        RunFolder.create(folder.path, resume=True)
    RunFolder.create(folder.path, overwrite=True).close()


def test_clock_goes_on_after_a_resume_without_the_pause(tmp_path, monkeypatch):
    clock = 1000.0
    monkeypatch.setattr("fedsim.records.events.time.monotonic", lambda: clock)
    log = EventLog(tmp_path / "log.jsonl")
    clock = 1500.0
    log.write("round", {"round": 1})
    log.close()
    clock = 9000.0
    log = EventLog(tmp_path / "log.jsonl")
    clock = 9001.0
    log.write("round", {"round": 2})
    assert [event["seconds"] for event in log.read()] == [500.0, 501.0]
    log.keep(lambda event: event["round"] < 2)
    log.write("round", {"round": 2})
    assert [event["seconds"] for event in log.read()] == [500.0, 500.0]
    log.close()


def test_killed_process_leaves_whole_events_and_readable_tables(tmp_path):
    """A process that writes as fast as it can is killed without warning; what it left can be continued."""
    script = textwrap.dedent(
        """
        import sys
        from pathlib import Path
        from fedsim.core.messages import ClientReport
        from fedsim.records.run_folder import RunFolder
        folder = RunFolder.create(Path(sys.argv[1]))
        for round in range(1, 10**9):
            folder.event("round", round=round, text="x" * 5000)
            folder.round_record({"round": round, "global_metric": 0.5})
            folder.client_records(round, [ClientReport(client, round, 10) for client in range(20)])
            folder.flush()
            if round == 5:
                print("ready", flush=True)
        """
    )
    process = subprocess.Popen(
        [sys.executable, "-c", script, str(tmp_path / "a")],
        stdout=subprocess.PIPE,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
    )
    assert process.stdout is not None and process.stdout.readline() == b"ready\n"
    process.send_signal(signal.SIGKILL)
    process.wait()
    with RunFolder.create(tmp_path / "a", resume=True) as folder:
        last = folder.events("round")[-1]["round"]
        assert last >= 5
        folder.truncate(4)
        fill(folder, range(4, 6), clients=20)
    assert [event["round"] for event in folder_rounds(folder)] == [1, 2, 3, 4, 5]
    assert pq.read_table(folder.rounds)["round"].to_pylist() == [1, 2, 3, 4, 5]
    clients = pq.read_table(folder.clients)
    assert clients["round"].to_pylist() == [round for round in range(1, 6) for _ in range(20)]


def folder_rounds(folder: RunFolder) -> list[dict]:
    return [event for event in lines(folder.path) if event["event"] == "round"]


# -- tables ------------------------------------------------------------------------------------------------------------


def test_rows_come_back_with_the_documented_types(tmp_path):
    failure = ClientFailure("non_finite", "loss is inf at step 3", "Traceback ...")
    with RunFolder.create(tmp_path / "a") as folder:
        folder.round_record({"round": 0, "global_metric": np.float32(0.5), "global_loss": None})
        folder.round_record({"round": np.int64(1), "bytes_up": 10**13, "clients_ok": np.int32(2)})
        folder.client_records(1, [report(4, 1), report(5, 1, failure)])
    rounds, clients = pq.read_table(folder.rounds), pq.read_table(folder.clients)
    assert {field.name: str(field.type) for field in rounds.schema} == {
        name: {"float64": "double"}.get(kind, kind) for name, kind in ROUND_COLUMNS.items()
    }
    assert {field.name: str(field.type) for field in clients.schema} == {
        name: {"float64": "double"}.get(kind, kind) for name, kind in CLIENT_COLUMNS.items()
    }
    assert rounds.select(["round", "global_metric", "bytes_up", "clients_ok"]).to_pylist() == [
        {"round": 0, "global_metric": 0.5, "bytes_up": None, "clients_ok": None},
        {"round": 1, "global_metric": None, "bytes_up": 10**13, "clients_ok": 2},
    ]
    assert clients.to_pylist()[1] == {
        "round": 1, "client": 5, "num_examples": 35, "num_steps": 8, "num_tokens": 90, "loss_first": 0.7,
        "loss_last": 0.6, "change_norm": None, "seconds": 0.25, "bytes_down": 4096, "bytes_up": 2048, "node": "n1", "pid": 77,
        "status": "non_finite", "message": "loss is inf at step 3",
        "began_seconds": None, "arrived_seconds": None, "version": None, "staleness": None,
    }  # fmt: skip
    assert clients["status"].to_pylist() == ["ok", "non_finite"] and clients["message"].to_pylist()[0] is None


def test_unknown_column_is_refused(tmp_path):
    with RunFolder.create(tmp_path / "a") as folder, pytest.raises(ValueError, match="no column 'accuracy'"):
        folder.round_record({"round": 1, "accuracy": 0.5})


def test_flush_makes_rows_visible_and_no_rows_make_no_file(tmp_path):
    with RunFolder.create(tmp_path / "a") as folder:
        folder.flush()
        assert not folder.rounds.exists()
        fill(folder, range(1, 4))
        assert not folder.rounds.exists()
        folder.flush()
        assert pq.read_table(folder.clients).num_rows == 9
        fill(folder, range(4, 5))
        folder.flush()
        assert pq.read_table(folder.clients).num_rows == 12
    assert read_columns(folder.rounds)["global_metric"].tolist() == [0.51, 0.52, 0.53, 0.54]
    assert np.isnan(read_columns(folder.rounds)["global_loss"]).all()


def test_truncate_drops_rounds_from_events_tables_and_summary(tmp_path):
    with RunFolder.create(tmp_path / "a") as folder:
        folder.event("layers", layers=[1])
        fill(folder, range(1, 6))
        folder.write_summary({"rounds": 5})
    with RunFolder.create(folder.path, resume=True) as folder:
        folder.truncate(3)
        assert not folder.finished
        folder.event("resumed", round=2)
        fill(folder, range(3, 5))
    events = [(event["event"], event.get("round")) for event in lines(folder.path)]
    assert events == [
        ("created", None),
        ("layers", None),
        ("round", 1),
        ("round", 2),
        ("resumed", 2),
        ("round", 3),
        ("round", 4),
    ]
    assert pq.read_table(folder.rounds)["round"].to_pylist() == [1, 2, 3, 4]
    assert pq.read_table(folder.clients)["round"].to_pylist() == [1] * 3 + [2] * 3 + [3] * 3 + [4] * 3


def test_truncate_reaches_rows_that_are_not_on_disk_yet(tmp_path):
    with RunFolder.create(tmp_path / "a") as folder:
        fill(folder, range(1, 4))
        folder.truncate(2)
    assert pq.read_table(folder.rounds)["round"].to_pylist() == [1]


COLUMNS = {"round": "int32", "value": "float64"}


def rows(start: int, stop: int) -> list[dict]:
    return [{"round": number, "value": number / 2} for number in range(start, stop)]


def test_parts_are_joined_on_close_and_continued_after_it(tmp_path):
    path = tmp_path / "t.parquet"
    table = ParquetRows(path, COLUMNS, part_rows=10)
    for start in range(0, 35, 5):
        table.append(rows(start, start + 5))
        table.flush()
    parts = sorted(file.name for file in tmp_path.iterdir())
    assert parts == ["t-0001.parquet", "t-0002.parquet", "t-0003.parquet", "t.parquet"]
    assert all(pq.read_metadata(tmp_path / name).num_rows <= 10 for name in parts)
    table.close()
    assert [file.name for file in tmp_path.iterdir()] == ["t.parquet"]
    table = ParquetRows(path, COLUMNS, part_rows=10)
    table.append(rows(35, 40))
    assert table.truncate(38) == 2
    table.append(rows(38, 60))
    table.close()
    assert pq.read_table(path).to_pylist() == rows(0, 60)


def test_process_that_dies_with_parts_open_loses_only_what_was_not_flushed(tmp_path):
    table = ParquetRows(tmp_path / "t.parquet", COLUMNS, part_rows=10)
    table.append(rows(0, 24))
    table.flush()
    table.append(rows(24, 26))  # dies here
    table = ParquetRows(tmp_path / "t.parquet", COLUMNS, part_rows=10)
    table.append(rows(24, 31))
    table.close()
    assert pq.read_table(tmp_path / "t.parquet").to_pylist() == rows(0, 31)


def test_crash_between_joining_and_removing_parts_repeats_no_row(tmp_path, monkeypatch):
    table = ParquetRows(tmp_path / "t.parquet", COLUMNS, part_rows=10)
    table.append(rows(0, 24))
    with monkeypatch.context() as patch:
        patch.setattr(Path, "unlink", lambda *_, **__: (_ for _ in ()).throw(KeyboardInterrupt))
        with pytest.raises(KeyboardInterrupt):
            table.close()
    assert len(list(tmp_path.iterdir())) == 3
    table = ParquetRows(tmp_path / "t.parquet", COLUMNS, part_rows=10)
    table.append(rows(24, 40))
    table.close()
    assert pq.read_table(tmp_path / "t.parquet").to_pylist() == rows(0, 40)


@pytest.mark.parametrize("first", [0, 1, 9, 10, 11, 20, 34, 35])
def test_truncate_over_parts_at_every_border(tmp_path, first):
    table = ParquetRows(tmp_path / "t.parquet", COLUMNS, part_rows=10)
    table.append(rows(0, 35))
    assert table.truncate(first) == 35 - first
    table.append(rows(first, 41))
    table.close()
    assert pq.read_table(tmp_path / "t.parquet").to_pylist() == rows(0, 41)


def test_cost_of_a_flush_does_not_grow_with_the_run(tmp_path, monkeypatch):
    """Rows written over 300 flushes stay within a constant factor of the rows there are."""
    written = 0
    write = pq.ParquetWriter.write_table

    def counting(self, table, *args, **options):
        nonlocal written
        written += table.num_rows
        return write(self, table, *args, **options)

    monkeypatch.setattr(pq.ParquetWriter, "write_table", counting)
    table = ParquetRows(tmp_path / "t.parquet", COLUMNS, part_rows=200)
    for start in range(0, 6000, 20):
        table.append(rows(start, start + 20))
        table.flush()
        assert table._num_tail < 200
    table.close()
    assert pq.read_metadata(tmp_path / "t.parquet").num_rows == 6000
    assert written <= 6000 * (200 / 20 / 2 + 2)


def test_damaged_or_other_table_is_a_one_sentence_error(tmp_path):
    path = tmp_path / "t.parquet"
    path.write_bytes(b"PAR1 but not really")
    with pytest.raises(CheckpointError, match=r"t\.parquet cannot be read as Parquet"):
        ParquetRows(path, COLUMNS)
    pq.write_table(pa.table({"other": [1]}), path)
    with pytest.raises(CheckpointError, match=r"has the columns other, not"):
        ParquetRows(path, COLUMNS)


def test_columns_that_an_earlier_version_did_not_have_are_null_in_its_rows(tmp_path):
    path, newer = tmp_path / "t.parquet", {"before": "int64", **COLUMNS, "after": "list<int64>"}
    old = ParquetRows(path, COLUMNS, part_rows=4)
    old.append(rows(0, 6))
    old.flush()
    table = ParquetRows(path, newer, part_rows=4)
    table.append([{**row, "before": 1, "after": [2, 3]} for row in rows(6, 11)])
    table.flush()
    expected = [{"before": None, **row, "after": None} for row in rows(0, 6)]
    expected += [{"before": 1, **row, "after": [2, 3]} for row in rows(6, 11)]
    assert read_table(path, newer).to_pylist() == expected
    assert table.truncate(3) == sum(row["round"] >= 3 for row in rows(0, 11))
    table.close()
    assert pq.read_table(path).to_pylist() == [row for row in expected if row["round"] < 3]
    with pytest.raises(CheckpointError, match="another version"):
        ParquetRows(path, COLUMNS)

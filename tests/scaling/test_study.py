"""A real study through the command line: interrupted, gone on with, extended, and taken apart."""

import io
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time

import jsonschema
import psutil
import pyarrow.parquet as pq
import pytest
import yaml
from rich.cells import cell_len
from rich.console import Console
from support import ROOT, TINY, make_tiny, merged
from terminals import on_a_terminal, plain_lines

import fedsim
from fedsim import cli
from fedsim.cli.outputs import output_schema
from fedsim.core.errors import CheckpointError, ConfigError
from fedsim.display.page.report import write_report
from fedsim.display.watch.command import open_watched, watch, why_failed
from fedsim.records.events import plain
from fedsim.records.fields import SCALING_PROGRESS
from fedsim.records.following import is_held
from fedsim.scaling.accounting import PARTS
from fedsim.scaling.command import run_study
from fedsim.scaling.load import load_scaling
from fedsim.scaling.points import Point, Points, make_points
from fedsim.scaling.records import Run, read_run
from fedsim.scaling.study import Failure, StudyFolder, run_points

# fuse is given: a trial could settle it differently in two runs, and so change last bits.
CHANGES = {"executor": "local", "sampling": {"clients_per_round": 4}, "client": {"fuse": 2}}
CONFIG = merged(TINY, CHANGES)
OPTIONS = ("--clients", "6,12", "--rounds", "2")
POINTS = (Point(6, 4, 1), Point(12, 4, 1))


def command(folder, *words, options=OPTIONS):
    return ["fedsim", "scale", str(folder.parent / "tiny.yaml"), *options, "--output", str(folder), *words]


def call(monkeypatch, capsys, words):
    """Run a command in this process; return status, out and err."""
    monkeypatch.setattr(sys, "argv", list(map(str, words)))
    monkeypatch.setenv("COLUMNS", "80")
    with pytest.raises(SystemExit) as ended:
        cli.main()
    return ended.value.code or 0, *capsys.readouterr()


def run_here(folder):
    """Run the study in this process."""
    numbers = {"clients": "6,12", "cohort": None, "actors": None, "rounds": 2, "repeats": 1}
    return run_study(folder.parent / "tiny.yaml", (), **numbers, output=folder, console=Console(file=io.StringIO()))


def looked_at(folder):
    watched = open_watched(str(folder))
    watched.look()
    return watched


def contents(folder):
    return {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@pytest.fixture(scope="module")
def interrupted(tmp_path_factory):
    """Return a study that Ctrl-C ended in its first point, and what it left."""
    folder = tmp_path_factory.mktemp("study") / "study"
    (folder.parent / "tiny.yaml").write_text(yaml.safe_dump(CONFIG))
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "PYTHONUNBUFFERED": "1"}
    process = subprocess.Popen(
        [sys.executable, "-m", *command(folder)], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        env=environment, start_new_session=True,
    )  # fmt: skip
    log = folder / "points" / POINTS[0].name / "run-1.log"
    while not (log.exists() and "phase" in log.read_text()):
        assert process.poll() is None, process.communicate()
        time.sleep(0.05)
    (child,) = psutil.Process(process.pid).children()
    seen = looked_at(folder).record()
    with pytest.raises(ConfigError, match=r"another fedsim scale works on .*choose another --output"):
        run_here(folder)
    process.send_signal(signal.SIGINT)
    _, errors = process.communicate(timeout=60)
    return folder, process.returncode, errors, child, [seen, looked_at(folder).record()]


@pytest.fixture(scope="module")
def study(interrupted):
    """Return the folder of the study, and what the same command printed that went on with it."""
    folder = interrupted[0]
    process = subprocess.run(
        [sys.executable, "-m", *command(folder)], capture_output=True, text=True,
        env={**os.environ, "PYTHONPATH": str(ROOT), "COLUMNS": "80"},
    )  # fmt: skip
    assert process.returncode == 0, process.stdout + process.stderr
    return folder, process.stdout


def test_ctrl_c_ends_the_run_under_way_and_keeps_the_study(interrupted):
    folder, status, errors, child, _ = interrupted
    assert status == 128 + signal.SIGINT, errors
    assert errors == "interrupted by SIGINT: finished runs are kept; run the same command again to continue\n"
    assert not child.is_running()
    assert (folder / "study.json").exists() and not list(folder.glob("points/*/run-1.json"))


def test_a_study_is_watched_while_it_goes_on_and_after_it_was_left(interrupted):
    going, left = interrupted[-1]
    assert (going["state"], going["points"], going["finished"], going["rounds_total"]) == ("running", 2, 0, 2)
    assert [(run["clients"], run["repeat"], run["state"]) for run in going["runs"]] == [
        (6, 1, "running"),
        (12, 1, "waiting"),
    ]
    if is_held(interrupted[0] / "study.json") is None:
        pytest.skip("this system does not list its locks")
    assert left["state"] == "silent" and "0 of 2 runs finished; no process works on it" in why_failed(left)
    assert {run["state"] for run in left["runs"]} == {"waiting"}


def test_a_finished_study_is_watched_in_a_pipe_and_as_json(study, fedsim):
    folder, _ = study
    out = fedsim("watch", folder)[1].splitlines()
    (pace, _) = [f"{point['seconds_round']:.3f} s" for point in load_scaling(folder).record()["points"]]
    assert out[0] == "study  study  finished  2 of 2 runs finished"
    assert out[1] == f"run    6 clients, 4 a round, 1 actor  finished  round 2/2  {pace} a round"
    assert [line.split()[1] for line in out[1:]] == ["6", "12"]
    document = json.loads(fedsim("watch", folder, "--json")[1])
    jsonschema.validate(document, output_schema(), jsonschema.Draft202012Validator)
    assert [run["state"] for run in document["result"]["runs"]] == ["finished", "finished"]
    held = json.loads((folder / "progress.json").read_text())
    assert held.keys() == SCALING_PROGRESS.keys() and held["running"] is None and held["failures"] == []


@pytest.mark.parametrize("columns", [80, pytest.param(200, marks=pytest.mark.wide)])
def test_a_terminal_gets_a_table_of_the_runs_that_fits(study, columns):
    status, output = on_a_terminal(columns, "-m", "fedsim", "watch", str(study[0]))
    lines = plain_lines(output)
    assert status == 0 and max(map(cell_len, lines)) <= columns and "…" not in output
    rows = [line.split() for line in lines if "finished" in line]
    assert ["6", "4", "1", "finished", "2/2"] in [row[:5] for row in rows]


def test_a_long_study_shows_the_runs_around_the_one_under_way(study, tmp_path):
    """Points beside one that ran are asked for and wait; this process holds the folder as their command would."""
    folder = tmp_path / "study"
    shutil.copytree(study[0], folder)
    points = make_points(study[0].parent / "tiny.yaml", (), clients=range(6, 12), cohorts=None, actors=None, rounds=2)
    jobs = [(point, repeat) for repeat in range(1, 6) for point in points.configs]
    with StudyFolder(folder, points).opened(points, jobs):
        watched = looked_at(folder)
        assert watched.state == "running" or is_held(folder / ".lock") is None
        drawn = Console(file=io.StringIO(), width=80)
        drawn.print(watched.picture(80))
    text = drawn.file.getvalue()
    assert text.count("waiting") == 19 and text.count("finished  ") == 1 and "10 more runs" in text


def no_record(folder):
    (folder / "progress.json").unlink()
    return "holds a scaling study of an earlier version.*fedsim report"


def damaged_record(folder):
    (folder / "progress.json").write_text('{"rounds": 2}')
    return "progress.json is damaged; the same fedsim scale command writes it anew"


@pytest.mark.parametrize("spoil", [no_record, damaged_record])
def test_a_study_without_its_record_is_answered_with_one_sentence_and_goes_on(study, tmp_path, spoil):
    folder = tmp_path / "study"
    shutil.copytree(study[0], folder)
    shutil.copy(study[0].parent / "tiny.yaml", tmp_path)
    with pytest.raises((ConfigError, CheckpointError), match=spoil(folder)) as error:
        open_watched(str(folder))
    assert "\n" not in str(error.value)
    run_here(folder)
    assert looked_at(folder).state == "finished"


def test_the_tables_fit_a_terminal_and_say_what_is_missing(study):
    printed, _, following = study[1].partition("\nnext: ")
    assert following.startswith(f"fedsim report {study[0]}")
    assert re.findall(r"^\d/2  (\d+) clients, 4 a round, 1 actor: [\d.]+ s a round$", printed, re.MULTILINE) == [
        "6",
        "12",
    ]
    assert len(re.findall(r"^ +(?:6|12) +4 +1 ", printed, re.MULTILINE)) == 3 * len(POINTS)
    assert max(map(len, printed.splitlines()[3:])) <= 80
    assert all(name in printed for name in ("compute", "evaluate", "reduce", "orchestration", "idle", "rest"))
    assert "no strong scaling" in printed and "no weak scaling" in printed
    assert "…" not in printed


def test_the_rows_add_up_and_are_those_of_real_runs(study):
    folder, _ = study
    rows = pq.read_table(folder / "scaling.parquet").to_pylist()
    assert [(row["clients"], row["repeat"], row["round"]) for row in rows] == [
        (6, 1, 1),
        (6, 1, 2),
        (12, 1, 1),
        (12, 1, 2),
    ]
    for row in rows:
        run = folder / "points" / Point(row["clients"], 4, 1).name / "run-1"
        assert sum(row[f"actor_seconds_{name}"] for name in PARTS) == pytest.approx(
            row["workers"] * row["seconds_wall"]
        )
        updates = [each for each in pq.read_table(run / "clients.parquet").to_pylist() if each["round"] == row["round"]]
        assert len(updates) == 4 == row["clients_ok"]
        assert row["actor_seconds_compute"] == pytest.approx(sum(each["seconds"] for each in updates))
        (record,) = [
            each for each in pq.read_table(run / "rounds.parquet").to_pylist() if each["round"] == row["round"]
        ]
        assert row["actor_seconds_reduce"] == record["seconds_server"]
        assert row["actor_seconds_evaluation"] == pytest.approx(record["seconds_evaluate"])
        assert row["seconds_wall"] >= record["seconds_round"]
        assert (row["bytes_up"], row["client_steps"]) == (
            record["bytes_up"],
            sum(each["num_steps"] for each in updates),
        )


def test_the_summary_says_what_the_points_took(study):
    folder, _ = study
    summary = json.loads((folder / "scaling.json").read_text())
    rows = pq.read_table(folder / "scaling.parquet").to_pylist()
    assert [entry["clients"] for entry in summary["points"]] == [6, 12]
    for entry in summary["points"]:
        first, second = (row for row in rows if row["clients"] == entry["clients"])
        assert (entry["seconds_first_round"], entry["seconds_round"]) == (first["seconds_wall"], second["seconds_wall"])
        assert entry["client_updates_per_second"] == pytest.approx(4 / second["seconds_wall"])
        without = second["seconds_wall"] - second["actor_seconds_evaluation"]
        assert entry["seconds_client_update"] == pytest.approx(without / 4)
        assert sum(entry["shares"].values()) == pytest.approx(1)
        assert entry["seconds_start"] > 0 and entry["seconds_end"] > 0
        # A worker in the driver's own process: torch alone is more than a tenth of a gigabyte.
        assert entry["peak_driver_bytes"] > 1e8 and entry["peak_worker_bytes"] is None
    times = sorted(entry["seconds_client_update"] for entry in summary["points"])
    ends = {"least_seconds": times[0], "most_seconds": times[1]}
    assert summary["client_update"] == [{"actors": 1, **ends, "ratio": pytest.approx(times[1] / times[0])}]
    assert summary["strong_scaling"] == summary["weak_scaling"] == summary["failures"] == []
    assert {"fedsim", "torch", "python"} <= summary["versions"].keys()


def test_a_study_is_read_back_from_its_folder_with_its_page_and_its_rows(study, tmp_path):
    folder = study[0]
    again = json.loads(json.dumps(plain(load_scaling(folder).record())))
    recorded = json.loads((folder / "scaling.json").read_text())
    assert again == recorded
    page, rows = tmp_path / "study.html", tmp_path / "points.csv"
    assert write_report(str(folder), "html", page, print) == [page] and "Where the time goes" in page.read_text()
    write_report(str(folder), "csv", rows, print)
    assert len(rows.read_text().splitlines()) == 1 + len(POINTS)


def test_a_point_is_the_run_that_fedsim_run_would_do(study, tmp_path):
    folder, _ = study
    alone = {"rounds": 2, "output": str(tmp_path / "alone"), "tracking": {"plots": False}}
    fedsim.run(make_tiny(**CHANGES, **alone), progress=False)
    run = folder / "points" / POINTS[1].name / "run-1"
    prompt = "prompt/global.safetensors"
    assert (run / prompt).read_bytes() == (tmp_path / "alone" / prompt).read_bytes()


def test_the_same_command_runs_nothing_again_and_a_smaller_one_still_shows_all(study, monkeypatch, capsys):
    folder, _ = study
    before = contents(folder / "points")
    rows = (folder / "scaling.parquet").read_bytes()
    status, out, _ = call(monkeypatch, capsys, command(folder))
    assert status == 0 and out.count("finished before") == 2
    assert (folder / "scaling.parquet").read_bytes() == rows
    status, out, _ = call(monkeypatch, capsys, command(folder, options=("--clients", "12", "--rounds", "2")))
    assert status == 0 and out.count("finished before") == 1
    assert [entry["clients"] for entry in json.loads((folder / "scaling.json").read_text())["points"]] == [6, 12]
    assert contents(folder / "points") == before


def test_a_point_is_predicted_from_those_that_ran(study, tmp_path, monkeypatch, capsys):
    """The points beside the two that ran are copies of one, so that nothing runs again."""
    folder, points = tmp_path / "study", tmp_path / "study" / "points"
    shutil.copytree(study[0], folder)
    shutil.copy(study[0].parent / "tiny.yaml", tmp_path)
    for cohort in (2, 6):
        shutil.copytree(points / POINTS[1].name, points / Point(12, cohort, 1).name)
    status, _, err = call(monkeypatch, capsys, command(folder, "--predict", "clients=12,cohort=12"))
    assert status == 2 and "has 2 points besides those to predict" in err
    options = ("--clients", "12", "--cohort", "2,4,6", "--rounds", "2", "--predict", "clients=12,cohort=12")
    status, out, _ = call(monkeypatch, capsys, command(folder, options=options))
    assert status == 0 and "Predicted by a cost model" in out and "points left out of the fit" in out
    predictions = json.loads((folder / "scaling.json").read_text())["predictions"]
    assert [each["cohort"] for each in predictions["asked"]] == [12]
    assert len(predictions["left_out"]) == 4  # of the folder: earlier commands' points are fitted to as well
    assert load_scaling(folder).predictions.record() == predictions
    console = Console(file=io.StringIO(), width=80)
    seen = watch(str(folder), console)
    assert seen["predictions"] == predictions["asked"] and [run["state"] for run in seen["runs"]] == 3 * ["finished"]
    assert "predicted: 12 clients, 12 a round, 1 actor: " in console.file.getvalue()


def test_repeats_of_earlier_commands_stay_in_the_figures(study, tmp_path, monkeypatch, capsys):
    folder = tmp_path / "study"
    shutil.copytree(study[0], folder)
    shutil.copy(study[0].parent / "tiny.yaml", tmp_path)
    point = folder / "points" / POINTS[0].name
    shutil.copytree(point / "run-1", point / "run-2")
    shutil.copy(point / "run-1.json", point / "run-2.json")
    status, out, _ = call(monkeypatch, capsys, command(folder))
    assert status == 0 and out.count("finished before") == 2
    summary = json.loads((folder / "scaling.json").read_text())
    assert [(entry["repeats"], entry["rounds"]) for entry in summary["points"]] == [(2, 2), (1, 1)]
    assert pq.read_table(folder / "scaling.parquet").num_rows == 6


def test_a_failed_point_is_reported_and_the_study_goes_on(study, tmp_path):
    folder = tmp_path / "study"
    shutil.copytree(study[0], folder)
    points = make_points(study[0].parent / "tiny.yaml", (), clients=[5, 6], cohorts=None, actors=None, rounds=2)
    failing, whole = points.configs
    broken = points.configs[failing].model_copy(
        update={"model": points.configs[failing].model.model_copy(update={"path": "./no/such/model"})}
    )
    results = list(
        run_points(
            StudyFolder(folder, points), Points({failing: broken, whole: points.configs[whole]}, ()),
            [(failing, 1), (whole, 1)], lambda text: None, lambda what, line: None,
        )
    )  # fmt: skip
    failure, finished = results
    assert isinstance(failure, Failure) and (failure.point, failure.repeat) == (failing, 1)
    assert "no/such/model" in failure.sentence and "\n" not in failure.sentence
    assert isinstance(finished, Run) and finished.point == whole
    seen = watch(str(folder), Console(file=io.StringIO(), width=80))
    assert (seen["state"], seen["failed"], seen["runs"][0]["sentence"]) == ("failed", 1, failure.sentence)
    assert "1 of 2 runs finished, 1 failed" in why_failed(seen)

    from fedsim.scaling.summary import summarise
    from fedsim.scaling.table import scaling_tables

    console = Console(width=80, record=True, file=open(os.devnull, "w"))  # noqa: PTH123, SIM115
    console.print(scaling_tables(summarise([finished], [failure], ())))
    text = " ".join(console.export_text().split())
    assert "5 4 1 failed" in text and f"failed: {failing}, run 1: {failure.sentence}"[:60] in text


def foreign(folder):
    shutil.rmtree(folder)
    folder.mkdir()
    (folder / "chapter1.txt").write_text("years of work")


def another_kind(folder):
    (folder / "study.json").write_text('{"what": "something else"}')


MISTAKES = {
    "not a number": (None, ("--clients", "10,x"), (), "--clients 10,x: 'x' is not a whole number"),
    "no client": (None, ("--clients", "0"), (), "--clients 0: '0' is not a whole number"),
    "no repeat": (None, (*OPTIONS, "--repeats", "0"), (), "--repeats 0"),
    "too many clients": (None, ("--clients", "6,9999"), (), "--clients 9999 cannot be partitioned"),
    "no point left": (None, ("--clients", "3"), (), "no point is left"),
    "unknown key": (None, OPTIONS, ("client.epoch=3",), "client.epoch"),
    "another study": (None, OPTIONS, ("client.epochs=3",), "another study (client.epochs is 1 there and 3 here)"),
    "other rounds": (None, ("--clients", "6", "--rounds", "5"), (), "another study (rounds is 2 there and 5 here)"),
    "not a study": (foreign, OPTIONS, (), "holds files but no scaling study"),
    "a broken study": (another_kind, OPTIONS, (), "holds files but no scaling study"),
}


@pytest.mark.parametrize("name", MISTAKES)
def test_a_mistake_is_answered_with_one_sentence_and_nothing_is_touched(study, tmp_path, monkeypatch, capsys, name):
    spoil, options, overrides, sentence = MISTAKES[name]
    folder = tmp_path / "study"
    shutil.copytree(study[0], folder)
    shutil.copy(study[0].parent / "tiny.yaml", tmp_path)
    if spoil:
        spoil(folder)
    before = contents(tmp_path)
    status, out, err = call(monkeypatch, capsys, command(folder, *overrides, options=options))
    assert status == 2, out + err
    assert err.startswith("error: ") and err.count("\n") == 1 and sentence in err, err
    assert contents(tmp_path) == before


def test_records_that_were_damaged_are_named(study, tmp_path, monkeypatch, capsys):
    folder = tmp_path / "study"
    shutil.copytree(study[0], folder)
    shutil.copy(study[0].parent / "tiny.yaml", tmp_path)
    (folder / "points" / POINTS[0].name / "run-1" / "metrics.jsonl").write_text("{}\n")
    status, _, err = call(monkeypatch, capsys, command(folder))
    assert status == 2 and "does not hold the records of a finished run" in err and err.count("\n") == 1


def test_actors_are_told_apart_and_say_how_much_memory_they_took(session_ray_run, tmp_path):
    folder, _, started, ended = session_ray_run
    path = tmp_path / "run"
    shutil.copytree(folder, path)
    path.with_suffix(".json").write_text(json.dumps({"started": started, "ended": ended}))
    run = read_run(Point(12, 5, 2), 1, path)
    assert run.workers == 2 and len(run.peak_memory["workers"]) == 2
    assert all(peak > 1e8 for peak in run.peak_memory["workers"]) and run.peak_memory["server"] > 1e7
    for each in run.rounds:
        assert 1 <= len(each.times.busy) <= 2
        assert each.parts.total == pytest.approx(2 * each.times.wall)
    (path / "clients.parquet").unlink()
    with pytest.raises(CheckpointError, match=r"remove .*run\.json to have it run again"):
        read_run(Point(12, 5, 2), 1, path)

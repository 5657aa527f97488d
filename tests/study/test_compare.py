"""Studies as they are run: the same bytes as separate runs however many at a time, continued, with what fails in the table."""

import io
import json
import os
import random
import re
import shutil
import signal
import subprocess
import sys

import pytest
from rich.console import Console
from small_study import FEDAVG, STUDY, prompts, silent, written
from support import ROOT, sweep

import fedsim
from fedsim import cli
from fedsim.core.errors import ConfigError, ResourceError
from fedsim.executors.cells.pool import CellPool
from fedsim.executors.cluster.reservations import Amounts, reservations
from fedsim.study.cells import read_study
from fedsim.study.fitting import run_bytes
from fedsim.study.loading import load_study
from fedsim.study.sharing import shared_ray


@pytest.fixture(scope="module")
def alone(tmp_path_factory):
    """Return the folder of a study whose runs were made one after another in this process, and its summary."""
    folder = tmp_path_factory.mktemp("alone")
    summary = fedsim.compare(written(folder, executor="local"), output=folder / "out", console=silent())
    return folder, summary


def test_every_cell_has_the_bytes_of_a_separate_run(alone, tmp_path):
    folder, summary = alone
    cells = read_study(folder / "study.yaml").cells()
    assert len(summary.cells) == len(cells) == 4
    cell = cells[1]
    fedsim.run(cell.config.replace(output=str(tmp_path / "run")), progress=False, console=silent())
    assert prompts(tmp_path / "run") == prompts(folder / "out" / cell.folder)


@pytest.mark.parametrize("at_once", sweep([2, 1], [2]))
def test_the_number_of_runs_at_a_time_changes_no_byte(alone, session_ray, tmp_path, monkeypatch, at_once):
    names, held, run = set(), {}, CellPool.run

    def run_and_look(pool, jobs):
        (node,) = reservations().nodes.values()
        held.update({each.by: each.amounts for each in node.held})
        names.update(each["name"] for each in session_ray.util.list_named_actors(all_namespaces=True))
        yield from run(pool, jobs)

    monkeypatch.setattr(CellPool, "run", run_and_look)
    path = written(tmp_path, FEDAVG, ray={"address": "auto", "actors": at_once, "labels": {"zone": "here"}})
    said = io.StringIO()
    summary = fedsim.compare(path, output=tmp_path / "out", at_once=at_once, console=Console(file=said, width=300))
    assert prompts(tmp_path / "out/cells/base/fedavg") == prompts(alone[0] / "out/cells/base/fedavg")
    assert ("2 runs at a time" in said.getvalue()) == (at_once == 2)
    if at_once == 2:
        assert {"fedsim/out/cell-0", "fedsim/out/cell-1"} <= names
        # Each reserves what a run is expected to need.
        needed = run_bytes(read_study(path).cells())
        assert held == {"fedsim/out": Amounts(cpus=2, memory_bytes=2 * needed)} and needed > 10**8
    assert figures(summary).items() <= figures(alone[1]).items()


@pytest.mark.parametrize(
    ("ray", "sentence"),
    [
        ({"labels": {"zone": "there"}}, "no node of the cluster has the labels zone=there (ray.labels)"),
        ({"accelerator_type": "H100"}, "ray.io/accelerator-type=H100 (ray.accelerator_type=H100)"),
        (
            {"metrics": True},
            "ray.metrics=true exports metrics of actors of a single run, but several runs at a time have",
        ),
        ({"round_timeout_seconds": 5.0}, "ray.round_timeout_seconds=5.0 limits a round on actors of a single run"),
        ({"group_timeout_seconds": 5.0}, "ray.group_timeout_seconds=5.0 limits a work group"),
    ],
)
def test_what_its_actors_cannot_have_is_refused(session_ray, tmp_path, ray, sentence):
    path = written(tmp_path, FEDAVG, ray={"address": "auto", **ray})
    with pytest.raises((ConfigError, ResourceError)) as refused:
        fedsim.compare(path, output=tmp_path / "out", at_once=2, console=silent())
    assert sentence in str(refused.value)


def test_arms_that_want_other_actors_are_refused(tmp_path):
    arms = {"a": None, "b": {"ray.address": "auto", "ray.labels": {"zone": "here"}}}
    cells = read_study(written(tmp_path, {**STUDY, "arms": arms})).cells()
    sentence = (
        'ray.address is null for base, a, seed 0 and "auto" for base, b, seed 0, but all runs of a study share their'
    )
    with pytest.raises(ConfigError, match=re.escape(sentence)):
        shared_ray(cells)
    (section,) = {shared_ray([cell]).model_dump_json() for cell in cells if cell.arm == "a"}
    assert '"actors":"pool"' in section


def figures(summary):
    """Return what does not depend on the machine's speed, by cell."""
    return {
        (c.arm, c.seed): (c.first, c.last, c.personalised, c.bytes_up, c.cohorts, c.contents) for c in summary.cells
    }


def test_arms_of_a_seed_have_the_same_data_and_cohorts(alone):
    by_seed = {}
    for cell in alone[1].cells:
        same = cell.cohorts, cell.contents["partition"], cell.contents["training_data"]
        assert by_seed.setdefault(cell.seed, same) == same
    assert len(set(by_seed.values())) == 2
    assert not any(pair.mismatches for pair in alone[1].pairs)


def test_a_finished_study_does_nothing_and_loads_the_same(alone):
    folder, summary = alone
    before = {p: p.stat().st_mtime_ns for p in (folder / "out/cells").rglob("*") if p.is_file()}
    said = io.StringIO()
    again = fedsim.compare(folder / "study.yaml", output=folder / "out", console=Console(file=said, width=200))
    assert said.getvalue().count("finished before") == 4
    assert {p: p.stat().st_mtime_ns for p in (folder / "out/cells").rglob("*") if p.is_file()} == before
    assert again.record() == summary.record()
    config, loaded = load_study(folder / "out")
    assert loaded.record() == summary.record()
    assert config.name == "study"


def test_a_study_with_more_seeds_does_only_those(alone, tmp_path):
    shutil.copytree(alone[0], tmp_path / "copy")
    path = written(tmp_path / "copy", {**STUDY, "seeds": 3, "arms": {"fedpeptao": None}}, executor="local")
    said = io.StringIO()
    summary = fedsim.compare(path, output=tmp_path / "copy/out", console=Console(file=said, width=200))
    assert said.getvalue().count("finished before") == 2
    assert len(summary.cells) == 3


def test_other_runs_in_a_cells_place_are_refused_not_overwritten(alone, tmp_path):
    shutil.copytree(alone[0], tmp_path / "copy")
    path = written(tmp_path / "copy", executor="local", rounds=2)
    before = prompts(tmp_path / "copy/out/cells")
    summary = fedsim.compare(path, output=tmp_path / "copy/out", console=silent())
    assert len(summary.failed) == 4
    assert all("rounds" in cell.sentence for cell in summary.failed)
    assert prompts(tmp_path / "copy/out/cells") == before


@pytest.mark.parametrize(
    ("executor", "stopped"),
    sweep([("local", "twice"), ("local", "at random"), ("ray", "at random")], [("local", "twice")]),
)
def test_an_interrupted_study_continues_to_the_same_table(alone, tmp_path, executor, stopped):
    """As by a user and as by the system, in the middle of a run; or ten times at any moment."""
    path = written(tmp_path, executor=executor)
    command = [sys.executable, "-m", "fedsim", "compare", str(path), "--output", str(tmp_path / "out")]
    (stop_at_lines if stopped == "twice" else stop_at_random)(command)
    summary = fedsim.compare(path, ["executor=local"], output=tmp_path / "out", console=silent())
    assert figures(summary) == figures(alone[1])
    assert prompts(tmp_path / "out/cells") == prompts(alone[0] / "out/cells")


def begun(command, **output):
    """Start a study in a session of its own, so that its actors can be killed with it."""
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "PYTHONUNBUFFERED": "1"}
    return subprocess.Popen(command, text=True, env=environment, start_new_session=True, **output)


def stop_at_lines(command):
    for number, ended in ((signal.SIGINT, 1), (signal.SIGKILL, 2)):
        process = begun(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
        seen = ""
        for line in process.stdout:
            seen += line
            if f"{ended}/4" in line:
                process.send_signal(number)
                break
        seen += process.stdout.read()
        assert process.wait(60) == (130 if number == signal.SIGINT else -signal.SIGKILL), seen


def stop_at_random(command):
    draw, killed = random.Random(0), 0
    while killed < 10:
        process = begun(command, stdout=subprocess.DEVNULL)
        try:
            assert process.wait(draw.uniform(1, 6)) == 0
            break  # finished between two kills
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()
            killed += 1
    assert killed >= 3


def test_a_run_comes_back_from_where_the_drivers_folders_are_not_seen(alone, session_ray, tmp_path):
    from fedsim.executors.cells.actor import CellActor
    from fedsim.study.running import job_of, put_in_place

    cell = read_study(alone[0] / "study.yaml").cells()[1]
    job = job_of(cell, tmp_path / "out" / cell.folder)
    actor = CellActor.options(num_cpus=1, max_concurrency=2).remote()
    ended = session_ray.get(actor.do.remote(job, actor.weights.remote(job), False))
    session_ray.kill(actor)
    assert ended.sentence is None
    assert not (tmp_path / "out").exists(), "the actor does not write there"
    put_in_place(ended)
    assert prompts(tmp_path / "out" / cell.folder) == prompts(alone[0] / "out" / cell.folder)


KILLER = """
import os, pathlib, signal
import fedsim
from fedsim import Callback

@fedsim.register("callback", "kill_once")
class KillOnce(Callback):
    def on_round(self, run, done):
        mark = pathlib.Path(run.folder).parent / "killed"
        if done.round == 2 and run.config.seed == 1 and not mark.exists():
            mark.touch()
            os.kill(os.getpid(), signal.SIGKILL)
"""


def test_a_run_whose_actor_dies_goes_on_elsewhere(alone, session_ray, tmp_path, monkeypatch):
    from fedsim.core import plugins

    (tmp_path / "kill.py").write_text(KILLER)
    path = written(tmp_path, FEDAVG, ray={"address": "auto", "actors": 2})
    plugins.load_plugin(tmp_path / "kill.py")
    try:
        said = io.StringIO()
        console = Console(file=said, width=300)
        summary = fedsim.compare(path, ["callbacks=[kill_once]"], output=tmp_path / "out", at_once=2, console=console)
    finally:
        plugins.unload("kill.py")
    assert said.getvalue().count("its actor was lost") == 1, "seed 1"
    assert not summary.failed
    assert prompts(tmp_path / "out/cells/base/fedavg") == prompts(alone[0] / "out/cells/base/fedavg")


def test_a_failed_cell_stands_in_the_table_and_the_others_are_done(session_ray, tmp_path, capsys, monkeypatch):
    (tmp_path / "data").mkdir()
    for name in ("train", "validation"):
        (tmp_path / f"data/{name}.jsonl").write_text('{"text": "a film", "label": "neither"}\n')
    arms = {"fine": None, "wrong": {"data.path": str(tmp_path / "data")}}
    path = written(tmp_path, {**STUDY, "arms": arms, "seeds": 1}, ray={"address": "auto"}, rounds=1)
    monkeypatch.setattr(
        sys, "argv", ["fedsim", "compare", str(path), "--output", str(tmp_path / "out"), "--at-once", "2"]
    )
    with pytest.raises(SystemExit) as ended:
        cli.main()
    assert ended.value.code == 1
    said = capsys.readouterr().out
    assert "neither" in said
    assert json.loads((tmp_path / "out/failures.json").read_text())[0]["arm"] == "wrong"
    _, loaded = load_study(tmp_path / "out")
    assert [cell.arm for cell in loaded.failed] == ["wrong"]
    assert [cell.arm for cell in loaded.cells] == ["fine"]


def test_runs_that_exist_are_compared_by_arm_and_seed(alone, tmp_path, capsys, monkeypatch):
    cells = alone[0] / "out/cells/base"
    places = [str(cells / arm / f"seed-{seed}") for arm in ("fedavg", "fedpeptao") for seed in (0, 1)]
    monkeypatch.setattr(sys, "argv", ["fedsim", "compare", *places, "--output", str(tmp_path / "out")])
    with pytest.raises(SystemExit) as ended:
        cli.main()
    assert ended.value.code == 0
    assert "fedavg" in capsys.readouterr().out
    found = json.loads((tmp_path / "out/summary.json").read_text())
    assert found["reference"] == "fedavg"
    assert found["arms"] == ["fedavg", "fedpeptao"]
    assert [row["finished"] for row in found["rows"]] == [[0, 1], [0, 1]]
    assert (tmp_path / "out/cells.parquet").exists()


def test_a_study_folder_is_held_by_one_writer(alone, tmp_path):
    from fedsim.study.folder import StudyFolder, read_subject

    study = read_study(alone[0] / "study.yaml")
    for folder in (StudyFolder(alone[0] / "out"), StudyFolder(tmp_path / "new")):
        with folder.opened(study), pytest.raises(ConfigError, match="in use"), StudyFolder(folder.path).opened(study):
            pass
    (tmp_path / "new/study.json").unlink()  # as between lock and file
    with StudyFolder(folder.path).opened(study):
        pass
    assert read_subject(folder.path) is not None


def test_expected_bands_are_checked(alone, tmp_path, capsys, monkeypatch):
    shutil.copytree(alone[0], tmp_path / "copy")
    for at_least, status in ((0.0, 0), (1.01, 1)):
        study = {**STUDY, "expect": {"base": {"fedavg": {"at_least": at_least}}}}
        path = written(tmp_path / "copy", study, executor="local")
        words = ["fedsim", "compare", str(path), "--check", "--output", str(tmp_path / "copy/out")]
        monkeypatch.setattr(sys, "argv", words)
        with pytest.raises(SystemExit) as ended:
            cli.main()
        assert ended.value.code == status, capsys.readouterr().out

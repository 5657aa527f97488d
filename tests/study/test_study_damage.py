"""A study whose folder is damaged, whose file has changed, or whose search finds nothing: it says so, and mixes nothing."""

import io
import json
import shutil
import sys

import pytest
import yaml
from rich.console import Console
from support import sweep, tiny_values

import fedsim
from fedsim import cli
from fedsim.configuration.schema import read_config
from fedsim.core import plugins
from fedsim.core.errors import ConfigError, ResourceError
from fedsim.display.page.report import write_report
from fedsim.study import command
from fedsim.study.existing import write_subject
from fedsim.study.loading import load_search, load_study

STUDY = {"base": "base.yaml", "arms": {"a": None, "b": {"server.kind": "fedavg"}}, "seeds": 1}


def compared(folder, study=STUDY, *overrides, at_once=None, said=None):
    """Run a study of one round in a folder, with its results in ``out``."""
    (folder / "base.yaml").write_text(yaml.safe_dump(tiny_values({"rounds": 1, "executor": "local"})))
    (folder / "study.yaml").write_text(yaml.safe_dump(study, sort_keys=False))
    console = Console(file=said or io.StringIO(), width=400)
    return fedsim.compare(folder / "study.yaml", overrides, output=folder / "out", at_once=at_once, console=console)


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    folder = tmp_path_factory.mktemp("finished")
    compared(folder)
    return folder


@pytest.fixture
def copy(finished, tmp_path):
    """Return the folder of a copy of a finished study."""
    return shutil.copytree(finished, tmp_path / "copy")


@pytest.mark.parametrize(
    ("name", "content"), sweep([("rounds.parquet", b"PAR1"), ("personal.parquet", None)], [("rounds.parquet", b"PAR1")])
)
def test_a_damaged_run_stands_in_the_table_and_the_others_are_reported(copy, name, content):
    file = copy / "out/cells/base/a/seed-0" / name
    file.unlink() if content is None else file.write_bytes(content)
    for summary in (load_study(copy / "out")[1], compared(copy)):
        assert [cell.arm for cell in summary.cells] == ["b"]
        (lost,) = summary.failed
        assert name in lost.sentence
        assert "seed-0 and compare again" in lost.sentence
    shutil.rmtree(file.parent)
    assert not compared(copy).failed


@pytest.mark.parametrize("content", sweep(["{", "[]"], ["{"]))
def test_a_run_with_a_damaged_summary_is_done_again(copy, content):
    (copy / "out/cells/base/a/seed-0/summary.json").write_text(content)
    assert [cell.arm for cell in load_study(copy / "out")[1].failed] == ["a"]
    assert not compared(copy).failed


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("study.json", '{"holds": "fedsim study"}'),
        (
            "study.json",
            '{"holds": "fedsim study", "name": "study", "file": "x", "overrides": [], "study": {"base": 3}}',
        ),
        pytest.param("failures.json", "[", marks=pytest.mark.wide),
        ("failures.json", '[{"seed": 1}]'),
    ],
)
def test_a_damaged_file_of_the_study_is_named_and_written_anew(copy, name, content):
    (copy / "out" / name).write_text(content)
    with pytest.raises(ConfigError, match=f"{name} is damaged; fedsim compare STUDY.yaml .* writes it anew"):
        write_report(str(copy / "out"), "md", None, print)
    assert not compared(copy).failed
    write_report(str(copy / "out"), "md", None, print)


def test_a_folder_of_another_study_is_refused_and_left_as_it_is(copy):
    before = {path: path.read_bytes() for path in (copy / "out").glob("*.*")}
    with pytest.raises(ConfigError, match=r"holds the study 'study', not 'other'; choose another folder .*name: study"):
        compared(copy, {**STUDY, "name": "other"})
    assert {path: path.read_bytes() for path in before} == before


def test_runs_of_an_earlier_state_are_no_results_of_the_changed_study(copy, monkeypatch):
    """Even if the command is stopped before it comes to them."""

    def stopped(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(command, "_done", stopped)
    with pytest.raises(KeyboardInterrupt):
        compared(copy, {**STUDY, "arms": {"a": None, "b": {"client.epochs": 5}}})
    _, summary = load_study(copy / "out")
    assert [cell.arm for cell in summary.cells] == ["a"]
    assert "earlier state of the study" in summary.failed[0].sentence


def test_a_search_that_finds_nothing_fails_its_arm_alone(tmp_path):
    """Clients of arm b hold no examples out, so that its personalised metric chooses nothing."""
    search = {"keys": {"client.optimizer.lr": [0.01, 0.02]}, "metric": {"b": "personalised"}}
    arms = {"a": None, "b": {"partition.holdout_fraction": 0.0}}
    summary = compared(tmp_path, {**STUDY, "arms": arms, "search": search})
    assert [cell.arm for cell in summary.cells] == ["a"]
    (lost,) = summary.failed
    assert "chose nothing, since none of 2 combinations gave a metric: its runs have no personalised" in lost.sentence
    chosen = {choice["arm"]: choice["chosen"] for choice in json.loads((tmp_path / "out/search.json").read_text())}
    assert chosen["b"] == {}
    assert not (tmp_path / "out/cells/base/b").exists()


def test_runs_of_this_process_are_not_done_side_by_side(tmp_path, monkeypatch):
    with pytest.raises(
        ConfigError, match="2 runs at a time cannot have executor=local; leave that out, or do one at a time"
    ):
        compared(tmp_path, at_once=2)
    monkeypatch.setitem(plugins._unfiled, "callback of_a_script", "")
    with pytest.raises(ConfigError, match="2 runs at a time cannot have the kinds that this script"):
        compared(tmp_path, STUDY, "executor=ray", at_once=2)


def test_a_pool_that_cannot_start_leaves_the_cluster(session_ray, tmp_path, monkeypatch):
    """That it has connected to; otherwise no other study could run in this process."""
    from fedsim.executors.cells import pool

    left = []
    monkeypatch.setattr(pool, "connect", lambda *_: True)
    monkeypatch.setattr(pool.ray, "shutdown", lambda: left.append(True))
    given = ["executor=ray", "ray.address=auto", "ray.num_cpus_per_actor=10000"]
    with pytest.raises(ResourceError, match="fits a node"):
        compared(tmp_path, STUDY, *given, at_once=2)
    assert left == [True]
    with pytest.raises(ConfigError, match="at_once is 0"):
        compared(tmp_path, STUDY, *given, at_once=0)


def test_a_page_written_again_has_the_command_of_the_study(finished, tmp_path):
    (page,) = write_report(str(finished / "out"), "html", tmp_path / "again.html", print)
    command = f"fedsim compare {finished / 'study.yaml'} --output {finished / 'out'}"
    assert command in page.read_text()
    assert command in (finished / "out/report.html").read_text()


def test_what_an_earlier_search_has_chosen_is_not_shown_without_a_search(copy):
    (copy / "out/search.json").write_text('[{"a": 1}]')
    (page,) = write_report(str(copy / "out"), "html", None, print)
    assert "What the search tried" not in page.read_text()


def test_a_comparison_whose_runs_are_gone_says_how_to_write_it_anew(copy):
    runs = [str(copy / f"out/cells/base/{arm}/seed-0") for arm in "ab"]
    (copy / "both").mkdir()
    for name in ("summary.json", "cells.parquet", "pairs.parquet"):
        shutil.copy(copy / "out" / name, copy / "both")
    with pytest.raises(ConfigError, match="nothing says of which runs; fedsim compare RUN RUN"):
        write_report(str(copy / "both"), "md", None, print)
    write_subject(copy / "both", runs)
    shutil.move(copy / "out", copy / "moved")
    with pytest.raises(ConfigError, match=f"{runs[0]}.*; fedsim compare RUN RUN .* where they are now"):
        write_report(str(copy / "both"), "md", None, print)


@pytest.mark.parametrize("content", sweep([None, "{"], ["{"]))
def test_a_study_whose_study_json_is_gone_goes_on(copy, content):
    file = copy / "out/study.json"
    before = file.read_text()
    file.unlink() if content is None else file.write_text(content)
    with pytest.raises(ConfigError, match=r"its study.json is gone or damaged; fedsim compare STUDY.yaml --output"):
        write_report(str(copy / "out"), "md", None, print)
    runs = {path: path.stat().st_mtime_ns for path in (copy / "out/cells").rglob("*.parquet")}
    assert not compared(copy).failed
    assert {path: path.stat().st_mtime_ns for path in runs} == runs
    assert json.loads(file.read_text())["study"] == json.loads(before)["study"]


def contents(file):
    """Return what a file holds; of a config all but its output, which is in another folder here than it was."""
    return file.read_bytes() if file.suffix == ".safetensors" else read_config(file).replace(output="here")


@pytest.mark.parametrize(
    ("name", "content"),
    sweep(
        [("prompt/global.safetensors", None), ("prompt/best.safetensors", b"\0{"), ("config.yaml", None)],
        [("prompt/best.safetensors", b"\0{")],
    ),
)
def test_a_finished_run_without_its_prompt_or_config_is_finished_again(copy, name, content):
    """To the same bytes, from its newest checkpoint, and it is said; what runs next begins with these files."""
    file = copy / "out/cells/base/a/seed-0" / name
    before = contents(file)
    file.unlink() if content is None else file.write_bytes(content)
    said = io.StringIO()
    assert not compared(copy, said=said).failed
    assert (
        f"a, seed 0: {name} of its run is gone or damaged: it goes on from its checkpoint after round 1"
        in said.getvalue()
    )
    assert said.getvalue().count("finished before") == 1
    assert contents(file) == before


@pytest.mark.wide(alone="three studies")
def test_a_finished_run_needs_no_checkpoint_until_it_has_more_rounds(copy):
    run = copy / "out/cells/base/a/seed-0"
    shutil.rmtree(run / "checkpoints")
    for rounds, often in ((1, 2), (2, 0)):
        said = io.StringIO()
        assert not compared(copy, STUDY, f"rounds={rounds}", said=said).failed
        assert said.getvalue().count("finished before") == often
        assert ("a, seed 0: its checkpoints are gone: it starts over" in said.getvalue()) == (rounds == 2)
    shutil.rmtree(run / "checkpoints")
    before = (run / "summary.json").read_bytes()
    (lost,) = compared(copy, {**STUDY, "arms": {"a": {"client.epochs": 5}}}, "rounds=2").failed
    assert "is a run of another configuration, without checkpoints; delete it and compare again" in lost.sentence
    assert (run / "summary.json").read_bytes() == before


def test_while_a_search_goes_on_no_earlier_run_is_shown(copy, monkeypatch):
    """Which settings the study takes is not known yet."""

    def stopped(*_):
        raise KeyboardInterrupt

    search = {"keys": {"client.optimizer.lr": [0.01, 0.02]}}
    (copy / "out/search.json").write_text('[{"dataset": "base", "arm": "a", "chosen": {}, "trials": []}]')
    with monkeypatch.context() as patched, pytest.raises(KeyboardInterrupt):
        patched.setattr(command, "_done", stopped)
        compared(copy, {**STUDY, "search": search})
    config, summary = load_study(copy / "out")
    assert not summary.cells and not load_search(config, copy / "out")
    assert all("has not chosen its settings yet" in cell.sentence for cell in summary.failed)


@pytest.mark.wide(alone="three studies with a search")
def test_runs_of_another_search_are_no_failed_trials_of_this_one(tmp_path):
    search = {"keys": {"client.optimizer.lr": [0.01, 0.02]}}
    compared(tmp_path, {**STUDY, "search": search})
    other = {"keys": {"client.optimizer.lr": [0.03, 0.02]}}
    with pytest.raises(ConfigError, match=r"a run of another search than the study's; delete .*/search to search anew"):
        compared(tmp_path, {**STUDY, "search": other})
    assert [cell.arm for cell in load_study(tmp_path / "out")[1].cells] == ["a", "b"]


@pytest.mark.parametrize("to", ["md", "latex"])
def test_a_document_of_a_study_is_the_file_that_is_asked_for(copy, tmp_path, to):
    file = tmp_path / "paper.txt"
    assert write_report(str(copy / "out"), to, file, print) == [file]
    assert "Results" in file.read_text()


def test_a_comparison_of_runs_goes_where_nothing_else_is(copy, capsys, monkeypatch):
    """Twice to the same folder, but not among a study's files; cells of a study have the names of their arms."""
    cells = [str(copy / f"out/cells/base/{arm}/seed-0") for arm in "ab"]

    def said(*words):
        monkeypatch.setattr(sys, "argv", ["fedsim", "compare", *words])
        with pytest.raises(SystemExit) as ended:
            cli.main()
        return ended.value.code, capsys.readouterr().err

    for _ in range(2):
        assert said(*cells, "--output", str(copy / "both")) == (0, "")
    assert json.loads((copy / "both/summary.json").read_text())["arms"] == ["a", "b"]
    before = (copy / "both/cells.parquet").read_bytes()
    for to in ("html", "md", "parquet", "csv"):
        assert write_report(str(copy / "both"), to, None, print)
    assert (copy / "both/cells.parquet").read_bytes() == before
    command = f"fedsim compare {' '.join(cells)} --output {copy / 'both'}"
    assert command in (copy / "both/report.html").read_text()
    assert said(*cells, "--output", str(copy / "both")) == (0, "")
    assert "holds a comparison of runs, not a run" in said(str(copy / "both"), cells[0])[1]
    for place, why in (
        (copy / "out", "holds other files, such as"),
        (copy / "study.yaml", "is a file"),
        (copy / "study.yaml/inside", "cannot be written"),
        ("s3://bucket/place", "must be a local path"),
    ):
        code, error = said(*cells, "--output", str(place))
        assert (code, error.count("\n")) == (3 if why == "cannot be written" else 2, 1)
        assert why in error
    assert "holds a study, not a run; fedsim report" in said(str(copy / "out"))[1]

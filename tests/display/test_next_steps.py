"""What commands end with: commands that work as they are printed."""

import json
import shlex
from pathlib import Path

import pytest
import typer
import yaml
from small_study import STUDY, written
from support import tiny_values

from fedsim.cli.commands import app
from fedsim.display.next_steps import after_doctor, after_scale

LOCAL = {"executor": "local", "rounds": 1, "client": {"fuse": 2}, "tracking": {"plots": False}}
CONFIG = "my config.yaml"
"""Its name needs quotes."""


@pytest.fixture
def ours(tmp_path):
    (tmp_path / CONFIG).write_text(yaml.safe_dump(tiny_values(LOCAL)))
    return CONFIG


def steps(out):
    """Return the commands that a command ends with, as a shell splits them."""
    last = out.rpartition("\nnext: ")[2].splitlines()
    assert last
    return [shlex.split(line.strip().partition("   ")[0]) for line in last]


def parsed(words):
    """Have the command line take a command, without doing it; a folder or config that it names must be there."""
    command = typer.main.get_command(app)
    with command.make_context("fedsim", list(words[1:])) as context:
        name, sub, rest = command.resolve_command(context, list(words[1:]))
        with sub.make_context(name, list(rest), parent=context) as inner:
            return name, inner.params


def test_a_plan_ends_with_a_run_that_works_as_it_is_printed(fedsim, ours):
    status, out, _ = fedsim("plan", ours, "name=a.run", "output=two words")
    assert status == 0
    run, doctor = steps(out)
    assert run == ["fedsim", "run", ours, "name=a.run", "output=two words"]
    assert doctor == ["fedsim", "doctor", *run[2:]]
    assert parsed(doctor)[0] == "doctor"
    _, out, _ = fedsim("plan", ours)
    status, out, _ = fedsim(*steps(out)[0][1:])
    assert status == 0 and "next: fedsim.load_adapter" in out


def test_a_partition_ends_with_a_run_unless_it_is_refused(fedsim, ours):
    _, out, _ = fedsim("partition", ours)
    run, plan = steps(out)
    assert (run, plan) == (["fedsim", "run", ours], ["fedsim", "plan", ours])
    assert fedsim(*plan[1:])[0] == 0
    column = ("partition={kind: by_column, column: author, clients: null}", "sampling.clients_per_round=500")
    status, out, _ = fedsim("partition", ours, *column)
    assert status == 0 and "a run with this config is refused" in out and "next:" not in out


def test_a_doctor_who_finds_nothing_names_a_run(fedsim, ours):
    status, out, _ = fedsim("doctor", ours, "rounds=2")
    assert status == 0 and steps(out) == [["fedsim", "run", ours, "rounds=2"]]
    status, out, _ = fedsim("doctor", ours, "rounds=none")
    assert status == 1 and "next:" not in out
    assert shlex.split(str(after_doctor([], 0)).partition("   ")[0]) == ["next:", "fedsim", "run", "quickstart"]
    assert after_doctor(["partition.clients=1"], 0) is None  # fewer than the quickstart's round takes


def test_a_study_ends_with_its_tables_and_checks_what_it_expects(fedsim, tmp_path):
    expect = {"base": {"fedavg": {"at_least": 0.0}}}
    study = {"base": "base.yaml", "arms": STUDY["arms"], "seeds": 1, "expect": expect}
    written(tmp_path, study, **LOCAL)
    _, out, _ = fedsim("compare", "study.yaml", "--dry-run", "--output", "the study", "--at-once", "1")
    (run,) = steps(out)
    status, out, _ = fedsim(*run[1:])
    assert status == 0
    report, check = steps(out)
    assert report == ["fedsim", "report", "the study", "--to", "md"] and check == [*run, "--check"]
    status, out, _ = fedsim(*check[1:])
    assert status == 0 and steps(out) == [report]
    assert fedsim(*report[1:])[0] == 0
    status, out, _ = fedsim("compare", *(f"the study/cells/base/{arm}/seed-0" for arm in STUDY["arms"]))
    (page,) = steps(out)
    assert fedsim(*page[1:])[0] == 0 and Path("runs/comparison/report.html").exists()


def test_a_study_that_failed_ends_with_the_command_that_goes_on(fedsim, tmp_path):
    written(tmp_path, {"base": "base.yaml", "arms": {"a": {"server.lr": 1e30}}, "seeds": 1}, **LOCAL)
    status, out, _ = fedsim("compare", "study.yaml", "client.optimizer.lr=1e30", "--at-once", "1")
    assert status == 1
    again, report = steps(out)
    assert again == ["fedsim", "compare", "study.yaml", "client.optimizer.lr=1e30", "--at-once", "1"]
    assert parsed(again)[0] == "compare" and parsed(report)[1]["folder"] == "runs/study-study"


@pytest.mark.parametrize("failed", [0, 2])
def test_a_scaling_study_ends_with_its_page(failed):
    command = ["my config.yaml", "rounds=x", "--clients", "6,12", "--rounds", "2", "--predict", "clients=9,cohort=2"]
    first, second = steps("\n" + str(after_scale(command, Path("runs/scaling-my config"), 1, failed)))
    report, again = (second, first) if failed else (first, second)
    assert parsed(report)[1]["folder"] == "runs/scaling-my config"
    name, values = parsed(again)
    assert name == "scale" and values["repeats"] == (1 if failed else 3)
    assert (values["clients"], values["rounds"], values["overrides"]) == ("6,12", 2, ["rounds=x"])
    assert (values["predict"], values["output"]) == (["clients=9,cohort=2"], Path("runs/scaling-my config"))


def test_json_has_none(fedsim, ours):
    for words in (["plan", ours], ["partition", ours], ["doctor", ours]):
        _, out, err = fedsim(*words, "--json")
        assert "next:" not in out + err and json.loads(out)["error"] is None

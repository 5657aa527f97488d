"""Every command with ``--json``: standard output is one document that the schema of outputs describes, whatever happens."""

import json
import subprocess
import sys

import jsonschema
import pytest
import yaml
from support import ROOT, tiny_values

from fedsim import cli
from fedsim.cli import machine
from fedsim.cli.outputs import RESULTS, output_schema

LOCAL = {"executor": "local", "rounds": 2, "layers": {"score_batch_size": None}, "tracking": {"plots": False}}
STUDY = {"base": "tiny.yaml", "arms": {"a": None, "b": {"server.kind": "fedavg"}}, "seeds": 2}
PEFT = {"position_offset": "paper"}
"""As PEFT counts positions."""
COMMANDS = machine.command_names(cli.app)
CASES = {
    "init": ["."],
    "presets": [],
    "run": ["tiny.yaml", "output=again"],
    "plan": ["tiny.yaml"],
    "doctor": ["executor=local"],
    "config": ["tiny.yaml"],
    "version": [],
    "partition": ["tiny.yaml", "--output", "labels.png"],
    "layers": ["tiny.yaml", "--output", "scores.png"],
    "scale": ["tiny.yaml", "--clients", "12", "--cohort", "2", "--rounds", "1", "--output", "scaled"],
    "watch": ["done", "--once"],
    "report": ["done", "--to", "csv"],
    "compare": ["study.yaml", "--dry-run"],
    "export": ["done", "--to", "peft", "--output", "adapter"],
    "schema": ["output"],
    "cache list": ["--folder", "kept"],
    "cache clear": ["--folder", "kept"],
}
WIDE = ("scale",)
"""Commands that start processes of their own."""


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """A folder with a config, a study and a finished run."""
    path = tmp_path_factory.mktemp("machine")
    (path / "tiny.yaml").write_text(yaml.safe_dump(tiny_values(LOCAL)))
    (path / "study.yaml").write_text(yaml.safe_dump(STUDY))
    (path / "kept").mkdir()
    from fedsim import Config, Run

    with Run(
        Config.read(path / "tiny.yaml", output=str(path / "done"), layers={"choose": "all"}, prompt=PEFT),
        progress=False,
    ) as run:
        run.finish()
    return path


@pytest.fixture
def answer(monkeypatch, capsys, place):
    """Return a function that runs a command with ``--json`` and returns its status, its document and what it said."""
    monkeypatch.chdir(place)

    def call(*words):
        monkeypatch.setattr(sys, "argv", ["fedsim", *words, "--json"])
        with pytest.raises(SystemExit) as ended:
            cli.main()
        out, err = capsys.readouterr()
        document = json.loads(out, parse_constant=pytest.fail)  # NaN and Infinity are no JSON
        assert out.count("\n") == 1
        jsonschema.validate(document, output_schema(), jsonschema.Draft202012Validator)
        assert document["exit_code"] == ended.value.code
        return ended.value.code, document, err

    return call


def test_every_command_has_a_schema_and_a_case():
    assert set(COMMANDS) <= set(RESULTS) & set(CASES)
    jsonschema.Draft202012Validator.check_schema(output_schema())


@pytest.mark.parametrize("command", [pytest.param(c, marks=[pytest.mark.wide] * (c in WIDE)) for c in COMMANDS])
def test_a_command_prints_its_result_and_nothing_else(answer, command):
    code, document, _ = answer(*command.split(), *CASES[command])
    assert document["error"] is None
    assert (code, document["command"]) == (0, command)
    assert document["result"] is not None


@pytest.mark.parametrize("command", COMMANDS)
def test_a_mistake_is_a_document_too(answer, command):
    code, document, err = answer(*command.split(), "--no-such-option")
    assert (code, document["command"], document["result"]) == (2, command, None)
    assert document["error"]["kind"] == "UsageError" and "--no-such-option" in document["error"]["sentence"]
    assert err == f"error: {document['error']['sentence']}\n"


@pytest.mark.parametrize(
    ("words", "where", "key"),
    [
        (["config", "wrong.yaml"], "wrong.yaml, line 2", "client.optimizer.lr"),
        (["config", "tiny.yaml", "roundz=3"], "override 'roundz=3'", "roundz"),
        (["config", "broken.yaml"], "broken.yaml, line 2", None),
        (["compare", "wrong_study.yaml"], "wrong_study.yaml, line 2", "seeds"),
    ],
)
def test_an_error_says_where_it_is(answer, place, words, where, key):
    (place / "wrong.yaml").write_text("rounds: 2\nclient: {optimizer: {lr: fast}}\n")
    (place / "broken.yaml").write_text("rounds: [\n")
    (place / "wrong_study.yaml").write_text("arms: {a: null}\nseeds: none\nbase: tiny.yaml\n")
    code, document, err = answer(*words)
    error = document["error"]
    assert code == 2 and (error["where"].split(" is not")[0], error["key"]) == (where, key)
    assert err == f"error: {error['sentence']}\n"


def test_numbers_are_exact_and_what_is_none_is_null(answer, place):
    summary = json.loads((place / "done" / "summary.json").read_text())
    _, document, _ = answer(
        "run", "tiny.yaml", "output=done", "layers.choose=all", "prompt.position_offset=paper", "--resume"
    )
    assert document["error"] is None and document["result"] == summary
    machine._Returned.outcome = machine.Outcome({"none": float("nan"), "most": float("inf"), "exact": 0.1 + 0.2})
    held = json.loads(machine.document("version", 0, None))["result"]
    assert held == {"none": None, "most": None, "exact": 0.30000000000000004}


def test_progress_goes_to_standard_error_and_so_does_what_a_child_prints(answer, place):
    _, _, err = answer("run", "tiny.yaml", "output=shown")
    assert "round 2/2" in err and "\x1b" not in err
    code = (
        "import subprocess, sys\nfrom fedsim.cli import machine\nwith machine.nothing_printed():\n"
        "    print('mine'); subprocess.run([sys.executable, '-c', 'print(\"of a child\")'])\nprint('{}')"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert (done.stdout, done.stderr) == ("{}\n", "of a child\n")


def test_an_error_of_ours_is_told_apart(answer, monkeypatch, place):
    monkeypatch.setattr("fedsim.configuration.schema.read_config", lambda *_: 1 / 0)
    code, document, err = answer("config", "tiny.yaml")
    assert (code, document["error"]["kind"]) == (70, "ZeroDivisionError") and "Traceback" in err

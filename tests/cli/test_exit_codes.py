"""Each exit status by a real cause, and the table of the docs."""

import re
import signal
import subprocess
import sys

import pytest
import yaml
from support import ROOT, tiny_values

from fedsim import cli
from fedsim.core.errors import ClientError, ConfigError, ResourceError
from fedsim.core.exit_codes import ExitCode, code_of, of_signal

VALUES = {"executor": "local", "rounds": 1, "tracking": {"plots": False}, "output": "out"}


def ended(folder, *words, code="import fedsim.__main__ as m; m.main()"):
    """Return a finished ``fedsim`` process."""
    argv = [sys.executable, "-c", f"import sys; sys.argv[0] = 'fedsim'\n{code}", *words]
    return subprocess.run(argv, cwd=folder, capture_output=True, text=True)


@pytest.fixture
def config(tmp_path):
    (tmp_path / "tiny.yaml").write_text(yaml.safe_dump(tiny_values(VALUES)))
    return tmp_path


@pytest.fixture
def status(config, monkeypatch, capsys):
    """Return a function that runs a command in this process and returns its status and what it said."""
    monkeypatch.chdir(config)

    def call(*words):
        monkeypatch.setattr(sys, "argv", ["fedsim", *words])
        with pytest.raises(SystemExit) as done:
            cli.main()
        return done.value.code, "".join(capsys.readouterr())

    return call


def test_work_that_fails_is_1(status, monkeypatch):
    code, said = status("doctor", "no-such.yaml")
    assert code == ExitCode.FAILED and "problem" in said
    monkeypatch.setattr("clients.training.group.train_clients", lambda *_, **__: {}["a client's own fault"])
    code, said = status("run", "tiny.yaml")
    assert code == ExitCode.FAILED and "a client's own fault" in said


def test_a_mistake_is_2_and_what_the_machine_lacks_is_3(status):
    assert status("config", "tiny.yaml")[0] == ExitCode.DONE
    assert status("config", "tiny.yaml", "rounds=0")[0] == ExitCode.MISTAKE
    assert status("nonsense")[0] == ExitCode.MISTAKE
    more = ("executor=ray", "ray.num_cpus=2", "ray.actors=4", "ray.num_cpus_per_actor=1")
    assert status("plan", "tiny.yaml", *more)[0] == ExitCode.RESOURCES


def test_an_error_of_ours_is_70_with_its_traceback(status, monkeypatch):
    monkeypatch.setattr("fedsim.configuration.text.config_text", None)
    code, said = status("config", "tiny.yaml")
    assert code == ExitCode.BUG and "Traceback" in said and "TypeError" in said


@pytest.mark.parametrize("number", [pytest.param(signal.SIGINT, marks=pytest.mark.wide), signal.SIGTERM])
def test_a_run_that_a_signal_ends_saves_its_round_and_has_128_and_its_number(config, number):
    code = f"""
import os, signal
from fedsim.simulation.journal import Journal
signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell's background jobs ignore it, and so would this
record = Journal._record
def recorded(self, *arguments):
    os.kill(os.getpid(), {int(number)})
    return record(self, *arguments)
Journal._record = recorded
import fedsim.__main__ as m; m.main()
"""
    done = ended(config, "run", "tiny.yaml", "rounds=3", code=code)
    assert done.returncode == of_signal(number) == 128 + number
    assert "the state after round 1 is saved; continue with --resume" in done.stderr


def test_output_that_nobody_reads_is_141(config):
    shell = f"{sys.executable} -m fedsim config tiny.yaml | true; exit ${{PIPESTATUS[0]}}"
    done = subprocess.run(["bash", "-c", shell], cwd=config, capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (ExitCode.OUTPUT_CLOSED, "")


def test_each_kind_of_error_has_its_status():
    causes = {ClientError(""): 1, ConfigError(""): 2, ResourceError(""): 3, ValueError(): 70, KeyboardInterrupt(): 130}
    assert {code_of(error): number for error, number in causes.items()} == {n: n for n in causes.values()}


def test_the_docs_list_them_all():
    table = (ROOT / "docs" / "operations.md").read_text()
    assert [int(row) for row in re.findall(r"^\| (\d+) \|", table, re.M)] == sorted(ExitCode)

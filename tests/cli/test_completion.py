"""What bash, zsh and fish are offered at the tab key."""

import os
import subprocess
import sys

import pytest
from support import ROOT

from fedsim.cli import completion
from fedsim.configuration.presets import presets
from fedsim.core.method import METHODS

FEDSIM = (
    f'exec {sys.executable} -c "import sys; sys.argv[0] = \'fedsim\'; import fedsim.__main__ as m; m.main()" "$@"\n'
)


@pytest.fixture(scope="module")
def home(tmp_path_factory):
    """A folder with a config, a run and a command ``fedsim``."""
    path = tmp_path_factory.mktemp("shell")
    (path / "fedsim").write_text(f"#!/bin/sh\n{FEDSIM}")
    (path / "fedsim").chmod(0o755)
    (path / "mine.yaml").write_text("rounds: 2\n")
    (path / "runs" / "first").mkdir(parents=True)
    (path / "runs" / "first" / "metrics.jsonl").touch()
    return path


@pytest.fixture
def offered(home):
    """Return a function that returns what a shell is offered for words of which the last is unfinished."""

    def ask(shell, *words):
        told = {"_FEDSIM_COMPLETE": f"complete_{shell}", "_TYPER_COMPLETE_ARGS": " ".join(words)}
        told |= {"_TYPER_COMPLETE_FISH_ACTION": "get-args"}
        told |= {"COMP_WORDS": "\n".join(words), "COMP_CWORD": str(len(words) - 1)}
        environment = {**os.environ, **told, "PATH": f"{home}:{os.environ['PATH']}"}
        done = subprocess.run(["fedsim"], cwd=home, env=environment, capture_output=True, text=True, check=True)
        assert not done.stderr
        return done.stdout.split("\n")

    return ask


def test_bash_is_offered_words_without_their_meanings(offered):
    assert {"run", "watch", "schema", "cache"} <= set(offered("bash", "fedsim", ""))
    assert offered("bash", "fedsim", "run", "x.yaml", "server.kind", "=", "fedav") == ["fedavg", "fedavgm", ""]


def test_zsh_and_fish_are_offered_keys_with_their_values(offered):
    zsh = "\n".join(offered("zsh", "fedsim", "run", "mine.yaml", "executor="))
    assert '"executor=local"' in zsh and '"executor=ray":"default"' in zsh
    fish = offered("fish", "fedsim", "run", "mine.yaml", "server.kind=fedad")
    assert [line.split("\t")[0] for line in fish if line] == ["server.kind=fedadam", "server.kind=fedadagrad"]


@pytest.fixture
def context(home, monkeypatch):
    monkeypatch.chdir(home)

    class Context:
        params = {"config": "x.yaml", "overrides": []}  # noqa: RUF012

    return Context()


def words(offers):
    return [word for word, _ in offers]


def test_keys_come_by_section_then_whole_then_with_values(context):
    assert {"rounds=", "client.", "server."} <= set(words(completion.overrides(context, "")))
    assert set(words(completion.overrides(context, "client.optimizer.l"))) >= {"client.optimizer.lr="}
    assert words(completion.overrides(context, "rounds")) == ["rounds=", "rounds=20"]
    kinds = words(completion.overrides(context, "server.kind="))
    assert kinds == [f"server.kind={kind}" for kind in METHODS]
    context.params["overrides"] = ["server.kind"]
    assert words(completion.overrides(context, "")) == list(METHODS)  # bash, right behind the sign
    assert not completion.overrides(context, "nothing.of.the.kind")


def test_files_and_folders_are_those_that_the_command_takes(context):
    assert words(completion.configs("")) == ["mine.yaml", "runs/", *(preset.name for preset in presets())]
    assert words(completion.configs("quick")) == ["quickstart"]
    assert words(completion.configs("min")) == ["mine.yaml", "minilm_sst2"]
    assert words(completion.places("runs/")) == ["runs/first"] and "runs/first" in words(completion.places(""))
    assert completion.places("nowhere/") == []


def test_completion_imports_neither_torch_nor_ray():
    code = (
        "import sys\nfrom fedsim.cli import completion\nclass C: params = {}\n"
        "assert completion.overrides(C, 'server.kind=')\nprint({'torch', 'ray', 'transformers'} & set(sys.modules))"
    )
    assert subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True).stdout == "set()\n"

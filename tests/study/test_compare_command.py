"""``fedsim compare`` as a command: mistakes in one sentence, and a search before the report."""

import json
import re
import sys

import pytest
from small_study import silent, written
from support import ROOT

import fedsim
from fedsim import cli


def test_a_search_chooses_without_the_reported_examples(tmp_path):
    """The validation file is damaged while the search runs, so that reading it would fail."""
    data = tmp_path / "data"
    data.mkdir()
    rows = [
        {"text": f"{word} film number {n}", "label": label}
        for n in range(60)
        for label, word in enumerate(("bad", "good"))
    ]
    (data / "train.jsonl").write_text("\n".join(map(json.dumps, rows)))
    (data / "validation.jsonl").write_text("{ damaged")
    search = {"keys": {"client.optimizer.lr": [0.0001, 0.05]}, "rounds": 2, "share": 0.25}
    study = {"base": "base.yaml", "arms": {"a": None}, "seeds": 1, "search": search}
    given = {"path": str(data), "task": "sst2", "train_examples": None, "validation_examples": None}
    path = written(tmp_path, study, executor="local", data=given)
    summary = fedsim.compare(path, output=tmp_path / "out", console=silent())
    assert "validation.jsonl" in summary.failed[0].sentence, "the reported run does read it"
    (chosen,) = json.loads((tmp_path / "out/search.json").read_text())
    assert [len(trial["metrics"]) for trial in chosen["trials"]] == [1, 1]
    assert all(isinstance(trial["metrics"][0], float) for trial in chosen["trials"])
    best = max(chosen["trials"], key=lambda trial: trial["metrics"][0])
    assert chosen["chosen"] == best["values"]
    (data / "validation.jsonl").write_text("\n".join(map(json.dumps, rows[:20])))
    again = fedsim.compare(path, output=tmp_path / "out", console=silent())
    assert len(again.cells) == 1


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["nothing.yaml"], "there is no config file nothing.yaml"),
        (["README.md"], "neither a study file"),
        (["tests", "docs"], "holds no run|holds no|not a run"),
        (["tests"], "at least two run folders"),
        (["tests", "docs", "--check"], "--check has no use with runs"),
        (["configs/studies/quickstart.yaml", "--dry-run", "--check"], "--check has no use with --dry-run"),
        (
            ["configs/studies/quickstart.yaml", "--dry-run", "ray.metrics=true"],
            "ray.metrics=true exports .*--at-once 1 does",
        ),
        (["configs/studies/quickstart.yaml", "seed=1"], "a study sets seed itself"),
        (["configs/studies/quickstart.yaml", "--output", "README.md"], "README.md is a file"),
        (["configs/studies/quickstart.yaml", "--output", "docs"], "docs holds files but no study"),
    ],
)
def test_mistakes_on_the_command_line_get_one_sentence(words, said, capsys, monkeypatch):
    monkeypatch.chdir(ROOT)
    monkeypatch.setattr(sys, "argv", ["fedsim", "compare", *words])
    with pytest.raises(SystemExit) as ended:
        cli.main()
    assert ended.value.code == 2
    error = capsys.readouterr().err
    assert re.search(said, error), error
    assert error.count("\n") == 1

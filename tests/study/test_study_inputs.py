"""What runs read is looked for before anything runs; a search that would see examples of the report is refused."""

import json

import pytest

from fedsim.core.errors import ConfigError
from fedsim.display.screen import Screen
from fedsim.study.cells import read_study
from fedsim.study.command import compare, study_folder
from fedsim.study.inputs import check_inputs
from fedsim.study.plan import print_plan

SEARCH = "search:\n  keys: {client.optimizer.lr: [0.1, 0.2]}\n"


@pytest.fixture
def study(tmp_path, monkeypatch):
    """Return a function that reads a study of the given lines; its folder holds data with and without a split."""
    monkeypatch.chdir(tmp_path)
    rows = "\n".join(json.dumps({"text": f"film {n}", "label": n % 2}) for n in range(40))
    for name in ("both/train", "both/validation", "single/train"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).with_suffix(".jsonl").write_text(rows)
    (tmp_path / "base.yaml").write_text("rounds: 1\npartition: {clients: 12}\ndata: {task: sst2}\n")

    def read(text, *overrides):
        (tmp_path / "study.yaml").write_text("base: base.yaml\n" + text)
        return read_study("study.yaml", overrides)

    return read


@pytest.mark.parametrize(
    ("keys", "said"),
    [
        ("data.path: bth", r"data.path: bth does not exist \(did you mean 'both'\?\)"),
        ("data.path: single", "single: no validation file"),
        ("data.path: both, data.train_file: rows.csv", "data.train_file"),
        ("data: {task: sst2}", "data.task: the embedded corpus has no task"),
        ("data.path: both, model.path: /nowhere", "model.path /nowhere is not a folder"),
        ("data.path: both, model.package: no_such_package", "model.package no_such_package is not installed"),
        ("data.path: both, prompt.start_from: runs/none", "prompt.start_from runs/none does not exist"),
        ("data.path: both, world.devices: {file: none.csv}", "cannot read none.csv, that world.devices names"),
        ("data.path: both, tuner.kind: lora, tuner.start_from: runs/none", "tuner.start_from runs/none does not exist"),
    ],
)
def test_what_is_missing_is_said_before_anything_runs(study, tmp_path, keys, said):
    wrong = study(f"arms: {{fine: {{data.path: both}}, wrong: {{{keys}}}}}\nseeds: 2\n")
    for begin in (
        lambda: compare("study.yaml", output=tmp_path / "out"),
        lambda: print_plan(wrong, tmp_path / "out", None, Screen()),
    ):
        with pytest.raises(ConfigError, match=rf"study.yaml: arm wrong on data set base: .*{said}") as told:
            begin()
        assert "\n" not in str(told.value)
        assert not (tmp_path / "out").exists()


def test_a_run_that_has_ended_needs_its_data_no_more(study, tmp_path):
    found = study("arms: {a: {data.path: gone}}\nseeds: 2\n")
    folder = study_folder(found, tmp_path / "out")
    for cell in found.cells():
        with pytest.raises(ConfigError, match="gone does not exist"):
            check_inputs(found, folder)
        folder.run(cell).mkdir(parents=True)
        (folder.run(cell) / "summary.json").touch()
    check_inputs(found, folder)


@pytest.mark.parametrize("seeds", ["0", "7"])
@pytest.mark.parametrize(
    "keys", ["data.path: single, data.holdout: 0.5", "data.path: both, data.validation_from_train: 0.5"]
)
def test_a_search_that_would_see_examples_of_the_report_is_refused(study, tmp_path, keys, seeds):
    """Held-out examples are drawn with a run's seed: with the one seed of both, they are set aside in the search as well."""
    text = f"set: {{{keys}}}\narms: {{a: }}\nseeds: [{seeds}]\n"
    found = study(f"{text}{SEARCH}  seeds: [7]\n")
    folder = study_folder(found, tmp_path / "out")
    if "holdout" in keys and seeds == "7":
        check_inputs(found, folder)
        return
    with pytest.raises(ConfigError, match=r"study.yaml: arm a on data set base: .*(data.holdout|search.share)"):
        check_inputs(found, folder)
    check_inputs(study(text), folder)


def test_a_search_on_data_without_a_split_is_refused(study, tmp_path):
    """Such a layout holds out a share with the run's seed, though no key says so."""
    for name in ("quote.tok.gt9.5000", "plot.tok.gt9.5000"):
        (tmp_path / "subj").mkdir(exist_ok=True)
        (tmp_path / "subj" / name).write_text("one text\nanother one\n" * 10)
    text = "arms: {a: {data: {task: subj, path: subj}}}\n"
    folder = study_folder(study(text), tmp_path / "out")
    check_inputs(study(text), folder)
    with pytest.raises(ConfigError, match="each seed reports training examples that it holds out"):
        check_inputs(study(text + SEARCH), folder)

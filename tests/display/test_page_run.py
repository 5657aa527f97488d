"""The page of a run: valid, escaped, from records alone, and true to them."""

from __future__ import annotations

import json
import shlex
import shutil

import numpy as np
import pyarrow.csv
import pyarrow.parquet as pq
import pytest
from page_html import EVIL, Reader, made_run
from support import make_tiny

import fedsim
from fedsim.configuration.changed import changed
from fedsim.configuration.schema import Config
from fedsim.core.errors import ConfigError
from fedsim.display.page.report import ENDINGS, write_report
from fedsim.display.page.run_page import repeat_command, run_page
from fedsim.display.page.write import write_run_page
from fedsim.records.labels import write_labels
from fedsim.records.run_folder import RunFolder
from fedsim.study.config import StudyConfig

TINY = {"executor": "local", "rounds": 2, "client": {"fuse": "auto"}, "tracking": {"plots": False}}


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    path = tmp_path_factory.mktemp("page") / "run"
    return path, fedsim.run(make_tiny(**TINY, output=str(path)), progress=False)


def page(path) -> Reader:
    return Reader(run_page(fedsim.load_run(path)))


def test_a_page_is_valid_and_shows_texts_as_they_are(tmp_path):
    read = page(made_run(tmp_path / "run"))
    assert len(read.figures) == 6 and all(name in read.ids for name in read.figures)
    for text in (f"prefix {EVIL}", f"{EVIL}0", f"runs/{EVIL}", f"{EVIL}.py, SHA-256", f"torch {EVIL}"):
        assert text in read.text
    assert "seed 3" in read.text and "rose from 0.500 to 0.750 (chance is 0.333)" in read.text


@pytest.mark.parametrize(("classes", "clients", "rounds"), [(2, 1, 1), (30, 400, 500)])
def test_a_page_of_any_size_stays_small(tmp_path, classes, clients, rounds):
    html = run_page(fedsim.load_run(made_run(tmp_path / "run", classes=classes, clients=clients, rounds=rounds)))
    assert Reader(html).figures and len(html.encode()) < 10**6


def test_characters_that_no_font_here_has_are_left_to_the_reader_s_fonts(tmp_path, recwarn):
    path = made_run(tmp_path / "run")
    write_labels(path / "labels.parquet", np.ones((4, 30), dtype=int), [f"\U000e0fff{number}" for number in range(30)])
    assert "\U000e0fff29" in page(path).text and not recwarn.list


def test_a_run_that_is_not_finished_has_a_page_and_no_tables(tmp_path):
    path = made_run(tmp_path / "run", finished=False)
    assert "not finished, 5 rounds on record" in page(path).text
    with pytest.raises(ConfigError, match="holds a run that is not finished"):
        write_report(str(path), "md", None, print)


def test_a_page_shows_what_is_on_record(finished):
    path, summary = finished
    read = page(path)
    figures = {"by-round", "by-traffic", "loss", "labels-mix", "labels-size", "scores", "clients"}
    assert {name.removesuffix("-title") for name in read.figures} == figures
    last = read.rows[max(at for at, row in enumerate(read.rows) if row[0] == "2" and len(row) == 3)]
    assert f"{summary['global_metric']:.4f}" in "".join(map("".join, read.rows))
    assert last[0] == "2"
    changes = {key for key, *_ in changed(fedsim.load_run(path).config)}
    assert {"executor", "rounds", "prompt.length"} <= changes
    assert changes <= {row[0] for row in read.rows}
    assert all(version in read.text for version in summary["versions"].values())


def test_the_command_of_a_page_repeats_the_run_to_the_byte(finished, tmp_path):
    path, summary = finished
    program, command, config, *overrides = shlex.split(repeat_command(fedsim.load_run(path), summary))
    assert (program, command) == ("fedsim", "run")
    overrides = [word for word in overrides if not word.startswith("output=")] + [f"output={tmp_path / 'again'}"]
    fedsim.run(config, overrides, progress=False)
    prompts = [(folder / "prompt" / "global.safetensors").read_bytes() for folder in (path, tmp_path / "again")]
    assert prompts[0] == prompts[1]


def test_a_page_that_fails_is_told_and_loses_nothing(tmp_path, monkeypatch):
    def fail(run):
        raise ValueError("of no use\nand more")

    path, notes = made_run(tmp_path / "run"), []
    monkeypatch.setattr("fedsim.display.page.run_page.run_page", fail)
    with RunFolder.create(path, resume=True) as folder:
        assert not write_run_page(folder, notes.append)
    assert notes == ["warning: the page report.html is left out: ValueError: of no use"]
    assert not (path / "report.html").exists()


@pytest.mark.parametrize("to", ENDINGS)
def test_a_run_leaves_in_every_form(tmp_path, to):
    path = made_run(tmp_path / "run")
    (file,) = write_report(str(path), to, None, print)
    assert file == path / f"report.{ENDINGS[to]}"
    if to in ("csv", "parquet"):
        table = pyarrow.csv.read_csv(file) if to == "csv" else pq.read_table(file)
        (row,) = table.to_pylist()
        assert (row["global_metric"], row["versions.torch"], row["folder"]) == (0.75, EVIL, f"runs/{EVIL}")
    else:
        text = file.read_text()
        assert "0.9375" in text if to != "html" else "0.938" in text
        assert "<script>alert('1')" not in text and r"runs/<" not in text


def test_a_study_is_read_from_its_folder_and_leaves_in_every_form(finished, tmp_path):
    study = StudyConfig(
        name="a.study", base="tiny.yaml", arms={"one": None, "two": None}, datasets={"set": None}, seeds=2
    )
    held = {"holds": "fedsim study", "name": "a.study", "file": "a.yaml", "overrides": []}
    (tmp_path / "study.json").write_text(json.dumps(held | {"study": study.model_dump(mode="json")}))
    shutil.copytree(finished[0], tmp_path / "cells" / "set" / "one" / "seed-0")
    (page_file,) = write_report(str(tmp_path), "html", None, print)
    read = Reader(page_file.read_text())
    assert {"curve-round-0-title", "labels-0-mix-title", "clients-0-title"} <= set(read.figures)
    assert f"{finished[1]['global_metric']:.3f}" in read.text and "fedsim report" in read.text
    for to in ("md", "latex", "csv", "parquet"):
        assert all(file.stat().st_size for file in write_report(str(tmp_path), to, tmp_path / f"in-{to}", print))


def test_what_is_none_of_the_three_is_answered_in_a_sentence(tmp_path):
    with pytest.raises(
        ConfigError, match=r"holds nothing to report: give the folder of a run .* study .* scaling study"
    ):
        write_report(str(tmp_path), "html", None, print)
    with pytest.raises(ConfigError, match="there is no folder"):
        write_report(str(tmp_path / "none"), "html", None, print)
    with pytest.raises(ConfigError, match=r"is a folder; give a file"):
        write_report(str(made_run(tmp_path / "run")), "html", tmp_path, print)


def test_changed_keys_are_those_that_differ():
    assert changed(Config()) == []
    assert changed(Config(rounds=5, server={"kind": "fedavg"}, client={"optimizer": {"lr": 0.5}})) == [
        ("rounds", 5, 20),
        ("client.optimizer.lr", 0.5, Config().client.optimizer.lr),
        ("server.kind", "fedavg", "fedpeptao"),
    ]

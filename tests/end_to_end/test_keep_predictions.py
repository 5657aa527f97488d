"""What is evaluated once, at the end: the figures on record follow from it, and its bytes are the same however a run goes."""

import json

import numpy as np
import pyarrow.parquet as pq
import pytest
from support import FINAL, FINAL_TABLES, UPPER, make_tiny, merged

import fedsim
from fedsim.core.errors import ConfigError
from fedsim.data.metrics import compute
from fedsim.executors.local import LocalExecutor

ASTRAY = {
    "server": {"kind": "fedavg"},
    "client": {"fuse": 3, "optimizer": {"lr": 0.1}},
    "data": {"task": "topics"},
}
"""A run whose last round is not the best."""


def config(path, **changes):
    return make_tiny(output=str(path), executor="local", **merged(merged({**UPPER, **FINAL}, ASTRAY), changes))


def tables(path):
    return [(path / name).read_bytes() for name in FINAL_TABLES]


def counts(labels, predictions, classes):
    confusion_CC = np.zeros((classes, classes), np.int64)
    np.add.at(confusion_CC, (labels, predictions), 1)
    return confusion_CC


@pytest.fixture(scope="module")
def straight(tmp_path_factory):
    path = tmp_path_factory.mktemp("straight") / "run"
    return path, fedsim.run(config(path), progress=False)


def test_what_is_on_record_follows_from_the_predictions(straight):
    path, summary = straight
    kept = pq.read_table(path / "predictions.parquet").to_pandas()
    rounds = pq.read_table(path / "rounds.parquet").to_pandas().set_index("round")
    best, last = summary["selected_round"], summary["rounds"]
    assert kept["example"].tolist() == list(range(60)) and best < last
    assert not kept["prediction"].equals(kept["best_prediction"])
    for prefix, round in (("", last), ("best_", best)):
        confusion_CC = counts(kept["label"], kept[f"{prefix}prediction"], summary["num_classes"])
        assert compute("accuracy", confusion_CC) == rounds["global_metric"][round]
        assert kept[f"{prefix}loss"].mean() == pytest.approx(rounds["global_loss"][round], rel=1e-12)


def test_personalised_metrics_follow_from_the_clients_rows(straight):
    path, summary = straight
    rows = pq.read_table(path / "personal.parquet").to_pylist()
    for prefix, metric in (("", "personalised_metric"), ("start_", "start_personalised_metric")):
        confusions = [np.reshape(row[f"{prefix}confusion"], (6, 6)) for row in rows]
        assert compute("accuracy", sum(confusions)) == summary[metric]
        for row, confusion_CC in zip(rows, confusions, strict=True):
            assert row["examples"] == confusion_CC.sum() > 0
            assert row[f"{prefix}metric"] == compute("accuracy", confusion_CC)
    trained = [row["client"] for row in pq.read_table(path / "clients.parquet").to_pylist()]
    assert [row["rounds"] for row in rows] == [trained.count(row["client"]) for row in rows]
    assert {row["rounds"] for row in rows} >= {0, 1}  # some the run has never seen


def test_before_any_training_a_client_is_as_one_of_a_run_that_starts_there(straight, tmp_path):
    start = {"prompt": {"start_from": str(straight[0])}, "rounds": 1}
    fedsim.run(config(tmp_path / "run", **start), progress=False)
    ended, began = (pq.read_table(path / "personal.parquet") for path in (straight[0], tmp_path / "run"))
    for name in ("client", "examples", "metric", "loss", "confusion"):
        before = name if name in ("client", "examples") else f"start_{name}"
        assert began[before].to_pylist() == ended[name].to_pylist()


@pytest.mark.parametrize(
    "changes",
    [
        {"evaluation": {"overlap": False}},
        {"model": {"trunk_cache": {"dtype": "off"}}},
        {"tracking": {"client_records": False}},
    ],
    ids=["apart", "no cache", "no client records"],
)
def test_the_same_bytes(straight, tmp_path, changes):
    path = tmp_path / "run"
    fedsim.run(config(path, **changes), progress=False)
    assert tables(path) == tables(straight[0])


def test_the_only_evaluated_round_is_the_best(straight, tmp_path):
    fedsim.run(config(tmp_path / "run", evaluation={"every": 3}), progress=False)
    kept, last = (pq.read_table(path / "predictions.parquet") for path in (tmp_path / "run", straight[0]))
    assert kept["loss"] == kept["best_loss"] == last["loss"] != last["best_loss"]


def test_on_actors(session_ray_run, tmp_path):
    folder, summary, *_ = session_ray_run
    local = make_tiny(
        output=str(tmp_path / "run"), executor="local", client={"fuse": summary["fuse"]}, **UPPER, **FINAL
    )
    fedsim.run(local, progress=False)
    assert tables(folder) == tables(tmp_path / "run")


@pytest.mark.parametrize("rounds", [1, 2])
def test_a_run_that_was_left_and_goes_on_ends_with_the_same_bytes(straight, tmp_path, rounds):
    path = tmp_path / "run"
    with fedsim.Run(config(path), progress=False) as going:
        while next(going).round < rounds:
            pass
    assert not any((path / name).exists() for name in FINAL_TABLES)
    fedsim.run(config(path), resume=True, progress=False)
    assert tables(path) == tables(straight[0])


def test_a_finished_run_is_given_what_it_lacks_and_no_more(straight, tmp_path, monkeypatch):
    """It costs no round, and where nothing is asked for no evaluation."""
    path, evaluated = tmp_path / "run", []
    evaluate = LocalExecutor.evaluate_clients
    monkeypatch.setattr(
        LocalExecutor, "evaluate_clients", lambda *given, **named: evaluated.append(1) or evaluate(*given, **named)
    )
    plain = {"evaluation": {"personalised_start": False, "keep_predictions": False}}
    summary = fedsim.run(config(path, **plain), progress=False)
    assert len(evaluated) == 1 and summary["start_personalised_metric"] is None
    assert not (path / "predictions.parquet").exists()
    monkeypatch.setattr(LocalExecutor, "train", None)
    again = fedsim.run(config(path), resume=True, progress=False)
    assert tables(path) == tables(straight[0])
    for key in ("config_hash", "best_global_round", "personalised_metric", "bytes_up", "seconds_published"):
        assert again[key] == summary[key]
    before = (path / "summary.json").read_bytes()
    for asked in ({}, plain):
        fedsim.run(config(path, **asked), resume=True, progress=False)
    assert (path / "summary.json").read_bytes() == before and len(evaluated) == 3


def test_a_run_that_continues_has_no_results_of_its_earlier_end(straight, tmp_path):
    path = tmp_path / "run"
    fedsim.run(config(path, rounds=1), progress=False)
    with fedsim.Run(config(path), resume=True, progress=False) as going:
        next(going)
        assert not any((path / name).exists() for name in FINAL_TABLES)
    fedsim.run(config(path), resume=True, progress=False)
    assert tables(path) == tables(straight[0])
    assert json.loads((path / "summary.json").read_text())["rounds"] == 3


@pytest.mark.parametrize(
    ("share", "sentence"),
    [
        (0, r"personalised_start=true needs examples that clients hold out.*holdout_fraction=0; set"),
        (0.001, r"personalised_start=true needs held-out examples.*holdout_fraction=0.001; raise it, or leave"),
    ],
)
def test_a_start_that_no_client_can_be_evaluated_at_is_one_sentence(tmp_path, share, sentence):
    with pytest.raises(ConfigError, match=sentence):
        fedsim.run(config(tmp_path / "run", partition={"holdout_fraction": share}), progress=False)

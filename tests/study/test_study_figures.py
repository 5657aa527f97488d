"""The figures of a run are what its records say, and tell which runs can be paired."""

import json
import math
import shutil
from dataclasses import replace

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from support import FINAL, make_tiny, merged

import fedsim
from fedsim.core.errors import CheckpointError, ConfigError
from fedsim.records.checkpoint import load_latest
from fedsim.records.columns import CLIENT_COLUMNS, PERSONAL_COLUMNS
from fedsim.records.published import seconds_to_target
from fedsim.records.recorded_run import load_run
from fedsim.study.course import cohorts_digest
from fedsim.study.devices import DevicesConfig
from fedsim.study.modelled_time import round_seconds
from fedsim.study.per_client import client_figures
from fedsim.study.predictions import right_examples
from fedsim.study.reading import read_figures

DEVICES = DevicesConfig(tokens_per_second=50.0)
STATEFUL = {
    "layers": {"choose": "score", "unselected": "local"},
    "server": {"kind": "fedpeptao"},
    "client": {"fuse": 2, "correction": "control", "optimizer": {"moments": "keep"}},
    "sampling": {"dropout": 0.3},
    **FINAL,
}


def run(path, **changes):
    fedsim.run(
        make_tiny(output=str(path), executor="local", **merged({"client": {"fuse": 2}}, changes)), progress=False
    )
    return path


@pytest.fixture(scope="module")
def stateful(tmp_path_factory):
    return run(tmp_path_factory.mktemp("stateful") / "run", **STATEFUL)


@pytest.fixture(scope="module")
def figures(stateful):
    return read_figures(stateful, "reviews", "ours", 0, target=0.5, devices=DEVICES)


def test_totals_are_where_the_curve_ends(stateful, figures):
    summary, last = load_run(stateful).summary, figures.curve[-1]
    assert [point.round for point in figures.curve] == [0, 1, 2, 3]
    assert last.metric == figures.last == summary["global_metric"]
    assert last.bytes == figures.bytes_up + figures.bytes_down == summary["bytes_up"] + summary["bytes_down"]
    assert last.seconds_published == figures.seconds_published == summary["seconds_published"]
    assert last.seconds_modelled == figures.seconds_modelled
    start = figures.curve[0]
    assert (start.metric, start.bytes, start.seconds_published, start.seconds_modelled) == (figures.first, 0, 0.0, 0.0)
    assert figures.best == max(point.metric for point in figures.curve[1:]) == figures.curve[figures.best_round].metric
    rows = pq.read_table(stateful / "clients.parquet").to_pylist()
    assert figures.client_tokens == sum(row["num_tokens"] for row in rows) > 0
    assert figures.client_updates == len(rows)


def test_predictions_tell_which_examples_are_right(stateful, figures):
    right_N = right_examples(figures)
    assert right_N.dtype == bool and right_N.mean() == figures.last
    assert right_examples(replace(figures, predictions="")) is None
    with pytest.raises(ConfigError, match="holds no fedsim run"):
        right_examples(replace(figures, folder=f"{stateful}-moved"))


def test_modelled_time_is_that_of_the_records(stateful, figures):
    clients = {
        name: column.to_numpy() for name, column in pq.read_table(stateful / "clients.parquet").to_pandas().items()
    }
    assert figures.seconds_modelled == pytest.approx(sum(round_seconds(clients, DEVICES).values()), rel=1e-12)
    faster = read_figures(stateful, "reviews", "ours", 0, devices=replace_speed(100.0))
    assert figures.seconds_modelled > faster.seconds_modelled > 0
    without = read_figures(stateful, "reviews", "ours", 0)
    assert math.isnan(without.seconds_modelled) and math.isnan(without.curve[0].seconds_modelled)


def replace_speed(tokens_per_second):
    return DEVICES.model_copy(update={"tokens_per_second": tokens_per_second})


@pytest.mark.parametrize("target", [0.0, 0.5, 2.0])
def test_a_target_is_reached_where_the_published_time_says(stateful, target):
    found = read_figures(stateful, "reviews", "ours", 0, target=target, devices=DEVICES)
    seconds = seconds_to_target(stateful, target)
    assert found.target == target
    if seconds is None:
        assert found.target_round is None and found.target_bytes is None and math.isnan(found.target_seconds_published)
        return
    assert found.target_seconds_published == seconds
    at = next(point for point in found.curve if point.round == found.target_round)
    assert at.metric >= target > max((p.metric for p in found.curve if p.round < at.round), default=-1)
    assert (found.target_bytes, found.target_seconds_modelled) == (at.bytes, at.seconds_modelled)


def test_clients_are_those_on_record_and_the_unseen_never_trained(stateful, figures):
    rows = pq.read_table(stateful / "personal.parquet").to_pylist()
    trained = pq.read_table(stateful / "clients.parquet")["client"].to_pylist()
    assert list(figures.clients) == [row["client"] for row in rows]
    assert {client: own["rounds"] for client, own in figures.clients.items()} == {
        row["client"]: trained.count(row["client"]) for row in rows
    }
    unseen = [row["metric"] for row in rows if row["client"] not in trained]
    assert unseen and figures.unseen_median == np.median(unseen)
    pooled = sum(own["after"] * own["examples"] for own in figures.clients.values())
    assert pooled / sum(own["examples"] for own in figures.clients.values()) == pytest.approx(figures.personalised)
    pooled = sum(own["before"] * own["examples"] for own in figures.clients.values())
    assert pooled / sum(own["examples"] for own in figures.clients.values()) == pytest.approx(
        figures.first_personalised
    )


def table(*rows):
    names = ("client", "rounds", "metric", "start_metric")
    rows = [{"examples": 10, "loss": 0.5} | dict(zip(names, row, strict=True)) for row in rows]
    return pa.Table.from_pylist(rows).select([*names, "examples"])


def test_shares_and_quantiles_over_clients():
    figures = client_figures(table(*((c, c % 3, c / 10, 0.5 if c != 7 else 0.7) for c in range(11))))
    assert figures["client_median"] == 0.5
    assert figures["client_worst_decile"] == pytest.approx(0.1)
    assert figures["client_better_share"] == 4 / 11 and figures["client_worse_share"] == 5 / 11  # two stay as they were
    assert figures["unseen_median"] == pytest.approx(0.45)  # of clients 0, 3, 6, 9
    assert figures["clients"][7] == {"examples": 10.0, "before": 0.7, "after": 0.7, "rounds": 1.0}


def test_what_was_not_measured_is_nan():
    figures = client_figures(table((0, 1, 0.5, None), (1, 2, 0.7, None)))
    assert figures["client_median"] == 0.6
    assert all(math.isnan(figures[name]) for name in ("client_better_share", "client_worse_share", "unseen_median"))
    nobody = client_figures(pa.schema([(name, pa.float64()) for name in PERSONAL_COLUMNS]).empty_table())
    assert nobody["clients"] == {} and math.isnan(nobody["client_median"])


KINDS = {
    "no state": {"server": {"kind": "fedavg"}, "model": {"head": {"kind": "classifier"}}},
    "half of LoRA stays": {"tuner": {"kind": "lora", "rank": 2, "exchange": "a"}, "server": {"kind": "fedavg"}},
    "LoRA in turn": {"tuner": {"kind": "lora", "rank": 2, "train": "alternate"}, "server": {"kind": "scaffold"}},
    "residual": {"tuner": {"kind": "lora", "rank": 2, "exact": True}, "server": {"kind": "fedavg"}},
}
STATE = {"state of every kind", "half of LoRA stays", "LoRA in turn"}
"""Where clients keep something, and train more than they send in a round."""


@pytest.mark.parametrize("kind", ["state of every kind", *KINDS])
def test_parameters_are_those_that_travel_and_those_that_clients_hold(stateful, tmp_path, kind):
    path = stateful if kind not in KINDS else run(tmp_path / "run", rounds=2, **KINDS[kind])
    found, (checkpoint, _) = read_figures(path, "reviews", "ours", 0), load_latest(path / "checkpoints")
    held = {sum(array.size for array in state.arrays.values()) for state in checkpoint.clients}
    assert held == {found.stored_parameters}
    rows = pq.read_table(path / "clients.parquet").to_pylist()
    sent = {row["round"]: row["bytes_up"] / len(found.about["vectors_up"]) / 4 for row in rows}
    assert found.exchanged_parameters == np.mean(list(sent.values()))
    assert (found.stored_parameters > 0) == (found.trained_parameters > found.exchanged_parameters) == (kind in STATE)


def test_runs_that_can_be_paired_have_the_same_contents_and_cohorts(figures, tmp_path):
    changes = {"sampling": STATEFUL["sampling"], "rounds": 3}
    other = read_figures(run(tmp_path / "arm", server={"kind": "fedavg"}, **changes), "reviews", "other", 0)
    seed = read_figures(run(tmp_path / "seed", seed=1, **changes), "reviews", "other", 1)
    for name in ("training_data", "validation_data", "partition", "weights"):
        assert other.contents[name] == figures.contents[name]
    assert other.cohorts == figures.cohorts != seed.cohorts != ""
    assert len(figures.scores) == 4 and len(figures.layers) == 2


def test_a_cohort_is_who_was_drawn_whatever_became_of_them():
    def clients(*rows):
        return pa.Table.from_pylist([{"round": round, "client": client} for round, client in rows])

    whole = cohorts_digest(clients((1, 3), (1, 1), (2, 4)), [])
    gone = {"event": "absent", "round": 1, "clients": [3]}
    late = {"event": "late", "round": 2, "clients": [4]}
    assert cohorts_digest(clients((2, 4), (1, 1), (1, 3)), [{"event": "round", "round": 1}]) == whole
    assert cohorts_digest(clients((1, 1)), [late, gone]) == whole
    assert cohorts_digest(clients((1, 1), (2, 4)), []) != whole
    assert cohorts_digest(pa.Table.from_pylist([], pa.schema([("round", pa.int32())])), [gone]) == ""


def test_without_records_of_clients_and_held_out_examples_the_rest_is_there(tmp_path):
    """Nothing is made up: what follows from them is NaN, or empty."""
    changes = {"tracking": {"client_records": False, "plots": False}, "partition": {"holdout_fraction": 0}, "rounds": 2}
    found = read_figures(run(tmp_path / "run", **changes), "reviews", "ours", 0, devices=DEVICES)
    assert found.clients == {} and found.cohorts == "" and found.predictions == ""
    for name in ("personalised", "client_median", "client_better_share", "unseen_median", "seconds_modelled"):
        assert math.isnan(getattr(found, name)), name
    assert [math.isnan(point.seconds_modelled) for point in found.curve] == [False, True, True]
    assert (
        0 < found.last <= 1 and found.client_tokens > 0 and found.curve[-1].bytes == found.bytes_up + found.bytes_down
    )


def test_a_url_gives_the_same_figures(stateful, figures):
    url = f"file://{stateful}"
    found = read_figures(url, "reviews", "ours", 0, target=0.5, devices=DEVICES)
    places = {"folder": figures.folder, "predictions": f"{stateful}/predictions.parquet"}
    assert found.predictions == f"{url}/predictions.parquet"
    assert repr(replace(found, **places)) == repr(figures)  # NaN is unlike itself, its text is not


def test_a_folder_without_a_finished_run_is_one_sentence(stateful, tmp_path):
    with pytest.raises(ConfigError, match="holds no fedsim run"):
        read_figures(tmp_path / "none", "reviews", "ours", 0)
    shutil.copytree(stateful, tmp_path / "run")
    summary = json.loads((tmp_path / "run" / "summary.json").read_text())
    del summary["sent_parameters"]
    (tmp_path / "run" / "summary.json").write_text(json.dumps(summary))
    with pytest.raises(CheckpointError, match=r"earlier version of fedsim, without sent_parameters in its summary"):
        read_figures(tmp_path / "run", "reviews", "ours", 0)
    (tmp_path / "run" / "summary.json").unlink()
    with pytest.raises(ConfigError, match=r"holds no finished run, only 3 rounds on record; finish it with fedsim run"):
        read_figures(tmp_path / "run", "reviews", "ours", 0)


def test_a_run_begun_by_a_version_that_recorded_no_tokens_goes_on(stateful, tmp_path):
    path = run(tmp_path / "run", **merged(STATEFUL, {"rounds": 2}))
    clients = pq.read_table(path / "clients.parquet")
    assert clients.column_names == list(CLIENT_COLUMNS)
    pq.write_table(clients.drop_columns(["num_tokens"]), path / "clients.parquet")
    config = make_tiny(output=str(path), executor="local", **STATEFUL)
    fedsim.run(config, resume=True, progress=False)
    found = read_figures(path, "reviews", "ours", 0, devices=DEVICES)
    assert [math.isnan(point.seconds_modelled) for point in found.curve] == [False, True, True, True]
    assert found.cohorts == read_figures(stateful, "reviews", "ours", 0).cohorts
    assert (path / "personal.parquet").read_bytes() == (stateful / "personal.parquet").read_bytes()

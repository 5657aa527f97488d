"""Scaling on the virtual clock: simulated time is foreseen exactly, and buffered steps are accounted by what they train."""

import json

import numpy as np
import pyarrow.parquet as pq
import pytest
from support import make_tiny, merged

import fedsim
from fedsim.display.page.scaling_page import scaling_page
from fedsim.scaling.planned import Plans
from fedsim.scaling.points import Point
from fedsim.scaling.prediction import predict
from fedsim.scaling.records import read_run
from fedsim.scaling.summary import summarise
from fedsim.scaling.table import prediction_lines, scaling_sheets
from fedsim.scaling.trained import calls_of

BASE = {
    "executor": "local", "rounds": 4, "group_size": 2, "client": {"fuse": 2},
    "data": {"train_examples": 120, "validation_examples": 10},
    "world": {"devices": {"availability": {"share": 0.3}, "slow_share": 0.2}},
}  # fmt: skip
KINDS = {
    "synchronous": {"sampling": {"clients_per_round": 4}, "world": {"over_selection": 0.5}},
    "buffered": {"server": {"kind": "fedavg"}, "buffer": {"size": 2, "concurrency": 6}, "layers": {"choose": "top"}},
    "buffered, no clock": {
        "server": {"kind": "fedavg"},
        "buffer": {"size": 2, "concurrency": 6},
        "world": {"devices": None},
    },
}


def config_of(kind, **more):
    return make_tiny(**merged(merged(BASE, KINDS[kind]), more))


@pytest.fixture(scope="module", params=KINDS)
def run(request, tmp_path_factory):
    """Return the config of a real run, and what a study reads of it."""
    folder = tmp_path_factory.mktemp("clock") / "run-1"
    config = config_of(request.param, output=str(folder))
    fedsim.run(config, progress=False)
    folder.with_suffix(".json").write_text(json.dumps({"started": 0.0, "ended": 1e10}))
    return config, read_run(Point(12, config.clients_per_step, 1), 1, folder), folder


def test_a_schedule_foretells_the_clock_and_what_each_round_trains(run):
    config, done, folder = run
    plan = Plans().of(config, done.layers)
    assert list(plan.simulated) == pq.read_table(folder / "rounds.parquet")["seconds_simulated"].to_pylist()[1:]
    assert list(plan.simulated) == [each.seconds_simulated for each in done.rounds]
    assert list(plan.cohorts) == [each.clients_ok for each in done.rounds]
    for loads, each in zip(plan.loads, done.rounds, strict=True):
        assert bool(loads) == bool(each.updates) == bool(each.times.busy)
        assert sum(each.times.busy) <= each.times.train + 1e-3  # what another step's call took is not counted here
    assert sum(each.updates for each in done.rounds) == sum(each.clients_ok for each in done.rounds)


def test_simulated_time_stands_beside_wall_time(run):
    config, done, _ = run
    study = summarise([done], [], [])
    (point,) = study.points
    later = done.rounds[1:]
    if config.world.devices is None:
        assert point.seconds_simulated is None and not study.has_clock
        return
    assert point.seconds_simulated == pytest.approx(np.mean([each.seconds_simulated for each in later]))
    assert point.seconds_simulated_client_update == pytest.approx(
        sum(each.seconds_simulated for each in later) / sum(each.clients_ok for each in later)
    )
    (sheet,) = [sheet for sheet in scaling_sheets(study) if sheet.title.startswith("Simulated and wall time")]
    assert ("server step" if config.buffer else "of a round") in sheet.title and len(sheet.rows) == 1
    if config.buffer is None:
        assert "longest simulated round" in (page := scaling_page(study, "x", "x")) and "simulated round (s)" in page
    assert {row["seconds_simulated"] for row in done.rows()} == {each.seconds_simulated for each in done.rounds}


def test_a_larger_point_s_simulated_time_is_predicted_to_the_bit(run, tmp_path):
    """Only where scores of clients choose the layers is it no more than likely, and the study says so."""
    config, done, _ = run
    if config.buffer is not None and config.world.devices is None:
        return
    key = {"buffer": {"size": 4, "concurrency": 12}} if config.buffer else {"sampling": {"clients_per_round": 9}}
    kind = "buffered" if config.buffer else "synchronous"
    larger = config_of(kind, output=str(tmp_path / "run-1"), partition={"clients": 20}, **key)
    fedsim.run(larger, progress=False)
    (tmp_path / "run-1.json").write_text(json.dumps({"started": 0.0, "ended": 1e10}))
    asked = Point(20, larger.clients_per_step, 1)
    run_of_it = read_run(asked, 1, tmp_path / "run-1")
    others = [Point(12, done.point.cohort, actors) for actors in (1, 2, 3)]  # one run stands for three points to fit
    runs = [type(done)(**{**vars(done), "point": point}) for point in others]
    configs = dict.fromkeys(others, config)
    unmeasured = predict(runs, configs, {asked: larger})
    measured = predict([*runs, run_of_it], {**configs, asked: larger}, {asked: larger})
    exact = np.mean([each.seconds_simulated for each in run_of_it.rounds[1:]])
    assert measured.asked[0].simulated == measured.asked[0].simulated_measured == exact
    if done.layers == run_of_it.layers:
        assert unmeasured.asked[0].simulated == exact
    assert scaling_sheets(summarise(runs, [], [], measured))[-1].columns[-2:] == ("simulated", "on record")
    text = " ".join(prediction_lines(summarise(runs, [], [], unmeasured)))
    assert "fitted to 3 measured points" in text and "simulated times are exact" in text
    assert ("if scores choose the layers that they choose" in text) == (config.layers.choose == "score")


def test_a_client_was_trained_with_all_that_had_begun_when_a_step_needed_one():
    """Steps 1 to 5 take in versions: the first call trains all of version 0, and so on; a call trains none that came later."""
    round_R = np.array([1, 1, 2, 2, 3, 3, 4, 4, 5, 5])
    version_R = np.array([0, 0, 0, 0, 1, 0, 2, 1, 3, 4])
    assert calls_of(round_R, version_R).tolist() == [1, 1, 1, 1, 3, 1, 3, 3, 5, 5]

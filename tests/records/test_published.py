"""What the published study reports: best rounds, and the time of the longest client of each round."""

import math
from dataclasses import asdict, fields

import pyarrow.parquet as pq
import pytest

import fedsim
from fedsim.core.errors import CheckpointError
from fedsim.records.published import seconds_to_target
from fedsim.records.round_record import RoundRecord
from fedsim.records.run_folder import RunFolder
from fedsim.simulation.totals import Totals, better

NAN = math.nan


@pytest.mark.parametrize(
    "best, value, expected",
    [
        ((NAN, None), 0.5, (0.5, 7)), ((0.4, 2), 0.5, (0.5, 7)), ((0.5, 2), 0.5, (0.5, 2)), ((0.5, 2), 0.4, (0.5, 2)),
        ((0.5, 2), NAN, (0.5, 2)), ((-0.2, 2), 0.0, (0.0, 7)),
    ],
)  # fmt: skip
def test_the_better_of_two_rounds(best, value, expected):
    assert better(*best, value, 7) == expected


def test_without_any_figure_there_is_no_best():
    value, round = better(NAN, None, NAN, 7)
    assert math.isnan(value) and round is None


def record(round, metric, personalised, longest):
    nothing = {field.name: 0 for field in fields(RoundRecord)}
    metrics = {"global_metric": metric, "personalised_metric": personalised}
    return RoundRecord(
        **{**nothing, "round": round, **metrics, "seconds_longest_client": longest, "seconds_round": 9.0}
    )


ROUNDS = [
    record(1, 0.5, None, 0.25), record(2, None, None, 2.0), record(3, 0.8, 0.6, 0.5), record(4, 0.8, 0.9, 4.0),
    record(5, 0.7, NAN, 1.0),
]  # fmt: skip


def test_totals_are_the_same_after_a_checkpoint():
    whole, half = Totals(), Totals()
    for each in ROUNDS:
        whole.count([], each)
    for each in ROUNDS[:3]:
        half.count([], each)
    resumed = Totals(**asdict(half))
    for each in ROUNDS[3:]:
        resumed.count([], each)
    assert resumed == whole
    assert (whole.best_global_metric, whole.best_global_round) == (0.8, 3)
    assert (whole.best_personalised_metric, whole.best_personalised_round) == (0.9, 4)
    assert whole.seconds_longest_clients == 7.75


@pytest.fixture
def folder(tmp_path):
    with RunFolder.create(tmp_path / "run") as run:
        run.round_record({"round": 0, "global_metric": 0.4})
        for each in ROUNDS:
            run.round_record(each.row())
        run.flush()
        yield run


@pytest.mark.parametrize(
    "target, personalised, seconds",
    [(0.4, False, 0.0), (0.5, False, 0.25), (0.6, False, 2.75), (0.8, False, 2.75), (0.81, False, None),
     (0.5, True, 2.75), (0.9, True, 6.75), (0.91, True, None)],
)  # fmt: skip
def test_time_to_a_target_is_the_sum_up_to_the_first_round_that_reaches_it(folder, target, personalised, seconds):
    assert seconds_to_target(folder.path, target, personalised=personalised) == seconds


def test_a_folder_without_rounds_is_a_sentence(tmp_path):
    with pytest.raises(CheckpointError, match=r"rounds\.parquet cannot be read as Parquet"):
        seconds_to_target(tmp_path, 0.5)


def test_a_round_takes_as_long_as_its_longest_client(tiny_config, tmp_path):
    path = tmp_path / "run"
    layers = {"choose": "fixed", "fixed": [0, 2]}
    changes = {"layers": layers, "model": {"head": {"kind": "classifier"}}, "client": {"fuse": "off"}}
    summary = fedsim.run(tiny_config(output=str(path), executor="local", rounds=2, **changes), progress=False)
    clients = pq.read_table(path / "clients.parquet").to_pylist()
    longest = [max(row["seconds"] for row in clients if row["round"] == round) for round in (1, 2)]
    rows = pq.read_table(path / "rounds.parquet").to_pylist()
    assert [row["seconds_longest_client"] for row in rows] == [None, *longest]
    assert summary["seconds_published"] == longest[0] + longest[1] <= sum(row["seconds_train"] for row in rows[1:])
    # The head travels, but the published count is of prompts.
    assert summary["transferred_parameters"] == 2 * 2 * 4 * 64
    assert summary["exchanged_parameters"] == summary["transferred_parameters"] + 2 * 64 + 2

"""The benchmark of orchestration does the work that it counts, in this process and on actors."""

from __future__ import annotations

import json
from dataclasses import replace
from functools import partial

import numpy as np
import pytest
import typer

from benchmarks.carrying import Carrying
from benchmarks.measure import numbers, present
from benchmarks.orchestration import COPY_LIMIT, LOCAL, PLAIN_LOOP, CopyLimit, PlainLoop, measure
from clients.training.sums import BLOCK
from fedsim.configuration.schema import build_config
from fedsim.executors.local import LocalExecutor, LocalServer
from fedsim.executors.make import make_executor

CLIENTS, ELEMENTS = 10, 400
PLACES = {
    "local": {"executor": "local"},
    "one actor": {"ray": {"address": "auto", "actors": 1}},
}


def executor(place: str):
    config = build_config({"partition": {"clients": CLIENTS}, "client": {"threads": 1}, **PLACES[place]})
    return make_executor(config, lambda: None, print)


@pytest.mark.parametrize("place", ["local", "one actor"])
def test_every_client_of_a_cohort_adds_one_each_round(session_ray, place):
    carrying = Carrying(executor(place), CLIENTS, ELEMENTS, group_size=3, cohort_size=7)
    try:
        assert len(carrying.start()) == 1
        cohorts = [carrying.round() for _ in range(3)]
        carrying.check()
        with pytest.raises(AssertionError, match="after 4 rounds the vector holds"):
            carrying.rounds += 1
            carrying.check()
    finally:
        carrying.close()
    for number, reports in enumerate(cohorts):
        assert len({report.client for report in reports}) == 7
        assert {(report.round, report.bytes_up, report.bytes_down) for report in reports} == {(number, 1600, 1600)}
    assert len({tuple(sorted(report.client for report in reports)) for reports in cohorts}) > 1


@pytest.mark.parametrize("loop_class", [CopyLimit, PlainLoop])
def test_the_loops_without_a_framework_average_as_the_rounds_do(loop_class):
    loop = loop_class(3, BLOCK + 200)
    for _ in range(3):
        loop.round()
    np.testing.assert_array_equal(loop.vector_F, np.full(BLOCK + 200, 3, np.float32))


def test_rows_hold_rates_and_ratios_to_the_copy_limit(session_ray, tmp_path):
    executors = {LOCAL: partial(executor, "local"), "fedsim, 1 actor": partial(executor, "one actor")}
    rows = measure(CLIENTS, ELEMENTS, executors, runs=1)
    present(rows, tmp_path / "rows.jsonl")
    written = [json.loads(line) for line in (tmp_path / "rows.jsonl").read_text().splitlines()]
    prefix = "10 clients x 400 elements: "
    assert [row["case"] for row in written] == [prefix + name for name in (COPY_LIMIT, PLAIN_LOOP, *executors)]
    for row in written:
        assert list(row) == ["benchmark", "case", "value", "unit", "ratio", "ratio_to", "runs", "ratio_quartiles"]
        assert (row["benchmark"], row["unit"], row["runs"]) == ("orchestration", "client updates/s", 1)
        assert row["ratio_to"] == prefix + COPY_LIMIT and row["value"] > 0 and row["ratio"] > 0
    assert written[0]["ratio"] == 1.0


class EmbellishingServer(LocalServer):
    """Adds one to the state by itself."""

    def global_state(self):
        state = super().global_state()
        return replace(state, vector_F=state.vector_F + 1)


class Embellishing(LocalExecutor):
    def __init__(self, check_interrupt):
        super().__init__(check_interrupt)
        self._server = EmbellishingServer()


def test_a_side_that_did_other_work_gives_no_rows():
    with pytest.raises(AssertionError, match="rounds the vector holds"):
        measure(CLIENTS, ELEMENTS, {"other": lambda: Embellishing(lambda: None)}, runs=1)


def test_options_are_whole_numbers_that_fit():
    assert numbers("100,1000") == [100, 1000]
    for words, multiple_of, sentence in (
        ("100,ten", 1, "give whole numbers with commas, not '100,ten'"),
        ("0", 1, "give positive numbers, not 0"),
        ("400,500", 200, "give positive multiples of 200, not 500"),
    ):
        with pytest.raises(typer.BadParameter, match=sentence):
            numbers(words, multiple_of)

"""The page of a study and of a scaling study: valid, escaped, and true to what was found."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest
from page_html import EVIL, Reader, made_cells, made_study, summary_of

from fedsim.display.page.arms import arm_styles
from fedsim.display.page.scaling_page import scaling_page
from fedsim.display.page.study_curves import curve
from fedsim.display.page.study_page import study_page
from fedsim.scaling.accounting import ActorSeconds, RoundTimes
from fedsim.scaling.points import Point
from fedsim.scaling.records import Round, Run
from fedsim.scaling.study import Failure
from fedsim.scaling.summary import summarise
from fedsim.study.summary import summarise as summarise_study

SEARCH = [
    {
        "dataset": "one", "arm": "arm-1", "chosen": {"client.optimizer.lr": 0.04},
        "trials": [
            {"values": {"client.optimizer.lr": 0.01}, "metrics": [None]},
            {"values": {"client.optimizer.lr": 0.04}, "metrics": [0.75]},
        ],
    }
]  # fmt: skip


def test_a_page_is_valid_and_says_what_was_found():
    made = made_study()
    summary = summary_of(made)
    html = study_page(
        summary, summary.cells, made[0], folder=f"runs/{EVIL}", search=SEARCH, commands=[f"fedsim {EVIL}"]
    )
    read = Reader(html)
    assert len(html.encode()) < 10**6
    for pair in summary.pairs:
        if pair.measure == "last":
            assert pair.sentence in read.text
    for sentence in (
        f"it failed: {EVIL}",
        f"fedsim {EVIL}",
        f"{EVIL}.yaml",
        *summary.notes,
        "client.optimizer.lr=0.04",
    ):
        assert sentence in read.text
    names = {name.removesuffix("-title") for name in read.figures}
    axes = ("round", "bytes", "seconds_published", "seconds_modelled")
    assert names >= {f"curve-{axis}-{at}" for axis in axes for at in (0, 1)} | {
        "forest-last-0",
        "clients-1",
        "scores-0",
    }
    means = [f"{summary.row('one', arm).figures['last'].mean:.3f}" for arm in summary.arms]
    assert all(mean in read.text for mean in means)
    searched = 2  # what was chosen, and its metric
    measures = ("last", "best", "personalised")
    bold = sum(summary.is_bold(dataset, "arm-0", measure) for dataset in ("one", "two") for measure in measures)
    assert html.count("<strong>") - searched == bold > 0


def test_mistakes_are_counted_where_predictions_were_kept():
    study, cells, failed = made_study(2, ("base",), 2)
    right = {cell.folder: [True, True, cell.arm == "arm-0", cell.arm != "arm-0", cell.arm == "arm-0"] for cell in cells}
    summary = summarise_study(study, cells, failed, lambda cell: right[cell.folder])
    read = Reader(study_page(summary, summary.cells, study))
    assert ["base", "arm-1", "0", "2", "1", "1"] in read.rows


@pytest.mark.parametrize(("arms", "seeds"), [(1, 1), (2, 2), (14, 2)])
def test_a_page_of_any_size(arms, seeds):
    made = made_study(arms, ("base",), seeds)
    summary = summary_of(made)
    html = study_page(summary, summary.cells, made[0])
    assert Reader(html).headings and len(html.encode()) < 2 * 10**6


def test_a_study_without_a_finished_run_has_a_page():
    study, _, failed = made_study(2, ("base",), 1)
    summary = summary_of((study, [], failed))
    assert "No run has a result." in Reader(study_page(summary, (), study)).text


def test_a_curve_is_the_mean_of_the_rounds_that_all_seeds_evaluate():
    cells = made_cells({"a": None}, {"d": None}, 3)
    shorter = replace(cells[0], curve=cells[0].curve[:7])
    got = curve([shorter, *cells[1:]], "bytes")
    metrics = np.array([[point.metric for point in cell.curve[:7]] for cell in cells])
    assert got.x_R.tolist() == [10**5 * number for number in range(7)]
    assert got.mean_R == pytest.approx(metrics.mean(axis=0))
    assert (got.least_R.tolist(), got.most_R.tolist()) == (metrics.min(axis=0).tolist(), metrics.max(axis=0).tolist())
    nothing = replace(cells[0], curve=tuple(replace(point, seconds_modelled=math.nan) for point in cells[0].curve))
    assert curve([nothing], "seconds_modelled") is None and curve([], "round") is None


def test_arms_differ_in_more_than_their_colour():
    styles = list(arm_styles([f"arm{number}" for number in range(12)], "arm3").values())
    assert len({(style.dash, style.marker) for style in styles}) == 12
    assert len({style.color for style in styles[:7]}) == 7


def point(clients: int, actors: int) -> Run:
    parts = ActorSeconds(*(actors * share for share in (0.6, 0.2, 0.05, 0.05, 0.06, 0.04)))
    times = RoundTimes(1.0, 0.7, 0.05, 0.2, (), actors)
    rounds = tuple(Round(number, times, parts, 10, 80, 10**6, 10**6) for number in (1, 2, 3))
    return Run(Point(clients, 10, actors), 1, actors, rounds, 9.0, 1.0, {"driver": 5 * 10**8}, {"torch": EVIL})


def test_the_page_of_a_scaling_study_has_its_tables_pictures_and_notes():
    failure = Failure(Point(5, 5, 1), 1, f"it failed: {EVIL}")
    study = summarise([point(c, n) for c in (10, 100) for n in (1, 2)], [failure], [EVIL])
    read = Reader(scaling_page(study, EVIL, f"runs/{EVIL}"))
    assert {name.removesuffix("-title") for name in read.figures} == {
        "round-time",
        "rate",
        "time-shares",
        "strong-scaling",
    }
    assert f"it failed: {EVIL}" in read.text and f"{EVIL}." in read.text and "60.0%" in read.text
    assert Reader(scaling_page(summarise([], [failure], []), "none", "runs/none")).headings

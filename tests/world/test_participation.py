"""Who took part: shares of visits by speed and by label, counted by hand; and the picture of the first rounds."""

import numpy as np
import pytest

from fedsim.display.figure import new_figure
from fedsim.display.timeline import draw_timeline, first_steps
from fedsim.records.participation import by_label, by_speed, participation
from fedsim.world.availability import Always
from fedsim.world.cost import VisitCost
from fedsim.world.devices import Devices, Hardware

CLIENTS = 10
VISITS = {
    "round": np.array([1, 1, 2, 2, 2, 7]),
    "client": np.array([9, 8, 9, 1, 3, 9]),
    "status": np.array(["ok", "ok", "ok", "ok", "error", "ok"]),
    "began_seconds": np.array([0.0, 0.0, 10.0, 10.0, 10.0, 100.0]),
    "arrived_seconds": np.array([1.0, 10.0, 12.0, 20.0, 11.0, 101.0]),
}


def test_shares_of_visits_by_speed_and_by_label():
    speed = np.arange(1.0, CLIENTS + 1)  # client 9 is the fastest
    hardware = Hardware(speed, *(np.full(CLIENTS, value) for value in (1e9, 1e9, 0.0, 9.0)))
    hardware.memory_bytes_N[0] = 1.0
    devices = Devices(
        hardware, Always(), VisitCost(np.ones(CLIENTS), np.ones(CLIENTS), (0,), (0,), 2.0), np.full(CLIENTS, 4)
    )
    counts = np.array([[4, 0]] * 5 + [[0, 4]] * 5)
    found = participation(devices, VISITS, counts, ("a", "b"), 50.0)
    assert found["participation_by_speed"] == [4 / 5, 0.0, 0.0, 0.0, 1 / 5]
    assert found["participation_by_label"] == {
        "a": {"visits": 0.2, "clients": 0.5},
        "b": {"visits": 0.8, "clients": 0.5},
    }
    assert (found["clients_never_seen"], found["clients_too_small"]) == (7, 1)
    assert found["device_utilisation"] == pytest.approx((1 + 10 + 2 + 10 + 1) / (9 * 50))


def test_fifths_by_speed_count_every_visit_once_and_agree_with_the_summary():
    devices = {
        "visit_seconds": np.arange(CLIENTS, 0.0, -1.0),
        "drawable": np.array(["yes"] * 8 + ["memory", "examples"]),
    }
    visits = {
        "client": np.array([7, 7, 0, 1, 6, 7]),
        "outcome": np.array(["taken", "late", "absent", "failed", "taken", "taken"]),
    }
    parts = by_speed(visits, devices)
    assert [part.clients for part in parts] == [2, 2, 2, 2, 1]  # of nine with examples, fastest first
    assert (parts[0].least_seconds, parts[0].most_seconds, parts[-1].most_seconds) == (2.0, 3.0, 10.0)
    assert [part.counts[1:] for part in parts] == [
        (1, 1, 3, 2, 1, 0, 0), (0, 1, 1, 1, 0, 0, 0), (0, 2, 0, 0, 0, 0, 0), (0, 2, 1, 0, 0, 0, 1), (0, 1, 1, 0, 0, 1, 0),
    ]  # fmt: skip
    counts = np.array([[4, 0]] * 5 + [[0, 4]] * 5)
    assert [share.tolist() for share in by_label(visits, counts)] == [[0.0, 1.0], [0.5, 0.5]]


TIMED = {
    "round": np.array([1, 1, 1, 2, 2, 7]),
    "client": np.array([9, 8, 5, 9, 3, 9]),
    "outcome": np.array(["taken", "taken", "late", "absent", "failed", "taken"]),
    "drawn_seconds": np.array([0.0, 0.0, 0.0, 10.0, 10.0, 90.0]),
    "began_seconds": np.array([0.0, 4.0, 0.0, 10.0, 10.0, 90.0]),
    "received_seconds": np.array([1.0, 5.0, 1.0, np.nan, 11.0, 91.0]),
    "trained_seconds": np.array([2.0, 9.0, 30.0, np.nan, 18.0, 92.0]),
    "ended_seconds": np.array([3.0, 10.0, 31.0, 12.0, 20.0, 93.0]),
}


def test_the_timeline_draws_the_parts_of_the_first_visits_and_marks_those_that_do_not_count():
    rounds = {"round": np.array([0, 1, 2, 7]), "clock_seconds": np.array([np.nan, 10.0, 20.0, 101.0])}
    _, axes = new_figure("", "", "")
    assert draw_timeline(axes, rounds, TIMED, 5) == "seconds"
    bars = {
        (round(bar.get_y() + bar.get_height() / 2), bar.get_x(), bar.get_x() + bar.get_width()) for bar in axes.patches
    }
    assert bars == {
        (0, 0.0, 1.0), (0, 1.0, 2.0), (0, 2.0, 3.0), (0, 10.0, 12.0),
        (1, 0.0, 4.0), (1, 4.0, 5.0), (1, 5.0, 9.0), (1, 9.0, 10.0),
        (2, 0.0, 1.0), (2, 1.0, 30.0), (2, 30.0, 31.0), (3, 10.0, 11.0), (3, 11.0, 18.0), (3, 18.0, 20.0),
    }  # fmt: skip
    assert [label.get_text() for label in axes.get_yticklabels()] == ["9", "8", "5", "3"]
    points = {(line.get_marker(), *line.get_xydata()[0].tolist()) for line in axes.lines if len(line.get_xdata()) == 1}
    assert points == {("|", 12.0, 0.0), ("X", 20.0, 3.0), ("x", 1.02 * 20.0, 2.0)}  # the late one at the edge
    assert axes.get_xlim() == (0.0, 1.03 * 20.0)
    nothing = {name: values[:0] for name, values in TIMED.items()}
    assert first_steps(TIMED) == 8 and first_steps({"round": np.repeat([1, 2, 3], 20)}) == 2
    assert draw_timeline(axes, rounds, nothing, 5) is None

"""Who took part: shares of visits by speed and by label, counted by hand; and the picture of the first rounds."""

import numpy as np
import pytest

from fedsim.display.figure import new_figure
from fedsim.display.timeline import draw_timeline
from fedsim.records.participation import participation
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


def test_the_timeline_draws_the_visits_of_the_first_rounds_and_who_was_left_out():
    rounds = {"round": np.array([0, 1, 2, 7]), "clock_seconds": np.array([np.nan, 10.0, 20.0, 101.0])}
    events = [{"event": "late", "round": 1, "clients": [5]}, {"event": "absent", "round": 2, "clients": [8]}]
    _, axes = new_figure("", "", "")
    assert draw_timeline(axes, rounds, VISITS, events) == "seconds"
    lines = [line.get_xydata().tolist() for line in axes.lines if len(line.get_xdata()) and line.get_lw() == 4]
    assert lines == [[[b, r], [a, r]] for b, a, r in ((0, 1, 0), (0, 10, 1), (10, 12, 0), (10, 20, 2), (10, 11, 3))]
    assert [label.get_text() for label in axes.get_yticklabels()] == ["9", "8", "1", "3", "5"]
    points = {(line.get_marker(), *line.get_xydata()[0].tolist()) for line in axes.lines if len(line.get_xdata()) == 1}
    assert points == {("x", 10.0, 4.0), ("|", 20.0, 1.0)}
    nothing = {**VISITS, "began_seconds": np.full(6, np.nan)}
    assert draw_timeline(axes, rounds, nothing, []) is None

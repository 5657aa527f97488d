from pathlib import Path

import numpy as np
import pytest

from fedsim.display.figure import DPI
from fedsim.scaling.accounting import ActorSeconds, RoundTimes
from fedsim.scaling.picture import plot_time, write_pictures
from fedsim.scaling.points import Point
from fedsim.scaling.records import Round, Run
from fedsim.scaling.summary import summarise


def run(clients, cohort, actors, seconds, rounds=3, simulated=None):
    parts = ActorSeconds(*(actors * seconds * share for share in (0.6, 0.2, 0.05, 0.05, 0.06, 0.04)))
    times = RoundTimes(seconds, 0.7 * seconds, 0.05 * seconds, 0.2 * seconds, (), actors)
    each = [Round(number, times, parts, cohort, 8 * cohort, 10**6, 10**6, simulated) for number in range(1, rounds + 1)]
    memory = {"driver": 5 * 10**8, "workers": [4 * 10**8] * actors, "server": 10**8}
    return Run(Point(clients, cohort, actors), 1, actors, tuple(each), 9.0, 1.0, memory, {})


def pixels(path: Path) -> np.ndarray:
    from matplotlib.image import imread

    found = imread(path)[..., :3]
    assert found.shape[1] == 8 * DPI
    assert 0.003 < (found < 0.9).any(axis=2).mean() < 0.8
    return found


def share_of(found: np.ndarray, color: str) -> float:
    wanted = np.array([int(color[i : i + 2], 16) for i in (1, 3, 5)]) / 255
    return float((np.abs(found - wanted) < 0.01).all(axis=2).mean())


GRID = [run(c, k, n, 0.1 * k / n) for c in (10, 100, 10_000) for k in (10, 20) for n in (1, 2, 4) if k <= c]
STUDIES = {
    "one point": ([run(10, 10, 1, 3.0)], {"round_time", "shares"}),
    "one round": ([run(10, 10, 1, 3.0, rounds=1)], {"round_time", "shares"}),
    "clients only": ([run(c, 10, 1, 0.001 * c) for c in (10, 1000, 100_000)], {"round_time", "shares"}),
    "actors only": ([run(10, 10, n, 3.0 / n) for n in (1, 2, 8)], {"round_time", "shares", "efficiency"}),
    "cohort with actors": ([run(99, 5 * n, n, 3.0) for n in (1, 2, 8)], {"round_time", "shares", "efficiency"}),
    "all": (GRID, {"round_time", "shares", "efficiency"}),
}


@pytest.mark.parametrize("name", STUDIES)
def test_there_is_a_picture_wherever_the_points_allow_one(tmp_path, name):
    runs, expected = STUDIES[name]
    written = write_pictures(summarise(runs, [], []), tmp_path)
    assert {path.stem for path in written} == expected
    shown = {path.stem: pixels(path) for path in written}
    # compute and evaluation in the bars, in the shares that they have of the time
    compute, evaluation = share_of(shown["shares"], "#0072B2"), share_of(shown["shares"], "#56B4E9")
    assert compute / evaluation == pytest.approx(3, rel=0.1)
    assert share_of(shown["round_time"], "#0072B2") > 0
    assert not list(tmp_path.glob(".*"))


def test_with_a_clock_simulated_time_stands_below_wall_time(tmp_path):
    runs = [run(clients, 10, 1, 0.001 * clients, simulated=60.0 * clients) for clients in (10, 1000)]
    written = plot_time(summarise(runs, [], []).points, tmp_path / "time.png")
    assert pixels(written).shape[0] == round(10.8 * DPI)


def test_nothing_is_drawn_of_nothing(tmp_path):
    assert write_pictures(summarise([], [], []), tmp_path / "plots") == []
    assert not (tmp_path / "plots").exists()

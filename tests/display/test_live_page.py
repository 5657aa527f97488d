"""The page of a run while it goes on: when it is written, what is in it, and that a finished page does not reload."""

import re

import pytest
from support import make_tiny

from fedsim import Run
from fedsim.display.page.live_page import LivePage
from fedsim.records.run_folder import RunFolder

REFRESH = 'http-equiv="refresh" content="30"'


class Clock:
    """A clock that stands still but for what it is told."""

    now = 0.0

    def __call__(self):
        return self.now


@pytest.fixture
def live(tmp_path):
    """Return the open folder of a run, its page and its clock."""
    clock, notes = Clock(), []
    with RunFolder.create(tmp_path / "run") as folder:
        page = LivePage(folder, make_tiny(name="mine", rounds=50), 30.0, notes.append, clock)
        page.clock, page.notes, page.folder = clock, notes, folder
        yield page


def train(live, number, seconds=0.0):
    live.folder.event(
        "round", round=number, global_metric=0.5, train_loss_last=1.0, clients_ok=5, bytes_up=7, bytes_down=7
    )
    live.clock.now += seconds
    live.round_done()


def test_there_is_a_page_every_so_often_and_not_before(live):
    written = []
    for number in range(1, 101):
        before = live.folder.report.stat().st_mtime_ns if live.folder.report.exists() else 0
        train(live, number, seconds=1.0)
        if live.folder.report.exists() and live.folder.report.stat().st_mtime_ns != before:
            written.append(live.clock.now)
    assert written == [30.0, 60.0, 90.0]


def test_pages_that_cost_much_come_seldom(live, monkeypatch):
    write, times = live._write, []

    def slow(*arguments):
        write(*arguments)
        live.clock.now += 2.0
        times.append(live.clock.now)

    monkeypatch.setattr(live, "_write", slow)
    for number in range(1, 1001):
        train(live, number, seconds=1.0)
    assert 2.0 * len(times) <= 0.03 * live.clock.now


def test_a_page_shows_the_run_and_reloads_until_it_ends(live):
    with pytest.raises(KeyboardInterrupt), live:
        live.folder.event("start", round=0, global_metric=0.25)
        live.folder.event("client_failure", round=1, client=3, kind="error", message="<b>no</b> & \u65e5\u672c")
        train(live, 1, seconds=31.0)
        html = live.folder.report.read_text(encoding="utf-8")
        assert REFRESH in html and "round 1 of 50" in html and "&lt;b&gt;no&lt;/b&gt; &amp; \u65e5\u672c" in html
        assert html.count("<svg") == 2 and not re.search(r"(src|href)=.https?:", html)
        assert not list(live.folder.path.glob(".*tmp"))
        raise KeyboardInterrupt
    html = live.folder.report.read_text(encoding="utf-8")
    assert REFRESH not in html and "Ended early: KeyboardInterrupt; fedsim run --resume continues it" in html


def test_a_page_that_cannot_be_written_is_told_once_and_stops_no_run(live):
    live.folder.report.mkdir()
    for number in range(1, 100):
        train(live, number, seconds=30.0)
    assert len(live.notes) == 1 and live.notes[0].startswith("warning: report.html is not kept up to date")


def test_a_run_without_plots_or_shorter_than_the_interval_has_no_such_page(tmp_path, live):
    for changes in ({"plots": False}, {"page_every_seconds": None}):
        page = LivePage.of(make_tiny(tracking={"plots": True, **changes}), live.folder, print)
        page.round_done()
    train(live, 1, seconds=29.0)
    assert not live.folder.report.exists()


def test_a_run_writes_it_and_leaves_it_without_reloading(tmp_path, monkeypatch):
    made = LivePage.of.__func__

    def of(cls, *arguments):
        page = made(cls, *arguments)
        page._due = 0.0
        return page

    monkeypatch.setattr(LivePage, "of", classmethod(of))
    values = {"output": str(tmp_path / "run"), "executor": "local", "tracking": {"plots": True}}
    with Run(make_tiny(**values), progress=False) as run:
        assert next(run).round == 1
        next(run)
        assert REFRESH in (tmp_path / "run" / "report.html").read_text()
    html = (tmp_path / "run" / "report.html").read_text()
    assert "refresh" not in html and "Ended early: the program left it" in html

"""Progress in a notebook: one block, whatever is shown; it ends with all that a terminal would show."""

import html
import re
import sys
from types import ModuleType, SimpleNamespace

import pytest

from fedsim.display import notebook, progress
from fedsim.display.notebook import NotebookLive, html_of, notebook_display
from fedsim.display.progress import Progress, RoundLine


class Page:
    """Keeps the blocks of a page, each with its present state, and counts the states."""

    def __init__(self):
        self.blocks, self.states = [], 0

    def display(self, block):
        self.blocks.append(block)
        self.states += 1
        place = len(self.blocks) - 1

        def update(block):
            self.blocks[place] = block
            self.states += 1

        return SimpleNamespace(update=update)


@pytest.fixture
def page(monkeypatch):
    page = Page()
    monkeypatch.setattr(progress, "notebook_display", lambda: page.display)
    return page


def line(number):
    return RoundLine(number, 0.5 + number / 100, 0.7, 10, 0, 0.8, 1_234_567, 2_000_000)


def text_of(block):
    assert "<script" not in block.html
    return html.unescape(re.sub(r"<[^>]+>", "", block.html))


def test_a_run_is_one_block_with_phases_notes_and_rounds(page):
    with Progress(20, "accuracy") as shown:
        shown.start_phase("starting Ray")
        shown.note("warning: 3 rows <of> train.jsonl skipped [not markup]")
        shown.start(0.5, 0.7)
        for number in range(1, 9):
            shown.clients_done(number, 1, 2)
            shown.round(line(number))
    (block,) = page.blocks
    text = text_of(block)
    for part in (
        "starting Ray, ",
        "3 rows <of> train.jsonl skipped [not markup]",
        "round 9/20",
        "accuracy 0.580",
        "first 0.500",
    ):
        assert part in text, part
    assert "<of>" not in block.html and text_of(block).split() == block.text.split()
    assert block._repr_mimebundle_() == {"text/html": block.html, "text/plain": block.text}


def test_clients_of_a_round_are_shown_now_and_then(page, monkeypatch):
    now = [100.0]
    monkeypatch.setattr(notebook.time, "monotonic", lambda: now[0])
    with Progress(20, "accuracy") as shown:
        shown.round(line(1))
        before = page.states
        for done in range(1000):
            now[0] += 2**-10
            shown.clients_done(2, done, 1000)
        assert page.states - before == 3  # of not quite a second of clients, every quarter
    assert "999/1000 clients" in text_of(page.blocks[0])


def test_quiet_shows_no_block_and_a_console_is_taken_as_given(page, capsys):
    from rich.console import Console

    for options in ({"quiet": True}, {"console": Console()}):
        with Progress(20, "accuracy", **options) as shown:
            shown.note("a note")
    assert page.blocks == [] and capsys.readouterr().out.count("a note") == 2


def test_an_error_leaves_the_last_state(page):
    with pytest.raises(RuntimeError), Progress(20, "accuracy") as shown:
        shown.start_phase("starting Ray")
        raise RuntimeError
    assert not re.search(r"starting Ray, \d", text_of(page.blocks[0]))


@pytest.mark.parametrize("shell", [None, SimpleNamespace(), SimpleNamespace(kernel=object())])
def test_only_a_kernel_is_a_notebook(monkeypatch, shell):
    ipython, display, asked = ModuleType("IPython"), ModuleType("IPython.display"), []
    ipython.get_ipython = lambda: shell
    display.display = lambda block, display_id: asked.append((block, display_id))
    monkeypatch.setitem(sys.modules, "IPython", ipython)
    monkeypatch.setitem(sys.modules, "IPython.display", display)
    found = notebook_display()
    assert (found is not None) == hasattr(shell, "kernel")
    if found is not None:
        NotebookLive(lambda: "picture", found).refresh()
        assert [each[1] for each in asked] == [True]


def test_without_ipython_there_is_no_notebook(monkeypatch):
    monkeypatch.delitem(sys.modules, "IPython", raising=False)
    assert notebook_display() is None and "IPython" not in sys.modules


def test_text_is_escaped():
    assert "&lt;b&gt;" in html_of("<b>") and "<b>" not in html_of("<b>")

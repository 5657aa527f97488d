"""A run's progress in a Jupyter notebook: one display block, which is replaced by its next state."""

from __future__ import annotations

import io
import sys
import time
from collections.abc import Callable
from typing import Any, Protocol

from rich.console import Console, RenderableType

from fedsim.display.screen import Screen

_WIDTH = 110
_OFTEN_SECONDS = 0.25
"""Between two states of the block within a round: a notebook keeps, and sends, each of them."""
_PAGE = '<pre style="white-space:pre;overflow-x:auto;line-height:normal;font-family:monospace">{code}</pre>'


class Page(Protocol):
    """Where a block stands; IPython's display handle is one."""

    def update(self, block: Any) -> None:
        """Put another block in its place."""


class Block:
    """What a browser shows: HTML, and text for readers that show none."""

    def __init__(self, html: str, text: str) -> None:
        self.html, self.text = html, text

    def _repr_mimebundle_(self, include: Any = None, exclude: Any = None) -> dict[str, str]:
        return {"text/html": self.html, "text/plain": self.text}


class NotebookLive:
    """Shows a changing picture of a run, and above it all that was printed to :attr:`console`, as one block.

    Parameters
    ----------
    render
        Returns the picture.
    display
        Shows a block and returns its page.
    """

    def __init__(self, render: Callable[[], RenderableType], display: Callable[[Block], Page]) -> None:
        self._render = render
        self._display = display
        self._page: Page | None = None
        self._shown_at = -_OFTEN_SECONDS
        self.console = _recorder()

    def start(self) -> None:
        """Begin: the block comes with the first thing to show."""

    def stop(self) -> None:
        """Show the last state."""
        self.refresh()

    def refresh(self) -> None:
        """Show the present state."""
        picture = _recorder()
        picture.print(self._render())
        html = _html(self.console) + _html(picture)
        text = self.console.export_text(clear=False) + picture.export_text(clear=False)
        block = Block(_PAGE.format(code=html), text)
        self._shown_at = time.monotonic()
        if self._page is None:
            self._page = self._display(block)
        else:
            self._page.update(block)

    def refresh_if_old(self) -> None:
        """Show the present state, if the last one has stood for a while."""
        if time.monotonic() - self._shown_at >= _OFTEN_SECONDS:
            self.refresh()


def notebook_display() -> Callable[[Block], Page] | None:
    """Return what shows a block in this process's Jupyter kernel; None where there is none, as on a terminal."""
    ipython = sys.modules.get("IPython")  # a kernel has imported it
    shell = None if ipython is None else ipython.get_ipython()
    if shell is None or not hasattr(shell, "kernel"):
        return None
    from IPython.display import display

    return lambda block: display(block, display_id=True)


def html_of(thing: RenderableType) -> str:
    """Return a table or a text as HTML."""
    console = _recorder()
    console.print(thing)
    return _PAGE.format(code=_html(console))


def _recorder() -> Console:
    return Screen(file=io.StringIO(), record=True, width=_WIDTH, force_jupyter=False)


def _html(console: Console) -> str:
    return console.export_html(clear=False, inline_styles=True, code_format="{code}")

"""What ``fedsim watch`` does: look, show, wait, until what is watched has ended."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from rich.console import Console, RenderableType
from rich.live import Live
from rich.text import Text

from fedsim.core.errors import ConfigError
from fedsim.display.notebook import NotebookLive, notebook_display
from fedsim.display.report import final_table
from fedsim.display.watch.run_view import PlainLines, picture
from fedsim.display.watch.watched_run import WatchedRun
from fedsim.display.watch.watched_scaling import WatchedScaling
from fedsim.display.watch.watched_study import WatchedStudy
from fedsim.records.remote import Remote, is_url
from fedsim.scaling.load import is_scaling_study
from fedsim.study.folder import read_subject

HERE_SECONDS, AWAY_SECONDS = 1.0, 10.0
"""Between two looks at a folder, and at a URL, which changes at checkpoints only."""
Watched = WatchedRun | WatchedStudy | WatchedScaling


def open_watched(place: str) -> Watched:
    """Return what a folder or a URL holds, to be watched.

    Raises
    ------
    ConfigError
        If it holds neither a run nor a study, or a scaling study that does not say what it was asked for.
    """
    if is_url(place):
        if Remote(place).holds() == "run":
            return WatchedRun(place)
    elif (Path(place) / "metrics.jsonl").exists():
        return WatchedRun(place)
    elif read_subject(Path(place)) is not None:
        return WatchedStudy(Path(place))
    elif is_scaling_study(Path(place)):
        return WatchedScaling(Path(place))
    missing = (
        "there is no folder" if not is_url(place) and not Path(place).exists() else "neither a run nor a study is in"
    )
    raise ConfigError(f"{missing} {place}; give the folder or the URL of a run, or the folder of a study")


def watch(
    place: str,
    console: Console,
    once: bool = False,
    every: float | None = None,
    wait: Callable[[float], None] = time.sleep,
) -> dict[str, Any]:
    """Show a run or a study until it has ended, and return what is known of it then; Ctrl-C ends the look, not the run.

    Parameters
    ----------
    place
        Folder, or URL of a run.
    once
        Show it as it stands, and return.
    every
        Seconds between two looks; if None, what suits the place.
    wait
        Waits so many seconds.
    """
    watched = open_watched(place)
    pause = every or (AWAY_SECONDS if is_url(place) else HERE_SECONDS)
    show = _shown(watched, console)
    try:
        with show:
            watched.look()
            while True:
                if _state(watched) == "silent" or once:
                    wait(min(pause, 0.2))  # a run that cuts its log back lets go of it for a moment
                    watched.look()
                show.update()
                if once or _state(watched) != "running":
                    break
                wait(pause)
                watched.look()
        if isinstance(show, _Picture) and (summary := watched.summary()) is not None:
            console.print(final_table(summary))
    except KeyboardInterrupt:
        console.print(Text("no longer watched; the run goes on by itself", style="dim"), soft_wrap=True)
    return watched.record()


def _state(watched: Watched) -> str:
    return watched.run.state if isinstance(watched, WatchedRun) else watched.state


class _Lines:
    """Shows what is new as lines."""

    def __init__(self, watched: Watched, console: Console) -> None:
        self._watched, self._console = watched, console
        self._plain = PlainLines(watched) if isinstance(watched, WatchedRun) else None
        self._last: list[str] = []

    def __enter__(self) -> _Lines:
        return self

    def __exit__(self, *error: object) -> None:
        if self._plain is not None:
            self._print(self._plain.last())

    def update(self) -> None:
        """Print what is new."""
        for line in self._new():
            self._print(line)

    def _new(self) -> Iterator[str]:
        if self._plain is not None:
            yield from self._plain.new()
            return
        assert not isinstance(self._watched, WatchedRun)
        lines = list(self._watched.lines())
        yield from (line for line in lines if line not in self._last)
        self._last = lines

    def _print(self, line: str) -> None:
        self._console.print(Text(line), soft_wrap=True)
        self._console.file.flush()


class _Picture:
    """Shows a picture that is redrawn, on a terminal or in a notebook."""

    def __init__(self, watched: Watched, console: Console, live: Live | NotebookLive | None) -> None:
        self._watched, self._console = watched, console
        self._live = live or Live(get_renderable=self.render, console=console, auto_refresh=False)

    def __enter__(self) -> _Picture:
        self._live.start()
        return self

    def __exit__(self, *error: object) -> None:
        self._live.stop()

    def update(self) -> None:
        """Draw it anew."""
        self._live.refresh()

    def render(self) -> RenderableType:
        """Return the picture."""
        width, ascii_only = self._console.width, self._console.options.ascii_only
        if isinstance(self._watched, WatchedRun):
            return picture(self._watched, width, ascii_only)
        return self._watched.picture(width, ascii_only)


def _shown(watched: Watched, console: Console) -> _Lines | _Picture:
    display = notebook_display()
    if display is not None:
        shown: _Picture
        live = NotebookLive(lambda: shown.render(), display)
        shown = _Picture(watched, live.console, live)
        return shown
    return _Picture(watched, console, None) if console.is_interactive else _Lines(watched, console)


def why_failed(watched: dict[str, Any]) -> str:
    """Return why what was watched has not come to its end; empty if it has, or goes on."""
    if watched["state"] in ("running", "finished"):
        return ""
    return f"{watched['place']}: {watched['ended'] or 'it has not ended, and nobody writes to it any more'}"

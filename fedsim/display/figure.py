"""The look that all pictures share: size, colours, axes, and how they are saved.

It is the same whatever the environment says: neither ``MPLBACKEND`` nor a ``matplotlibrc`` of the user's has a part in it.
"""

from __future__ import annotations

import functools
import os
import sys
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, ParamSpec, TypeVar

from fedsim.core.errors import ConfigError, FedsimError, ResourceError
from fedsim.records.events import replaced
from fedsim.records.remote import refuse_url

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

P = ParamSpec("P")
T = TypeVar("T")

DPI = 150
_PNG = b"\x89PNG\r\n\x1a\n"
INK, FAINT, GRID = "#222222", "#777777", "#dddddd"
# Okabe and Ito (2008) for lines, Tol's "muted" scheme for classes: told apart with every kind of colour vision.
BLUE, ORANGE, GREEN, GREY = "#0072B2", "#D55E00", "#009E73", "#BBBBBB"
_STYLES = ("axes", "figure", "font", "grid", "hatch", "legend", "lines", "mathtext", "patch", "path", "savefig", "text",
           "xtick", "ytick")  # fmt: skip


class PictureWarning(UserWarning):
    """A picture is not quite as it should be; the message is half a sentence that says why."""


def drawn(plot: Callable[P, T]) -> Callable[P, T]:
    """Let a function draw with matplotlib's own style, whatever backend and style the environment asks for."""

    @functools.wraps(plot)
    def with_own_style(*arguments: P.args, **named: P.kwargs) -> T:
        with _without_backend():
            import matplotlib

        own = {key: value for key, value in matplotlib.rcParamsDefault.items() if key.split(".")[0] in _STYLES}
        with matplotlib.rc_context(own):
            return plot(*arguments, **named)

    return with_own_style


@contextmanager
def _without_backend() -> Iterator[None]:
    """Hide ``MPLBACKEND``, which matplotlib reads as it is imported: a notebook's is not there in other processes."""
    backend = None if "matplotlib" in sys.modules else os.environ.pop("MPLBACKEND", None)
    try:
        yield
    finally:
        if backend is not None:
            os.environ["MPLBACKEND"] = backend


def new_figures(num_rows: int, height: float) -> tuple[Figure, Sequence[Axes]]:
    """Return a figure of ``num_rows`` pictures one above the other, ``height`` inches high; no display is needed."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure
    from matplotlib.layout_engine import ConstrainedLayoutEngine

    layout = ConstrainedLayoutEngine(w_pad=0.12, h_pad=0.12)
    figure = Figure(figsize=(8.0, height), dpi=DPI, layout=layout, facecolor="white")
    FigureCanvasAgg(figure)
    return figure, list(figure.subplots(num_rows, 1, squeeze=False)[:, 0])


def new_figure(title: str, xlabel: str, ylabel: str) -> tuple[Figure, Axes]:
    """Return a figure of one picture."""
    figure, (axes,) = new_figures(1, height=4.5)
    dress(axes, title, xlabel, ylabel)
    return figure, axes


def dress(axes: Axes, title: str | None, xlabel: str, ylabel: str) -> None:
    """Give axes the common look."""
    if title is not None:
        axes.set_title(title, loc="left", fontsize=12, fontweight="bold", color=INK, pad=10)
    axes.set_xlabel(xlabel, fontsize=10, color=INK)
    axes.set_ylabel(ylabel, fontsize=10, color=INK)
    axes.tick_params(labelsize=9, color=FAINT, labelcolor=INK)
    axes.spines[["top", "right"]].set_visible(False)
    axes.spines[["left", "bottom"]].set_color(FAINT)
    axes.grid(visible=True, color=GRID, linewidth=0.7)
    axes.set_axisbelow(True)


def check_target(path: Path) -> None:
    """Refuse a place where no picture can go, before anything is computed for it.

    Raises
    ------
    ConfigError
        If there is no folder for it, or a file that is not a picture of this kind.
    """
    refuse_url(path, "--output")
    if not path.parent.is_dir():
        raise ConfigError(f"--output {path}: there is no folder {path.parent}; make it first")
    try:
        if path.is_dir():
            raise ConfigError(f"--output {path} is a folder; give the name of a file, such as {path / 'picture.png'}")
        if path.exists():
            with path.open("rb") as file:
                if file.read(len(_PNG)) != _PNG:
                    raise ConfigError(f"--output {path} is a file of another kind than PNG; give another name")
    except OSError as error:
        raise ConfigError(f"--output {path} cannot be read ({error.strerror}); give another name") from None


def save(figure: Figure, path: Path) -> Path:
    """Write a figure as PNG at one stroke, and return its path.

    Its texts are drawn as they are: a dollar sign begins no formula, and characters that the font lacks come from another
    one of this machine; a :class:`PictureWarning` tells of those that no font has.
    """
    from matplotlib.text import Text

    from fedsim.display.fonts import FONT, fallbacks, unknown_sentence

    figures = _labels_of_axes(figure)
    texts = figure.findobj(Text)
    fonts, unknown = fallbacks("".join(text.get_text() for text in texts).replace("\n", ""))
    for text in texts:
        if id(text) not in figures:
            text.set_parse_math(False)
        if fonts:
            text.set_fontfamily([FONT, *fonts])
    if unknown:
        warnings.warn(PictureWarning(unknown_sentence(unknown)), stacklevel=2)
    try:
        with replaced(path) as file, warnings.catch_warnings():
            warnings.filterwarnings("ignore", message=r"Glyph \d+ ")  # of each character by itself
            figure.savefig(file, format="png", dpi=DPI)
    except OSError as error:
        raise ResourceError(f"the picture {path} cannot be written: {error.strerror or error}") from error
    return path


def attempt(draw: Callable[[Path], Path | None], path: Path, note: Callable[[str], None]) -> Path | None:
    """Draw one of a run's pictures; one that fails is a warning, as there is nothing in it that the records lack.

    Parameters
    ----------
    draw
        Draws to a path, and returns it, or None where there is nothing to draw.
    note
        Told sentences for the user.
    """
    try:
        with told(note, path):
            return draw(path)
    except Exception as error:  # matplotlib's have no common base
        lines = str(error).strip().splitlines() or ["no reason given"]
        reason = lines[0] if isinstance(error, FedsimError) else f"{type(error).__name__}: {lines[0]}"
        note(f"warning: the picture {path.name} is left out: {reason}")
        return None


@contextmanager
def told(note: Callable[[str], None], path: Path) -> Iterator[None]:
    """Hand over what :class:`PictureWarning` says of a picture, each thing once; other warnings are for those who mend it."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("ignore")
        warnings.simplefilter("always", PictureWarning)
        yield
    for sentence in dict.fromkeys(str(each.message) for each in caught):
        note(f"warning: the picture {path.name}: {sentence}")


def _labels_of_axes(figure: Figure) -> set[int]:
    """Return the identities of the labels along axes: figures, which matplotlib itself may write as formulas."""
    return {
        id(label)
        for axes in figure.axes
        for axis in (axes.xaxis, axes.yaxis)
        for label in (*axis.get_ticklabels(which="both"), axis.get_offset_text())
    }

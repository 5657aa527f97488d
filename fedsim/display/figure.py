"""Common style of all plots: size, colours, axes, and saving.

It does not depend on the environment: ``MPLBACKEND`` and the user's ``matplotlibrc`` are ignored.
"""

from __future__ import annotations

import functools
import os
import sys
import textwrap
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any, ParamSpec, TypeVar

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
# Okabe and Ito (2008) for lines, Tol's "muted" scheme for classes: safe for colour-blind readers.
BLUE, ORANGE, GREEN, GREY = "#0072B2", "#D55E00", "#009E73", "#BBBBBB"
# The rest of Okabe and Ito's palette, for more lines than three.
YELLOW, SKY, PINK, BLACK = "#E69F00", "#56B4E9", "#CC79A7", "#444444"
_STAMP_COLUMNS = 118
_STYLES = ("axes", "figure", "font", "grid", "hatch", "legend", "lines", "mathtext", "patch", "path", "savefig", "text",
           "xtick", "ytick")  # fmt: skip


@dataclass(frozen=True)
class Stamp:
    """What the pictures of a run share."""

    text: str = ""
    """Which run they show: small text below each of them."""
    svg: bool = False
    """Whether an SVG is written beside each PNG, its text as text."""


class PictureWarning(UserWarning):
    """A plot has a flaw; the message describes it in half a sentence."""


def drawn(plot: Callable[P, T]) -> Callable[P, T]:
    """Decorator: draw with matplotlib's default style, whatever backend and style the environment sets."""

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
    """Hide ``MPLBACKEND``, which matplotlib reads on import: a notebook's backend does not exist in other processes."""
    backend = None if "matplotlib" in sys.modules else os.environ.pop("MPLBACKEND", None)
    try:
        yield
    finally:
        if backend is not None:
            os.environ["MPLBACKEND"] = backend


def new_figures(num_rows: int, height: float, width: float = 8.0, pad: float = 0.12) -> tuple[Figure, Sequence[Axes]]:
    """Return a figure of ``num_rows`` stacked axes, its size in inches; no display is needed."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure
    from matplotlib.layout_engine import ConstrainedLayoutEngine

    layout = ConstrainedLayoutEngine(w_pad=pad, h_pad=pad)
    figure = Figure(figsize=(width, height), dpi=DPI, layout=layout, facecolor="white")
    FigureCanvasAgg(figure)
    return figure, list(figure.subplots(num_rows, 1, squeeze=False)[:, 0])


def new_figure(title: str, xlabel: str, ylabel: str) -> tuple[Figure, Axes]:
    """Return a figure with one axes."""
    figure, (axes,) = new_figures(1, height=4.5)
    dress(axes, title, xlabel, ylabel)
    return figure, axes


def dress(axes: Axes, title: str | None, xlabel: str, ylabel: str) -> None:
    """Apply the common style to axes."""
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
    """Refuse a path that a plot cannot be written to, before anything is computed for it.

    Raises
    ------
    ConfigError
        If its folder does not exist, or it is an existing file that is not a PNG.
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


def save(figure: Figure, path: Path, stamp: Stamp | None = None) -> Path:
    """Write a figure as PNG atomically, and as SVG beside it if the stamp wants one; return the PNG's path.

    Texts are drawn literally: a dollar sign starts no formula, and characters that the font lacks come from another
    installed font; a :class:`PictureWarning` names those that no font has.
    """
    stamp = stamp or Stamp()
    if stamp.text:
        lines = textwrap.fill(" ".join(stamp.text.split()), _STAMP_COLUMNS, max_lines=2, placeholder=" …")
        figure.supxlabel(lines, x=0.012, ha="left", fontsize=7.5, color=FAINT)
    literal(figure, warn=True)
    _write(figure, path, "png")
    if stamp.svg:
        _write(figure, path.with_suffix(".svg"), "svg")
    return path


def literal(figure: Figure, warn: bool) -> None:
    """Have all texts of a figure drawn literally, from fonts that have their characters.

    Parameters
    ----------
    warn
        Issue a :class:`PictureWarning` on characters that no font of this machine has.
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
    if unknown and warn:
        warnings.warn(PictureWarning(unknown_sentence(unknown)), stacklevel=3)


def write_svg(figure: Figure, file: IO[Any]) -> None:
    """Write a figure as SVG with its text as text, the same bytes for the same figure."""
    import matplotlib

    own = matplotlib.rc_context({"svg.fonttype": "none", "svg.hashsalt": "fedsim"})
    with own, warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=r"Glyph \d+ ")  # the reader's fonts draw the text
        figure.savefig(file, format="svg", metadata={"Date": None, "Creator": None})


def _write(figure: Figure, path: Path, kind: str) -> None:
    try:
        with replaced(path) as file, warnings.catch_warnings():
            warnings.filterwarnings("ignore", message=r"Glyph \d+ ")  # one warning per character
            if kind == "svg":
                write_svg(figure, file)
            else:
                figure.savefig(file, format="png", dpi=DPI)
    except OSError as error:
        raise ResourceError(f"the picture {path} cannot be written: {error.strerror or error}") from error


def attempt(draw: Callable[[Path], Path | None], path: Path, note: Callable[[str], None]) -> Path | None:
    """Draw one of a run's plots; a failure is only a warning, since the records hold the same data.

    Parameters
    ----------
    draw
        Draws to a path and returns it; None if there is nothing to draw.
    note
        Called with messages for the user.
    """
    try:
        with told(note, path):
            return draw(path)
    except Exception as error:  # matplotlib's errors share no base class
        lines = str(error).strip().splitlines() or ["no reason given"]
        reason = lines[0] if isinstance(error, FedsimError) else f"{type(error).__name__}: {lines[0]}"
        note(f"warning: the picture {path.name} is left out: {reason}")
        return None


@contextmanager
def told(note: Callable[[str], None], path: Path) -> Iterator[None]:
    """Pass on each :class:`PictureWarning` once; leave other warnings to developers."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("ignore")
        warnings.simplefilter("always", PictureWarning)
        yield
    for sentence in dict.fromkeys(str(each.message) for each in caught):
        note(f"warning: the picture {path.name}: {sentence}")


def _labels_of_axes(figure: Figure) -> set[int]:
    """Return the ids of axis tick labels: numbers, which matplotlib itself may write as formulas."""
    return {
        id(label)
        for axes in figure.axes
        for axis in (axes.xaxis, axes.yaxis)
        for label in (*axis.get_ticklabels(which="both"), axis.get_offset_text())
    }

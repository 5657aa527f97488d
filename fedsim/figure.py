"""The look that all pictures share: size, colours, axes, and how they are saved."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from fedsim.core.errors import ConfigError
from fedsim.destination import refuse_url
from fedsim.events import replaced

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

DPI = 150
_PNG = b"\x89PNG\r\n\x1a\n"
INK, FAINT, GRID = "#222222", "#777777", "#dddddd"
# Okabe and Ito (2008) for lines, Tol's "muted" scheme for classes: told apart with every kind of colour vision.
BLUE, ORANGE, GREEN, GREY = "#0072B2", "#D55E00", "#009E73", "#BBBBBB"


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
    """Write a figure as PNG at one stroke, and return its path."""
    with replaced(path) as file:
        figure.savefig(file, format="png", dpi=DPI)
    return path

"""A picture that a notebook shows and that can be saved."""

from __future__ import annotations

from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING

from fedsim.core.errors import ConfigError, ResourceError, shown, suggestion
from fedsim.display.plots import plot_bytes, plot_generated, plot_loss, plot_metric

if TYPE_CHECKING:
    import pyarrow as pa


class Picture:
    """A PNG; the last value of a notebook's cell is shown."""

    def __init__(self, png: bytes) -> None:
        self.png = png

    def save(self, path: str | Path) -> Path:
        """Write it to a file."""
        path = Path(path)
        try:
            path.write_bytes(self.png)
        except OSError as error:
            raise ResourceError(f"the picture {path} cannot be written: {error.strerror or error}") from error
        return path

    def _repr_png_(self) -> bytes:
        return self.png


def picture_of_rounds(rounds: pa.Table, what: str, metric_name: str) -> Picture:
    """Return a picture of a table of rounds.

    Raises
    ------
    ConfigError
        If ``what`` is none of metric, loss, bytes and generated, or there is nothing to draw.
    """
    plots = {
        "metric": lambda columns, path: plot_metric(columns, path, metric_name),
        "loss": plot_loss,
        "bytes": lambda columns, path: plot_bytes(columns, path, metric_name),
        "generated": plot_generated,
    }
    if what not in plots:
        raise ConfigError(f"there is no picture {shown(what)}{suggestion(what, plots)}; give one of {', '.join(plots)}")
    columns = {name: rounds[name].to_numpy() for name in rounds.column_names}
    with TemporaryDirectory(prefix="fedsim-picture-") as folder:
        path = plots[what](columns, Path(folder) / f"{what}.png")
        if path is None:
            raise ConfigError(f"there is nothing on record yet to draw the {what} of")
        return Picture(path.read_bytes())

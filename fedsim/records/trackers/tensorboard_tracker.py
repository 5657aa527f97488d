"""TensorBoard: event files in the run folder."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from fedsim.records.trackers.base import Status, TrackedRun, Tracker, needs, scalars

if TYPE_CHECKING:
    from torch.utils.tensorboard import SummaryWriter

FOLDER = "tensorboard"


class TensorBoardTracker(Tracker):
    """Writes scalars, the config and the summary as text, and pictures; files of the run itself lie beside the events."""

    can_go_back: ClassVar[bool] = True

    def __init__(self) -> None:
        super().__init__()
        self._path: Path | None = None
        self._first_round = 0
        self._open: SummaryWriter | None = None

    def check(self) -> None:
        """Refuse to start without the package tensorboard."""
        needs("tensorboard", "tensorboard", "tracking.tensorboard")

    def start(self, run: TrackedRun, config: Mapping[str, Any], resumed: str | None) -> None:
        """Set the folder of the event files, which are opened by the first event."""
        self._path = run.folder / FOLDER
        if resumed is None:
            self._writer.add_text("config", _indented(config), 0)

    def go_back(self, first_round: int) -> None:
        """Hide the events of ``first_round`` and later rounds, also those of an earlier process."""
        self._close()
        self._first_round = first_round

    def round(self, record: Mapping[str, Any]) -> None:
        """Write a round's numbers."""
        for name, value in scalars(record).items():
            self._writer.add_scalar(name, value, global_step=int(record["round"]))

    def picture(self, name: str, path: Path) -> None:
        """Write a picture."""
        import numpy as np
        from PIL import Image

        with Image.open(path) as image:
            self._writer.add_image(name, np.asarray(image.convert("RGB")), dataformats="HWC")

    def finish(self, summary: Mapping[str, Any], status: Status) -> None:
        """Write summary and status, and close the event file."""
        self._writer.add_text("status", status)
        if summary:
            self._writer.add_text("summary", _indented(summary))
        self._close()

    @property
    def _writer(self) -> SummaryWriter:
        from torch.utils.tensorboard import SummaryWriter

        if self._open is None:
            self._open = SummaryWriter(str(self._path), purge_step=self._first_round)
        return self._open

    def _close(self) -> None:
        writer, self._open = self._open, None
        if writer is not None:
            writer.close()


def _indented(values: Mapping[str, Any]) -> str:
    """Return values as a block of code in Markdown."""
    return "".join(f"    {line}\n" for line in json.dumps(values, indent=2, ensure_ascii=False).split("\n"))

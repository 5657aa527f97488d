"""Weights & Biases, online or offline."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fedsim.core.errors import FedsimError
from fedsim.records.events import plain
from fedsim.records.trackers.base import Status, TrackedRun, Tracker, needs, numbers, scalars
from fedsim.records.trackers.config import WandbConfig

if TYPE_CHECKING:
    import wandb

_EXIT_CODES = {"finished": 0, "stopped": 255, "failed": 1}
"""What W&B takes for the exit code of the program; 255 is that of an interrupted one."""


class WandbTracker(Tracker):
    """Logs to Weights & Biases; what it keeps on disk is in ``RUN/wandb``."""

    def __init__(self, config: WandbConfig, flush_seconds: float) -> None:
        super().__init__()
        self._config = config
        self._flush_seconds = flush_seconds
        self._run: wandb.Run | None = None
        self._step = 0
        """The round logged last; W&B takes no earlier one."""

    def check(self) -> None:
        """Refuse to start without the package wandb."""
        needs("wandb", "wandb", "tracking.wandb")

    def start(self, run: TrackedRun, config: Mapping[str, Any], resumed: str | None) -> str:
        """Begin a run, or continue one by its id."""
        import wandb

        mode = self._config.mode or os.environ.get("WANDB_MODE", "online")
        # Asked to log in, wandb would prompt in the terminal, from a thread, and wait.
        if mode == "online" and not wandb.login(prompt=False):
            raise FedsimError(
                "W&B has no API key; run `wandb login`, set WANDB_API_KEY, or tracking.wandb.mode=offline"
            )
        self._run = wandb.init(
            project=self._config.project,
            entity=self._config.entity,
            group=run.group,
            tags=self._config.tags,
            name=run.name,
            id=resumed,
            resume="allow" if resumed else None,
            mode=self._config.mode,
            dir=str(run.folder),
            config={**config, "fedsim": dict(run.about)},
            allow_val_change=True,
            reinit="create_new",  # a process may have several runs at once
            settings=wandb.Settings(
                console="off",
                silent=True,
                disable_git=True,
                disable_code=True,
                save_code=False,
                finish_timeout=self._flush_seconds,
                finish_timeout_raises=True,
            ),
        )
        self._step = self._run.step if resumed else 0
        return str(self._run.id)

    @property
    def _going(self) -> wandb.Run:
        assert self._run is not None
        return self._run

    def round(self, record: Mapping[str, Any]) -> None:
        """Log a round as a step."""
        if record["round"] >= self._step:
            self._step = int(record["round"])
            self._going.log(scalars(record), step=self._step)

    def picture(self, name: str, path: Path) -> None:
        """Log a picture."""
        import wandb

        # At the last round: a step of its own would be that of the next round, if the run goes on some day.
        self._going.log({f"plots/{name}": wandb.Image(str(path))}, step=self._step)

    def artifact(self, path: Path) -> None:
        """Log a file as an artifact of type ``prompt``."""
        import wandb

        artifact = wandb.Artifact(f"{self._going.id}-{path.stem}", type="prompt")
        # Read where it lies, not from a copy in the home folder.
        artifact.add_file(str(path), name=path.name, policy="immutable", skip_cache=True)
        self._going.log_artifact(artifact)

    def finish(self, summary: Mapping[str, Any], status: Status) -> None:
        """Write the summary and end the run."""
        run = self._going
        run.summary.update({"status": status, **numbers(plain(summary))})
        run.finish(exit_code=_EXIT_CODES[status])

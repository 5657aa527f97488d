"""What a run is made of and writes to."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

from fedsim.configuration.schema import Config
from fedsim.display.progress import Progress
from fedsim.executors.base import Executor
from fedsim.records.run_folder import RunFolder, TensorBoard
from fedsim.simulation.client_failures import Failures
from fedsim.simulation.preparation import Prepared
from fedsim.simulation.round import Draw


@dataclass(frozen=True)
class RunContext:
    """What a run is made of and writes to: the same from its start to its end."""

    config: Config
    prepared: Prepared
    """Data, shards and weights; see :func:`fedsim.simulation.preparation.prepare`."""
    executor: Executor
    """Not yet started; the caller closes it."""
    folder: RunFolder
    """Where records go."""
    progress: Progress
    """What the user sees."""
    tensorboard: TensorBoard | None = None

    @cached_property
    def draw(self) -> Draw:
        """How rounds are drawn."""
        return Draw.of(self.config, self.prepared.spec.shards.train_sizes)

    @cached_property
    def failures(self) -> Failures:
        """Handles clients that fail."""
        return Failures(self.config.client.on_failure, self.folder.event, self.progress.note)

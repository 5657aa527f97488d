"""The context of a run: config, data, executor, and outputs."""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import cached_property

from fedsim.configuration.schema import Config
from fedsim.display.page.live_page import LivePage
from fedsim.display.progress import Progress
from fedsim.executors.base import Executor
from fedsim.records.run_folder import RunFolder
from fedsim.records.trackers.trackers import Trackers
from fedsim.simulation.client_failures import Failures
from fedsim.simulation.preparation import Prepared
from fedsim.simulation.privacy import privacy_plan
from server.privacy.plan import PrivacyPlan


@dataclass(frozen=True)
class RunContext:
    """Parts and outputs of a run, fixed from its start to its end."""

    config: Config
    prepared: Prepared
    """Data, shards and weights; see :func:`fedsim.simulation.preparation.prepare`."""
    executor: Executor
    """Not yet started; the caller closes it."""
    folder: RunFolder
    """Run folder, for the records."""
    progress: Progress
    """Display for the user."""
    trackers: Trackers = field(default_factory=Trackers)
    """Services that are told of the run."""
    page: LivePage | None = None
    """The page that is written while the run goes on."""

    @cached_property
    def privacy(self) -> PrivacyPlan | None:
        """What makes the run private; None if nothing does."""
        return privacy_plan(self.config)

    @cached_property
    def failures(self) -> Failures:
        """Handles client failures."""
        return Failures(self.config.client.on_failure, self.folder.event, self.progress.note)

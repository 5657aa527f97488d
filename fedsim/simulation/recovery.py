"""Recovery from lost state, and the save when a run ends early.

When state is lost with a node or the aggregator, the run goes back to the state that the round started from if all of it
is still available, else to the last checkpoint. Repeated rounds have the same bits.
"""

from __future__ import annotations

from dataclasses import replace

from fedsim.core.errors import FedsimError, ResourceError
from fedsim.executors.base import StateLost
from fedsim.records.checkpoint import Checkpoint, load_latest, newest_round
from fedsim.records.round_record import RoundRecord
from fedsim.simulation.context import RunContext
from fedsim.simulation.federation import Federation
from fedsim.simulation.journal import Journal


class Recovery:
    """Starts a run, recovers it after a loss, and saves its last complete state when it ends early.

    Parameters
    ----------
    begin_from
        Checkpoint to continue from; None for the start of the run.
    """

    def __init__(
        self, run: RunContext, federation: Federation, journal: Journal, begin_from: Checkpoint | None
    ) -> None:
        self._run = run
        self._federation = federation
        self._journal = journal
        self._begin_from = begin_from
        self._losses = 0
        """Losses of state since the last new round was recorded."""
        self._furthest_round = 0
        if begin_from is not None:
            run.folder.event("resumed", round=begin_from.round)

    def set_out(self) -> None:
        """Set server and clients to the state that the run continues from."""
        checkpoint = self._begin_from
        self._federation.set_out(checkpoint)
        if checkpoint is not None:
            self._journal.restore(checkpoint)
        self._begin_from = None  # frees its arrays: the run now has its own copies
        self._journal.evaluate_start()

    def is_new(self, record: RoundRecord | None) -> bool:
        """Whether a round is recorded for the first time; repeated rounds count neither as records nor as progress."""
        if record is None or record.round <= self._furthest_round:
            return False
        self._furthest_round, self._losses = record.round, 0
        return True

    def fall_back(self, loss: StateLost) -> None:
        """Choose the state to continue from after a loss; :meth:`set_out` then restores it.

        Raises
        ------
        ResourceError
            If state was lost more often than ``ray.max_replacements`` allows.
        """
        run, federation = self._run, self._federation
        self._losses += 1
        if self._losses > run.config.ray.max_replacements:
            raise ResourceError(
                f"{loss}, {self._losses} times in one round, more than ray.max_replacements allows; continue with --resume"
            )
        run.progress.note(f"warning: {loss}; going back to the last state available")
        run.executor.recover()
        if not federation.whole:
            return  # lost again before it was restored: try the same state again
        checkpoint = self._what_is_left()
        if checkpoint is not None:
            # Keep this process's clock: the checkpoint's time only runs up to its saving.
            totals = {**checkpoint.totals, "seconds_before": self._journal.totals.seconds_before}
            checkpoint = replace(checkpoint, totals=totals)
        run.folder.truncate(federation.round + 1)
        run.trackers.go_back(federation.round + 1)
        run.folder.event("recovered", round=federation.round, reason=str(loss))
        run.progress.note(f"continuing from the state after round {federation.round}")
        self._begin_from = checkpoint

    def _what_is_left(self) -> Checkpoint | None:
        """Return the state after the last round if all of it is available, else the last checkpoint, if any."""
        try:
            return self._journal.checkpoint()
        except StateLost:
            checkpoint, _ = load_latest(self._run.folder.checkpoints)
        self._journal.go_back(checkpoint)
        if checkpoint is None:
            self._federation.begin_anew()
        else:
            self._federation.round = checkpoint.round
        return checkpoint

    def save_what_is_whole(self) -> None:
        """Record and save the last round before the run ends early."""
        if not self._federation.whole:
            return
        try:
            self._journal.close()
            self._journal.save_if_due(force=True)
        except (StateLost, FedsimError) as error:
            saved = newest_round(self._run.folder.checkpoints)
            self._run.progress.note(
                f"warning: the state after round {self._federation.round} cannot be saved ({error}); "
                + ("no earlier state is saved" if saved is None else f"the last one saved is that after round {saved}")
            )

"""What state is whole, and where a run goes back to when some is lost.

State that is lost with a node or the aggregator takes the run back to what is left of it: the state that the round started
from, where all of it can still be had, else the last checkpoint. Rounds that are done again have the same bits.
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
    """Sets a run out, brings it back after a loss, and saves what is whole when it ends early.

    Parameters
    ----------
    begin_from
        The checkpoint to go on from; None for the start of the run.
    """

    def __init__(
        self, run: RunContext, federation: Federation, journal: Journal, begin_from: Checkpoint | None
    ) -> None:
        self._run = run
        self._federation = federation
        self._journal = journal
        self._begin_from = begin_from
        self._losses = 0
        """Times that state was lost since a round was recorded for the first time."""
        self._furthest_round = 0
        if begin_from is not None:
            run.folder.event("resumed", round=begin_from.round)

    def set_out(self) -> None:
        """Bring server and clients to where the run goes on from."""
        checkpoint = self._begin_from
        self._federation.set_out(checkpoint)
        if checkpoint is not None:
            self._journal.restore(checkpoint)
        self._begin_from = None  # its arrays lie in the store, and the run has copies of its own now
        self._journal.evaluate_start()

    def is_new(self, record: RoundRecord | None) -> bool:
        """Whether a round is on record for the first time: rounds that are done again are none, and no progress."""
        if record is None or record.round <= self._furthest_round:
            return False
        self._furthest_round, self._losses = record.round, 0
        return True

    def fall_back(self, loss: StateLost) -> None:
        """Decide what to go on from after a loss; :meth:`set_out` goes there.

        Raises
        ------
        ResourceError
            If state was lost more often than ``ray.max_replacements`` allows.
        """
        run, federation = self._run, self._federation
        self._losses += 1
        if self._losses > run.config.ray.max_replacements:
            raise ResourceError(
                f"{loss}, {self._losses} times in one round; see ray.max_replacements; go on with --resume"
            )
        run.progress.note(f"warning: {loss}; going back to what is left")
        run.executor.recover()
        if not federation.whole:
            return  # it has not set out again yet: as before
        checkpoint = self._what_is_left()
        if checkpoint is not None:
            # This process's own time goes on; that of a checkpoint is counted up to its saving.
            totals = {**checkpoint.totals, "seconds_before": self._journal.totals.seconds_before}
            checkpoint = replace(checkpoint, totals=totals)
        run.folder.truncate(federation.round + 1)
        if run.tensorboard is not None:
            run.tensorboard.go_back(federation.round + 1)
        run.folder.event("recovered", round=federation.round, reason=str(loss))
        run.progress.note(f"going on from the state after round {federation.round}")
        self._begin_from = checkpoint

    def _what_is_left(self) -> Checkpoint | None:
        """Return the state after the last round, if all of it is there, else the last checkpoint, if any."""
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
                + ("no other one is saved" if saved is None else f"saved is that after round {saved}")
            )

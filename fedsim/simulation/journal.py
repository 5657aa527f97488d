"""The rounds of a run as they come to be on record: open until they are evaluated, then recorded, shown and saved.

An evaluation may be done beside the training of the next round, which starts from the very state that is evaluated. Until the
server steps again, that state is still the one of the round that is recorded and saved.
"""

from __future__ import annotations

import time
from dataclasses import replace

from fedsim.core.messages import Evaluation
from fedsim.data.metrics import compute
from fedsim.display.progress import RoundLine
from fedsim.executors.base import EvaluatedShard, StateLost
from fedsim.records.checkpoint import Checkpoint, save_checkpoint
from fedsim.records.round_record import RoundRecord
from fedsim.simulation.best_state import BestState
from fedsim.simulation.context import RunContext
from fedsim.simulation.evaluations import Evaluations
from fedsim.simulation.federation import Federation
from fedsim.simulation.open_round import Evaluated, OpenRound, mean_loss
from fedsim.simulation.round import Round
from fedsim.simulation.stopping import Stopped, rule_that_applies
from fedsim.simulation.totals import Totals


class Journal:
    """Evaluates rounds, puts them on record, and saves the run's state.

    Parameters
    ----------
    federation
        Whose rounds these are.
    saved_round
        Round of the checkpoint that the run goes on from, 0 for none.
    started
        Monotonic time at which this process began with the run: the start of the workers counts.

    Attributes
    ----------
    open
        The last round, as long as it is not on record.
    totals
        Figures of all rounds on record.
    first_group_at
        Monotonic time when this process had trained its first work group.
    """

    def __init__(self, run: RunContext, federation: Federation, saved_round: int, started: float) -> None:
        self._run = run
        self._federation = federation
        self._evaluations = Evaluations(run.config, run.prepared.spec, run.executor, run.failures, run.progress.note)
        self._saved_round = saved_round
        self._started = started
        self._best = BestState(run, federation)
        self._start_is_evaluated = False
        self.totals = Totals()
        self.open: OpenRound | None = None
        self.first_group_at: float | None = None

    @property
    def can_wait(self) -> bool:
        """Whether the last round can stay open until it is evaluated beside the training of the next one."""
        return self._evaluations.can_wait(self._federation.round)

    @property
    def seconds(self) -> float:
        """Seconds of the run, those of its earlier parts included, the pauses between them not."""
        return self.totals.seconds_before + time.monotonic() - self._started

    @property
    def rule(self) -> Stopped | None:
        """The rule of the config that asks the run to end by what is on record."""
        return rule_that_applies(self._run.config, self.totals, self.seconds)

    # -- rounds ------------------------------------------------------------------------------------------------------

    def evaluate_start(self) -> None:
        """Evaluate the state before any training, once."""
        if self._federation.round or self._start_is_evaluated:
            return
        run, metric = self._run, self._run.prepared.data.task.metric
        run.progress.start_phase("evaluating the start")
        evaluation = self._evaluations.of_state(self._federation.state, 0)
        figures = {"global_metric": compute(metric, evaluation.confusion_CC), "global_loss": mean_loss(evaluation)}
        self.totals.initial_metric = self.totals.global_metric = figures["global_metric"]
        self._start_is_evaluated = True
        run.folder.event("start", round=0, **figures)
        run.folder.round_record({"round": 0, **figures})
        run.progress.start(figures["global_metric"], figures["global_loss"])

    def train(self, round: Round) -> RoundRecord | None:
        """Train a round, and evaluate the round before beside it if that is still open; return what is on record of that."""
        run, federation = self._run, self._federation
        shards = self._evaluations.shards if self.open is not None else []
        evaluated: dict[int, Evaluation] = {}
        clients, done = len(round.answers.in_time), 0
        for result in round.train(federation.state, federation.clients, shards):
            if isinstance(result, EvaluatedShard):
                evaluated[result.index] = result.evaluation
                continue
            if self.first_group_at is None:
                self.first_group_at = time.monotonic()
                run.folder.event("first_group", round=round.number + 1)
            done += len(result.reports)
            run.progress.clients_done(round.number + 1, done, clients)
        if self.open is None:
            return None
        evaluation = self._evaluations.total([evaluated[index] for index in range(len(shards))], federation.round)
        return self._record(self.open, Evaluated(evaluation, seconds=time.monotonic() - round.trained_at))

    def close(self) -> RoundRecord | None:
        """Evaluate the last round if it is still open; return what is on record of it then."""
        if self.open is None:
            return None
        started = time.monotonic()
        # A state without its record could not be resumed to the same records, so an interrupt waits for the evaluation.
        with self._run.executor.uninterrupted():
            due, state, round = self._evaluations, self._federation.state, self._federation.round
            evaluation = due.of_state(state, round) if due.is_due(round) else None
            holdout = due.of_holdout(state, round) if due.of_holdout_is_due(round) else None
            personalised = self.personalised() if due.of_clients_is_due(round) else None
        seconds = time.monotonic() - started
        return self._record(self.open, Evaluated(evaluation, personalised, holdout, seconds))

    def end(self) -> None:
        """Save a run that stops early as one is saved at its end, and evaluate what it ends with if that is still to be done.

        That evaluation is not on record: the run may be resumed, and then has the records of one that was not stopped.
        """
        self.save_if_due(force=True)
        self._best.write()
        round = self._federation.round
        if round and not self._evaluations.is_due(round):
            evaluation = self._evaluations.of_state(self._federation.state, round)
            metric = compute(self._run.prepared.data.task.metric, evaluation.confusion_CC)
            self.totals = replace(self.totals, global_metric=metric)

    def personalised(self) -> Evaluation | None:
        """Evaluate the clients' own prompts; None if no client held examples out."""
        federation = self._federation
        return self._evaluations.of_clients(federation.state, federation.clients, federation.round)

    def _record(self, done: OpenRound, evaluated: Evaluated) -> RoundRecord:
        """Put a round on record and save it: nothing that comes after it has changed the state yet."""
        self.open = None
        run, metric = self._run, self._run.prepared.data.task.metric
        record = done.record(metric, evaluated, run.executor.replaced_workers)
        self.totals.count(done.reports, record, run.config.evaluation.select_on)
        self._best.note(self.totals.selected_round)
        run.folder.round_record(record.row())
        if run.config.tracking.client_records:
            run.folder.client_records(done.round, done.reports)
        for name, clients in (("absent", done.answers.absent), ("late", done.answers.late)):
            if clients:
                run.folder.event(name, round=done.round, clients=clients)
        run.folder.event("round", **record.event())
        if run.tensorboard is not None:
            run.tensorboard.round(record.row())
        run.progress.round(_line(record))
        self.save_if_due()
        return record

    # -- checkpoints -------------------------------------------------------------------------------------------------

    def save_if_due(self, *, force: bool = False) -> None:
        """Save the state after the last round, if it is not saved and due by ``checkpoint.every``, or if told to."""
        run, round = self._run, self._federation.round
        due = force or round == run.config.rounds or round % run.config.checkpoint.every == 0
        if not due or round in (0, self._saved_round):
            return
        checkpoint = self.checkpoint()
        run.folder.flush()
        self._best.write()
        save_checkpoint(run.folder.checkpoints, checkpoint, run.config.checkpoint.keep)
        run.folder.checkpointed()
        self._saved_round = round

    def checkpoint(self) -> Checkpoint:
        """Return the state after the last round.

        Raises
        ------
        StateLost
            If the server or some client's state is gone.
        """
        run, federation = self._run, self._federation
        server = run.executor.server.arrays()
        if int(server["round"]) != federation.round:
            raise StateLost(f"the server's state is that after round {int(server['round'])}, not {federation.round}")
        return Checkpoint(
            round=federation.round,
            layers=federation.choice.layers,
            config=run.config.identity_values,
            contents=run.prepared.contents,
            server=server,
            clients=tuple(federation.client_states()),
            totals={**vars(self.totals), "seconds_before": self.seconds},
            fuse=federation.fuse,
            best_F=self._best.vector_F(),
        )

    def restore(self, checkpoint: Checkpoint) -> None:
        """Take over the figures of a checkpoint."""
        self.totals = Totals(**checkpoint.totals)
        self._best.restore(self.totals.selected_round, checkpoint.best_F)

    def go_back(self, checkpoint: Checkpoint | None) -> None:
        """Forget the rounds after a checkpoint, or all of them."""
        self.open = None
        self._saved_round = 0 if checkpoint is None else checkpoint.round
        if checkpoint is None:
            self.totals = self.totals.anew()
            self._best.restore(None, None)


def _line(record: RoundRecord) -> RoundLine:
    """Return what is shown of a round on record."""
    return RoundLine(
        round=record.round,
        metric=record.global_metric,
        loss=record.train_loss_last,
        clients_ok=record.clients_ok,
        clients_failed=record.clients_failed,
        clients_retried=record.clients_retried,
        seconds=record.seconds_round,
        bytes_up=record.bytes_up,
        bytes_down=record.bytes_down,
    )

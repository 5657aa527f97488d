"""The journal of a run: each round is open until it is evaluated, then recorded, shown and saved.

The evaluation may overlap the training of the next round, which starts from the same state. That state stays valid for
recording and saving until the server steps again.
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import replace

from fedsim.core.messages import Evaluation
from fedsim.data.metrics import compute
from fedsim.display.round_line import RoundLine, main_metric
from fedsim.executors.base import EvaluatedShard, StateLost
from fedsim.records.checkpoint import Checkpoint, save_checkpoint
from fedsim.records.round_record import RoundRecord
from fedsim.simulation.best_state import BestState
from fedsim.simulation.context import RunContext
from fedsim.simulation.evaluations import Evaluations
from fedsim.simulation.federation import Federation
from fedsim.simulation.final import FinalEvaluations, evaluate_end
from fedsim.simulation.generations import Generations, Rows
from fedsim.simulation.open_round import Evaluated, OpenRound, mean_loss
from fedsim.simulation.round import Round
from fedsim.simulation.stopping import Stopped, rule_that_applies
from fedsim.simulation.totals import Totals
from fedsim.world.buffered import BufferedStep


class Journal:
    """Evaluates and records rounds, and saves the state of the run.

    Parameters
    ----------
    federation
        Server and client state to evaluate and save.
    saved_round
        Round of the checkpoint that the run continues from; 0 for none.
    started
        Monotonic time at which this process began the run, before its workers started.

    Attributes
    ----------
    open
        The last round, until it is recorded.
    totals
        Figures of all recorded rounds.
    first_group_at
        Monotonic time at which this process finished training its first work group.
    """

    def __init__(self, run: RunContext, federation: Federation, saved_round: int, started: float) -> None:
        self._run = run
        self._federation = federation
        self._evaluations = Evaluations(run.config, run.prepared.spec, run.executor, run.failures, run.progress.note)
        self._generations = Generations.of(run)
        self._saved_round = saved_round
        self._started = started
        self._best = BestState(run, federation)
        self._start_is_evaluated = False
        self.totals = Totals()
        self.open: OpenRound | None = None
        self.first_group_at: float | None = None

    @property
    def can_wait(self) -> bool:
        """Whether the last round can stay open and be evaluated while the next one trains."""
        round = self._federation.round
        return self._evaluations.can_wait(round) and not self._writes(round)

    @property
    def seconds(self) -> float:
        """Running time in seconds, counted across resumes without the pauses between them."""
        return self.totals.seconds_before + time.monotonic() - self._started

    @property
    def rule(self) -> Stopped | None:
        """The stop rule that applies to the recorded rounds, if any."""
        return rule_that_applies(self._run.config, self.totals, self.seconds, self._run.privacy)

    # -- rounds ------------------------------------------------------------------------------------------------------

    def evaluate_start(self) -> None:
        """Evaluate the state before any training, once; with ``evaluation.overlap`` while the first round trains.

        An evaluation of an earlier run with the same state is recorded at once.
        """
        if not self._start_is_due:
            return
        state = self._federation.state
        evaluation = self._evaluations.kept_start(state, self._federation.computed)
        if evaluation is None:
            if self._run.config.evaluation.overlap and not self._writes(0):
                return
            self._run.progress.start_phase("evaluating the start")
            evaluation = self._evaluations.of_state(state, 0)
            self._evaluations.keep_start(evaluation)
        self._record_start(evaluation, self._written(0))

    @property
    def _start_is_due(self) -> bool:
        return self._federation.round == 0 and not self._start_is_evaluated

    def _record_start(self, evaluation: Evaluation, written: Rows = ()) -> None:
        run, metric = self._run, self._run.prepared.data.task.metric
        figures = {"global_metric": compute(metric, evaluation.confusion_CC), "global_loss": mean_loss(evaluation)}
        texts = {} if self._generations is None else self._generations.record(written, 0)
        self.totals.initial_metric = self.totals.global_metric = figures["global_metric"]
        self.totals.initial_loss = self.totals.global_loss = figures["global_loss"]
        self._start_is_evaluated = True
        run.folder.event("start", round=0, **figures)
        run.folder.round_record({"round": 0, **figures, **texts})
        run.trackers.round({"round": 0, **figures, **texts})
        run.progress.start(figures["global_metric"], figures["global_loss"], self._main(texts))

    def train(self, round: Round) -> RoundRecord | None:
        """Train a round and evaluate the state that it starts from alongside, if that is still to do.

        That is the start, or the previous round while it is open, whose record is returned. The first record of a run comes
        as early as possible: the first round is evaluated before the second one trains.
        """
        run, federation = self._run, self._federation
        shards = self._evaluations.shards if self.open is not None or self._start_is_due else []
        evaluated: dict[int, Evaluation] = {}
        record = None
        clients, done = round.clients, 0
        results = round.train(federation.state, federation.clients, shards, evaluate_first=federation.round == 1)
        for result in results:
            if isinstance(result, EvaluatedShard):
                evaluated[result.index] = result.evaluation
                if len(evaluated) == len(shards):
                    record = self._record_state([evaluated[index] for index in range(len(shards))], round)
                continue
            if self.first_group_at is None:
                self.first_group_at = time.monotonic()
                run.folder.event("first_group", round=round.number + 1)
            done += len(result.reports)
            run.progress.clients_done(round.number + 1, done, clients)
        return record

    def _record_state(self, evaluations: Sequence[Evaluation], round: Round) -> RoundRecord | None:
        """Record the state that a round under way starts from; return the record if it is that of a round."""
        evaluation = self._evaluations.total(evaluations, self._federation.round)
        if self.open is None:
            self._evaluations.keep_start(evaluation)
            self._record_start(evaluation)
            return None
        return self._record(self.open, Evaluated(evaluation, seconds=time.monotonic() - round.trained_at))

    def close(self) -> RoundRecord | None:
        """Evaluate the last round if it is still open, and return its record."""
        if self.open is None:
            return None
        started = time.monotonic()
        # A state without its record could not be resumed to the same records, so an interrupt waits for the evaluation.
        with self._run.executor.uninterrupted():
            due, state, round = self._evaluations, self._federation.state, self._federation.round
            evaluation = due.of_state(state, round) if due.is_due(round) else None
            holdout = due.of_holdout(state, round) if due.of_holdout_is_due(round) else None
            personalised = self.personalised() if due.of_clients_is_due(round) else None
            rows = self._written(round)
        seconds = time.monotonic() - started
        return self._record(self.open, Evaluated(evaluation, personalised, holdout, seconds, rows))

    def _writes(self, round: int) -> bool:
        """Whether the global model writes after a round, 0 for the start."""
        return self._generations is not None and self._generations.is_due(round)

    def _written(self, round: int) -> Rows:
        """Let the global model write after a round, if it does then."""
        if self._generations is None or not self._writes(round):
            return ()
        if round == 0:
            self._run.progress.start_phase("writing responses before any training")
        return self._generations.of_state(self._federation.state, round)

    def _main(self, texts: Mapping[str, float | None]) -> tuple[str, float] | None:
        """Return name and value of the main text metric among the columns of a round, if it is there."""
        return None if self._generations is None else main_metric(texts, self._generations.metrics)

    def end(self) -> None:
        """Save the final state, also after an early stop, and evaluate it if that is still to do.

        This evaluation is not recorded, so that a resumed run has the same records as one that was never stopped.
        """
        if self._start_is_due:  # stopped before the first round
            self._record_start(self._evaluations.of_state(self._federation.state, 0), self._written(0))
        self.save_if_due(force=True)
        self._best.write()
        round = self._federation.round
        if round and not self._evaluations.is_due(round):
            evaluation = self._evaluations.of_state(self._federation.state, round)
            metric = compute(self._run.prepared.data.task.metric, evaluation.confusion_CC)
            self.totals = replace(self.totals, global_metric=metric, global_loss=mean_loss(evaluation))

    def personalised(self) -> Evaluation | None:
        """Evaluate the clients' own prompts; None if no client has held-out examples."""
        federation = self._federation
        return self._evaluations.of_clients(federation.state, federation.clients, federation.round)

    def final(self) -> FinalEvaluations:
        """Evaluate what is evaluated once, at the end."""
        return evaluate_end(
            self._run.config.evaluation, self._evaluations, self._federation, self._best, self._generations
        )

    def _record(self, done: OpenRound, evaluated: Evaluated) -> RoundRecord:
        """Record a round and save it; nothing later has changed the state yet."""
        self.open = None
        run, metric = self._run, self._run.prepared.data.task.metric
        epsilon = None if run.privacy is None else run.privacy.accounting.epsilon(done.round)
        texts = {} if self._generations is None else self._generations.record(evaluated.generated, done.round)
        record = done.record(metric, evaluated, run.executor.replaced_workers, epsilon, texts)
        self.totals.count(done.reports, record, run.config.evaluation.select_on)
        self._best.note(self.totals.selected_round)
        run.folder.round_record(record.row())
        if run.config.tracking.client_records:
            self._record_clients(done)
        for name, clients in (("absent", done.plan.absent), ("late", done.plan.late)):
            if clients:
                run.folder.event(name, round=done.round, clients=clients)
        run.folder.event("round", **record.event())
        run.executor.recorded(record)
        run.trackers.round(record.row())
        run.progress.round(RoundLine.of(record.event(), self._main(texts)))
        self.save_if_due()
        if run.page is not None:
            run.page.round_done()
        return record

    def _record_clients(self, done: OpenRound) -> None:
        """Record the round's clients, with their visits where a clock or a buffer makes them differ."""
        folder, plan, devices = self._run.folder, done.plan, self._federation.draw.devices
        told = devices is not None or isinstance(plan, BufferedStep)
        folder.client_records(done.round, done.reports, plan.visits if told else ())
        if devices is not None:
            failed = {report.client for report in done.reports if report.failure is not None}
            folder.visit_records(done.round, (*plan.visits, *plan.aside), devices, failed)

    # -- checkpoints -------------------------------------------------------------------------------------------------

    def save_if_due(self, *, force: bool = False) -> None:
        """Save the state after the last round if it is unsaved and due by ``checkpoint.every``, or if forced."""
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
            If the server's or a client's state is lost.
        """
        run, federation = self._run, self._federation
        server = run.executor.server.arrays()
        if int(server["round"]) != federation.round:
            raise StateLost(f"the server holds the state after round {int(server['round'])}, not {federation.round}")
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
            learned=federation.draw.schedule.losses.arrays(federation.round),
        )

    def restore(self, checkpoint: Checkpoint) -> None:
        """Restore the figures from a checkpoint."""
        self.totals = Totals(**checkpoint.totals)
        self._best.restore(self.totals.selected_round, checkpoint.best_F)

    def go_back(self, checkpoint: Checkpoint | None) -> None:
        """Discard the rounds after a checkpoint, or all rounds if there is none."""
        self.open = None
        self._saved_round = 0 if checkpoint is None else checkpoint.round
        if checkpoint is None:
            self.totals = self.totals.anew()
            self._best.restore(None, None)

"""The round loop, readable from top to bottom.

A run:  start workers -> choose layers -> start the server -> rounds -> personalised evaluation -> results.
A round: draw the cohort -> cut it into work groups -> train -> the server folds and steps -> evaluate -> record -> save.

An evaluation may be done beside the training of the next round, which starts from the very state that is evaluated. Until the
server steps again, that state is still the one of the round that is recorded and saved.

State that is lost with a node or the aggregator takes the run back to what is left of it: the state that the round started
from, where all of it can still be had, else the last checkpoint. Rounds that are done again have the same bits.

The driver passes references on and never touches a tensor, except to save checkpoints and the final prompt.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from clients.training.local_job import num_trained
from clients.tuners.initial import initial_vector
from clients.worker import WorkerInfo
from fedsim.configuration.schema import Config
from fedsim.configuration.text import config_text
from fedsim.core.errors import FedsimError, ResourceError
from fedsim.core.layout import VectorLayout
from fedsim.core.messages import ClientState, Evaluation, GlobalState, WorkGroup
from fedsim.data.metrics import compute
from fedsim.display.progress import Progress
from fedsim.executors.base import EvaluatedShard, Executor, Handle, StateLost, TrainedGroup
from fedsim.records.checkpoint import Checkpoint, load_latest, newest_round, save_checkpoint
from fedsim.records.run_folder import RunFolder, TensorBoard
from fedsim.simulation.client_failures import Failures
from fedsim.simulation.client_states import ClientStates
from fedsim.simulation.evaluations import Evaluations
from fedsim.simulation.fusing import choose_fuse, with_fuse
from fedsim.simulation.interrupt import RunInterrupted
from fedsim.simulation.layer_choice import LayerChoice, choose, start_workers
from fedsim.simulation.preparation import Prepared
from fedsim.simulation.result import Result
from fedsim.simulation.round import OpenRound, Totals, mean_loss, memory_warning, round_line
from server.aggregation import population_weight
from server.availability import answers
from server.sampling import cohort, cut


class Simulation:
    """Runs federated prompt tuning as a config describes it.

    Parameters
    ----------
    prepared
        Data, shards and weights; see :func:`fedsim.simulation.preparation.prepare`.
    executor
        Not yet started; the caller closes it.
    folder
        Where records go.
    progress
        What the user sees.
    """

    def __init__(
        self,
        config: Config,
        prepared: Prepared,
        executor: Executor,
        folder: RunFolder,
        progress: Progress,
        tensorboard: TensorBoard | None = None,
    ) -> None:
        self._config = config
        self._prepared = prepared
        self._executor = executor
        self._folder = folder
        self._progress = progress
        self._tensorboard = tensorboard
        self._sizes_N = prepared.spec.shards.train_sizes
        self._work_N = np.array([num_trained(config.client, int(size)) for size in self._sizes_N])
        self._states = ClientStates(config.partition.population)
        self._totals = Totals()
        self._failures = Failures(config.client.on_failure, folder.event, progress.note)
        self._evaluations = Evaluations(config, prepared.spec, executor, self._failures, progress.note)
        self._choice: LayerChoice | None = None
        self._state: Handle = None
        """The global state that the next round starts from: the one object that is broadcast."""
        self._fuse: int | None = None
        self._start_is_evaluated = False
        self._round = 0
        self._open_round: OpenRound | None = None
        """The last round, as long as it is not on record."""
        self._saved_round = -1
        self._sets_out = True
        """Server and clients do not hold the state after the last round yet, or not again."""
        self._losses = 0
        """Times that state was lost since a round was recorded for the first time."""
        self._furthest_round = 0
        self._resent_clients = 0
        """Those that the executor had counted when the last round stepped."""
        self._begun_round = 0
        """The furthest round whose training has begun, counted from 1."""
        self._started = time.monotonic()
        self._first_group_at: float | None = None

    # -- the run -----------------------------------------------------------------------------------------------------

    def run(self, checkpoint: Checkpoint | None = None) -> Result:
        """Run all rounds, from a checkpoint if one is given.

        Raises
        ------
        RunInterrupted
            After a signal; the state has been saved.
        FedsimError
            On any mistake of the user, lost cluster, or failing client (``client.on_failure: raise``).
        """
        workers = start_workers(self._config, self._prepared, self._executor, self._progress)
        full = workers[0].full
        try:
            if checkpoint is not None:
                self._folder.event("resumed", round=checkpoint.round)
                self._saved_round = checkpoint.round
            state, personalised, personal = self._run_through(workers, checkpoint)
        except (RunInterrupted, FedsimError):
            # They come at points between rounds or before a server step, where the last round's state is whole.
            self._save_what_is_whole()
            raise
        assert self._choice is not None
        return Result(
            self._choice,
            full.exchanged(self._choice.layers),
            state,
            self._totals,
            personalised,
            personal,
            workers,
            self._seconds(),
            self._first_group_at,
        )

    def _run_through(
        self, workers: list[WorkerInfo], checkpoint: Checkpoint | None
    ) -> tuple[GlobalState, Evaluation | None, list[ClientState]]:
        """Run to the end, whatever is lost on the way; return the last state, the personalised evaluation, personal states."""
        while True:
            try:
                self._set_out(workers, checkpoint)
                checkpoint = None  # its arrays lie in the store, and the run has copies of its own now
                if not self._evaluations.can_wait(self._round):
                    self._close_round()  # one that was left open by a loss
                while self._round < self._config.rounds:
                    self._run_round()
                self._progress.start_phase("personalised evaluation")
                personalised = self._evaluations.of_clients(self._state, self._states, self._round)
                (state,) = self._executor.get([self._state])
                return state, personalised, self._client_states() if self._config.layers.unselected == "local" else []
            except StateLost as loss:
                checkpoint = self._fall_back(loss, checkpoint)

    def _set_out(self, workers: list[WorkerInfo], checkpoint: Checkpoint | None) -> None:
        """Bring server and clients to the state that a checkpoint holds, or that a run starts from."""
        full = workers[0].full
        self._sets_out = True
        if self._choice is None:
            self._choice = self._choose_layers(full, checkpoint)
        self._start_server(full.exchanged(self._choice.layers), checkpoint)
        if self._fuse is None:
            self._share_passes(workers, checkpoint)
        self._sets_out = False
        if self._round == 0 and not self._start_is_evaluated:
            self._evaluate_start()

    def _client_states(self) -> list[ClientState]:
        """Return the states of all clients that have trained, ascending."""
        return self._executor.get(list(self._states.trained().values()))

    def _choose_layers(self, full: VectorLayout, checkpoint: Checkpoint | None) -> LayerChoice:
        if checkpoint is not None:
            return LayerChoice(checkpoint.layers, full.geometry.num_layers)
        start, progress = self._prepared.spec.start, self._progress
        choice = choose(self._config, self._executor, full, self._sizes_N, progress.start_phase, start, progress.note)
        for spectrum in choice.spectra():
            self._folder.event("spectrum", round=0, **spectrum)
        self._folder.event("layers", **choice.record())
        return choice

    def _start_server(self, layout: VectorLayout, checkpoint: Checkpoint | None) -> None:
        config = self._config
        vector_F = initial_vector(layout, config.prompt, config.model.head, config.seed, self._prepared.spec.start)
        vector_F = vector_F.astype(config.model.exchange_dtype)
        sample_rate = config.sampling.clients_per_round / config.partition.population
        weight, rule = population_weight(config.server.weighting, self._sizes_N), config.server.rule()
        self._executor.server.start(config.method, vector_F, layout.layers, sample_rate, weight, rule)
        if checkpoint is not None:
            self._executor.server.load_arrays(checkpoint.server)
            self._states.restore(checkpoint.clients, self._executor)
            self._totals = Totals(**checkpoint.totals)
            self._round = checkpoint.round
        self._state = self._executor.server.global_state()

    def _share_passes(self, workers: Sequence[WorkerInfo], checkpoint: Checkpoint | None) -> None:
        """Settle how many clients train together, and what of the backbone's lower layers is kept."""
        assert self._choice is not None
        config, spec, layers = self._config, self._prepared.spec, self._choice.layers
        order = cohort(config.sampling, config.seed, 0, self._sizes_N)
        clients = cut(order, config.group_size, self._work_N)[0]
        kept = None if checkpoint is None else checkpoint.fuse
        choice = choose_fuse(config, self._executor, self._state, clients, len(workers), kept)
        self._executor.fuse = self._fuse = choice.fuse
        self._folder.event("fuse", **choice.record())
        self._folder.write_config(config_text(with_fuse(config, choice.fuse)))
        hidden_size = workers[0].hidden_size
        self._executor.keep_cached_within(
            config.model.trunk_cache.memory_mb * 2**20, lambda key: spec.cached_bytes(key, layers, hidden_size)
        )

    # -- lost state --------------------------------------------------------------------------------------------------

    def _fall_back(self, loss: StateLost, began_from: Checkpoint | None) -> Checkpoint | None:
        """Return what to go on from after a loss, None for the start of the run."""
        self._losses += 1
        if self._losses > self._config.ray.max_replacements:
            raise ResourceError(
                f"{loss}, {self._losses} times in one round; see ray.max_replacements; go on with --resume"
            )
        self._progress.note(f"warning: {loss}; going back to what is left")
        self._executor.recover()
        if self._sets_out:
            return began_from
        checkpoint: Checkpoint | None
        try:
            checkpoint = self._checkpoint()
        except StateLost:
            checkpoint, _ = load_latest(self._folder.checkpoints)
            self._open_round = None
            self._round = self._saved_round = 0 if checkpoint is None else checkpoint.round
            if checkpoint is None:
                self._states = ClientStates(self._config.partition.population)
                self._totals = self._totals.anew()
        if checkpoint is not None:
            # This process's own time goes on; that of a checkpoint is counted up to its saving.
            totals = {**checkpoint.totals, "seconds_before": self._totals.seconds_before}
            checkpoint = replace(checkpoint, totals=totals)
        self._folder.truncate(self._round + 1)
        if self._tensorboard is not None:
            self._tensorboard.go_back(self._round + 1)
        self._folder.event("recovered", round=self._round, reason=str(loss))
        self._progress.note(f"going on from the state after round {self._round}")
        return checkpoint

    def _save_what_is_whole(self) -> None:
        """Record and save the last round before the run ends early."""
        if self._sets_out:
            return
        try:
            self._close_round()
            self._save_if_due(force=True)
        except (StateLost, FedsimError) as error:
            saved = newest_round(self._folder.checkpoints)
            self._progress.note(
                f"warning: the state after round {self._round} cannot be saved ({error}); "
                + ("no other one is saved" if saved is None else f"saved is that after round {saved}")
            )

    # -- a round -----------------------------------------------------------------------------------------------------

    def _run_round(self) -> None:
        started = time.monotonic()
        self._executor.refresh()
        self._clients_resent()  # in other work since the last round
        sampling, seed = self._config.sampling, self._config.seed
        drawn = cohort(sampling, seed, self._round, self._sizes_N).tolist()
        answered = answers(sampling, drawn, seed, self._round, self._work_N)
        order = answered.in_time
        groups = self._executor.groups(self._round, order, self._config.group_size, self._work_N)
        done_again, self._begun_round = self._round < self._begun_round, max(self._begun_round, self._round + 1)
        trained, trained_at = self._train(groups)
        reports = sorted((report for group in trained for report in group.reports), key=lambda report: report.client)
        if [report.client for report in reports] != sorted(order):
            raise RuntimeError(f"round {self._round + 1}: {len(order)} clients were asked, {len(reports)} reports came")
        self._failures.of_round(self._round + 1, reports)
        if (warning := memory_warning(self._round + 1, reports)) is not None:
            self._progress.note(warning)
        stepping_at = time.monotonic()
        step = self._executor.server.apply(self._round, order)
        self._states.commit(trained)
        self._state = self._executor.server.global_state()
        self._round += 1
        seconds_server = time.monotonic() - stepping_at
        self._open_round = OpenRound(
            round=self._round,
            reports=reports,
            step=step,
            answers=answered,
            clients_resent=self._clients_resent() + (len(order) if done_again else 0),
            seconds_train=trained_at - started,
            seconds_server=seconds_server,
        )
        if not self._evaluations.can_wait(self._round):
            self._close_round()

    def _clients_resent(self) -> int:
        """Return how many clients the executor has sent again since this was asked last."""
        before, self._resent_clients = self._resent_clients, self._executor.resent_clients
        return self._resent_clients - before

    def _train(self, groups: list[WorkGroup]) -> tuple[list[TrainedGroup], float]:
        """Train the groups, and evaluate the round before if that is still to be done; return also when training was over."""
        trained: list[TrainedGroup] = []
        evaluated: dict[int, Evaluation] = {}
        clients = sum(len(group.clients) for group in groups)
        done, trained_at = 0, time.monotonic()
        # The state that this round starts from is the one that the round before is to be judged by.
        shards = self._evaluations.shards if self._open_round is not None else []
        for result in self._executor.train(groups, self._state, self._states, shards):
            if isinstance(result, EvaluatedShard):
                evaluated[result.index] = result.evaluation
                continue
            if self._first_group_at is None:
                self._first_group_at = time.monotonic()
                self._folder.event("first_group", round=self._round + 1)
            trained.append(result)
            done += len(result.reports)
            trained_at = time.monotonic()
            self._progress.clients_done(self._round + 1, done, clients)
        if self._open_round is not None:
            parts = [evaluated[index] for index in range(len(shards))]
            evaluation = self._evaluations.total(parts, self._round)
            self._record_round(self._open_round, evaluation, None, time.monotonic() - trained_at)
        return sorted(trained, key=lambda group: (group.group.group, group.group.part)), trained_at

    def _close_round(self) -> None:
        """Evaluate the round that has stepped last, if that is still to be done, and record it."""
        if self._open_round is None:
            return
        started = time.monotonic()
        # A state without its record could not be resumed to the same records, so an interrupt waits for the evaluation.
        with self._executor.uninterrupted():
            due, state, round = self._evaluations, self._state, self._round
            evaluation = due.of_state(state, round) if due.is_due(round) else None
            personalised = due.of_clients(state, self._states, round) if due.of_clients_is_due(round) else None
        self._record_round(self._open_round, evaluation, personalised, time.monotonic() - started)

    def _record_round(
        self, done: OpenRound, evaluation: Evaluation | None, personalised: Evaluation | None, seconds: float
    ) -> None:
        """Put a round on record and save it: nothing that comes after it has changed the state yet."""
        self._open_round = None
        if done.round > self._furthest_round:
            self._furthest_round, self._losses = done.round, 0
        record = done.record(self._prepared.data.task.metric, evaluation, personalised, seconds)
        record["actors_replaced"] = self._executor.replaced_workers
        self._totals.count(done.reports, record)
        self._folder.round_record(record)
        if self._config.tracking.client_records:
            self._folder.client_records(done.round, done.reports)
        for name, clients in (("absent", done.answers.absent), ("late", done.answers.late)):
            if clients:
                self._folder.event(name, round=done.round, clients=clients)
        self._folder.event("round", **record, update_norm=done.step.update_norm)
        if self._tensorboard is not None:
            self._tensorboard.round(record)
        self._progress.round(round_line(record))
        self._save_if_due()

    # -- evaluation --------------------------------------------------------------------------------------------------

    def _evaluate_start(self) -> None:
        self._progress.start_phase("evaluating the start")
        evaluation = self._evaluations.of_state(self._state, 0)
        metric, loss = compute(self._prepared.data.task.metric, evaluation.confusion_CC), mean_loss(evaluation)
        self._totals.initial_metric = self._totals.global_metric = metric
        self._start_is_evaluated = True
        self._folder.event("start", round=0, global_metric=metric, global_loss=loss)
        self._folder.round_record({"round": 0, "global_metric": metric, "global_loss": loss})
        self._progress.start(metric, loss)

    # -- checkpoints -------------------------------------------------------------------------------------

    def _save_if_due(self, *, force: bool = False) -> None:
        last = self._round == self._config.rounds
        due = force or last or self._round % self._config.checkpoint.every == 0
        if not due or self._round in (0, self._saved_round):
            return
        checkpoint = self._checkpoint()
        self._folder.flush()
        save_checkpoint(self._folder.checkpoints, checkpoint, self._config.checkpoint.keep)
        self._folder.checkpointed()
        self._saved_round = self._round

    def _checkpoint(self) -> Checkpoint:
        """Return the state after the last round."""
        assert self._choice is not None
        server = self._executor.server.arrays()
        if int(server["round"]) != self._round:
            raise StateLost(f"the server's state is that after round {int(server['round'])}, not {self._round}")
        return Checkpoint(
            round=self._round,
            layers=self._choice.layers,
            config=self._config.identity_values,
            contents=self._prepared.contents,
            server=server,
            clients=tuple(self._client_states()),
            totals={**vars(self._totals), "seconds_before": self._seconds()},
            fuse=self._fuse,
        )

    def _seconds(self) -> float:
        return self._totals.seconds_before + time.monotonic() - self._started

"""Training of a work group: its clients share passes, but fail and report individually."""

from __future__ import annotations

import os
import socket
import time
import traceback
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np

from clients.attacks import falsified, with_false_labels
from clients.backbone.frozen_states import CachedStates, compute_states
from clients.backbone.model import Backbone
from clients.backbone.passes import PassLimit
from clients.budget import tokens_of_pass
from clients.sending.clipping import privatised
from clients.sending.compressing import Sent, compressed, stream_of
from clients.spec import WorkerSpec
from clients.training.local_job import LocalJob, Parts, TrainingResult, num_steps
from clients.training.local_training import train_clients
from clients.training.sums import GroupSums, as_slice
from fedsim.core import seeds
from fedsim.core.errors import PluginError, ResourceError, listed
from fedsim.core.finite import is_finite
from fedsim.core.layout import VectorLayout
from fedsim.core.messages import (
    FIRST_MOMENT,
    PERSONAL,
    SECOND_MOMENT,
    ClientFailure,
    ClientReport,
    ClientState,
    GlobalState,
    WorkGroup,
)
from fedsim.core.method import ClientRound
from fedsim.core.plugin_source import fault_of
from fedsim.core.returns import TrainReturns
from fedsim.core.traffic import bytes_since


@dataclass(frozen=True)
class _Outcome:
    report: ClientReport
    state: ClientState
    client: ClientRound | None
    """The client's contribution to the group's sums; None if it failed."""


class GroupTraining:
    """Trains work groups on a backbone; stateless between them.

    Parameters
    ----------
    full
        Layout with a prompt in every layer.
    """

    def __init__(self, spec: WorkerSpec, backbone: Backbone, full: VectorLayout) -> None:
        self._spec, self._training = with_false_labels(spec), spec.training
        self._backbone, self._full = backbone, full
        asked, on_gpu = spec.training.client.micro_batch_tokens, backbone.device.type == "cuda"
        self.max_tokens = tokens_of_pass(asked, backbone.hidden_size, on_gpu=on_gpu)
        """Most tokens in one pass through the backbone."""

    def train(
        self,
        group: WorkGroup,
        state: GlobalState,
        client_states: Sequence[ClientState],
        caches: Mapping[int, CachedStates],
    ) -> TrainReturns:
        """Train the clients of a group from the global state.

        Parameters
        ----------
        client_states
            The state of each client of the group, in the group's order.
        caches
            Frozen-layer caches of earlier rounds, by client; missing ones are computed.
        """
        training = self._training
        parts = Parts.of(self._full, state.layers, training.keep_local, self._spec.tuner, state.round)
        limit = PassLimit(self.max_tokens)
        made: dict[int, CachedStates] = {}
        outcomes: dict[int, _Outcome] = {}
        with_cache = [old for old in client_states if self._spec.uses_cache(old.client, state.layers)]
        without = [old for old in client_states if not self._spec.uses_cache(old.client, state.layers)]
        for olds in (with_cache, without):
            for start in range(0, len(olds), max(1, group.fuse)):
                chunk = olds[start : start + max(1, group.fuse)]
                for outcome in self._outcomes(parts, state, chunk, caches, made, limit):
                    outcomes[outcome.report.client] = outcome
        sums = GroupSums(
            group,
            parts.exchanged.size,
            training.corrections,
            uniform_weights=training.uniform_weights,
            singles=training.singles,
        )
        ordered = [outcomes[old.client] for old in client_states]
        sums.add(*((outcome.report, outcome.client) for outcome in ordered if outcome.client is not None))
        return TrainReturns(
            _with_splits([outcome.report for outcome in ordered], limit),
            sums.update(),
            tuple(outcome.state for outcome in ordered),
            tuple(made.get(client) for client in group.keep_cached),
        )

    # -- several clients at once ---------------------------------------------------------------------------------------

    def _outcomes(
        self,
        parts: Parts,
        state: GlobalState,
        olds: Sequence[ClientState],
        caches: Mapping[int, CachedStates],
        made: dict[int, CachedStates],
        limit: PassLimit,
    ) -> list[_Outcome]:
        """Train clients together; a failure is reported, never raised, and leaves a client's state as it was.

        Cached states missing from ``caches`` are computed and added to ``made``.
        """
        started = time.perf_counter()
        failure = None
        try:
            # No overflow warnings: the finiteness check below reports overflow.
            with np.errstate(over="ignore", invalid="ignore"):
                own = [self._cached(state, old.client, caches, made, limit) for old in olds]
                jobs = [self._job(parts, state, old, cached) for old, cached in zip(olds, own, strict=True)]
                trained = train_clients(
                    self._backbone,
                    self._spec.train,
                    jobs,
                    parts,
                    self._training.client,
                    self._training.corrections,
                    seed=self._training.seed,
                    round=state.round,
                    max_tokens=limit,
                    prompt_dropout=self._spec.tuner.dropout,
                )
                _check_shapes(olds, trained, parts)
                results = [
                    self._as_sent(parts, state.round, job, result) for job, result in zip(jobs, trained, strict=True)
                ]
                sents = [self._finished(parts, state, old, result) for old, result in zip(olds, results, strict=True)]
        except Exception as error:
            failure = failure_of(error)
        # After the handler, so that the failed attempt has released its memory.
        if failure is not None and len(olds) > 1:
            # One client's failure must not affect the others, so each is retried alone.
            return [outcome for old in olds for outcome in self._outcomes(parts, state, [old], caches, made, limit)]
        if failure is not None:
            report = replace(self._report(parts, state, olds[0]), failure=failure)
            return [_Outcome(replace(report, seconds=time.perf_counter() - started), olds[0], None)]
        seconds = (time.perf_counter() - started) / max(1, sum(result.num_tokens for result in results))
        return [
            self._outcome(parts, state, old, sent, result, seconds * result.num_tokens)
            for old, sent, result in zip(olds, sents, results, strict=True)
        ]

    def _outcome(
        self,
        parts: Parts,
        state: GlobalState,
        old: ClientState,
        sent: Sent,
        result: TrainingResult,
        seconds: float,
    ) -> _Outcome:
        client, traffic = sent.client, self._training.traffic(state.arrays)
        new = self._new_state(parts, state.round, old, client, result)
        report = replace(
            self._report(parts, state, old),
            num_steps=result.num_steps,
            num_tokens=result.num_tokens,
            num_slots=result.num_slots,
            loss_first=result.loss_first,
            loss_last=result.loss_last,
            bytes_up=traffic.bytes_up(_vector_bytes(parts, state)) if sent.bytes_up is None else sent.bytes_up,
            seconds=seconds,
            change_norm=sent.change_norm,
            bit=sent.bit,
        )
        # Everything that enters the group's sums or the client's state.
        arrays = (result.vector_A, *result.tallies.values(), *old.arrays.values(), *new.arrays.values())
        if sent.bytes_up is not None or sent.change_norm is not None:
            arrays += (client.trained_F, *client.tallies.values())
        if not all(map(is_finite, arrays)):
            failure = ClientFailure("non_finite", f"client {old.client} returned NaN or infinite parameters")
            return _Outcome(replace(report, failure=failure), old, None)
        return _Outcome(report, new, client)

    # -- one client ----------------------------------------------------------------------------------------------------

    def _report(self, parts: Parts, state: GlobalState, old: ClientState) -> ClientReport:
        traffic = self._training.traffic(state.arrays)
        return ClientReport(
            client=old.client,
            round=state.round,
            num_examples=len(self._spec.shards.train(old.client)),
            # Between two visits of a device other rounds have changed what this round does not train.
            bytes_down=bytes_since(state.downloads, old.last_round)
            if state.downloads
            else traffic.bytes_down(_vector_bytes(parts, state), state.vector_F.nbytes),
            node=socket.gethostname(),
            pid=os.getpid(),
        )

    def _job(self, parts: Parts, state: GlobalState, old: ClientState, cached: CachedStates | None) -> LocalJob:
        indices_N = self._spec.shards.train(old.client)
        client = self._client(parts, state, old, num_steps(self._training.client, len(indices_N)))
        personal_M = old.arrays.get(PERSONAL)
        if personal_M is None:
            personal_M = self._spec.initial_vector(parts.personal)
        begun: dict[str, np.ndarray | float] = {}
        for correction in self._training.corrections:
            own = correction.begin(client)
            if twice := begun.keys() & own.keys():
                raise ValueError(
                    f"two active corrections both begin with {listed(sorted(twice))}; rename it in one of them"
                )
            begun.update(own)
        return LocalJob(
            client=old.client,
            indices_N=indices_N,
            start_A=parts.assemble(client.start_F, personal_M),
            whole_W=None if parts.trained_W is None else self._exact(state.vector_F),
            first_moment_A=old.arrays.get(FIRST_MOMENT),
            second_moment_A=old.arrays.get(SECOND_MOMENT),
            moment_steps=old.steps,
            begun=begun,
            cached=cached,
        )

    def _client(self, parts: Parts, state: GlobalState, old: ClientState, steps: int) -> ClientRound:
        """Return the corrections' view of a client before it trains."""
        return ClientRound(
            config=self._training.client,
            num_examples=len(self._spec.shards.train(old.client)),
            num_steps=steps,
            start_F=parts.of_round(self._exact(state.vector_F)),
            server={name: parts.of_round(array_F) for name, array_F in state.arrays.items()},
            old={name: parts.of_round(array) for name, array in old.arrays.items()},
        )

    def _exact(self, vector_F: np.ndarray) -> np.ndarray:
        """Return a vector in the number format of messages."""
        return np.asarray(vector_F, dtype=self._spec.model.exchange_dtype)

    def _cached(
        self,
        state: GlobalState,
        client: int,
        known: Mapping[int, CachedStates],
        made: dict[int, CachedStates],
        limit: PassLimit,
    ) -> CachedStates | None:
        """Return the client's frozen-layer cache, or None if its local training runs all layers."""
        if not self._spec.uses_cache(client, state.layers):
            return None
        if client in known:
            return known[client]
        if client not in made:
            indices_N, dtype = self._spec.shards.train(client), self._spec.model.cache_dtype
            made[client] = compute_states(self._backbone, self._spec.train, indices_N, state.layers, dtype, limit)
        return made[client]

    def _as_sent(self, parts: Parts, round: int, job: LocalJob, result: TrainingResult) -> TrainingResult:
        """Return the result to send: the client's own, or an attacker's falsified one."""
        training = self._training
        if training.attack is None or job.client not in training.attackers:
            return result
        rng = seeds.stream(training.seed, round, job.client, "attack")
        return falsified(training.attack, training.corrections, parts, rng, job, result)

    def _finished(self, parts: Parts, state: GlobalState, old: ClientState, result: TrainingResult) -> Sent:
        """Return the client after training as the server sees it, with the arrays that it keeps."""
        exchanged = as_slice(parts.exchanged_F)
        client = replace(
            self._client(parts, state, old, result.num_steps),
            vector_F=result.vector_A[exchanged],
            tallies={name: tally_A[exchanged] for name, tally_A in result.tallies.items()},
        )
        training = self._training
        streams = stream_of(training.seed, state.round, old.client)
        sent = compressed(training.uplink, training.corrections, client, parts.exchanged, streams)
        sent = privatised(state.clipping, training.seed, state.round, old.client, sent)
        new = dict(sent.kept)
        for correction in training.corrections:
            new.update(correction.finish(sent.client))
        return replace(sent, client=replace(sent.client, new=new))

    def _new_state(
        self, parts: Parts, round: int, old: ClientState, client: ClientRound, result: TrainingResult
    ) -> ClientState:
        arrays = {name: parts.with_round(array_F, old.arrays.get(name)) for name, array_F in client.new.items()}
        if self._training.keep_local or self._training.keep_half:
            arrays[PERSONAL] = result.vector_A[parts.personal_M]
        if self._training.client.optimizer.moments == "keep":
            arrays |= {FIRST_MOMENT: result.first_moment_A, SECOND_MOMENT: result.second_moment_A}
        return ClientState(old.client, old.rounds + 1, old.steps + result.num_steps, arrays, last_round=round)


def _vector_bytes(parts: Parts, state: GlobalState) -> int:
    """Return the bytes of one exchanged vector."""
    return state.vector_F.itemsize * parts.exchanged.size


def _check_shapes(olds: Sequence[ClientState], results: Sequence[TrainingResult], parts: Parts) -> None:
    """Refuse a vector of the wrong length here, where the client is known; the server would refuse the whole group."""
    for old, result in zip(olds, results, strict=True):
        if result.vector_A.shape != (parts.trained.size,):
            raise ValueError(
                f"client {old.client} returned a vector of shape {result.vector_A.shape}, expected ({parts.trained.size},)"
            )


def failure_of(error: Exception) -> ClientFailure:
    """Return an exception as a record; call it in the exception handler."""
    if isinstance(told := fault_of(error) or error, ResourceError | PluginError):
        return ClientFailure("error", str(told))  # a sentence for the user, without a traceback
    return ClientFailure("error", f"{type(error).__name__}: {error}", traceback.format_exc())


def _with_splits(reports: list[ClientReport], limit: PassLimit) -> tuple[ClientReport, ...]:
    """Return the reports, the first with the memory splits of the whole group."""
    if limit.splits:
        reports[0] = replace(reports[0], memory_splits=limit.splits, memory_tokens=limit.tokens or 0)
    return tuple(reports)

"""Training of a work group: its clients side by side in shared passes, each answered for by itself."""

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
from clients.spec import WorkerSpec
from clients.training.control import client_control, drift
from clients.training.local_job import LocalJob, Parts, TrainingResult, num_steps
from clients.training.local_training import train_clients
from clients.training.sums import GroupSums
from clients.tuners.initial import initial_vector
from fedsim.core.errors import ResourceError
from fedsim.core.layout import VectorLayout
from fedsim.core.messages import ClientFailure, ClientReport, ClientState, GlobalState, GroupUpdate, WorkGroup


@dataclass(frozen=True)
class TrainedClients:
    """What came of a work group; reports and states stand in the order of its clients."""

    reports: tuple[ClientReport, ...]
    update: GroupUpdate | None
    """The group's sums, or None if no client gave a usable result."""
    states: tuple[ClientState, ...]
    """Each client's new state, the old one where it failed."""
    caches: dict[int, CachedStates]
    """Trunks that were computed, by client."""


@dataclass(frozen=True)
class _Outcome:
    report: ClientReport
    state: ClientState
    result: TrainingResult | None


class GroupTraining:
    """Trains work groups on a backbone; keeps nothing between them.

    Parameters
    ----------
    full
        Layout with a prompt in every layer.
    """

    def __init__(self, spec: WorkerSpec, backbone: Backbone, full: VectorLayout) -> None:
        self._spec, self._settings = with_false_labels(spec), spec.settings
        self._backbone, self._full = backbone, full
        asked, on_gpu = spec.settings.client.micro_batch_tokens, backbone.device.type == "cuda"
        self.max_tokens = tokens_of_pass(asked, backbone.hidden_size, on_gpu=on_gpu)
        """Tokens of one pass through the backbone."""

    def train(
        self,
        group: WorkGroup,
        state: GlobalState,
        client_states: Sequence[ClientState],
        caches: Mapping[int, CachedStates],
    ) -> TrainedClients:
        """Train the clients of a group from the global state.

        Parameters
        ----------
        client_states
            The state of each client of the group, in the group's order.
        trunks
            Trunks of earlier jobs, by client; what is missing is computed.
        """
        settings = self._settings
        parts = Parts.of(self._full, state.layers, settings.keep_local)
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
            parts.exchanged_F,
            uniform_weights=settings.uniform_weights,
            control_by_steps=settings.control_by_steps,
            control_before=settings.control_before,
            each_client=settings.needs_each_client,
            each_vector=settings.needs_each_vector,
        )
        for old in client_states:
            outcome = outcomes[old.client]
            if outcome.result is not None:
                sums.add(outcome.report, old, outcome.state, outcome.result)
        ordered = [outcomes[old.client] for old in client_states]
        return TrainedClients(
            _with_splits([outcome.report for outcome in ordered], limit),
            sums.update(),
            tuple(outcome.state for outcome in ordered),
            made,
        )

    # -- some clients at once ------------------------------------------------------------------------------------------

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

        Trunks that are missing in ``trunks`` are computed and go into ``made``.
        """
        started = time.perf_counter()
        failure = None
        try:
            # Overflow is not an accident to warn of here: the check for finite numbers below reports it.
            with np.errstate(over="ignore", invalid="ignore"):
                own = [self._cached(state, old.client, caches, made, limit) for old in olds]
                jobs = [self._job(parts, state, old, cached) for old, cached in zip(olds, own, strict=True)]
                trained = train_clients(
                    self._backbone,
                    self._spec.train,
                    jobs,
                    parts,
                    self._settings.client,
                    self._settings.correction,
                    seed=self._settings.seed,
                    round=state.round,
                    max_tokens=limit,
                    prompt_dropout=self._spec.prompt.dropout,
                )
                _check_shapes(olds, trained, parts)
                results = [
                    falsified(self._settings, parts, state.round, job, result)
                    for job, result in zip(jobs, trained, strict=True)
                ]
                news = [self._new_state(parts, state, old, result) for old, result in zip(olds, results, strict=True)]
        except Exception as error:
            failure = failure_of(error)
        # Behind the handler, so that what failed has let go of its memory.
        if failure is not None and len(olds) > 1:
            # One client's failure must not be its neighbours': each is tried by itself.
            return [outcome for old in olds for outcome in self._outcomes(parts, state, [old], caches, made, limit)]
        if failure is not None:
            report = replace(self._report(parts, state, olds[0]), failure=failure)
            return [_Outcome(replace(report, seconds=time.perf_counter() - started), olds[0], None)]
        seconds = (time.perf_counter() - started) / max(1, sum(result.num_tokens for result in results))
        return [
            self._outcome(parts, state, old, new, result, seconds * result.num_tokens)
            for old, new, result in zip(olds, news, results, strict=True)
        ]

    def _outcome(
        self,
        parts: Parts,
        state: GlobalState,
        old: ClientState,
        new: ClientState,
        result: TrainingResult,
        seconds: float,
    ) -> _Outcome:
        report = replace(
            self._report(parts, state, old),
            num_steps=result.num_steps,
            num_tokens=result.num_tokens,
            num_slots=result.num_slots,
            loss_first=result.loss_first,
            loss_last=result.loss_last,
            bytes_up=self._settings.traffic.bytes_up(_vector_bytes(parts, state)),
            seconds=seconds,
        )
        if not all(np.isfinite(array).all() for array in _arrays(old, new, result)):
            failure = ClientFailure("non_finite", f"client {old.client} returned NaN or infinite parameters")
            return _Outcome(replace(report, failure=failure), old, None)
        return _Outcome(report, new, result)

    # -- one client ----------------------------------------------------------------------------------------------------

    def _report(self, parts: Parts, state: GlobalState, old: ClientState) -> ClientReport:
        traffic = self._settings.traffic
        if state.control_F is None:
            traffic = traffic.without_control()
        return ClientReport(
            client=old.client,
            round=state.round,
            num_examples=len(self._spec.shards.train(old.client)),
            bytes_down=traffic.bytes_down(_vector_bytes(parts, state)),
            node=socket.gethostname(),
            pid=os.getpid(),
        )

    def _job(self, parts: Parts, state: GlobalState, old: ClientState, cached: CachedStates | None) -> LocalJob:
        settings = self._settings
        indices_N = self._spec.shards.train(old.client)
        global_F, control_F, control_i_F = self._globals(state, old)
        steps, lr = num_steps(settings.client, len(indices_N)), settings.client.optimizer.lr
        personal_M = old.personal_M if old.personal_M is not None else self._initial(parts.personal)
        corrects = settings.correction == "control"
        return LocalJob(
            client=old.client,
            indices_N=indices_N,
            start_A=parts.assemble(global_F, personal_M),
            first_moment_A=old.first_moment_A,
            second_moment_A=old.second_moment_A,
            moment_steps=old.steps,
            drift_F=drift(control_i_F, control_F, steps, lr, settings.control_form) if corrects else None,
            cached=cached,
        )

    def _cached(
        self,
        state: GlobalState,
        client: int,
        known: Mapping[int, CachedStates],
        made: dict[int, CachedStates],
        limit: PassLimit,
    ) -> CachedStates | None:
        """Return the client's trunk, or None where its visit runs all layers."""
        if not self._spec.uses_cache(client, state.layers):
            return None
        if client in known:
            return known[client]
        if client not in made:
            indices_N, dtype = self._spec.shards.train(client), self._spec.model.cache_dtype
            made[client] = compute_states(self._backbone, self._spec.train, indices_N, state.layers, dtype, limit)
        return made[client]

    def _new_state(self, parts: Parts, state: GlobalState, old: ClientState, result: TrainingResult) -> ClientState:
        settings, optimizer = self._settings, self._settings.client.optimizer
        control_F = None
        if settings.uses_control:
            global_F, server_control_F, control_i_F = self._globals(state, old)
            control_F = client_control(
                control_i_F,
                server_control_F,
                global_F,
                result.vector_A[parts.exchanged_F],
                result.num_steps,
                optimizer.lr,
                form=settings.control_form,
                drift_applied=settings.correction == "control",
            )
        keep = optimizer.moments == "keep"
        return ClientState(
            client=old.client,
            rounds=old.rounds + 1,
            steps=old.steps + result.num_steps,
            personal_M=result.vector_A[parts.personal_M] if settings.keep_local else None,
            control_F=control_F,
            first_moment_A=result.first_moment_A if keep else None,
            second_moment_A=result.second_moment_A if keep else None,
        )

    def _globals(self, state: GlobalState, old: ClientState) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Return the global vector, the server's control variate and the client's, zeros where there are none."""
        global_F = np.asarray(state.vector_F, dtype=self._spec.model.exchange_dtype)
        control_F = state.control_F if state.control_F is not None else np.zeros_like(global_F)
        control_i_F = old.control_F if old.control_F is not None else np.zeros_like(global_F)
        return global_F, control_F, control_i_F

    def _initial(self, layout: VectorLayout) -> np.ndarray:
        spec = self._spec
        return initial_vector(layout, spec.prompt, spec.model.head, spec.settings.seed, spec.start)


def _vector_bytes(parts: Parts, state: GlobalState) -> int:
    """Return the bytes of one vector of what is exchanged."""
    return state.vector_F.itemsize * parts.exchanged.size


def _check_shapes(olds: Sequence[ClientState], results: Sequence[TrainingResult], parts: Parts) -> None:
    """Refuse a vector of another length here, where the client is known; the server would refuse the whole group."""
    for old, result in zip(olds, results, strict=True):
        if result.vector_A.shape != (parts.trained.size,):
            raise ValueError(
                f"client {old.client} returned a vector of shape {result.vector_A.shape}, expected ({parts.trained.size},)"
            )


def failure_of(error: Exception) -> ClientFailure:
    """Return an exception as a record; called where it is handled."""
    if isinstance(error, ResourceError):
        return ClientFailure("error", str(error))  # a sentence for the user, who has no use for a traceback
    return ClientFailure("error", f"{type(error).__name__}: {error}", traceback.format_exc())


def _with_splits(reports: list[ClientReport], limit: PassLimit) -> tuple[ClientReport, ...]:
    """Return the reports, the first with what memory did to the passes of all of them."""
    if limit.splits:
        reports[0] = replace(reports[0], memory_splits=limit.splits, memory_tokens=limit.tokens or 0)
    return tuple(reports)


def _arrays(old: ClientState, new: ClientState, result: TrainingResult) -> Sequence[np.ndarray]:
    """Return all that goes into the group's sums or the client's state."""
    moments = (new.first_moment_A, new.second_moment_A)
    candidates = (result.vector_A, result.stepped_A, result.gain_A, old.control_F, new.control_F, *moments)
    return [array for array in candidates if array is not None]

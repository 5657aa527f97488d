"""The worker that embodies clients: one backbone, any client, no memory between calls.

A plain class: the local executor calls it directly, the Ray actor (``clients/actor.py``) is a thin shell around it.
"""

from __future__ import annotations

import os
import socket
import time
import traceback
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial

import numpy as np
import torch

from clients.backbone import Backbone
from clients.config import ClientConfig, ModelConfig, PromptConfig
from clients.control import ControlForm, client_control, drift
from clients.evaluation import evaluate
from clients.loading import SharedWeights
from clients.lossless import SpectrumSettings, spectrum_report
from clients.optimizers import Moments
from clients.prompts import StartingPoint, initial_vector
from clients.scoring import layer_scores
from clients.sums import GroupSums
from clients.training import Parts, TrainingResult, num_steps, train_client
from fedsim.core import seeds
from fedsim.core.layout import VectorLayout
from fedsim.core.messages import (
    ClientFailure,
    ClientReport,
    ClientState,
    Evaluation,
    GlobalState,
    GroupUpdate,
    ScoreReport,
    SpectrumReport,
    WorkGroup,
)
from fedsim.core.shards import Shards
from fedsim.core.tokens import TokenTable


@dataclass(frozen=True)
class WorkSettings:
    """What a worker has to know of the method; composed by the simulation from the sections of the config."""

    client: ClientConfig
    correction: str
    """none, control, preconditioner or proximal."""
    uniform_weights: bool
    uses_control: bool
    control_form: ControlForm
    control_by_steps: bool
    """The server's control variate weighs clients by their local steps."""
    control_before: bool
    """The server steps with the control variates from before the round."""
    needs_each_client: bool
    keep_local: bool
    """Layers that are not exchanged keep personal prompts on the device."""
    score_batch_size: int
    score_last: bool
    score_padding: bool
    """Count hidden states of padding in layer scores."""
    spectrum: SpectrumSettings
    evaluation_batch_size: int
    seed: int


@dataclass(frozen=True)
class WorkerSpec:
    """All that a worker is built from: stored once, mapped by every actor of a node."""

    weights: SharedWeights
    model: ModelConfig
    prompt: PromptConfig
    num_classes: int
    label_word_ids_C: np.ndarray | None
    settings: WorkSettings
    train: TokenTable
    validation: TokenTable
    shards: Shards
    start: StartingPoint | None = None
    """Where the run starts instead of at random."""


@dataclass(frozen=True)
class WorkerInfo:
    """Where a worker runs and what its backbone looks like."""

    node: str
    pid: int
    device: str
    threads: int
    full: VectorLayout
    """Layout with a prompt in every layer."""
    max_tokens: int


class ClientWorker:
    """Embodies clients one after another on one backbone.

    Every method is a pure function of its arguments and the specification, so a call that was lost with its process can
    be sent again to any other worker and gives the same bits.
    """

    def __init__(self, spec: WorkerSpec, device: str = "cpu") -> None:
        torch.set_num_threads(spec.settings.client.threads)
        self._spec = spec
        self._settings = spec.settings
        self._backbone = Backbone.build(
            spec.weights, spec.model, spec.prompt, spec.num_classes, spec.label_word_ids_C, device
        )
        self._full = VectorLayout.full(self._backbone.geometry, self._backbone.head_shapes)

    def info(self) -> WorkerInfo:
        """Return where this worker runs."""
        return WorkerInfo(
            node=socket.gethostname(),
            pid=os.getpid(),
            device=str(self._backbone.device),
            threads=torch.get_num_threads(),
            full=self._full,
            max_tokens=self._backbone.max_tokens,
        )

    # -- training ----------------------------------------------------------------------------------------------------

    def train(
        self, group: WorkGroup, state: GlobalState, *client_states: ClientState
    ) -> tuple[tuple[ClientReport, ...], GroupUpdate | None, *tuple[ClientState, ...]]:
        """Train the clients of a group from the global state.

        Parameters
        ----------
        client_states
            The state of each client of the group, in the group's order.

        Returns
        -------
        tuple
            The clients' reports; the group's sums, or None if no client gave a usable result; then each client's new
            state (the old one where it failed).
        """
        parts = Parts.of(self._full, state.layers, self._settings.keep_local)
        reports: list[ClientReport] = []
        states: list[ClientState] = []
        sums = GroupSums(
            group,
            parts.exchanged_F,
            uniform_weights=self._settings.uniform_weights,
            control_by_steps=self._settings.control_by_steps,
            control_before=self._settings.control_before,
            each_client=self._settings.needs_each_client,
        )
        for old in client_states:
            report, new, result = self._visit(parts, state, old)
            if report.failure is None and result is not None:
                sums.add(report, old, new, result)
            reports.append(report)
            states.append(new)
        return tuple(reports), sums.update(), *states

    def _visit(
        self, parts: Parts, state: GlobalState, old: ClientState
    ) -> tuple[ClientReport, ClientState, TrainingResult | None]:
        """Train one client; a failure is reported, never raised, and leaves the client's state as it was."""
        started = time.perf_counter()
        indices_N = self._spec.shards.train(old.client)
        receives = 2 if self._settings.uses_control else 1
        sends = receives + (1 if self._settings.correction == "preconditioner" else 0)
        report = ClientReport(
            client=old.client,
            round=state.round,
            num_examples=len(indices_N),
            bytes_down=state.vector_F.itemsize * parts.exchanged.size * receives,
            node=socket.gethostname(),
            pid=os.getpid(),
        )
        try:
            # Overflow is not an accident to warn of here: the check for finite numbers below reports it.
            with np.errstate(over="ignore", invalid="ignore"):
                result, new = self._train_one(parts, state, old, indices_N)
        except Exception as error:
            failure = ClientFailure("error", f"{type(error).__name__}: {error}", traceback.format_exc())
            return replace(report, failure=failure, seconds=time.perf_counter() - started), old, None
        report = replace(
            report,
            num_steps=result.num_steps,
            loss_first=result.loss_first,
            loss_last=result.loss_last,
            bytes_up=state.vector_F.itemsize * parts.exchanged.size * sends,
            seconds=time.perf_counter() - started,
        )
        if not all(np.isfinite(array).all() for array in _arrays(old, new, result)):
            failure = ClientFailure("non_finite", f"client {old.client} returned NaN or infinite parameters")
            return replace(report, failure=failure), old, None
        return report, new, result

    def _train_one(
        self, parts: Parts, state: GlobalState, old: ClientState, indices_N: np.ndarray
    ) -> tuple[TrainingResult, ClientState]:
        settings, optimizer = self._settings, self._settings.client.optimizer
        steps = num_steps(settings.client, len(indices_N))
        global_F = np.asarray(state.vector_F, dtype=self._spec.model.exchange_dtype)
        personal_M = old.personal_M if old.personal_M is not None else self._initial(parts.personal)
        control_i_F = old.control_F if old.control_F is not None else np.zeros_like(global_F)
        control_F = state.control_F if state.control_F is not None else np.zeros_like(global_F)
        result = train_client(
            self._backbone,
            self._spec.train,
            indices_N,
            parts,
            settings.client,
            settings.correction,
            parts.assemble(global_F, personal_M),
            self._moments(old),
            drift(control_i_F, control_F, steps, optimizer.lr, settings.control_form),
            seed=settings.seed,
            round=state.round,
            client=old.client,
        )
        local_F = result.vector_A[parts.exchanged_F]
        keep = optimizer.moments == "keep"
        new = ClientState(
            client=old.client,
            visits=old.visits + 1,
            steps=old.steps + result.num_steps,
            personal_M=result.vector_A[parts.personal_M] if settings.keep_local else None,
            control_F=(
                client_control(
                    control_i_F,
                    control_F,
                    global_F,
                    local_F,
                    result.num_steps,
                    optimizer.lr,
                    form=settings.control_form,
                    drift_applied=settings.correction == "control",
                )
                if settings.uses_control
                else None
            ),
            first_moment_A=result.moments.first_A.cpu().numpy() if keep else None,
            second_moment_A=result.moments.second_A.cpu().numpy() if keep else None,
        )
        return result, new

    def _moments(self, old: ClientState) -> Moments | None:
        if old.first_moment_A is None or old.second_moment_A is None:
            return None
        device = self._backbone.device
        first, second = (torch.from_numpy(a.copy()).to(device) for a in (old.first_moment_A, old.second_moment_A))
        return Moments(first, second, old.steps)

    def _initial(self, layout: VectorLayout) -> np.ndarray:
        spec = self._spec
        return initial_vector(layout, spec.prompt, spec.model.head, spec.settings.seed, spec.start)

    # -- evaluation and scoring --------------------------------------------------------------------------------------

    def evaluate(self, state: GlobalState, start: int, stop: int) -> Evaluation:
        """Evaluate the global vector on the validation examples ``start`` to ``stop``."""
        layout = self._full.exchanged(state.layers)
        return self._evaluate(self._spec.validation, np.arange(start, stop), layout, np.asarray(state.vector_F))

    def evaluate_clients(self, state: GlobalState, *client_states: ClientState) -> tuple[Evaluation, ...]:
        """Evaluate each client's own prompts (global and personal layers) on the examples that it held out."""
        parts = Parts.of(self._full, state.layers, self._settings.keep_local)
        results = []
        for client in client_states:
            personal_M = client.personal_M if client.personal_M is not None else self._initial(parts.personal)
            vector_A = parts.assemble(np.asarray(state.vector_F), personal_M)
            holdout_N = self._spec.shards.holdout(client.client)
            results.append(self._evaluate(self._spec.train, holdout_N, parts.trained, vector_A))
        return tuple(results)

    def _evaluate(
        self, table: TokenTable, indices_N: np.ndarray, layout: VectorLayout, vector_A: np.ndarray
    ) -> Evaluation:
        batch_size = self._settings.evaluation_batch_size
        return evaluate(self._backbone, table, indices_N, layout, vector_A, self._spec.num_classes, batch_size)

    def score(self, state: GlobalState, *clients: int) -> tuple[ScoreReport, ...]:
        """Score all layers on one batch of each client, with the prompts of ``state`` in place."""
        layout = self._full.exchanged(state.layers)
        prompt_LKHPD, _ = layout.split(torch.from_numpy(np.array(state.vector_F)).to(self._backbone.device))
        return tuple(self._score_one(prompt_LKHPD.unsqueeze(0), state, client) for client in clients)

    def _score_one(self, prompt_1LKHPD: torch.Tensor, state: GlobalState, client: int) -> ScoreReport:
        indices_N = self._spec.shards.train(client)
        rng = seeds.stream(self._settings.seed, state.round, client, "score")
        chosen = rng.permutation(indices_N)[: self._settings.score_batch_size]
        try:
            batch = self._spec.train.batch(chosen)
            hidden = [h.float().cpu().numpy() for h in self._backbone.hidden_states(batch, prompt_1LKHPD, state.layers)]
            mask_BT = None if self._settings.score_padding else batch.attention_mask_BT
            scores_L = layer_scores(hidden, mask_BT, score_last=self._settings.score_last)
        except Exception as error:
            failure = ClientFailure("error", f"{type(error).__name__}: {error}", traceback.format_exc())
            return ScoreReport(client, len(indices_N), np.full(self._full.geometry.num_layers, np.nan), failure)
        return ScoreReport(client, len(indices_N), scores_L)

    def spectrum(self, state: GlobalState, *clients: int) -> tuple[SpectrumReport, ...]:
        """Estimate each client's Hessian spectrum at the prompts of ``state``, and the share of them that it needs."""
        spec, settings = self._spec, self._settings
        work = partial(spectrum_report, self._backbone, spec.train, full=self._full, state=state, seed=settings.seed)
        return tuple(work(spec.shards.train(client), settings=settings.spectrum, client=client) for client in clients)


def _arrays(old: ClientState, new: ClientState, result: TrainingResult) -> Sequence[np.ndarray]:
    """Return all that goes into the group's sums or the client's state."""
    moments = (new.first_moment_A, new.second_moment_A)
    candidates = (result.vector_A, result.stepped_A, result.gain_A, old.control_F, new.control_F, *moments)
    return [array for array in candidates if array is not None]

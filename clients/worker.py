"""The worker that acts as clients: one backbone, any client, no state between calls.

A plain class: the local executor calls it directly, the Ray actor (``clients/actor.py``) is a thin shell around it.
"""

from __future__ import annotations

import os
import socket
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import TypeVar

import numpy as np
import torch

from clients.analysis.layer_share import spectrum_report
from clients.analysis.scoring import layer_scores
from clients.backbone.device import make_deterministic, to_device
from clients.backbone.frozen_states import CachedStates, compute_states
from clients.backbone.model import Backbone
from clients.backbone.processor import describe_processor
from clients.evaluation import evaluate
from clients.generation import respond
from clients.generation_settings import GenerationSpec
from clients.spec import WorkerInfo, WorkerSpec
from clients.training.fuse_trial import try_fusing
from clients.training.group import GroupTraining, failure_of
from clients.training.local_job import Parts
from fedsim.core import seeds
from fedsim.core.deferred import import_deferred
from fedsim.core.errors import ResourceError
from fedsim.core.generated import Generated
from fedsim.core.layout import VectorLayout
from fedsim.core.messages import (
    PERSONAL,
    ClientFailure,
    ClientState,
    Evaluation,
    FuseTrial,
    GlobalState,
    ScoreReport,
    SpectrumReport,
    WorkGroup,
)
from fedsim.core.returns import TrainReturns
from fedsim.core.tokens import TokenTable

__all__ = ["ClientWorker", "WorkerInfo", "WorkerSpec"]

T = TypeVar("T")


class ClientWorker:
    """Acts as clients on one backbone.

    Every method is a pure function of its arguments and the specification, so a call lost with its process can be repeated on
    any other worker and returns the same bits.
    """

    def __init__(self, spec: WorkerSpec, device: str | tuple[str, ...] = "cpu") -> None:
        import_deferred("clients")
        torch.set_num_threads(spec.training.client.threads)
        if spec.model.offload and device in ("cpu", ("cpu",)):
            raise ResourceError(
                "model.offload brings layers from main memory to a GPU, but this worker computes on a CPU, which has them "
                "there already; set model.offload=false"
            )
        make_deterministic(torch.device(device if isinstance(device, str) else device[0]))
        self._spec = spec
        self._backbone = Backbone.build(
            spec.weights,
            spec.model,
            spec.tuner,
            spec.num_classes,
            spec.label_word_ids_C,
            device,
            words=spec.train.words,
        )
        if spec.empty is not None:
            self._backbone.calibrate(spec.empty)
        self._full = VectorLayout.full(self._backbone.geometry, self._backbone.head_shapes)
        self._training = GroupTraining(spec, self._backbone, self._full)

    def info(self) -> WorkerInfo:
        """Return this worker's process and backbone."""
        return WorkerInfo(
            node=socket.gethostname(),
            pid=os.getpid(),
            device=", ".join(map(str, self._backbone.devices)),
            threads=torch.get_num_threads(),
            full=self._full,
            max_tokens=self._backbone.max_tokens,
            hidden_size=self._backbone.hidden_size,
            emulates_products=self._backbone.emulates_products,
            processor=describe_processor(self._backbone.device),
        )

    # -- training ----------------------------------------------------------------------------------------------------

    def train(
        self,
        group: WorkGroup,
        state: GlobalState,
        *client_states: ClientState,
        caches: Mapping[int, CachedStates] | None = None,
    ) -> TrainReturns:
        """Train the clients of a group from the global state.

        Parameters
        ----------
        client_states
            The state of each client of the group, in the group's order.
        caches
            Frozen-layer caches of earlier rounds, by client; missing ones are computed.
        """
        return self._training.train(group, state, client_states, caches or {})

    def try_fusing(self, state: GlobalState, *clients: int) -> FuseTrial | ClientFailure:
        """Time one step of these clients from the global vector, one after another and side by side; the step is discarded."""
        training = self._spec.training
        parts = Parts.of(self._full, state.layers, training.keep_local, self._spec.tuner)
        tallies = sum(len(correction.tallies) for correction in training.corrections)
        try:
            return try_fusing(
                self._backbone,
                self._spec.train,
                [self._spec.shards.train(client) for client in clients],
                parts.trained,
                self._personal_vector(parts, state, ClientState(clients[0])),
                training.client,
                self._training.max_tokens,
                training.seed,
                self._spec.tuner.dropout,
                tallies,
            )
        except Exception as error:  # the client's own error: its training will report it
            return failure_of(error)

    # -- evaluation and scoring --------------------------------------------------------------------------------------

    def evaluate(
        self,
        state: GlobalState,
        start: int,
        stop: int,
        cached: CachedStates | None = None,
        *,
        keep_predictions: bool = False,
    ) -> tuple[Evaluation, CachedStates | None]:
        """Evaluate the global vector on the validation examples from ``start`` to before ``stop``.

        Parameters
        ----------
        cached
            Frozen-layer cache of these examples from an earlier call; computed if not given.
        keep_predictions
            Return what is predicted for each example as well.

        Returns
        -------
        tuple
            The counts and the frozen-layer cache, None if the run has none.
        """
        parts = Parts.of(self._full, state.layers, keep_local=False, tuner=self._spec.tuner)
        layout, vector_1A = parts.trained, self._personal_vector(parts, state, ClientState(client=-1))[None]
        indices_N = np.arange(start, stop)
        if cached is None and self._spec.caches_predictions(state.layers):
            dtype, table = self._spec.model.cache_dtype, self._spec.validation
            cached = compute_states(self._backbone, table, indices_N, state.layers, dtype, self._training.max_tokens)
        hidden_ZD = None if cached is None else cached.tensor()
        keep = {"keep_predictions": keep_predictions}
        return self._evaluate(self._spec.validation, [indices_N], layout, vector_1A, hidden_ZD, **keep)[0], cached

    def evaluate_clients(
        self, state: GlobalState, *client_states: ClientState, fuse: int = 1, personal: bool = True
    ) -> tuple[Evaluation | ClientFailure, ...]:
        """Evaluate each client's own prompts (global and personal layers) on its held-out examples.

        A client that fails returns its failure in place of its counts.

        Parameters
        ----------
        fuse
            Clients that share passes through the backbone.
        personal
            If false, only the global prompt is evaluated, and ``client_states`` are fresh ones.
        """
        parts = Parts.of(self._full, state.layers, self._spec.training.keep_local and personal, self._spec.tuner)

        def act(vector_CA: np.ndarray, clients: Sequence[int]) -> Sequence[Evaluation]:
            holdouts = [self._spec.shards.holdout(client) for client in clients]
            return self._evaluate(self._spec.train, holdouts, parts.trained, vector_CA)

        return self._of_each(parts, state, client_states, fuse, act)

    # -- generation --------------------------------------------------------------------------------------------------

    def generate(self, state: GlobalState, start: int, stop: int) -> Generated:
        """Write responses with the global vector to the chosen validation examples from ``start`` to before ``stop``."""
        parts = Parts.of(self._full, state.layers, keep_local=False, tuner=self._spec.tuner)
        vector_1A = self._personal_vector(parts, state, ClientState(-1))[None]
        indices_N = self._written.examples_N[start:stop]
        names = state.round, [seeds.NO_CLIENT]
        table = self._spec.validation
        return respond(self._backbone, table, [indices_N], parts.trained, vector_1A, self._written, names)[0]

    def generate_clients(
        self, state: GlobalState, *client_states: ClientState, fuse: int = 1
    ) -> tuple[Generated | ClientFailure, ...]:
        """Write responses with each client's own vector to its first held-out examples.

        A client that fails returns its failure in place of its responses; ``fuse`` is as in :meth:`evaluate_clients`.
        """
        parts = Parts.of(self._full, state.layers, self._spec.training.keep_local, self._spec.tuner)
        most, table = self._written.client_examples, self._spec.train

        def act(vector_CA: np.ndarray, clients: Sequence[int]) -> Sequence[Generated]:
            holdouts = [self._spec.shards.holdout(client)[:most] for client in clients]
            names = state.round, clients
            return respond(self._backbone, table, holdouts, parts.trained, vector_CA, self._written, names)

        return self._of_each(parts, state, client_states, fuse, act)

    @property
    def _written(self) -> GenerationSpec:
        if self._spec.generation is None:
            raise RuntimeError("the run writes no responses")
        return self._spec.generation

    # -- clients' own vectors ----------------------------------------------------------------------------------------

    def _of_each(
        self,
        parts: Parts,
        state: GlobalState,
        client_states: Sequence[ClientState],
        fuse: int,
        act: Callable[[np.ndarray, Sequence[int]], Sequence[T]],
    ) -> tuple[T | ClientFailure, ...]:
        """Return what ``act`` makes of the own vector of each client, ``fuse`` at a time, or what made it fail."""
        results: list[T | ClientFailure] = []
        for start in range(0, len(client_states), fuse):
            results += self._of_some(parts, state, client_states[start : start + fuse], act)
        return tuple(results)

    def _of_some(
        self,
        parts: Parts,
        state: GlobalState,
        some: Sequence[ClientState],
        act: Callable[[np.ndarray, Sequence[int]], Sequence[T]],
    ) -> Sequence[T | ClientFailure]:
        try:
            vector_CA = np.stack([self._personal_vector(parts, state, client) for client in some])
            return act(vector_CA, [client.client for client in some])
        except Exception as error:
            if len(some) == 1:
                return [failure_of(error)]
        # One client's failure must not affect the others, so each is retried alone.
        return [result for client in some for result in self._of_some(parts, state, [client], act)]

    def _personal_vector(self, parts: Parts, state: GlobalState, client: ClientState) -> np.ndarray:
        personal_M = client.arrays.get(PERSONAL)
        if personal_M is None:
            personal_M = self._spec.initial_vector(parts.personal)
        return parts.assemble(np.asarray(state.vector_F), personal_M)

    def _evaluate(
        self,
        table: TokenTable,
        indices_N: Sequence[np.ndarray],
        layout: VectorLayout,
        vector_CA: np.ndarray,
        cached: torch.Tensor | None = None,
        keep_predictions: bool = False,
    ) -> list[Evaluation]:
        return evaluate(
            self._backbone,
            table,
            indices_N,
            layout,
            vector_CA,
            self._spec.num_classes,
            self._spec.analysis.evaluation_batch_size,
            cached,
            keep_predictions=keep_predictions,
        )

    def score(self, state: GlobalState, *clients: int) -> tuple[ScoreReport, ...]:
        """Score all layers on one batch of each client, with the prompts of ``state``."""
        layout = self._full.exchanged(state.layers)
        prompt_LKHPD, _ = layout.split(to_device(np.array(state.vector_F), self._backbone.device))
        return tuple(self._score_one(prompt_LKHPD.unsqueeze(0), state, client) for client in clients)

    def _score_one(self, prompt_1LKHPD: torch.Tensor, state: GlobalState, client: int) -> ScoreReport:
        indices_N, settings = self._spec.shards.train(client), self._spec.analysis.score
        rng = seeds.stream(self._spec.training.seed, state.round, client, "score")
        chosen = rng.permutation(indices_N)[: settings.batch_size]
        try:
            batch = self._spec.train.trunks.batch(chosen)
            hidden = [h.float().cpu().numpy() for h in self._backbone.hidden_states(batch, prompt_1LKHPD, state.layers)]
            mask_BT = None if settings.padding else batch.attention_mask_BT
            scores_L = layer_scores(hidden, mask_BT, kind=settings.kind, score_last=settings.last)
        except Exception as error:
            return ScoreReport(
                client, len(indices_N), np.full(self._full.geometry.num_layers, np.nan), failure_of(error)
            )
        return ScoreReport(client, len(indices_N), scores_L)

    def spectrum(self, state: GlobalState, *clients: int) -> tuple[SpectrumReport, ...]:
        """Estimate each client's Hessian spectrum at the prompts of ``state``, and its share of the layers."""
        spec, settings = self._spec, self._spec.analysis.spectrum
        work = partial(
            spectrum_report, self._backbone, spec.train, full=self._full, state=state, seed=spec.training.seed
        )
        return tuple(work(spec.shards.train(client), settings=settings, client=client) for client in clients)

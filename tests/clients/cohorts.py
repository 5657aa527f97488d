"""A cohort of unequal clients on a tiny model of any family, to train one by one or side by side."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np
from support import make_tiny
from tiny_models import LABEL_WORDS, PAD, PROMPT_LENGTH, VOCABULARY

from clients.backbone.families import FAMILIES
from clients.backbone.loading import load_shared_weights
from clients.config import ClientConfig, HeadConfig
from clients.training.local_job import LocalJob, Parts, TrainingResult
from clients.training.local_training import train_clients
from clients.tuners.initial import initial_vector
from clients.tuners.make import make_tuner
from clients.tuners.word_vectors import WordVectors
from clients.worker import ClientWorker, WorkerSpec
from fedsim.core.method import CORRECTIONS
from fedsim.core.shards import Shards
from fedsim.core.tokens import TokenTable
from fedsim.simulation.preparation import analysis_spec, training_spec

SIZES = (3, 1, 13, 4, 7)
"""Training examples of each client: one, fewer than a batch, a batch, several batches."""
CLIENTS = tuple(range(len(SIZES)))
HOLDOUT = 5
"""Examples that each client holds out."""
BATCH = 4
OPTIMIZERS: dict[str, dict] = {
    "adamw": {"kind": "adamw", "lr": 0.05},
    "adamw_published": {"kind": "adamw_published", "lr": 0.05, "eps": 1e-3},
    "sgd": {"kind": "sgd", "lr": 0.5},
    "momentum": {"kind": "sgd", "lr": 0.2, "momentum": 0.9},
}


def examples(count: int, seed: int = 0) -> TokenTable:
    """Return texts of 2 to 20 tokens."""
    rng = np.random.default_rng(seed)
    lengths = rng.integers(2, 21, count)
    return TokenTable(
        ids_Z=rng.integers(3, VOCABULARY, lengths.sum()).astype(np.int32),
        offsets_N1=np.concatenate([[0], np.cumsum(lengths)]),
        read_positions_N=(lengths - 1).astype(np.int32),
        labels_N=rng.integers(0, len(LABEL_WORDS), count),
        pad_id=PAD,
    )


def shards() -> Shards:
    """Return a random partition of the examples."""
    sizes = np.array(SIZES) + HOLDOUT
    offsets = np.concatenate([[0], np.cumsum(sizes)])
    return Shards(np.random.default_rng(1).permutation(offsets[-1]), offsets, offsets[1:] - HOLDOUT)


def poolings(family: str) -> list[HeadConfig]:
    """Return every head that a family can have."""
    names = ["mean", "last"] if FAMILIES[family].predicts_next else ["first", "mean", "last"]
    verbalizers = [HeadConfig(loss=loss) for loss in ("labels", "vocabulary")]
    return [*verbalizers, *(HeadConfig(kind="classifier", pooling=name, init_std=0.5) for name in names)]


def specification(folder: str | Path, head: HeadConfig | None = None, dtype: str = "float32", **keys) -> WorkerSpec:
    """Return the cohort's worker specification; ``keys`` are sections of the config."""
    model = {**keys.pop("model", {}), "path": str(folder), "dtype": dtype, "head": (head or HeadConfig()).model_dump()}
    if "tuner" not in keys:
        keys["prompt"] = {"length": PROMPT_LENGTH, "init_std": 0.5, **keys.get("prompt", {})}
    client = {"epochs": 2, "batch_size": BATCH, **keys.pop("client", {})}
    config = make_tiny(executor="local", model=model, client=client, **keys)
    dealt = shards()
    table = examples(len(dealt.indices_N))
    words = LABEL_WORDS if config.model.head.kind == "verbalizer" else None
    weights = load_shared_weights(config.model).stored(config.model)
    return WorkerSpec(
        weights=weights,
        model=config.model,
        tuner=make_tuner(config.tuner, config.prompt, weights.family, config.seed).knowing(
            WordVectors(weights, frozenset(), VOCABULARY, words), config.seed
        ),
        num_classes=len(LABEL_WORDS),
        label_word_ids_C=words,
        training=training_spec(config, len(table)),
        analysis=analysis_spec(config),
        train=table,
        validation=examples(40, seed=2),
        shards=dealt,
    )


def changed(spec: WorkerSpec, **settings) -> WorkerSpec:
    """Return the specification with changed training settings."""
    return dataclasses.replace(spec, training=dataclasses.replace(spec.training, **settings))


class Cohort:
    """The clients of a specification and a worker that runs them."""

    def __init__(
        self,
        spec: WorkerSpec,
        layers: tuple[int, ...] = (0, 2),
        keep_local: bool = False,
        devices: tuple[str, ...] = ("cpu",),
    ) -> None:
        self.spec, self.worker = spec, ClientWorker(spec, devices)
        full = self.worker.info().full
        layers = layers if len(full.layers) == full.geometry.num_layers else full.layers
        self.parts = Parts.of(full, layers, keep_local)

    def start(self, client: int) -> np.ndarray:
        """Return initial parameters, different for each client, as with personal layers."""
        spec = self.spec
        return initial_vector(self.parts.trained, spec.tuner, spec.model.head, client).astype(spec.model.exchange_dtype)

    def jobs(
        self, clients: tuple[int, ...] = CLIENTS, kept_steps: tuple[int, ...] | None = None, drift: bool = False
    ) -> list[LocalJob]:
        """Return a local job of each client; ``kept_steps`` are the steps in its moments."""
        rng = np.random.default_rng(7)
        dtype, jobs = self.spec.model.exchange_dtype, []
        for client in CLIENTS:
            moments = [0.1 * rng.normal(size=self.parts.trained.size).astype(dtype) for _ in range(2)]
            drift_F = rng.normal(size=self.parts.exchanged.size).astype(dtype)
            job = LocalJob(client, self.spec.shards.train(client), self.start(client))
            if kept_steps is not None and kept_steps[client]:
                job = dataclasses.replace(
                    job,
                    first_moment_A=moments[0],
                    second_moment_A=moments[1] ** 2,
                    moment_steps=kept_steps[client],
                )
            jobs.append(dataclasses.replace(job, begun={"drift": drift_F}) if drift else job)
        return [jobs[client] for client in clients]

    def train(self, jobs, correction: str = "none", max_tokens=None, config=None) -> list[TrainingResult]:
        """Train the jobs in shared passes."""
        config = config or self.spec.training.client
        corrections = (CORRECTIONS[correction].of(config),)
        return train_clients(
            self.worker._backbone, self.spec.train, jobs, self.parts, config, corrections, seed=3, round=2,
            max_tokens=max_tokens, prompt_dropout=self.spec.tuner.dropout,
        )  # fmt: skip

    def train_alone(self, jobs, correction: str = "none", max_tokens=None, config=None) -> list[TrainingResult]:
        """Train the jobs one by one."""
        return [self.train([job], correction, max_tokens, config)[0] for job in jobs]

    def client_config(self, **changes) -> ClientConfig:
        """Return the clients' config with other values."""
        return ClientConfig.model_validate({**self.spec.training.client.model_dump(), **changes})


ARRAYS = ("vector_A", "first_moment_A", "second_moment_A")


def assert_same(ours: TrainingResult, theirs: TrainingResult, tolerance: float, case: object = "") -> None:
    """Compare all results of local training; arrays relative to their largest entry."""
    pairs = {name: (getattr(ours, name), getattr(theirs, name)) for name in ARRAYS}
    assert ours.tallies.keys() == theirs.tallies.keys(), case
    pairs |= {name: (ours.tallies[name], theirs.tallies[name]) for name in ours.tallies}
    for name, (mine, other) in pairs.items():
        assert mine.dtype == other.dtype and mine.shape == other.shape
        error = np.abs(mine - other).max() / max(np.abs(other).max(), 1e-30)
        assert error <= tolerance, f"{case} {name}: {error:.1e}"
    assert (ours.num_steps, ours.num_tokens) == (theirs.num_steps, theirs.num_tokens), case
    np.testing.assert_allclose([ours.loss_first, ours.loss_last], [theirs.loss_first, theirs.loss_last], rtol=tolerance)

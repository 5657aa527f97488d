"""The work: random texts with lengths like those of SST-2, and clients with two mini-batches of 8 that train on them.

Shape suffixes: N examples, A what a client trains.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import numpy as np
import torch
from transformers import PreTrainedModel

from benchmarks.flops import needed_flops
from benchmarks.gpu_report.shapes import PAD, WORDS_C, ModelSize
from benchmarks.peft_loop import Outcome, PeftLoop
from clients.backbone.model import Backbone
from clients.backbone.passes import PassLimit
from clients.budget import tokens_of_pass
from clients.config import ClientConfig, HeadConfig
from clients.training.local_job import LocalJob, Parts, TrainingResult
from clients.training.local_training import train_clients
from clients.tuners.config import TunerConfig
from clients.tuners.initial import initial_vector
from fedsim.core.correction import Correction
from fedsim.core.layout import LayerShape, PromptGeometry, VectorLayout
from fedsim.core.tokens import TokenTable

LONGEST, SHORTEST, MEAN = 64, 5, 25
BATCH_SIZE, STEPS = 8, 2


def texts(num_examples: int, vocabulary: int) -> TokenTable:
    """Return random texts with lengths like those of SST-2, the same ones every time."""
    rng = np.random.default_rng(0)
    lengths_N = np.clip(np.rint(rng.gamma(4.0, MEAN / 4.0, num_examples)), SHORTEST, LONGEST).astype(np.int64)
    offsets = np.concatenate([[0], np.cumsum(lengths_N)])
    ids = rng.integers(PAD + 1, vocabulary, offsets[-1]).astype(np.int32)
    return TokenTable(ids, offsets, (lengths_N - 1).astype(np.int32), rng.integers(0, 2, num_examples), PAD)


_CONFIG = ClientConfig(epochs=1, batch_size=BATCH_SIZE)


class Work:
    """Local training of some clients from the same start.

    Parameters
    ----------
    tuner
        What is trained, a ``tuner.kind``.
    geometry
        Its shape in each layer; see :attr:`Backbone.geometry`.
    clients
        All of them; a side may train the first ones alone.
    """

    def __init__(
        self, size: ModelSize, tuner: str, geometry: LayerShape, clients: int, config: ClientConfig = _CONFIG
    ) -> None:
        self._size, self._geometry, self._config = size, geometry, config
        self._tuner = TunerConfig.model_validate({"kind": tuner})
        self._table = texts(clients * BATCH_SIZE * STEPS, size.values["vocab_size"])
        self._layout = VectorLayout.full(geometry)
        self._parts = Parts.of(self._layout, self._layout.layers, keep_local=False)
        self.start_A = initial_vector(self._layout, size.tuner(tuner), HeadConfig(), seed=1)
        """Where every client starts."""
        self.splits = 0
        """Passes that were split in two for lack of memory."""

    def examples(self, clients: int) -> list[np.ndarray]:
        """Return the examples of each of the first clients."""
        own = BATCH_SIZE * STEPS
        return [np.arange(client * own, (client + 1) * own) for client in range(clients)]

    def tokens(self, clients: int) -> int:
        """Return the tokens that the first clients train on."""
        return int(self._table.lengths_N[: clients * BATCH_SIZE * STEPS].sum()) * (self._config.epochs or 1)

    def flops(self, clients: int) -> float:
        """Return the operations that the first clients' training needs."""
        geometry = self._geometry
        prefix = isinstance(geometry, PromptGeometry)
        lengths_N = self._table.lengths_N[: clients * BATCH_SIZE * STEPS]
        return (self._config.epochs or 1) * needed_flops(
            self._size.shape,
            lengths_N,
            self._size.prompt_length if prefix else 0,
            low_rank=0 if prefix else geometry.layer_size,
            one_read=True,
        )

    def train(self, backbone: Backbone, clients: int, *, together: bool) -> list[TrainingResult]:
        """Train the first clients as a worker does, all in shared passes or one after another."""
        jobs = [LocalJob(client, own_N, self.start_A) for client, own_N in enumerate(self.examples(clients))]
        on_gpu = backbone.device.type == "cuda"
        limit = PassLimit(tokens_of_pass("auto", backbone.hidden_size, on_gpu=on_gpu))
        groups: Sequence[list[LocalJob]] = [jobs] if together else [[job] for job in jobs]
        results: list[TrainingResult] = []
        for group in groups:
            results += train_clients(
                backbone,
                self._table,
                group,
                self._parts,
                self._config,
                (Correction(),),
                seed=0,
                round=0,
                max_tokens=limit,
            )
        self.splits += limit.splits
        return results

    def peft_loop(self, model: PreTrainedModel) -> PeftLoop:
        """Wrap a model with PEFT, in place."""
        return PeftLoop(model, self._tuner, WORDS_C, self._size.prompt_length, self._config, self._table)

    def train_with_peft(self, loop: PeftLoop, clients: int) -> list[Outcome]:
        """Train the first clients one after another with PEFT, with whatever kernels PyTorch finds fastest."""
        tuned_LX, _ = self._layout.split(self.start_A)
        with _any_kernels():
            return [
                loop.train(client, own_N, self._geometry, tuned_LX)
                for client, own_N in enumerate(self.examples(clients))
            ]


@contextmanager
def _any_kernels() -> Iterator[None]:
    """Allow kernels without a fixed order of sums, which fedsim's workers do without: a loop of one's own would use them."""
    fixed = torch.are_deterministic_algorithms_enabled()
    torch.use_deterministic_algorithms(False)
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(fixed)


def different_work(sides: dict[str, Sequence[Outcome | TrainingResult]]) -> str:
    """Return where sides did not do the same work, to half precision, for the clients that they share; empty if all did."""
    (_, expected), *others = sides.items()
    for name, results in others:
        for one, other in zip(expected, results, strict=False):
            if not abs(one.loss_first - other.loss_first) < 0.05 * one.loss_first or one.num_tokens != other.num_tokens:
                return (
                    f"NOT THE SAME WORK: a client's loss is {other.loss_first:.3f} in {name}, not {one.loss_first:.3f}"
                )
    return ""

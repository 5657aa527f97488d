"""Clients one by one, fused, and in a loop of PEFT on a GPU, with a backbone of RoBERTa-large's shape.

    python -m benchmarks.gpu [--tuner prefix] [--json FILE] [--clients 10,25,50,100] [--runs 5] [--small]

Weights and texts are random, with text lengths as in SST-2, so no network is needed. Prompts of 20 tokens, or with
``--tuner lora`` matrices of rank 8 on query and value, in all 24 layers; mini-batches of 8, as in the published example script.
All sides but the loop of PEFT run what a worker runs, in bfloat16, and all end each measurement with the results on the host.
``--small`` runs the same code with a tiny shape on any machine, to check that it works.

Shape suffixes: N examples.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Annotated

import numpy as np
import torch
import typer
from transformers import RobertaConfig, RobertaForMaskedLM
from transformers.utils.logging import disable_progress_bar

from benchmarks.flops import Shape, needed_flops
from benchmarks.measure import RUNS, Row, compare, in_turn, median_ratio, numbers, present, seconds, write
from benchmarks.peft_loop import MAKERS, Outcome, PeftLoop
from clients.backbone.device import make_deterministic
from clients.backbone.families import FAMILIES
from clients.backbone.loading import load_shared_weights
from clients.backbone.model import Backbone
from clients.backbone.passes import PassLimit
from clients.budget import tokens_of_pass
from clients.config import ClientConfig, HeadConfig, ModelConfig, PromptConfig
from clients.training.local_job import LocalJob, Parts, TrainingResult
from clients.training.local_training import train_clients
from clients.tuners.config import TunerConfig
from clients.tuners.initial import initial_vector
from clients.tuners.make import make_tuner
from fedsim.core.correction import Correction
from fedsim.core.layout import PromptGeometry, VectorLayout
from fedsim.core.tokens import TokenTable

LONGEST, SHORTEST, MEAN = 64, 5, 25
WORDS_C = np.array([10, 20])
PEFT = "PEFT loop"
_BATCH_SIZE, _STEPS, _PAD = 8, 2, 1


@dataclass(frozen=True)
class Size:
    """Sizes of model and work."""

    shape: Shape
    heads: int
    vocabulary: int
    prompt_length: int
    clients: tuple[int, ...]
    product: int
    """Rows and columns of the matrices whose product measures the peak."""


LARGE = Size(Shape(1024, 4096, 24), 16, 50265, 20, (10, 25, 50, 100), 8192)
SMALL = Size(Shape(64, 128, 2), 4, 500, 4, (2, 3), 256)


def texts(num_examples: int, vocabulary: int) -> TokenTable:
    """Return random texts with lengths like those of SST-2, the same ones every time."""
    rng = np.random.default_rng(0)
    lengths_N = np.clip(np.rint(rng.gamma(4.0, MEAN / 4.0, num_examples)), SHORTEST, LONGEST).astype(np.int64)
    offsets = np.concatenate([[0], np.cumsum(lengths_N)])
    ids = rng.integers(_PAD + 2, vocabulary, offsets[-1]).astype(np.int32)
    return TokenTable(ids, offsets, (lengths_N - 1).astype(np.int32), rng.integers(0, 2, num_examples), _PAD)


@dataclass(frozen=True)
class Models:
    """The same model in three ways."""

    half: Backbone
    """With half-precision weights."""
    autocast: Backbone
    """With float32 weights under autocast."""
    plain: RobertaForMaskedLM
    """transformers' own, with half-precision weights."""


def build_models(size: Size, device: str, tuner: TunerConfig) -> Models:
    """Return the same random model in three ways."""
    config = RobertaConfig(
        vocab_size=size.vocabulary,
        hidden_size=size.shape.hidden,
        intermediate_size=size.shape.inner,
        num_hidden_layers=size.shape.layers,
        num_attention_heads=size.heads,
        max_position_embeddings=514,
        type_vocab_size=1,
        pad_token_id=_PAD,
    )
    # PEFT counts a text's positions after the prefix.
    prompt = PromptConfig(length=size.prompt_length, position_offset="paper")
    made = make_tuner(tuner, prompt, FAMILIES["roberta"])
    disable_progress_bar()
    with TemporaryDirectory() as folder:
        torch.manual_seed(0)
        RobertaForMaskedLM(config).save_pretrained(folder)
        half, autocast = (
            Backbone.build(load_shared_weights(model), model, made, len(WORDS_C), WORDS_C, device)
            for model in (
                ModelConfig(path=folder, dtype="bfloat16"),
                ModelConfig(path=folder, autocast="bfloat16"),
            )
        )
        plain = RobertaForMaskedLM.from_pretrained(folder, dtype=torch.bfloat16).to(device).eval()
    return Models(half, autocast, plain.requires_grad_(False))


class Work:
    """Local training of some clients on one backbone."""

    def __init__(
        self,
        size: Size,
        models: Models,
        tuner: TunerConfig,
        clients: int,
        device: torch.device,
        config: ClientConfig = ClientConfig(epochs=1, batch_size=_BATCH_SIZE),  # noqa: B008 - frozen
    ) -> None:
        self._table = texts(clients * _BATCH_SIZE * _STEPS, size.vocabulary)
        self._examples_N = np.split(np.arange(len(self._table)), clients)
        self._config = config
        self._device, geometry = device, models.half.geometry
        self._layout = VectorLayout.full(geometry)
        self._parts = Parts.of(self._layout, self._layout.layers, keep_local=False)
        made = make_tuner(tuner, PromptConfig(length=size.prompt_length), FAMILIES["roberta"])
        self._start_A = initial_vector(self._layout, made, HeadConfig(), seed=1)
        # Wraps the base model in place, once for all measurements.
        self._peft = PeftLoop(models.plain, tuner, WORDS_C, size.prompt_length, self._config, self._table)
        self.tokens = int(self._table.lengths_N.sum())
        prompt_length = size.prompt_length if isinstance(geometry, PromptGeometry) else 0
        low_rank = 0 if isinstance(geometry, PromptGeometry) else geometry.layer_size
        self.flops = needed_flops(size.shape, self._table.lengths_N, prompt_length, low_rank=low_rank, one_read=True)
        self.splits = 0
        """Passes split in two for lack of memory."""

    def train(self, backbone: Backbone, together: bool) -> list[TrainingResult]:
        """Train the clients, all at once or one after another."""
        jobs = [LocalJob(client, own_N, self._start_A) for client, own_N in enumerate(self._examples_N)]
        limit = PassLimit(tokens_of_pass("auto", backbone.hidden_size, on_gpu=self._device.type == "cuda"))
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

    def with_peft(self) -> list[Outcome]:
        """Train the clients one after another with PEFT."""
        tuned_LX, _ = self._layout.split(self._start_A)
        shape = self._layout.geometry
        return [self._peft.train(client, own_N, shape, tuned_LX) for client, own_N in enumerate(self._examples_N)]


def peak(size: Size, device: torch.device) -> float:
    """Return the FLOP/s of a large bfloat16 matrix product."""
    left, right = (torch.randn(size.product, size.product, device=device, dtype=torch.bfloat16) for _ in range(2))
    times = []
    for _ in range(6):
        _wait(device)
        started = time.perf_counter()
        left @ right
        _wait(device)
        times.append(time.perf_counter() - started)
    return 2 * size.product**3 / min(times[1:])


def measure(size: Size, tuner: TunerConfig, clients: int, device: torch.device, runs: int) -> list[Row]:
    """Return the rows for a number of clients."""
    models, prefix = build_models(size, device.type, tuner), f"{clients} clients: "
    work = Work(size, models, tuner, clients, device)
    sides: dict[str, Callable[[], Sequence[Outcome | TrainingResult]]] = {
        "sequential": lambda: work.train(models.half, together=False),
        "fused": lambda: work.train(models.half, together=True),
        "fused, autocast": lambda: work.train(models.autocast, together=True),
        PEFT: work.with_peft,
    }
    # The first pass of a process includes warm-up; results are compared here too.
    _check_same({name: side() for name, side in sides.items()})

    def rate(side: Callable[[], object]) -> Callable[[], float]:
        return lambda: work.tokens / seconds(side)

    figures = in_turn({name: rate(side) for name, side in sides.items()} | {"peak": lambda: peak(size, device)}, runs)
    peaks = figures.pop("peak")
    rows = compare("gpu", figures, "tokens/s", "sequential", prefix)
    for name in ("fused", "fused, autocast"):
        times = median_ratio(figures[name], figures[PEFT])
        rows.append(Row("gpu", f"{prefix}{name}, over the {PEFT}", times, "times", None, "", runs))
    for name, rates in figures.items():
        shares = [work.flops * tokens / work.tokens / most for tokens, most in zip(rates, peaks, strict=True)]
        rows.append(Row("gpu", f"{prefix}{name}, of the peak", statistics.median(shares), "share", None, "", runs))
    rows.append(Row("gpu", f"{prefix}peak in bfloat16", statistics.median(peaks) / 1e12, "TFLOP/s", None, "", runs))
    if device.type == "cuda":
        held = torch.cuda.max_memory_allocated(device) / 2**30
        torch.cuda.reset_peak_memory_stats(device)
        rows.append(Row("gpu", f"{prefix}memory, at most", held, "GiB", None, "", runs))
    if work.splits:
        rows.append(Row("gpu", f"{prefix}passes cut in two by memory", float(work.splits), "passes", None, "", runs))
    return rows


def _check_same(results: Mapping[str, Sequence[Outcome | TrainingResult]]) -> None:
    """Raise unless all sides did the same work, to half precision."""
    expected = results["sequential"]
    for name, others in results.items():
        for one, other in zip(expected, others, strict=True):
            if not abs(one.loss_first - other.loss_first) < 0.05 * one.loss_first or one.num_tokens != other.num_tokens:
                raise RuntimeError(f"{name}: a client's loss is {other.loss_first:.3f}, not {one.loss_first:.3f}")


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def main(
    tuner: Annotated[str, typer.Option(help=f"What is trained: {' or '.join(MAKERS)}.")] = "prefix",
    json: Annotated[Path | None, typer.Option(help="File for JSON lines.")] = None,
    clients: Annotated[str | None, typer.Option(help="Numbers of clients, with commas.")] = None,
    runs: Annotated[int, typer.Option(help="Measurements of each side.", min=1)] = RUNS,
    small: Annotated[bool, typer.Option(help="A tiny shape, to see that it works; also without a GPU.")] = False,
) -> None:
    """Measure and print."""
    if tuner not in MAKERS:
        raise typer.BadParameter(f"--tuner {tuner} is not one of {', '.join(MAKERS)}")
    name = torch.cuda.get_device_name() if torch.cuda.is_available() else None
    if name is None and not small:
        sentence = "torch sees no GPU here, so nothing was measured"
        print(f"{sentence}; run this on a machine that has one, or with --small for the same code in small")
        if json is not None:
            write([Row("gpu", sentence, None, "tokens/s", runs=0)], json)
        return
    size, device = SMALL if small else LARGE, torch.device("cpu" if name is None else "cuda")
    make_deterministic(device)
    counts = size.clients if clients is None else numbers(clients)
    chosen = TunerConfig.model_validate({"kind": tuner})
    rows = [row for number in counts for row in measure(size, chosen, number, device, runs)]
    where = f"{name or 'the CPU'}, {size.shape.layers} layers of {size.shape.hidden}"
    present(rows, json, f"gpu, {tuner}: one after another and side by side on {where}")


if __name__ == "__main__":
    typer.run(main)

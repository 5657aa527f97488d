"""Memory and time of a training pass: the frozen model as it is, its layers run twice (``model.gradient_checkpointing``), and
its weights quantised (``model.quantize``).

Each run of a side is a process of its own that builds the model, then computes the gradient of the same random texts with the
config's tuner in one pass, first once for what is made once, then measured: the peak of resident memory above what the process
held before, as Linux counts it, and the seconds. ``weights`` are the bytes of the shared arrays. Ratios are to the model as it
is.

    python -m benchmarks.frozen_model [--model FOLDER] [--tuner lora] [--tokens 128] [--examples 16] [--runs 3] [--json FILE]
"""

from __future__ import annotations

import ctypes
import multiprocessing
import re
from collections import defaultdict
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Annotated

import typer

from benchmarks.measure import Row, compare, in_turn, present, seconds

PLAIN = "as it is"
SIDES: dict[str, dict[str, object]] = {
    PLAIN: {},
    "layers run twice": {"gradient_checkpointing": True},
    "int8": {"quantize": "int8"},
    "int4": {"quantize": "int4"},
    "int8, layers run twice": {"quantize": "int8", "gradient_checkpointing": True},
}
RUNS = 3
_SECONDS, _PEAK, _WEIGHTS = "seconds of a pass", "peak of a pass", "weights"
_CLEAR, _STATUS = Path("/proc/self/clear_refs"), Path("/proc/self/status")


def peak_above(work: Callable[[], object]) -> int:
    """Return the bytes by which the process's resident memory rose above its start, at most, while ``work`` ran."""
    ctypes.CDLL(None).malloc_trim(0)  # what was freed before would be taken without a rise
    _CLEAR.write_text("5")  # the peak starts anew from what is resident now
    before = _status("VmHWM")
    work()
    return _status("VmHWM") - before


def _status(key: str) -> int:
    found = re.search(rf"^{key}:\s+(\d+) kB$", _STATUS.read_text(), re.MULTILINE)
    assert found is not None
    return 1024 * int(found[1])


def run_once(folder: str, model: dict[str, object], tuner: str, tokens: int, examples: int) -> dict[str, float]:
    """Build a model and compute a gradient; return seconds, the peak and the bytes of the weights.

    Parameters
    ----------
    folder
        A model, or ``embedded``.
    model
        Keys of section ``model``.
    tuner
        ``tuner.kind``.
    tokens, examples
        Length and number of the texts.
    """
    import numpy as np
    import torch

    from clients.backbone.loading import load_shared_weights
    from clients.backbone.model import Backbone
    from clients.backbone.product_format import settled
    from clients.config import HeadConfig, ModelConfig, PromptConfig
    from clients.tuners.config import TunerConfig
    from clients.tuners.initial import initial_vector
    from clients.tuners.make import make_tuner
    from fedsim.core.layout import VectorLayout
    from fedsim.core.tokens import TokenTable

    torch.set_num_threads(1)
    head = HeadConfig(kind="classifier", pooling="mean")
    config = ModelConfig.model_validate({"path": folder, "head": head.model_dump(), **model})
    loaded = load_shared_weights(config)
    family_config = loaded.family.config(_values(loaded.config_json))
    config = settled(config, family_config.hidden_size, on_gpu=False)
    weights = loaded.stored(config)
    del loaded
    made = make_tuner(TunerConfig.model_validate({"kind": tuner}), PromptConfig(), weights.family)
    backbone = Backbone.build(weights, config, made, 2, None, "cpu")
    layout = VectorLayout.full(backbone.geometry, backbone.head_shapes)
    vector_F = torch.from_numpy(initial_vector(layout, made, head, 0).astype(np.float32)).requires_grad_()
    rng = np.random.default_rng(0)
    table = TokenTable(
        rng.integers(3, family_config.vocab_size, examples * tokens).astype(np.int32),
        np.arange(examples + 1) * tokens,
        np.full(examples, tokens - 1, np.int32),
        rng.integers(0, 2, examples),
        pad_id=0,
    )
    packed = table.pack(np.arange(examples))

    def step() -> None:
        tuned_LX, arrays = layout.split(vector_F)
        reading, _ = backbone.read(
            packed, tuned_LX.unsqueeze(0), layout.layers, {name: array.unsqueeze(0) for name, array in arrays.items()}
        )
        torch.autograd.grad(reading.loss_B.mean(), vector_F)

    took: list[float] = []
    step()
    peak = peak_above(lambda: took.append(seconds(step)))
    return {_SECONDS: took[0], _PEAK: peak / 2**20, _WEIGHTS: weights.nbytes / 2**20}


def _values(text: str) -> dict[str, object]:
    import json

    values: dict[str, object] = json.loads(text)
    return values


def measure(
    folder: str, tuner: str, tokens: int, examples: int, runs: int, names: Sequence[str] = tuple(SIDES)
) -> list[Row]:
    """Return the rows of some sides, the model as it is among them."""
    figures: dict[str, dict[str, list[float]]] = defaultdict(lambda: defaultdict(list))

    def side(name: str) -> Callable[[], float]:
        def run() -> float:
            with ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as pool:
                found = pool.submit(run_once, folder, SIDES[name], tuner, tokens, examples).result()
            for figure, value in found.items():
                figures[figure][name].append(value)
            return found[_SECONDS]

        return run

    in_turn({name: side(name) for name in names}, runs)
    return [
        row
        for figure, values in figures.items()
        for row in compare("frozen_model", values, "s" if figure == _SECONDS else "MiB", PLAIN, f"{figure}: ")
    ]


def main(
    model: Annotated[str, typer.Option(help="Folder of a model.")] = "embedded",
    tuner: Annotated[str, typer.Option(help="tuner.kind: a kind that acts in the layers.")] = "lora",
    tokens: Annotated[int, typer.Option(min=3, help="Tokens of a text.")] = 128,
    examples: Annotated[int, typer.Option(min=1, help="Texts of the pass.")] = 16,
    runs: Annotated[int, typer.Option(min=1, help="Runs of each side.")] = RUNS,
    records_file: Annotated[Path | None, typer.Option("--json", help="Write one line of JSON a figure.")] = None,
) -> None:
    """Measure, and print the table."""
    rows = measure(model, tuner, tokens, examples, runs)
    present(rows, records_file, f"a training pass of {examples} texts of {tokens} tokens, {tuner}, on a frozen model")


if __name__ == "__main__":
    typer.run(main)

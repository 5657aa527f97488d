"""Cases of a backbone over several devices, which are pretended; a process of its own prints what comes of them as JSON.

``python placed_cases.py CASE ...`` prints ``{case: null or what went wrong}``; cases are names of ``CASES``.
"""

from __future__ import annotations

import json
import sys
import tempfile
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from functools import cache
from pathlib import Path
from unittest import mock

import numpy as np
import pretended_devices
import torch
from cohorts import Cohort, assert_same, specification
from pretended_devices import COPIES, pretended
from test_packing import LENGTHS, OWNERS, SHUFFLED, texts
from test_shared_beginnings import alike
from test_tuners import TUNERS, numbers
from tiny_models import LABEL_WORDS, TINY, default_head, runnable, save, shared, tiny_model
from torch import Tensor

from clients.backbone.frozen_states import compute_states
from clients.backbone.model import Backbone
from clients.backbone.shared_beginnings import SharedBeginnings
from clients.backbone.shared_weights import SharedWeights
from clients.config import HeadConfig, ModelConfig, PromptConfig
from clients.training.local_job import TrainingResult
from clients.tuners.config import TunerConfig
from clients.tuners.make import make_tuner
from clients.tuners.prompt_dropout import PromptMask
from clients.tuners.word_vectors import WordVectors
from fedsim.core.decoding import Decoding

ONE, TWO = ("pretended:0",), ("pretended:0", "pretended:1")
SECTIONS = {"prefix": lambda family: {}, **{name: kind.of_family for name, kind in TUNERS.items()}}


@cache
def weights(family: str, dtype: str = "float64", quantize: str = "none") -> SharedWeights:
    loaded = shared(tiny_model(family), Path(tempfile.mkdtemp()) / family, dtype=dtype)
    return loaded.stored(ModelConfig(dtype=dtype, quantize=quantize))


def build(
    devices: tuple[str, ...], family: str, tuner: str = "prefix", head: HeadConfig | None = None, **model: object
) -> Backbone:
    head = head or default_head(family)
    kept = {name: model[name] for name in ("quantize",) if name in model}
    source = weights(family, **({"dtype": model["dtype"]} if "dtype" in model else {}), **kept)
    given = {"path": "x", "dtype": source.dtype, "attention": runnable(family, "sdpa"), "head": head.model_dump()}
    config = ModelConfig.model_validate(given | model)
    section = TunerConfig.model_validate(SECTIONS[tuner](family))
    words_C = LABEL_WORDS if head.kind == "verbalizer" else None
    words = WordVectors(source, frozenset(), 97, words_C)
    made = make_tuner(section, PromptConfig(length=4), source.family).knowing(words, 0)
    return Backbone.build(source, config, made, len(LABEL_WORDS), words_C, devices)


def layers_of(model: Backbone) -> tuple[int, ...]:
    shape = model.geometry
    return (0, 2) if len(shape.tunable) == shape.num_layers else shape.tunable


def trained(model: Backbone, clients: int = 3) -> Tensor:
    """Return the numbers of each client, a leaf on the model's first device."""
    drawn = numbers(model.geometry, len(layers_of(model)), clients).detach()
    return drawn.to(
        model.device, torch.float64 if model.model.dtype == torch.float64 else torch.float32
    ).requires_grad_()


def heads(model: Backbone, clients: int = 3) -> dict[str, Tensor]:
    """Return random heads of each client."""
    generator = torch.Generator().manual_seed(4)
    drawn = {name: torch.randn((clients, *shape), generator=generator) for name, shape in model.head_shapes}
    return {name: array.to(model.device, model.model.dtype) for name, array in drawn.items()}


def packed(model: Backbone, **kwargs: object) -> list[Tensor]:
    """Return losses of a packed pass of three clients, and the gradient in what is trained."""
    tuned = trained(model)
    reading, _ = model.read(texts().pack(SHUFFLED), tuned, layers_of(model), heads(model), OWNERS[SHUFFLED], **kwargs)
    return [reading.loss_B.detach(), *torch.autograd.grad(reading.loss_B.sum(), tuned)]


def padded(model: Backbone) -> list[Tensor]:
    """Return the same of a padded pass."""
    tuned = trained(model)
    owners_B = torch.from_numpy(OWNERS[SHUFFLED]).to(model.device)
    reading = model.forward(texts().batch(SHUFFLED), tuned, layers_of(model), heads(model), owners_B)
    return [reading.loss_B.detach(), *torch.autograd.grad(reading.loss_B.sum(), tuned)]


def both(model: Backbone) -> list[Tensor]:
    return [*packed(model), *padded(model)]


def same(work: Callable[[Backbone], list[Tensor]], *case: object, tolerance: float = 1e-11, **model: object) -> None:
    """Hold two devices to one, to the bit, and to a model in main memory."""
    plain = work(build(("cpu",), *case, **model))  # which also loads the weights, where nothing is pretended
    with pretended():
        one = [result.cpu() for result in work(build(ONE, *case, **model))]
        COPIES.clear()
        two = [result.cpu() for result in work(build(TWO, *case, **model))]
        assert COPIES[TWO] and COPIES[TWO[::-1]], "no pass crossed the devices"
    assert all(map(torch.equal, one, two)), "two devices have other bits than one"
    for ours, theirs in zip(two, plain, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=tolerance, atol=tolerance)
    assert any(result.abs().max() > 0 for result in two)


def passes(family: str, tuner: str) -> None:
    same(both, family, tuner)


def classifier() -> None:
    """A head that is trained, of the mean over tokens."""
    same(padded_and_packed_of_head, "bert", "lora", HeadConfig(kind="classifier", pooling="mean"))


def padded_and_packed_of_head(model: Backbone) -> list[Tensor]:
    generator = torch.Generator().manual_seed(4)
    drawn = {name: torch.randn((3, *shape), generator=generator) for name, shape in model.head_shapes}
    heads = {name: array.double().to(model.device).requires_grad_() for name, array in drawn.items()}
    tuned = trained(model)
    reading, _ = model.read(texts().pack(SHUFFLED), tuned, layers_of(model), heads, OWNERS[SHUFFLED])
    return [reading.loss_B.detach(), *torch.autograd.grad(reading.loss_B.sum(), (tuned, *heads.values()))]


def dropped_prompts() -> None:
    """Each example sees a part of its client's prompts."""

    def work(model: Backbone) -> list[Tensor]:
        size = (len(LENGTHS), 2, *model.geometry.layer_shape)
        kept = torch.from_numpy(np.random.default_rng(0).random(size) < 0.8).to(model.device)
        return packed(model, mask=PromptMask(kept, 1.25))

    same(work, "llama")


def shared_beginnings(tuner: str) -> None:
    """What texts of a client begin with is computed once, on each device."""

    def read(model: Backbone) -> list[Tensor]:
        tuned = trained(model)
        table = alike(texts())
        order = np.concatenate([SHUFFLED, SHUFFLED])
        assert SharedBeginnings.of(table.pack(order), np.resize(OWNERS, len(order))) is not None
        reading, _ = model.read(table.pack(order), tuned, layers_of(model), {}, np.resize(OWNERS, len(order)))
        return [reading.loss_B.detach(), *torch.autograd.grad(reading.loss_B.sum(), tuned)]

    same(read, "gpt2", tuner)


def cached(tuner: str) -> None:
    """What is below the lowest tuned layer is kept on the CPU, and enters the layer's device."""

    def work(model: Backbone) -> list[Tensor]:
        layers = (2,) if tuner in ("prefix", "lora") else model.geometry.tunable
        table, order = texts(), np.arange(len(LENGTHS))
        states = compute_states(model, table, order, layers, "float64", 30).tensor()
        tuned = numbers(model.geometry, 1, 3).detach().to(model.device).requires_grad_()
        reading, _ = model.read(table.pack(order), tuned, layers, {}, OWNERS, cached_ZD=states)
        plain, _ = model.read(table.pack(order), tuned, layers, {}, OWNERS)
        torch.testing.assert_close(reading.loss_B, plain.loss_B, rtol=1e-11, atol=1e-11)
        return [states, reading.loss_B.detach(), *torch.autograd.grad(reading.loss_B.sum(), tuned)]

    same(work, "gpt2", tuner)


def written(tuner: str) -> None:
    """Texts of three clients are continued with a cache, from which they leave one after another."""

    same(continued, "llama", tuner)


def continued(model: Backbone) -> list[Tensor]:
    rng = np.random.default_rng(0)
    starts = [rng.integers(3, 97, length) for length in LENGTHS[:6]]
    decoding = Decoding(max_new_tokens=8, end_ids=(5, 17, 40, 60))
    with torch.no_grad():
        found = model.generate(starts, trained(model), layers_of(model), decoding, OWNERS[:6])
    assert len({len(each) for each in found}) > 1, "all texts end together"
    return [torch.from_numpy(each) for each in found]


def hidden_states() -> None:
    """Those of every layer, as layer scores read them."""

    def work(model: Backbone) -> list[Tensor]:
        tuned = trained(model, clients=1).detach()
        return [hidden.cpu() for hidden in model.hidden_states(texts().batch(SHUFFLED), tuned, layers_of(model))]

    same(work, "llama", "lora")


def second_derivatives() -> None:
    """Products with the Hessian, as spectra need them."""
    same(curvature, "llama", attention="eager", tolerance=1e-5)
    offloaded(curvature, "llama", attention="eager")


def curvature(model: Backbone) -> list[Tensor]:
    tuned = trained(model, clients=1)
    reading = model.forward(texts().batch(SHUFFLED[:4]), tuned, layers_of(model), {})
    (gradient,) = torch.autograd.grad(reading.loss_B.sum(), tuned, create_graph=True)
    return list(torch.autograd.grad(gradient.square().sum(), tuned))


def checkpointed(tuner: str) -> None:
    same(packed, "llama", tuner, gradient_checkpointing=True)


def quantised() -> None:
    same(both, "llama", "lora", dtype="float32", quantize="int4", tolerance=1e-4)


def offloaded(work: Callable[[Backbone], list[Tensor]], *case: object, **model: object) -> None:
    """Hold one device and two, whose layers' weights rest in main memory, to one that has them."""
    plain = work(build(("cpu",), *case, **model))
    with pretended():
        held = [result.cpu() for result in work(build(ONE, *case, **model))]
        for devices in (ONE, TWO):
            found = build(devices, *case, offload=True, **model)
            resting = [weight for layer in found.layers for weight in layer.parameters()]
            assert all(weight.device.type == "cpu" for weight in resting)
            COPIES.clear()
            results = [result.cpu() for result in work(found)]
            assert COPIES["cpu", devices[-1]] > 2 * len(resting) // 3, "weights do not come"
            assert all(map(torch.equal, held, results)), f"other bits than without offload on {devices}"
            assert all(weight.device.type == "cpu" for layer in found.layers for weight in layer.parameters())
    for ours, theirs in zip(held, plain, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-4)


def written_offloaded() -> None:
    offloaded(continued, "llama", "lora")


def local_training(tuner: str) -> None:
    """Local training of a worker: five clients side by side, with moments, prompt dropout and what a correction keeps."""
    folder = Path(tempfile.mkdtemp()) / "llama"
    save(tiny_model("llama"), folder)
    section = {"tuner": SECTIONS[tuner]("llama")} if tuner != "prefix" else {"prompt": {"dropout": 0.2}}
    spec = specification(folder, HeadConfig(kind="classifier"), "float64", **section)

    def results(devices: tuple[str, ...], **model: object) -> list[TrainingResult]:
        cohort = Cohort(replace(spec, model=spec.model.model_copy(update=model)), devices=devices)
        assert cohort.worker.info().device == ", ".join(devices)
        return cohort.train(cohort.jobs(kept_steps=(3,) * 5, drift=True), "control")

    with pretended(), silent_determinism():
        one = results(ONE)
        for devices, model in (
            (TWO, {}),
            (ONE, {"offload": True}),
            (TWO, {"offload": True, "gradient_checkpointing": True}),
        ):
            for ours, theirs in zip(results(devices, **model), one, strict=True):
                assert_same(ours, theirs, 0.0, f"{devices} {model}")


@contextmanager
def silent_determinism() -> Iterator[None]:
    """Let torch's CPU kernels be those of a run; a worker asks for others on all devices but a CPU."""
    with mock.patch("clients.worker.make_deterministic"):
        yield


def masks_cross_once() -> None:
    """What all layers share is copied to a device once a pass: more layers there, no more copies but those of their own."""
    counts = []
    for layers in (3, 9):
        source = shared(
            tiny_model("llama", num_hidden_layers=layers), Path(tempfile.mkdtemp()) / "llama", dtype="float64"
        )
        config = ModelConfig(path="x", dtype="float64")
        made = make_tuner(TunerConfig(), PromptConfig(length=4), source.family)
        with pretended():
            model = Backbone.build(source, config, made, 3, LABEL_WORDS, TWO)
            tuned = numbers(model.geometry, 2, 1).detach().to(model.device)
            COPIES.clear()
            model.forward(texts().batch(SHUFFLED), tuned, (0, 1), {})
            counts.append(COPIES[TWO])
    assert counts[0] == counts[1] < 10, counts


CASES: dict[str, Callable[[], None]] = {
    **{f"{family} {tuner}": (lambda f=family, t=tuner: passes(f, t)) for family in TINY for tuner in SECTIONS},
    **{
        f"cached {tuner}": (lambda t=tuner: cached(t))
        for tuner in ("prefix", "lora", "late prompt", "generated prompt")
    },
    **{f"alike {tuner}": (lambda t=tuner: shared_beginnings(t)) for tuner in ("prefix", "lora")},
    **{f"written {tuner}": (lambda t=tuner: written(t)) for tuner in ("prefix", "lora", "soft prompt", "late prompt")},
    **{f"trained {tuner}": (lambda t=tuner: local_training(t)) for tuner in ("prefix", "lora", "soft prompt")},
    **{f"checkpointed {tuner}": (lambda t=tuner: checkpointed(t)) for tuner in ("prefix", "lora", "late prompt")},
    **{
        f"offloaded {family} {tuner}": (lambda f=family, t=tuner: offloaded(both, f, t))
        for family in TINY
        for tuner in ("prefix", "lora", "adapter", "soft prompt")
    },
    **{
        f"offloaded {name}": (lambda k=keys: offloaded(packed, "llama", "lora", **k))
        for name, keys in {
            "checkpointed": {"gradient_checkpointing": True},
            "int8": {"dtype": "float32", "quantize": "int8"},
            "int4 checkpointed": {"dtype": "float32", "quantize": "int4", "gradient_checkpointing": True},
        }.items()
    },
    **{
        case.__name__: case
        for case in (
            classifier,
            dropped_prompts,
            hidden_states,
            second_derivatives,
            quantised,
            masks_cross_once,
            written_offloaded,
        )
    },
}


def outcome(case: str) -> str | None:
    try:
        CASES[case]()
    except Exception:
        return traceback.format_exc()
    return None


if __name__ == "__main__":
    assert pretended_devices.NAME == "pretended"
    print("RESULT " + json.dumps({case: outcome(case) for case in sys.argv[1:]}))

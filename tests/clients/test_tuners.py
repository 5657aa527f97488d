"""What holds for every kind of tuner in a layer's modules: packed as padded, side by side as alone, apart from others.

A new kind is one row of ``TUNERS``.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import pytest
import torch
from cohorts import ARRAYS, Cohort, assert_same, poolings, specification
from test_packing import EXACT, LENGTHS, OWNERS, SHUFFLED, texts
from tiny_models import CONFIGS, backbone, batch, families, save, tiny_model

from clients.backbone.families import FAMILIES
from clients.backbone.frozen_states import compute_states
from clients.backbone.passes import PassLimit
from clients.config import HeadConfig
from clients.tuners import packed_prefix
from clients.tuners.config import TunerConfig
from fedsim.core.layout import LayerShape


@dataclass(frozen=True)
class Kind:
    """A row of the table."""

    of_family: Callable[[str], dict]
    """Section ``tuner`` for a model family."""
    start: float | None = 0.0
    """How far the scores at the start are from the plain model's, at most; None if they are others."""


_BEHIND = dict.fromkeys(("roberta", "xlm-roberta", "camembert", "electra"), "dense") | {"mt5": "o"}
"""A map behind attention, where the top layer of encoders runs for one token of each example."""


def _lora(family: str) -> dict:
    return {
        "kind": "lora",
        "rank": 2,
        "alpha": 2.0,
        "targets": (
            *FAMILIES[family].lora_targets,
            _BEHIND.get(family, (*FAMILIES[family].ia3_feedforward, "o_proj")[0]),
        ),
    }


def _ia3(family: str) -> dict:
    return {"kind": "ia3"}


def _adapter(family: str) -> dict:
    return {"kind": "adapter", "bottleneck": 5}


TUNERS = {
    "lora": Kind(_lora),
    "ia3": Kind(_ia3),
    "adapter": Kind(_adapter, start=1e-3),
    "projected prefix": Kind(lambda family: {"kind": "projected_prefix", "length": 3, "bottleneck": 5}, start=None),
    "soft prompt": Kind(lambda family: {"kind": "soft_prompt", "length": 3}, start=None),
    "projected prompt": Kind(lambda family: {"kind": "soft_prompt", "length": 3, "projection": 7}, start=None),
    "late prompt": Kind(lambda family: {"kind": "late_prompt", "length": 3, "depth": 1, "bottleneck": 5}, start=None),
    "late prompt of segments": Kind(
        lambda family: {"kind": "late_prompt", "length": 3, "depth": 2, "bottleneck": 5, "generator": "mppg"},
        start=None,
    ),
    "generated prompt": Kind(lambda family: {"kind": "generated_prompt", "length": 3, "terms": 4}, start=None),
    "prompt mixture": Kind(
        lambda family: {"kind": "prompt_mixture", "length": 3, "bottleneck": 5, "random_sources": 2}, start=None
    ),
}

kinds = pytest.mark.parametrize("kind", TUNERS)


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    root = tmp_path_factory.mktemp("models")
    return {family: save(tiny_model(family), root / family) for family in CONFIGS}


def numbers(shape: LayerShape, layers: int, clients: int) -> torch.Tensor:
    """Return random numbers of each client, float64."""
    generator = torch.Generator().manual_seed(2)
    size = (clients, layers, *shape.layer_shape)
    return (0.3 * torch.randn(size, generator=generator, dtype=torch.float64)).requires_grad_()


def places(shape: LayerShape, *choices: tuple[int, ...]) -> list[tuple[int, ...]]:
    """Return the choices of layers, or the one place of a tuner that has no others."""
    return list(choices) if len(shape.tunable) == shape.num_layers else [shape.tunable]


@families
@kinds
def test_packed_equals_padded_for_several_clients(folders, kind, family, monkeypatch):
    """Every head, as encoders run the top layer for the token alone that a head reads."""
    monkeypatch.setitem(packed_prefix._MAX_PADDING_SLOTS, "cpu", 14)
    table = texts(LENGTHS)
    owners = torch.from_numpy(OWNERS[SHUFFLED])
    config = TunerConfig.model_validate(TUNERS[kind].of_family(family))
    for head in poolings(family):
        model = backbone(folders[family], head, dtype="float64", tuner=config)
        for layers in places(model.geometry, (0, 1, 2), (2,)):
            tuned = numbers(model.geometry, len(layers), 3)
            heads = {name: torch.randn((3, *shape), dtype=torch.float64) for name, shape in model.head_shapes}
            readings = (
                model.forward(table.batch(SHUFFLED), tuned, layers, heads, owners),
                model.read(table.pack(SHUFFLED), tuned, layers, heads, owners)[0],
            )
            gradients = [torch.autograd.grad(reading.loss_B.sum(), tuned)[0] for reading in readings]
            tolerance = 1e-10 if family in EXACT else 1e-5  # norms of the others run in float32
            torch.testing.assert_close(readings[1].logits_BC, readings[0].logits_BC, rtol=tolerance, atol=tolerance)
            torch.testing.assert_close(gradients[1], gradients[0], rtol=tolerance, atol=tolerance)
            assert all(gradient.abs().amax(dim=tuple(range(2, gradient.ndim))).min() > 0 for gradient in gradients)


@pytest.mark.parametrize("family", ["roberta", "gpt2", "llama"])
@kinds
def test_side_by_side_equals_one_by_one(folders, kind, family):
    head = poolings(family)[2]  # a classifier, of encoders on the one token that it reads
    cohort = Cohort(specification(folders[family], head, "float64", tuner=TUNERS[kind].of_family(family)))
    jobs = cohort.jobs()
    for ours, theirs in zip(cohort.train(jobs), cohort.train_alone(jobs), strict=True):
        assert_same(ours, theirs, 1e-10)
        assert not np.array_equal(ours.vector_A, cohort.start(0))


@pytest.mark.parametrize(
    ("family", "half", "tolerance"),
    [("roberta", {"dtype": "bfloat16"}, 0.15), ("llama", {"autocast": "float16"}, 0.01)],
    ids=str,
)
@kinds
def test_half_precision_is_near_to_float32(folders, kind, family, half, tolerance):
    config, table = TunerConfig.model_validate(TUNERS[kind].of_family(family)), texts(LENGTHS)
    gradients = []
    for keys in ({}, half):
        model = backbone(folders[family], tuner=config, **keys)
        tuned = (0.2 * numbers(model.geometry, 2, 3)).detach().float().requires_grad_()
        reading, _ = model.read(table.pack(SHUFFLED), tuned, (0, 2), {}, OWNERS[SHUFFLED])
        gradients.append(torch.autograd.grad(reading.loss_B.sum(), tuned)[0])
    exact, near = gradients
    assert near.dtype == torch.float32 and near.isfinite().all()
    assert 0 < (near - exact).norm() / exact.norm() < tolerance


@kinds
def test_broken_numbers_of_a_client_stay_its_own(folders, kind):
    """The others' results are those of the same pass with sound numbers, to the bit, however passes are cut."""
    cohort = Cohort(specification(folders["bert"], tuner=TUNERS[kind].of_family("bert")))
    jobs = cohort.jobs()
    sick = [
        dataclasses.replace(job, start_A=np.full_like(job.start_A, np.nan)) if job.client == 3 else job for job in jobs
    ]
    for max_tokens in (None, 30):
        well, ill = (cohort.train(some, max_tokens=max_tokens) for some in (jobs, sick))
        assert np.isnan(ill[3].vector_A).any()
        for client in (0, 1, 2, 4):
            assert all(np.array_equal(getattr(ill[client], name), getattr(well[client], name)) for name in ARRAYS)


@kinds
def test_cached_layers_change_nothing(folders, kind):
    spec = specification(
        folders["roberta"], HeadConfig(kind="classifier"), "float64", tuner=TUNERS[kind].of_family("roberta")
    )
    cohort = Cohort(spec, layers=(1, 2))
    layers = cohort.parts.exchanged.layers
    if not spec.caches(layers):
        pytest.skip("it acts in the lowest layer")
    jobs = cohort.jobs()
    model, limit = cohort.worker._backbone, PassLimit(512)
    cached = [
        dataclasses.replace(job, cached=compute_states(model, spec.train, job.indices_N, layers, "float64", limit))
        for job in jobs
    ]
    for ours, theirs in zip(cohort.train(cached), cohort.train(jobs), strict=True):
        np.testing.assert_allclose(ours.vector_A, theirs.vector_A, rtol=1e-8, atol=1e-10)


@kinds
def test_each_layer_has_a_draw_of_its_own_and_training_starts_at_the_frozen_model(folders, kind):
    spec = specification(folders["bert"], tuner=TUNERS[kind].of_family("bert"))
    cohort = Cohort(spec, (0, 1, 2))
    full, model = cohort.worker.info().full, cohort.worker._backbone
    tuned_LX, _ = full.split(spec.initial_vector(full))
    if len(full.layers) > 1:
        alone = full.exchanged((1,))
        np.testing.assert_array_equal(alone.split(spec.initial_vector(alone))[0][0], tuned_LX[1])
    start = TUNERS[kind].start
    if start is not None:
        plain = model.forward(batch(), torch.empty(1, 0, *full.geometry.layer_shape), (), {})
        tuned = model.forward(batch(), torch.from_numpy(tuned_LX).unsqueeze(0), full.layers, {})
        torch.testing.assert_close(tuned.logits_BC, plain.logits_BC, rtol=0, atol=start)

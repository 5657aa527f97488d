"""LoRA: PEFT's numbers, the same for clients that share passes, and refusals."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
import torch
from cohorts import ARRAYS, Cohort, assert_same, poolings, specification
from peft import LoraConfig, get_peft_model
from test_packing import LENGTHS, OWNERS, SHUFFLED, texts
from tiny_models import CONFIGS, backbone, batch, families, same_at_tokens, save, tiny_model

from clients.backbone.families import FAMILIES
from clients.backbone.frozen_states import compute_states
from clients.backbone.passes import PassLimit
from clients.config import HeadConfig
from clients.tuners import packed_prefix
from clients.tuners.config import TunerConfig
from fedsim.core.errors import ModelError
from fedsim.core.layout import LayerArrays

LORA = TunerConfig(kind="lora", rank=3, alpha=5.0)
FEED_FORWARD = {"bert": "output.dense", "gpt2": "c_proj", "llama": "down_proj"}


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    root = tmp_path_factory.mktemp("models")
    return {family: save(tiny_model(family), root / family) for family in CONFIGS}


def numbers(shape: LayerArrays, layers: int, clients: int = 1, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    """Return random A and B of each client."""
    generator = torch.Generator().manual_seed(2)
    return (0.3 * torch.randn((clients, layers, shape.layer_size), generator=generator)).to(dtype).requires_grad_()


def peft_model(family: str, config: TunerConfig, layers: tuple[int, ...]):
    """Return the model with PEFT's LoRA in some layers."""
    torch.manual_seed(0)
    own = LoraConfig(
        r=config.rank,
        lora_alpha=config.alpha,
        use_rslora=config.scaling == "rslora",
        target_modules=list(config.targets or FAMILIES[family].lora_targets),
        layers_to_transform=list(layers),
        fan_in_fan_out=family == "gpt2",
    )
    return get_peft_model(tiny_model(family), own)


@families
@pytest.mark.parametrize("scaling", ["standard", "rslora"])
def test_hidden_states_and_gradients_are_those_of_peft(folders, family, scaling):
    config = LORA.model_copy(update={"scaling": scaling})
    layers, data = (0, 2), batch("right")
    ours, theirs = backbone(folders[family], tuner=config), peft_model(family, config, layers)
    tuned = numbers(ours.geometry, len(layers))
    arrays = ours.geometry.split(tuned)
    mine = {}
    for place, layer in enumerate(layers):
        for name, array in arrays.items():
            target, matrix = name.rsplit(".", 1)
            path = f"{FAMILIES[family].layers}.{layer}.{target}.{matrix}.default"
            found = [p for n, p in theirs.named_parameters() if f"{path}.weight" in n]
            found[0].data.copy_(array[0, place].detach())
            mine[(place, name)] = found[0]
    assert len(mine) == sum(p.requires_grad for p in theirs.parameters())
    ids, mask = torch.from_numpy(data.input_ids_BT), torch.from_numpy(data.attention_mask_BT)
    states = theirs.base_model.model.base_model(
        input_ids=ids, attention_mask=mask, use_cache=False, output_hidden_states=True
    ).hidden_states
    same_at_tokens(ours.hidden_states(data, tuned, layers), list(states), data)

    rows = torch.arange(len(ids))
    weights = torch.randn(states[-1][:, 0].shape, generator=torch.Generator().manual_seed(1))
    theirs_loss = (states[-1][rows, torch.from_numpy(data.read_positions_B)] * weights).sum()
    expected = torch.autograd.grad(theirs_loss, list(mine.values()))
    output = ours._run(ours._tokens(data), tuned, layers, None).last_hidden_state
    own_loss = (output[rows, torch.from_numpy(data.read_positions_B)] * weights).sum()
    (gradient,) = torch.autograd.grad(own_loss, tuned)
    parts = ours.geometry.split(gradient)
    for (place, name), theirs_gradient in zip(mine, expected, strict=True):
        scale = float(theirs_gradient.abs().max())
        torch.testing.assert_close(parts[name][0, place], theirs_gradient, rtol=1e-5, atol=1e-5 * max(scale, 1.0))


@families
def test_packed_equals_padded_for_several_clients(folders, family, monkeypatch):
    """Every head, whose top layer runs for one token of each example where it can, with a map behind attention too."""
    monkeypatch.setitem(packed_prefix._MAX_PADDING_SLOTS, "cpu", 14)
    own = FAMILIES[family].lora_targets
    config = LORA.model_copy(update={"targets": (*own, FEED_FORWARD[family])}) if family in FEED_FORWARD else LORA
    for head in poolings(family):
        model = backbone(folders[family], head, dtype="float64", tuner=config)
        for layers in ((0, 1, 2), (2,)):
            table = texts(LENGTHS)
            tuned = numbers(model.geometry, len(layers), 3, torch.float64)
            heads = {name: torch.randn((3, *shape), dtype=torch.float64) for name, shape in model.head_shapes}
            owners = torch.from_numpy(OWNERS[SHUFFLED])
            readings = (
                model.forward(table.batch(SHUFFLED), tuned, layers, heads, owners),
                model.read(table.pack(SHUFFLED), tuned, layers, heads, owners)[0],
            )
            gradients = [torch.autograd.grad(reading.loss_B.sum(), tuned)[0] for reading in readings]
            tolerance = 1e-5 if family in ("llama", "mistral", "qwen2", "qwen3") else 1e-10
            torch.testing.assert_close(readings[1].logits_BC, readings[0].logits_BC, rtol=tolerance, atol=tolerance)
            torch.testing.assert_close(gradients[1], gradients[0], rtol=tolerance, atol=tolerance)


@families
def test_side_by_side_equals_one_by_one(folders, family):
    for head in poolings(family)[:3]:
        cohort = Cohort(specification(folders[family], head, "float64", tuner={"kind": "lora", "rank": 2}))
        jobs = cohort.jobs()
        for ours, theirs in zip(cohort.train(jobs), cohort.train_alone(jobs), strict=True):
            assert_same(ours, theirs, 1e-10, head)
            assert not np.array_equal(ours.vector_A, cohort.start(0))


def test_broken_numbers_of_a_client_stay_its_own(folders):
    """The others' results are those of the same pass with sound numbers, to the bit, however passes are cut."""
    cohort = Cohort(specification(folders["bert"], tuner={"kind": "lora"}))
    jobs = cohort.jobs()
    sick = [
        dataclasses.replace(job, start_A=np.full_like(job.start_A, np.nan)) if job.client == 3 else job for job in jobs
    ]
    for max_tokens in (None, 30):
        well, ill = (cohort.train(some, max_tokens=max_tokens) for some in (jobs, sick))
        assert np.isnan(ill[3].vector_A).any()
        for client in (0, 1, 2, 4):
            assert all(np.array_equal(getattr(ill[client], name), getattr(well[client], name)) for name in ARRAYS)


def test_cached_layers_change_nothing(folders):
    spec = specification(folders["roberta"], HeadConfig(kind="classifier"), "float64", tuner={"kind": "lora"})
    cohort = Cohort(spec, layers=(1, 2))
    jobs = cohort.jobs()
    model, limit = cohort.worker._backbone, PassLimit(512)
    cached = [
        dataclasses.replace(job, cached=compute_states(model, spec.train, job.indices_N, (1, 2), "float64", limit))
        for job in jobs
    ]
    for ours, theirs in zip(cohort.train(cached), cohort.train(jobs), strict=True):
        np.testing.assert_allclose(ours.vector_A, theirs.vector_A, rtol=1e-8, atol=1e-10)


def test_training_starts_at_the_frozen_model_and_each_layer_has_its_own_draw(folders):
    spec = specification(folders["bert"], tuner={"kind": "lora"})
    cohort = Cohort(spec, (0, 1, 2))
    full, model = cohort.worker.info().full, cohort.worker._backbone
    start_F = spec.initial_vector(full)
    tuned_LX, _ = full.split(start_F)
    arrays = full.geometry.split(tuned_LX)
    for name, array in arrays.items():
        assert (array == 0).all() if name.endswith("lora_B") else 0.8 < np.abs(array).max() * 32**0.5 <= 1.0
    assert not np.array_equal(tuned_LX[0], tuned_LX[1])
    np.testing.assert_array_equal(
        full.exchanged((1,)).split(spec.initial_vector(full.exchanged((1,))))[0][0], tuned_LX[1]
    )
    plain = model.forward(batch(), torch.empty(1, 0, full.geometry.layer_size), (), {})
    tuned = model.forward(batch(), torch.from_numpy(tuned_LX).unsqueeze(0), full.layers, {})
    torch.testing.assert_close(tuned.logits_BC, plain.logits_BC, rtol=0, atol=0)


@pytest.mark.parametrize(
    ("targets", "words"),
    [
        (
            ("q_proj",),
            "tuner.targets names 'q_proj', but no linear map of the model's layers has such a name; use some of: ",
        ),
        (("query", "self.query"), "tuner.targets query, self.query name a linear map twice; use longer names"),
    ],
)
def test_targets_that_the_model_lacks_are_refused(folders, targets, words):
    with pytest.raises(ModelError) as caught:
        backbone(folders["bert"], tuner=LORA.model_copy(update={"targets": targets}))
    assert str(caught.value).startswith(words)

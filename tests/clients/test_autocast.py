"""Half precision within the backbone: near to float32, and nothing outside of it is less than float32."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from support import make_tiny
from tiny_models import CONFIGS, LABEL_WORDS, families, prompts, save, tiny_model
from tiny_work import jobs_of, parts_of, token_table, train

from clients.backbone.frozen_states import compute_states
from clients.backbone.loading import load_shared_weights
from clients.backbone.model import Backbone
from clients.config import HeadConfig, ModelConfig, PromptConfig
from clients.tuners.prefix_tuner import PrefixTuner
from clients.worker import ClientWorker
from fedsim.core.errors import ConfigError
from fedsim.core.messages import ClientState, GlobalState, WorkGroup
from fedsim.simulation.preparation import prepare

TOLERANCE = {"bfloat16": 8e-2, "float16": 1e-2}
"""Of gradients, relative: a few units in the last place of eight bits and of eleven."""
KINKS = {"opt": 2}
"""Families whose relu gives a rounded input now and then the other slope."""
half = pytest.mark.parametrize("dtype", TOLERANCE)
HEADS = {"verbalizer": HeadConfig(), "classifier": HeadConfig(kind="classifier", pooling="mean")}


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    root = tmp_path_factory.mktemp("models")
    return {family: save(tiny_model(family), root / family) for family in CONFIGS}


def build(path: str, head: str = "verbalizer", **model: object) -> Backbone:
    config = ModelConfig(path=path, head=HEADS[head], **model)
    words = LABEL_WORDS if head == "verbalizer" else None
    return Backbone.build(
        load_shared_weights(config), config, PrefixTuner(PromptConfig(length=4)), len(LABEL_WORDS), words, "cpu"
    )


def gradients(model: Backbone, share: float = 1.0) -> tuple[torch.Tensor, torch.Tensor]:
    """Return losses and the gradient in the prompts of three clients, all times ``share``, divided by it at the end."""
    tokens, prompt_CLKHPD = token_table(12).pack(np.arange(12)), prompts(model, (0, 2), clients=3)
    generator = torch.Generator().manual_seed(5)
    head_C = {name: 0.3 * torch.randn((3, *shape), generator=generator) for name, shape in model.head_shapes}
    reading, _ = model.read(tokens, prompt_CLKHPD, (0, 2), head_C, torch.arange(12) % 3)
    (gradient,) = torch.autograd.grad((share * reading.loss_B).sum(), prompt_CLKHPD)
    return reading.loss_B.detach(), gradient / share


def distance(one: torch.Tensor, other: torch.Tensor) -> float:
    return float((one - other).norm() / other.norm())


@families
@half
@pytest.mark.parametrize("head, attention", [("verbalizer", "sdpa"), ("verbalizer", "eager"), ("classifier", "sdpa")])
def test_losses_and_gradients_are_near_to_those_of_float32(folders, family, dtype, head, attention):
    loss, gradient = gradients(build(folders[family], head, attention=attention, autocast=dtype))
    exact_loss, exact = gradients(build(folders[family], head, attention=attention))
    assert loss.dtype == gradient.dtype == torch.float32
    assert gradient.isfinite().all()
    # Near, and not the same: matrix products really are in half precision.
    assert 0 < distance(gradient, exact) < TOLERANCE[dtype] * KINKS.get(family, 1)
    torch.testing.assert_close(loss, exact_loss, rtol=TOLERANCE[dtype], atol=TOLERANCE[dtype])


@pytest.mark.parametrize("model", [{"autocast": "float16"}, {"dtype": "float16"}])
def test_small_gradients_are_not_lost_in_float16(folders, model):
    """Shares of 1/8 and hidden states of thousands of tokens make small gradients: here, of 1e-5 times the size."""
    backbone = build(folders["bert"], **model)
    _, exact = gradients(build(folders["bert"]))
    assert distance(gradients(backbone, share=1e-5)[1], exact) < 5e-2


@families
def test_what_a_pass_leaves_behind_does_not_reach_other_code(folders, family):
    gradients(build(folders[family], autocast="bfloat16"))
    assert not torch.is_autocast_enabled("cpu")
    product = torch.ones(2, 2) @ torch.ones(2, 2)
    assert product.dtype == torch.float32


@half
def test_clients_that_share_passes_go_the_way_of_clients_one_by_one(folders, dtype):
    model = build(folders["roberta"], autocast=dtype)
    parts = parts_of(model)
    jobs, table = jobs_of(parts, (5, 7, 4)), token_table(16)
    together = train(model, table, parts, jobs, optimizer={"kind": "sgd", "lr": 0.1})
    for one, job in zip(together, jobs, strict=True):
        (alone,) = train(model, table, parts, [job], optimizer={"kind": "sgd", "lr": 0.1})
        moved, moved_alone = (torch.from_numpy(r.vector_A - job.start_A) for r in (one, alone))
        assert one.vector_A.dtype == one.first_moment_A.dtype == np.float32
        assert distance(moved, moved_alone) < TOLERANCE[dtype]


@families
def test_the_trunk_keeps_float32(folders, family):
    model, table = build(folders[family], autocast="bfloat16"), token_table(8)
    cached = compute_states(model, table, np.arange(8), (1, 2), "float32", max_tokens=50).tensor()
    exact = compute_states(build(folders[family]), table, np.arange(8), (1, 2), "float32", max_tokens=50).tensor()
    assert cached.dtype == torch.float32
    assert 0 < distance(cached, exact) < TOLERANCE["bfloat16"]
    prompt_CLKHPD, tokens = prompts(model, (1, 2)), table.pack(np.arange(8))
    with_cache, _ = model.read(tokens, prompt_CLKHPD, (1, 2), {}, None, cached)
    without, _ = model.read(tokens, prompt_CLKHPD, (1, 2), {}, None)
    # Passes of other sizes round to half precision elsewhere.
    torch.testing.assert_close(with_cache.loss_B, without.loss_B, rtol=2e-2, atol=2e-2)


@pytest.mark.parametrize("dtype", ["bfloat16", "float16", "float64"])
def test_autocast_of_weights_that_are_not_float32_is_refused(dtype):
    with pytest.raises(ConfigError, match=rf"autocast=bfloat16 is for float32 weights, but dtype={dtype}") as caught:
        make_tiny(model={"dtype": dtype, "autocast": "bfloat16"})
    assert "set autocast=off, or dtype=float32" in str(caught.value)


def test_a_client_of_the_embedded_model_trains_under_autocast():
    updates = {}
    for autocast in ("off", "bfloat16"):
        config = make_tiny(executor="local", model={"autocast": autocast}, client={"optimizer": {"lr": 1e-3}})
        worker = ClientWorker(prepare(config).spec)
        state = GlobalState(0, (1, 3), np.zeros(worker.info().full.exchanged((1, 3)).size, np.float32))
        reports, update, *_ = worker.train(
            WorkGroup(0, 0, (0, 1), fuse=2), state, ClientState(0), ClientState(1)
        ).pack()
        assert all(report.failure is None and report.loss_last > 0 for report in reports)
        updates[autocast] = torch.from_numpy(update.sums["vector"])
    assert 0 < distance(updates["bfloat16"], updates["off"]) < 0.2


def test_autocast_is_part_of_a_result_s_identity():
    assert make_tiny(model={"autocast": "bfloat16"}).identity != make_tiny().identity

"""Tests that need a GPU; skipped without one. On a machine that has one:

python -m pytest tests/clients/test_on_gpu.py
"""

from __future__ import annotations

import os
from collections.abc import Iterator

import numpy as np
import pytest
import torch
from tiny_models import LABEL_WORDS, save, tiny_model
from tiny_work import jobs_of, parts_of, token_table, train

from clients.backbone.device import make_deterministic, to_device
from clients.backbone.loading import load_shared_weights
from clients.backbone.model import Backbone
from clients.backbone.passes import PassLimit
from clients.config import ClientConfig, ModelConfig, PromptConfig
from clients.evaluation import evaluate
from clients.training.local_training import _Group
from clients.tuners.prefix_tuner import PrefixTuner
from fedsim.core.decoding import Decoding
from fedsim.methods.preconditioner import Preconditioner

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")

GPU = torch.device("cuda")
SIZES = (40, 24, 33)
LONG = 200
"""Tokens of the longest texts. With more than a block of keys, attention's gradient is split among blocks of threads."""
WIDER = {"hidden_size": 256, "intermediate_size": 1024, "num_attention_heads": 4, "max_position_embeddings": 256}
FAMILIES = {"roberta": WIDER, "llama": WIDER | {"num_key_value_heads": 2}}
SGD = {"optimizer": {"kind": "sgd", "lr": 0.1}}


@pytest.fixture(scope="module", autouse=True)
def deterministic() -> Iterator[None]:
    environment = dict(os.environ)
    make_deterministic(GPU)
    yield
    torch.use_deterministic_algorithms(False)
    os.environ.clear()
    os.environ.update(environment)


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    root = tmp_path_factory.mktemp("models")
    return {family: save(tiny_model(family, **changes), root / family) for family, changes in FAMILIES.items()}


def build(path: str, device: str | tuple[str, ...] = "cuda", **model: object) -> Backbone:
    config = ModelConfig(path=path, **model)
    return Backbone.build(
        load_shared_weights(config), config, PrefixTuner(PromptConfig(length=4)), 3, LABEL_WORDS, device
    )


def work(model: Backbone, fuse: bool = True, limit: PassLimit | None = None) -> np.ndarray:
    """Return how far each client moved [C, A]."""
    parts = parts_of(model)
    jobs = jobs_of(parts, SIZES)
    groups = [jobs] if fuse else [[job] for job in jobs]
    table = token_table(sum(SIZES), LONG)
    results = [result for group in groups for result in train(model, table, parts, group, limit, batch_size=16, **SGD)]
    return np.stack([result.vector_A - job.start_A for result, job in zip(results, jobs, strict=True)])


def distance(one: np.ndarray, other: np.ndarray) -> float:
    return float(np.linalg.norm(one - other) / np.linalg.norm(other))


families = pytest.mark.parametrize("family", FAMILIES)


@pytest.mark.parametrize("values", [np.arange(5), np.ones((2, 3), np.float32), torch.tensor([True, False])])
def test_numbers_arrive_as_they_were_sent(values):
    arrived = to_device(values, GPU)
    assert arrived.device.type == "cuda"
    np.testing.assert_array_equal(arrived.cpu().numpy(), np.asarray(values))


@families
def test_a_gpu_computes_what_a_cpu_computes(folders, family):
    assert distance(work(build(folders[family])), work(build(folders[family], "cpu"))) < 1e-3


@families
def test_clients_that_share_passes_go_the_way_of_clients_one_by_one(folders, family):
    model = build(folders[family])
    assert distance(work(model, fuse=True), work(model, fuse=False)) < 1e-4


@families
@pytest.mark.parametrize("model", [{}, {"dtype": "bfloat16"}, {"autocast": "bfloat16"}, {"autocast": "float16"}])
def test_the_same_work_gives_the_same_bits(folders, family, model):
    first = work(build(folders[family], **model))
    for _ in range(3):
        np.testing.assert_array_equal(work(build(folders[family], **model)), first)


@families
@pytest.mark.parametrize("dtype, tolerance", [("bfloat16", 0.1), ("float16", 0.02)])
def test_autocast_is_near_to_float32(folders, family, dtype, tolerance):
    assert 0 < distance(work(build(folders[family], autocast=dtype)), work(build(folders[family]))) < tolerance


@families
@pytest.mark.parametrize("autocast", ["off", "bfloat16"])
def test_a_step_never_waits_for_the_gpu(folders, family, autocast):
    model = build(folders[family], autocast=autocast)
    parts, config = parts_of(model), ClientConfig(epochs=2, batch_size=16)
    group = _Group(
        model, token_table(sum(SIZES), LONG), jobs_of(parts, SIZES), parts, config, (Preconditioner(),), 0, 0, 400, 0.0
    )
    group.step(0)  # the first one allocates memory, which waits
    torch.cuda.set_sync_debug_mode("error")
    try:
        group.step(1)
    finally:
        torch.cuda.set_sync_debug_mode("default")


@families
def test_the_end_of_memory_is_answered_by_smaller_passes(folders, family):
    model = build(folders[family])
    whole = work(model)
    torch.cuda.empty_cache()
    torch.cuda.reset_peak_memory_stats()
    held = torch.cuda.memory_allocated()
    work(model)
    needed = torch.cuda.max_memory_allocated() - held
    torch.cuda.empty_cache()
    total = torch.cuda.get_device_properties(GPU).total_memory
    limit = PassLimit()
    torch.cuda.set_per_process_memory_fraction((torch.cuda.memory_reserved() + needed // 3) / total)
    try:
        cut = work(model, limit=limit)
    finally:
        torch.cuda.set_per_process_memory_fraction(1.0)
    assert limit.splits > 0
    assert distance(cut, whole) < 1e-4


@families
def test_evaluation_counts_what_it_counts_on_a_cpu(folders, family):
    counts = []
    for device in ("cuda", "cpu"):
        model = build(folders[family], device)
        parts = parts_of(model)
        vectors = np.stack([job.start_A for job in jobs_of(parts, (30, 40))])
        indices = [np.arange(30), np.arange(30, 70)]
        counts.append(evaluate(model, token_table(70, LONG), indices, parts.trained, vectors, 3, batch_size=16))
    for on_gpu, on_cpu in zip(*counts, strict=True):
        assert on_gpu.loss_sum == pytest.approx(on_cpu.loss_sum, rel=1e-3)
        assert np.abs(on_gpu.confusion_CC - on_cpu.confusion_CC).sum() <= 2  # a tie may fall to the other side


@pytest.mark.parametrize("do_sample", [False, True], ids=["greedy", "sampled"])
def test_it_writes_what_it_writes_on_a_cpu(folders, do_sample):
    rng = np.random.default_rng(0)
    texts = [rng.integers(3, 97, length) for length in (5, 1, 30, 12)]
    decoding = Decoding(16, (), do_sample)
    uniform_NS = np.stack([decoding.uniform_S(0, 1, 2, example) for example in range(len(texts))])
    owners_N, written = np.array([1, 0, 1, 2]), {}
    for device in ("cuda", "cpu"):
        model = build(folders["llama"], device, dtype="float64")
        prompt = torch.from_numpy(np.random.default_rng(1).normal(size=(3, 2, *model.geometry.layer_shape)))
        tuned = to_device(prompt, model.device)
        found = model.generate(texts, tuned, (0, 2), decoding, owners_N, uniform_NS)
        written[device] = [tokens.tolist() for tokens in found]
    assert written["cuda"] == written["cpu"]


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("checkpointed", [False, True])
def test_layers_that_rest_in_main_memory_have_the_same_bits_and_take_less(folders, family, checkpointed):
    found = []
    for offload in (False, True):
        model = build(folders[family], offload=offload, gradient_checkpointing=checkpointed)
        torch.cuda.empty_cache()
        held = torch.cuda.memory_allocated()
        found.append((one_step(model), held))
        del model
    assert all(map(torch.equal, found[0][0], found[1][0]))
    assert found[1][1] < found[0][1]


@pytest.mark.skipif(torch.cuda.device_count() < 2, reason="needs two GPUs")
@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("offload", [False, True])
def test_layers_on_two_gpus_have_the_bits_of_one(folders, family, offload):
    one, two = (
        one_step(build(folders[family], devices, offload=offload)) for devices in ("cuda", ("cuda:0", "cuda:1"))
    )
    assert all(map(torch.equal, one, two))


def one_step(model: Backbone) -> tuple[torch.Tensor, ...]:
    """Return losses of a pass of three clients, and the gradient in their prompts."""
    table, owners = token_table(24), np.arange(24) % 3
    drawn = torch.randn((3, 2, *model.geometry.layer_shape), generator=torch.Generator().manual_seed(0))
    tuned = to_device(drawn, model.device).requires_grad_()
    reading, _ = model.read(table.pack(np.arange(24)), tuned, (0, 2), {}, owners)
    return reading.loss_B.detach(), *torch.autograd.grad(reading.loss_B.sum(), tuned)

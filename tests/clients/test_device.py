"""Where workers compute: the device, its memory, the way there, and what must not happen on a GPU.

No GPU is needed: that nothing on the way waits for the device, or adds up in an order of its own, is read from the
operations that the same code runs on a CPU. ``test_on_gpu.py`` checks it on a GPU.
"""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from support import sweep
from tiny_models import CONFIGS, backbone, families, save, tiny_model
from tiny_work import jobs_of, parts_of, token_table, train
from torch.utils._python_dispatch import TorchDispatchMode

from clients.backbone.device import (
    CONTEXT_BYTES,
    limit_memory,
    make_deterministic,
    memory_fraction,
    resolve_device,
    resolve_devices,
    to_device,
)
from clients.backbone.model import Backbone
from clients.config import HeadConfig
from clients.evaluation import evaluate
from fedsim.core.errors import ResourceError

CPU = torch.device("cpu")
GIB = 2**30
HEADS = {
    "verbalizer": HeadConfig(),
    "vocabulary": HeadConfig(loss="vocabulary"),
    "classifier": HeadConfig(kind="classifier"),
    "mean": HeadConfig(kind="classifier", pooling="mean"),
}
COPIES_TO_HOST = ("cpu", "numpy", "item", "tolist", "__bool__", "__float__", "__int__", "__array__")
SYNCHRONISES = {"_local_scalar_dense", "nonzero", "masked_select", "is_nonzero", "equal", "repeat_interleave", "unique"}
UNORDERED = {
    "bincount", "cumsum", "embedding_dense_backward", "grid_sampler_2d_backward", "histc", "index_add", "index_add_",
    "index_copy", "index_copy_", "index_reduce", "kthvalue", "median", "nll_loss2d_forward", "put", "put_", "scatter_add",
    "scatter_add_", "scatter_reduce", "segment_reduce", "upsample_bilinear2d_backward",
}  # fmt: skip
"""Operations that add up on a GPU in no fixed order, or are slow if they have to keep one (PyTorch's list at
``torch.use_deterministic_algorithms``)."""

OF_EXPERTS = {"qwen3_moe": {"cumsum", "histc"}}
"""How transformers counts the tokens of experts: exact in any order, and on a GPU in whole numbers, of which PyTorch does not
complain."""


@pytest.fixture(autouse=True)
def attention_of_a_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    """Attention in the fused kernel, as on a GPU: batched products of short texts are for CPUs."""
    monkeypatch.setattr("clients.tuners.short_attention.fits", lambda *arguments: False)


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    root = tmp_path_factory.mktemp("models")
    return {family: save(tiny_model(family), root / family) for family in CONFIGS}


class Operations(TorchDispatchMode):
    """Counts PyTorch operations by name."""

    def __init__(self) -> None:
        super().__init__()
        self.counts: Counter[str] = Counter()

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        self.counts[function.overloadpacket.__name__] += 1
        return function(*args, **(kwargs or {}))


@contextmanager
def copies_to_host(monkeypatch: pytest.MonkeyPatch) -> Iterator[Counter[str]]:
    counts: Counter[str] = Counter()

    def counted(name):
        original = getattr(torch.Tensor, name)

        def method(self, *args, **kwargs):
            counts[name] += 1
            return original(self, *args, **kwargs)

        return method

    with monkeypatch.context() as patch:
        for name in COPIES_TO_HOST:
            patch.setattr(torch.Tensor, name, counted(name))
        yield counts


def run_evaluation(model: Backbone, batch_size: int) -> list:
    table, parts = token_table(24), parts_of(model)
    vectors = np.stack([job.start_A for job in jobs_of(parts, (12, 12))])
    indices = [np.arange(12), np.arange(12, 24)]
    return evaluate(model, table, indices, parts.trained, vectors, num_classes=3, batch_size=batch_size)


def test_the_device_is_the_one_that_is_asked_for_and_granted():
    assert resolve_device("cpu", gpu_granted=True) == "cpu"
    assert resolve_device("auto", gpu_granted=False) == "cpu"
    with pytest.raises(ResourceError, match=r"no share of a GPU; set ray\.num_gpus_per_actor"):
        resolve_device("cuda", gpu_granted=False)


@pytest.mark.parametrize("dtype", [np.int64, np.float32, np.bool_])
def test_on_a_cpu_numbers_stay_where_they_are(dtype):
    array = np.ones((3, 2), dtype)
    tensor = to_device(array, CPU)
    assert np.shares_memory(tensor.numpy(), array) and tensor.numpy().dtype == dtype
    assert to_device(tensor, CPU) is tensor


@given(actors=st.integers(2, 64), gib=st.sampled_from([8, 16, 24, 40, 80, 141]))
def test_actors_that_share_a_gpu_never_need_more_than_it_has(actors, gib):
    total = gib * GIB
    try:
        fraction = memory_fraction(1 / actors, total)
    except ResourceError as error:
        # What the sentence names is possible.
        (most,) = [int(word.removeprefix("1/")) for word in str(error).split() if word.startswith("1/")]
        assert most < actors and memory_fraction(1 / most, total) > 0
    else:
        assert 0 < actors * (fraction * total + CONTEXT_BYTES) <= total * (1 + 1e-9)


def test_a_share_that_holds_no_tensor_is_refused_in_one_sentence():
    with pytest.raises(ResourceError) as caught:
        memory_fraction(1 / 32, 16 * GIB)
    assert str(caught.value) == (
        "a share of 0.03125 of a GPU with 16.0 GiB is no more than the 0.75 GiB that CUDA takes in each process; set "
        "ray.num_gpus_per_actor to 1/10 or more"
    )


def test_nothing_is_changed_for_a_cpu():
    before = dict(os.environ)
    make_deterministic(CPU)
    limit_memory(0.25, CPU)
    assert not torch.are_deterministic_algorithms_enabled() and dict(os.environ) == before


def test_an_actor_knows_the_part_of_a_gpu_that_it_reserved(session_ray):
    from clients.actor import gpu_share

    shares = [session_ray.remote(num_gpus=num_gpus)(gpu_share).remote() for num_gpus in (0, 0.25)]
    assert session_ray.get(shares) == [0.0, 0.25]


def test_an_actor_of_several_gpus_has_a_device_for_each(session_ray):
    """Ray says which they are, whether or not there are real ones."""

    def devices() -> tuple[str, ...]:
        """Return the devices of a process, as far as torch goes by what Ray lets it see."""
        import torch

        from clients.actor import gpu_share
        from clients.backbone.device import resolve_devices

        torch.cuda.is_available = lambda: True
        torch.cuda.device_count = lambda: len(os.environ["CUDA_VISIBLE_DEVICES"].split(","))
        return resolve_devices("auto", gpu_share(), gpu_granted=True)

    granted = [session_ray.remote(num_gpus=gpus)(devices).remote() for gpus in (2, 1)]
    assert session_ray.get(granted) == [("cuda:0", "cuda:1"), ("cuda",)]


def test_devices_are_as_many_as_are_granted_and_there(monkeypatch):
    assert resolve_devices("cpu", 2, gpu_granted=True) == ("cpu",)
    assert resolve_devices("auto", 2, gpu_granted=False) == ("cpu",)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    assert resolve_devices("cuda", 0.5, gpu_granted=True) == ("cuda",)
    with pytest.raises(ResourceError, match=r"over 3 GPUs, but torch sees 2 here; set ray\.num_gpus_per_actor=2$"):
        resolve_devices("auto", 3, gpu_granted=True)


@families
@pytest.mark.parametrize(
    "head, attention",
    sweep(
        [*((head, "sdpa") for head in HEADS), ("verbalizer", "eager")],
        [("vocabulary", "sdpa"), ("mean", "sdpa"), ("verbalizer", "eager")],
    ),
)
def test_training_and_evaluation_neither_wait_for_the_device_nor_add_up_in_its_order(folders, family, head, attention):
    model = backbone(folders[family], HEADS[head], attention)
    parts = parts_of(model)
    with Operations() as operations:
        train(model, token_table(16), parts, jobs_of(parts, (5, 7, 4)), max_tokens=40)
        run_evaluation(model, batch_size=5)
    assert operations.counts["index_select"] > 0 and operations.counts["nll_loss_backward"] > 0
    assert not operations.counts.keys() & SYNCHRONISES
    assert operations.counts.keys() & UNORDERED == OF_EXPERTS.get(family, set())


def test_more_steps_and_more_passes_are_no_more_copies_to_the_host(folders, monkeypatch):
    model = backbone(folders["roberta"], HEADS["mean"])
    parts = parts_of(model)
    counts = []
    for steps, max_tokens, batch_size in ((1, None, 24), (6, 20, 3)):
        with copies_to_host(monkeypatch) as copies:
            train(model, token_table(16), parts, jobs_of(parts, (5, 7, 4)), max_tokens, epochs=None, steps=steps)
            run_evaluation(model, batch_size)
        counts.append(copies)
    assert counts[0]["cpu"] > 0
    assert counts[0] == counts[1]


@families
def test_pytorch_knows_an_ordered_way_for_everything(folders, family):
    """On a CPU it complains of little; of what it does, nothing is used."""
    model = backbone(folders[family], HEADS["classifier"])
    parts = parts_of(model)
    plain = train(model, token_table(16), parts, jobs_of(parts, (5, 7, 4)))
    torch.use_deterministic_algorithms(True)
    try:
        strict = train(model, token_table(16), parts, jobs_of(parts, (5, 7, 4)))
    finally:
        torch.use_deterministic_algorithms(False)
    for one, other in zip(plain, strict, strict=True):
        np.testing.assert_array_equal(one.vector_A, other.vector_A)


@pytest.mark.parametrize("batch_size", [1, 7, 100])
def test_an_evaluation_counts_every_example_once_however_it_is_cut(folders, batch_size):
    model = backbone(folders["bert"])
    whole, cut = run_evaluation(model, 24), run_evaluation(model, batch_size)
    for one, other in zip(whole, cut, strict=True):
        np.testing.assert_array_equal(one.confusion_CC, other.confusion_CC)
        assert one.loss_sum == pytest.approx(other.loss_sum, rel=1e-5)
        assert one.num_examples == 12 and other.memory_splits == 0

"""Attention in batched products equals attention of each example by itself, gradients included."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tiny_models import CONFIGS, backbone, families, prompts, save, tiny_model
from tiny_work import token_table
from torch import Tensor
from transformers.integrations.sdpa_attention import sdpa_attention_forward

from clients.tuners import short_attention
from clients.tuners.short_attention import LONGEST, Layout, attend, fits
from clients.tuners.visibility import visible_keys


@dataclass(frozen=True)
class Range:
    """A bucket."""

    examples: slice
    num_tokens: int


@dataclass(frozen=True)
class Case:
    """A pass."""

    lengths: tuple[int, ...]
    cut: int
    groups: int
    kv_heads: int
    clients: int
    prompt_length: int
    causal: bool
    first_only: bool

    @property
    def buckets(self) -> list[Range]:
        edges = sorted({0, min(self.cut, len(self.lengths)), len(self.lengths)})
        pairs = pairwise(edges)
        return [Range(slice(a, b), max(self.lengths[a:b])) for a, b in pairs]


cases = st.builds(
    Case,
    lengths=st.lists(st.integers(1, 7), min_size=1, max_size=6).map(lambda found: tuple(sorted(found))),
    cut=st.integers(1, 6),
    groups=st.integers(1, 3),
    kv_heads=st.integers(1, 3),
    clients=st.integers(1, 3),
    prompt_length=st.integers(0, 3),
    causal=st.booleans(),
    first_only=st.booleans(),
).map(lambda case: Case(**{**vars(case), "causal": case.causal and not case.first_only}))

SIZE = 4


def tensors(case: Case, dtype: torch.dtype) -> list[Tensor]:
    """Return queries, keys and values [1, heads, Z, D], and prompts before keys and values [C, K, P, D]."""
    generator, tokens = torch.Generator().manual_seed(sum(case.lengths)), sum(case.lengths)
    heads = case.kv_heads * case.groups, case.kv_heads, case.kv_heads
    shapes = [(1, number, tokens, SIZE) for number in heads]
    shapes += [(case.clients, case.kv_heads, case.prompt_length, SIZE)] * 2
    return [torch.randn(shape, generator=generator, dtype=dtype).requires_grad_() for shape in shapes]


def owners(case: Case) -> Tensor:
    return torch.arange(len(case.lengths)) % case.clients


def batched(case: Case, query: Tensor, key: Tensor, value: Tensor, of_key: Tensor, of_value: Tensor) -> Tensor:
    """Return the result rows of the pass in batched products."""
    lengths_B = np.array(case.lengths)
    masks = []
    for bucket in case.buckets:
        lengths = lengths_B[bucket.examples]
        seen = visible_keys(
            lengths, bucket.num_tokens, prompt_length=case.prompt_length, is_causal=case.causal, window=None
        )
        masks.append(None if seen is None else torch.from_numpy(seen))
    read_B = np.cumsum(lengths_B) - lengths_B if case.first_only else None
    layout = Layout.of(
        lengths_B,
        case.buckets,
        (query.shape[1], key.shape[1]),
        (case.clients, case.prompt_length, owners(case)),
        read_B,
        masks,
        query.dtype,
    )
    return attend(query, key, value, (of_key, of_value), None, layout)


def one_by_one(case: Case, query: Tensor, key: Tensor, value: Tensor, of_key: Tensor, of_value: Tensor) -> Tensor:
    """Return the same from the definition, an example at a time."""
    rows, start = [], 0
    for length, owner in zip(case.lengths, owners(case).tolist(), strict=True):
        own = slice(start, start + length)
        keys = torch.cat([of_key[owner], key[0, :, own]], 1).repeat_interleave(case.groups, 0)
        values = torch.cat([of_value[owner], value[0, :, own]], 1).repeat_interleave(case.groups, 0)
        scores = query[0, :, own] @ keys.mT / SIZE**0.5
        if case.causal:
            hidden = torch.ones(length, length, dtype=torch.bool).triu(1)
            scores[:, :, case.prompt_length :] = scores[:, :, case.prompt_length :].masked_fill(hidden, -torch.inf)
        output = (scores.softmax(-1) @ values).transpose(0, 1)
        rows.append(output[:1] if case.first_only else output)
        start += length
    return torch.cat(rows)


@given(cases)
@settings(max_examples=60, deadline=None)
def test_results_and_gradients_are_those_of_each_example_by_itself(case):
    leaves = tensors(case, torch.float64)
    found, expected = batched(case, *leaves), one_by_one(case, *leaves)
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-12)
    weights = torch.linspace(-1, 1, found.numel(), dtype=found.dtype).view_as(found)
    for mine, right in zip(
        torch.autograd.grad((found * weights).sum(), leaves),
        torch.autograd.grad((expected * weights).sum(), leaves),
        strict=True,
    ):
        torch.testing.assert_close(mine, right, rtol=0, atol=1e-11)


def test_only_gradients_that_are_wanted_are_computed():
    case = Case((2, 3), 1, 1, 2, 2, 2, causal=False, first_only=False)
    leaves = [leaf.detach() for leaf in tensors(case, torch.float64)]
    of_key = leaves[3].requires_grad_()
    (gradient,) = torch.autograd.grad(batched(case, *leaves).sum(), of_key)
    assert gradient.shape == of_key.shape and gradient.abs().sum() > 0


def test_one_client_s_nan_stays_its_own():
    case = Case((2, 3, 3), 2, 1, 2, 2, 2, causal=False, first_only=False)
    leaves = tensors(case, torch.float64)
    with torch.no_grad():
        leaves[4][1] = torch.nan
    found = batched(case, *leaves)
    (gradient,) = torch.autograd.grad(found.sum(), leaves[3])
    assert gradient[0].isfinite().all() and gradient[1].isnan().any()


@families
def test_passes_through_models_equal_those_of_the_fused_kernel(families_folder, family, monkeypatch):
    model, table = backbone(families_folder[family], dtype="float64"), token_table(12)
    prompt_CLKHPD = prompts(model, (0, 2), clients=3).detach().double().requires_grad_()
    owner_B = torch.arange(12) % 3
    used = []
    inner = short_attention.attend
    monkeypatch.setattr(short_attention, "attend", lambda *arguments: used.append(0) or inner(*arguments))

    def work() -> tuple[Tensor, Tensor]:
        reading, _ = model.read(table.pack(np.arange(12)), prompt_CLKHPD, (0, 2), {}, owner_B)
        return reading.loss_B.detach(), torch.autograd.grad(reading.loss_B.sum(), prompt_CLKHPD)[0]

    loss, gradient = work()
    assert len(used) == model.geometry.num_layers
    monkeypatch.setattr(short_attention, "fits", lambda *arguments: False)
    fused_loss, fused = work()
    assert len(used) == model.geometry.num_layers
    torch.testing.assert_close(loss, fused_loss, rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(gradient, fused, rtol=1e-9, atol=1e-12)


@pytest.fixture(scope="module")
def families_folder(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    root = tmp_path_factory.mktemp("models")
    return {family: save(tiny_model(family), root / family) for family in CONFIGS}


def test_long_texts_dropout_half_precision_and_other_kernels_keep_transformers_attention():
    module, query = torch.nn.Linear(1, 1), torch.zeros(1, 1, 1, 1)
    assert fits(sdpa_attention_forward, module, query, LONGEST, {"dropout": 0.1}) is False, "in training"
    module.eval()
    assert fits(sdpa_attention_forward, module, query, LONGEST, {"dropout": 0.1})
    assert not fits(sdpa_attention_forward, module, query, LONGEST + 1, {})
    assert not fits(sdpa_attention_forward, module, query.bfloat16(), LONGEST, {})
    assert not fits(lambda: None, module, query, LONGEST, {})
    with torch.autocast("cpu", torch.bfloat16):
        assert not fits(sdpa_attention_forward, module, query, LONGEST, {})

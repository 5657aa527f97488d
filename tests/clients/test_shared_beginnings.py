"""``model.shared_beginnings``: beginnings that are computed once give what each text gives alone."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from response_work import DECODERS, responses
from support import make_tiny, sweep
from test_checkpointing import SECTIONS, layers_of
from test_label_word_scores import texts as texts_of_words
from test_label_word_scores import words_of
from test_packing import LENGTHS, OWNERS, SHUFFLED, texts
from test_tuners import numbers
from tiny_models import CONFIGS, LABEL_WORDS, SharedByFamily, runnable
from torch import Tensor

from clients.backbone.frozen_states import compute_states
from clients.backbone.model import Backbone
from clients.backbone.shared_beginnings import SharedBeginnings
from clients.backbone.shared_weights import SharedWeights
from clients.config import HeadConfig, ModelConfig, PromptConfig
from clients.training.gradients import StepBatch, gradients, shares
from clients.tuners.config import TunerConfig
from clients.tuners.make import make_tuner
from clients.tuners.word_vectors import WordVectors
from fedsim.core.layout import VectorLayout
from fedsim.core.tokens import PackedTokens, TokenTable

IN_LAYERS = ("prefix", "lora", "ia3", "adapter")
"""Tuners that put no virtual tokens before texts."""
IN_FLOAT64 = ("gpt2", "opt", "gpt_neox")
"""Families without norms, or a softmax, that compute in float32 whatever the model's number format."""
HEADS = {
    "words": HeadConfig(),
    "vocabulary": HeadConfig(loss="vocabulary"),
    "last": HeadConfig(kind="classifier", pooling="last"),
    "mean": HeadConfig(kind="classifier", pooling="mean"),
    "responses": HeadConfig(kind="generation"),
    "branches": HeadConfig(),
}


@pytest.fixture(scope="module")
def loaded(tmp_path_factory: pytest.TempPathFactory) -> SharedByFamily:
    """Return the weights of each family's tiny model, in float64."""
    return SharedByFamily(tmp_path_factory.mktemp("models"), dtype="float64")


def alike(table: TokenTable) -> TokenTable:
    """Return the table with beginnings that texts share: some a few tokens, some all of a shorter text, one text twice."""
    ids, trunks_N = table.ids_Z.copy(), table.trunks.lengths_N
    first = ids[table.offsets_N1[-2] : table.offsets_N1[-1]].copy()
    for number, (start, trunk) in enumerate(zip(table.offsets_N1[:-2], trunks_N[:-1], strict=True)):
        common = min(trunk, (4, 9, 2, trunk)[number % 4], trunks_N[-1])
        ids[start : start + common] = first[:common]
    return replace(table, ids_Z=ids, type_ids_Z=None)


def packed(table: TokenTable) -> PackedTokens:
    return table.pack(np.concatenate([SHUFFLED[len(table) > SHUFFLED]] * 2))


def owners(tokens: PackedTokens) -> np.ndarray:
    return np.resize(OWNERS, len(tokens.lengths_B))


def table_of(head: str, family: str) -> TokenTable:
    if head == "responses":
        return alike(responses())
    return alike(texts_of_words(words_of(family)) if head == "branches" else texts(LENGTHS))


def build(weights: SharedWeights, head: str, tuner: str, **model: object) -> Backbone:
    family, own = weights.family, HEADS[head]
    words = words_of(family.name) if head == "branches" else None
    config = ModelConfig(
        path="x", dtype=weights.dtype, attention=runnable(family.name, "sdpa"), head=own.model_copy(), **model
    )
    labels = LABEL_WORDS if own.kind == "verbalizer" and words is None else None
    known = WordVectors(weights, frozenset(), 97, labels if words is None else words.ids_Q)
    section = TunerConfig.model_validate(SECTIONS[tuner](family.name))
    made = make_tuner(section, PromptConfig(length=4), family).knowing(known, 0)
    return Backbone.build(weights, config, made, len(LABEL_WORDS), labels, "cpu", words=words)


def step(model: Backbone, tokens: PackedTokens, **more: object) -> tuple[list[int], tuple[Tensor, ...]]:
    """Return the rows that the lowest layer that runs was given, losses, scores, and gradients in what is trained."""
    layers = layers_of(model)
    tuned = numbers(model.geometry, len(layers), 3)
    generator = torch.Generator().manual_seed(4)
    heads = {
        name: torch.randn((3, *shape), generator=generator, dtype=torch.float64).requires_grad_()
        for name, shape in model.head_shapes
    }
    seen: list[int] = []
    handle = model.layers[2].register_forward_pre_hook(lambda module, arguments: seen.append(arguments[0].shape[1]))
    reading, slots = model.read(tokens, tuned, layers, heads, owners(tokens), **more)
    handle.remove()
    share = torch.linspace(0.5, 1.5, len(reading.loss_B), dtype=torch.float64)
    gradients = torch.autograd.grad((reading.loss_B * share).sum(), (tuned, *heads.values()))
    assert slots.sum() >= tokens.lengths_B.sum()
    return seen, (reading.loss_B.detach(), reading.logits_BC.detach(), *gradients)


def assert_close(ours: tuple[Tensor, ...], apart: tuple[Tensor, ...], tolerance: float) -> None:
    for mine, other in zip(ours, apart, strict=True):
        torch.testing.assert_close(mine, other, rtol=tolerance, atol=tolerance)
    assert ours[2].abs().amax(dim=tuple(range(2, ours[2].ndim))).min() > 0, "every client and layer has a gradient"


CASES = [(family, tuner, head) for family in DECODERS for tuner in IN_LAYERS for head in HEADS]
QUICK = [
    *(("llama", tuner, "responses") for tuner in IN_LAYERS),
    *(("llama", "lora", head) for head in HEADS),
    *((family, "prefix", "responses") for family in ("gpt2", "gemma2", "opt", "gemma3_text")),
]


@pytest.mark.parametrize(("family", "tuner", "head"), sweep(CASES, QUICK))
def test_losses_scores_and_gradients_are_those_of_texts_apart(loaded, family, tuner, head):
    """Of three clients in one pass; texts of different clients that begin alike share nothing."""
    table = table_of(head, family)
    tokens = packed(table)
    rows, ours = step(build(loaded[family], head, tuner), tokens)
    apart_rows, apart = step(build(loaded[family], head, tuner, shared_beginnings="off"), tokens)
    assert rows == [len(SharedBeginnings.of(tokens, owners(tokens)).first_N)]
    assert apart_rows == [len(tokens.ids_Z)] and rows[0] < apart_rows[0]
    assert_close(ours, apart, 1e-10 if family in IN_FLOAT64 else 1e-5)


@pytest.mark.parametrize("more", ["cached", "checkpointed"])
@pytest.mark.parametrize("tuner", ["prefix", "lora"])
def test_cached_layers_are_entered_and_layers_run_twice(loaded, tuner, more):
    table = table_of("responses", "llama")
    order = np.concatenate([SHUFFLED, SHUFFLED])
    results = []
    for beginnings in ("auto", "off"):
        on = {"gradient_checkpointing": more == "checkpointed", "shared_beginnings": beginnings}
        model = build(loaded["llama"], "responses", tuner, **on)
        states = {}
        if more == "cached":
            model_layers = (1, 2)
            states = {"cached_ZD": compute_states(model, table, order, model_layers, "float64", 512).tensor()}
            tuned = numbers(model.geometry, 2, 3)
            reading, _ = model.read(table.pack(order), tuned, model_layers, {}, np.resize(OWNERS, len(order)), **states)
            gradient = torch.autograd.grad(reading.loss_B.sum(), tuned)[0]
            results.append((reading.loss_B.detach(), reading.logits_BC, gradient))
        else:
            results.append(step(model, table.pack(order))[1])
    assert_close(*results, 1e-5)


def test_one_client_needs_no_owners(loaded):
    """As in an evaluation: all texts of the pass are its own."""
    tokens = packed(table_of("responses", "llama"))
    losses = []
    for beginnings in ("auto", "off"):
        model = build(loaded["llama"], "responses", "lora", shared_beginnings=beginnings)
        with torch.inference_mode():
            losses.append(model.read(tokens, numbers(model.geometry, 2, 1), (0, 2), {})[0].loss_B)
    torch.testing.assert_close(*losses, rtol=1e-6, atol=1e-6)
    assert len(SharedBeginnings.of(tokens, None).first_N) < len(SharedBeginnings.of(tokens, owners(tokens)).first_N)


@pytest.mark.parametrize("family", sweep([name for name in CONFIGS if name not in DECODERS], ["bert"]))
def test_encoders_share_nothing(loaded, family):
    """A token sees those behind it, so that texts which begin alike have nothing in common."""
    tokens = packed(alike(texts(LENGTHS)))
    results = [step(build(loaded[family], "words", "prefix", shared_beginnings=how), tokens) for how in ("auto", "off")]
    assert all(map(torch.equal, results[0][1], results[1][1]))


TEXTS = st.lists(st.lists(st.integers(0, 2), min_size=1, max_size=7), min_size=1, max_size=8)


@given(TEXTS, st.lists(st.integers(0, 1), min_size=8, max_size=8), st.booleans())
def test_a_token_is_computed_once_for_each_client_and_beginning(rows, clients, typed):
    lengths_B = np.array([len(row) for row in rows])
    ids_Z = np.concatenate(rows).astype(np.int64)
    types_Z = ids_Z[::-1] % 2 if typed else None
    tokens = PackedTokens(ids_Z, types_Z, lengths_B, np.cumsum(lengths_B) - 1, np.zeros(len(rows), np.int64))
    owners_B = np.array(clients[: len(rows)])
    first, wanted, own = {}, [], np.zeros(len(rows), int)
    for example, start in enumerate(tokens.starts_B):
        for place in range(lengths_B[example]):
            text = slice(start, start + place + 1)
            key = (owners_B[example], tuple(ids_Z[text]), None if types_Z is None else tuple(types_Z[text]))
            own[example] += key not in first
            wanted.append(first.setdefault(key, start + place))
    found = SharedBeginnings.of(tokens, owners_B)
    saved = len(ids_Z) - len(first)
    assert (found is None) == (saved < len(ids_Z) / 8)
    if found is not None:
        assert found.first_N[found.places_Z].tolist() == wanted
        assert found.own_B.tolist() == own.tolist()
        assert found.examples_of(np.arange(len(first))).tolist() == np.repeat(np.arange(len(rows)), own).tolist()


def test_a_run_says_whether_beginnings_are_shared():
    """It is part of a result's identity, as it changes its last bits; off is how runs were before."""
    shared_one, apart = (make_tiny(model={"shared_beginnings": how}) for how in ("auto", "off"))
    assert shared_one.identity != apart.identity


@pytest.mark.parametrize("limit", [None, 40, 1])
def test_a_step_cut_into_passes_keeps_a_clients_texts_together(loaded, limit):
    """Whatever the cut, losses and gradients are those of texts apart; without one, each beginning is computed once."""
    table = table_of("responses", "llama")
    order = np.concatenate([SHUFFLED, SHUFFLED])
    owners_B = np.resize(OWNERS, len(order))
    results, rows = [], []
    for beginnings in ("auto", "off"):
        model = build(loaded["llama"], "responses", "lora", shared_beginnings=beginnings)
        layout = VectorLayout.full(model.geometry, model.head_shapes)
        vectors = torch.randn((3, layout.size), generator=torch.Generator().manual_seed(1), dtype=torch.float64)
        seen: list[int] = []
        model.layers[2].register_forward_pre_hook(lambda module, given, seen=seen: seen.append(given[0].shape[1]))
        step_batch = StepBatch(order, owners_B, shares(table, order, owners_B))
        found = gradients(model, table, step_batch, layout, 0.1 * vectors, limit)
        results.append((found.loss_C, found.gradient_CA, found.tokens_C))
        rows.append(seen)
    for ours, apart in zip(*results, strict=True):
        np.testing.assert_allclose(ours, apart, rtol=1e-5, atol=1e-7)
    assert (len(rows[0]) == 1) == (limit is None) and sum(rows[1]) == table.lengths_N[order].sum()
    by_client = np.lexsort((table.lengths_N[order], owners_B))
    least = len(SharedBeginnings.of(table.pack(order[by_client]), owners_B[by_client]).first_N)
    assert sum(rows[0]) == least if limit is None else least <= sum(rows[0]) <= sum(rows[1])

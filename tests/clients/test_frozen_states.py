"""Frozen-layer states: inputs of the lowest prompted layer, computed once and reused, change no result."""

from __future__ import annotations

import dataclasses
from itertools import product

import numpy as np
import pytest
import torch
from cohorts import CLIENTS, SIZES, Cohort, poolings, specification
from tiny_models import CONFIGS, families, prompts, save, tiny_model, transformer_layers

from clients.backbone.frozen_states import CachedStates, compute_states
from clients.backbone.model import Backbone
from clients.config import HeadConfig
from clients.worker import ClientWorker, WorkerSpec
from fedsim.core.messages import ClientState, GlobalState, WorkGroup
from fedsim.core.tokens import PackedTokens

EXAMPLES = np.array([7, 2, 30, 11, 0, 19, 5, 41, 23, 8, 12])


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    root = tmp_path_factory.mktemp("models")
    return {family: save(tiny_model(family), root / family) for family in CONFIGS}


@pytest.fixture(scope="module")
def roberta(folders) -> ClientWorker:
    return ClientWorker(specification(folders["roberta"], HeadConfig(kind="classifier", init_std=0.5)))


def backbone_of(spec: WorkerSpec, attention: str = "sdpa") -> Backbone:
    model = spec.model.model_copy(update={"attention": attention})
    return Backbone.build(spec.weights, model, spec.tuner, spec.num_classes, spec.label_word_ids_C, "cpu")


def reading(model: Backbone, tokens: PackedTokens, layers, dtype=torch.float32, cached=None) -> list[torch.Tensor]:
    """Return logits, losses and the gradients of prompts and head of three clients."""
    generator = torch.Generator().manual_seed(5)
    prompt = prompts(model, layers, 3).detach().to(dtype).requires_grad_()
    head = {
        name: torch.randn((3, *shape), generator=generator).to(dtype).requires_grad_()
        for name, shape in model.head_shapes
    }
    owners = torch.arange(len(tokens)) % 3
    answer, _ = model.read(tokens, prompt, layers, head, owners, cached)
    return [answer.logits_BC, answer.loss_B, *torch.autograd.grad(answer.loss_B.sum(), [prompt, *head.values()])]


def first_state(worker: ClientWorker, layers: tuple[int, ...]) -> GlobalState:
    size = worker.info().full.exchanged(layers).size
    rng = np.random.default_rng(0)
    return GlobalState(0, layers, rng.normal(0.0, 0.5, size).astype(worker._spec.model.exchange_dtype))


# -- the backbone in two parts -----------------------------------------------------------------------------------------


@families
def test_the_layers_above_the_trunk_say_what_all_layers_say(folders, family):
    """In float64, for any two of attention, head and way to count positions together, gradients included."""
    for (number, head), offset in product(enumerate(poolings(family)), ("none", "paper")):
        spec = specification(folders[family], head, "float64", prompt={"position_offset": offset})
        tokens = spec.train.pack(EXAMPLES)
        model = backbone_of(spec, ("sdpa", "eager")[(number + (offset == "paper")) % 2])
        for layers in ((1, 2), (2,)):
            cached_ZD = model.cached(tokens, layers)
            assert cached_ZD.shape == (len(tokens.ids_Z), 32) and not cached_ZD.requires_grad
            whole, above = (reading(model, tokens, layers, torch.float64, cached) for cached in (None, cached_ZD))
            for ours, theirs in zip(above, whole, strict=True):
                torch.testing.assert_close(ours, theirs, rtol=1e-12, atol=1e-12)


@families
def test_only_the_layers_of_its_part_run(folders, family):
    spec = specification(folders[family])
    model, ran = backbone_of(spec), []
    for number, layer in enumerate(transformer_layers(model.model)):
        layer.register_forward_hook(lambda *_, number=number: ran.append(number))
    tokens = spec.train.pack(EXAMPLES)
    cached_ZD = model.cached(tokens, (1, 2))
    assert ran == [0]
    reading(model, tokens, (1, 2), cached=cached_ZD)
    assert ran == [0, 1, 2]
    reading(model, tokens, (1, 2))
    assert ran == [0, 1, 2, 0, 1, 2]


@pytest.mark.parametrize("changes", [{"sliding_window": 4}, {"sliding_window": None}])
def test_a_window_is_kept_below_and_above(tmp_path, changes):
    spec = specification(save(tiny_model("mistral", **changes), tmp_path), dtype="float64")
    model, tokens = backbone_of(spec), spec.train.pack(EXAMPLES)
    for layers in ((1,), (2,)):
        whole = reading(model, tokens, layers, torch.float64)
        above = reading(model, tokens, layers, torch.float64, model.cached(tokens, layers))
        for ours, theirs in zip(above, whole, strict=True):
            torch.testing.assert_close(ours, theirs, rtol=1e-12, atol=1e-12)


@families
def test_the_model_is_whole_again_after_a_failure(folders, family):
    """A failure in either part, by an input that the model cannot take: hooks and layers are as they were."""
    spec = specification(folders[family])
    model = backbone_of(spec)
    tokens, layers = spec.train.pack(EXAMPLES), (1, 2)
    before = reading(model, tokens, layers)
    cached_ZD = model.cached(tokens, layers)
    unknown = dataclasses.replace(tokens, ids_Z=np.full_like(tokens.ids_Z, 10**6))
    with pytest.raises(IndexError):
        model.cached(unknown, layers)
    with pytest.raises(RuntimeError):
        reading(model, tokens, layers, cached=cached_ZD[:, :-1])
    stack = transformer_layers(model.model)
    assert len(stack) == 3 and not any(layer._forward_pre_hooks or layer._forward_hooks for layer in stack)
    after = reading(model, tokens, layers)
    assert all(torch.equal(one, two) for one, two in zip(before, after, strict=True))
    assert torch.equal(cached_ZD, model.cached(tokens, layers))


# -- states of some examples ------------------------------------------------------------------------------------------


@families
def test_a_trunk_has_the_examples_in_the_order_asked(folders, family):
    """In passes of any size; each row is what the example gives by itself."""
    spec = specification(folders[family])
    model, table = backbone_of(spec), spec.train
    alone_ZD = torch.cat([model.cached(table.pack(np.array([example])), (2,)) for example in EXAMPLES])
    for max_tokens in (1, 30, 512):
        cached = compute_states(model, table, EXAMPLES, (2,), "float32", max_tokens)
        assert cached.nbytes == cached.hidden_ZD.nbytes == alone_ZD.numel() * 4
        torch.testing.assert_close(cached.tensor(), alone_ZD, rtol=1e-5, atol=1e-5)


def test_a_trunk_that_is_computed_again_has_the_same_bits(folders):
    """Whatever the model did in between, and in another model of the same weights."""
    spec = specification(folders["llama"])
    model, other, table = backbone_of(spec), backbone_of(spec), spec.train
    first = compute_states(model, table, EXAMPLES, (1, 2), "float32", 64)
    compute_states(model, table, EXAMPLES[::-1], (2,), "float32", 512)
    reading(model, table.pack(EXAMPLES), (0, 1))
    for again in (model, other):
        cached = compute_states(again, table, EXAMPLES, (1,), "float32", 64)
        assert np.array_equal(cached.hidden_ZD, first.hidden_ZD)


@pytest.mark.parametrize(
    "dtype, rounding, nbytes",
    [("float32", 0.0, 4), ("float16", 2**-11, 2), ("bfloat16", 2**-8, 2), ("float64", 0.0, 8)],
)
def test_a_shorter_number_format_rounds_and_no_more(folders, dtype, rounding, nbytes):
    spec = specification(folders["roberta"])
    model, table = backbone_of(spec), spec.train
    exact_ZD = compute_states(model, table, EXAMPLES, (1,), "float32", 512).tensor()
    cached = compute_states(model, table, EXAMPLES, (1,), dtype, 512)
    assert cached.tensor().dtype == getattr(torch, dtype) and cached.nbytes == nbytes * exact_ZD.numel()
    assert ((cached.tensor().double() - exact_ZD.double()).abs() <= rounding * exact_ZD.double().abs() + 1e-7).all()
    assert torch.equal(cached.tensor(), exact_ZD.to(getattr(torch, dtype)))
    tokens = table.pack(EXAMPLES)
    whole, above = (reading(model, tokens, (1, 2), cached=t) for t in (None, cached.tensor()))
    error = (above[0] - whole[0]).abs().max() / whole[0].abs().max()
    assert error <= 50 * rounding + 1e-6 and (error > 1e-6) == (rounding > 0)


def test_a_trunk_is_read_from_memory_that_must_not_be_written(recwarn):
    hidden_ZD = np.arange(12, dtype=np.float32).reshape(4, 3)
    hidden_ZD.flags.writeable = False
    tensor = CachedStates(hidden_ZD, "float32").tensor()
    assert tensor.data_ptr() == hidden_ZD.ctypes.data and not recwarn.list


# -- which local training uses them ------------------------------------------------------------------------------------


def test_a_run_has_a_trunk_where_examples_alone_decide_what_enters(folders):
    def caches(prompted, **keys) -> bool:
        return specification(folders["roberta"], **keys).caches(prompted)

    assert [caches(layers) for layers in ((0, 1, 2), (1, 2), (2,), ())] == [False, True, True, False]
    assert not caches((2,), client={"dropout": True})
    assert not caches((2,), layers={"unselected": "local"})
    assert not caches((2,), model={"trunk_cache": {"dtype": "off"}})
    assert caches((2,), model={"trunk_cache": {"dtype": "bfloat16", "memory_mb": 0}})
    assert caches((0,), tuner={"kind": "generated_prompt"})


def test_a_visit_has_a_trunk_where_it_sees_all_examples(folders):
    def users(layers, **client) -> list[int]:
        spec = specification(folders["roberta"], client=client)
        return [client for client in CLIENTS if spec.uses_cache(client, layers)]

    assert SIZES == (3, 1, 13, 4, 7)
    assert users((1,)) == [0, 1, 2, 3, 4] and users((0, 1)) == []
    assert users((1,), epochs=None, steps=1) == [0, 1, 3]
    assert users((1,), epochs=None, steps=2) == [0, 1, 3, 4]
    assert users((1,), epochs=None, steps=4) == [0, 1, 2, 3, 4]


# -- training and evaluation from them --------------------------------------------------------------------------------


def test_a_visit_on_a_trunk_handed_in_has_the_bits_of_one_that_computes_it(roberta):
    state, states = first_state(roberta, (1, 2)), tuple(map(ClientState, CLIENTS))
    for fuse in (1, 5):
        group = WorkGroup(0, 0, CLIENTS, fuse=fuse, keep_cached=CLIENTS)
        made = roberta.train(group, state, *states)
        caches = dict(zip(CLIENTS, made.caches, strict=True))
        for cached in caches.values():
            cached.hidden_ZD.flags.writeable = False  # as in the object store
        group = dataclasses.replace(group, with_cached=(2, 4), keep_cached=(0, 3))
        used = roberta.train(group, state, *states, caches={client: caches[client] for client in (2, 4)})
        assert np.array_equal(used.update.sums["vector"], made.update.sums["vector"])
        assert len(used.states) == len(CLIENTS)
        for cached, client in zip(used.caches, (0, 3), strict=True):
            assert np.array_equal(cached.hidden_ZD, caches[client].hidden_ZD)


@pytest.mark.parametrize("family", ["bert", "gpt2", "qwen3"])
def test_visits_with_and_without_a_trunk_are_the_same_to_rounding(folders, family):
    for dtype, tolerance in (("float64", 1e-11), ("float32", 1e-6)):
        spec = specification(folders[family], dtype=dtype)
        off = spec.model.model_copy(update={"trunk_cache": spec.model.trunk_cache.model_copy(update={"dtype": "off"})})
        vectors = []
        for chosen in (spec, dataclasses.replace(spec, model=off)):
            cohort = Cohort(chosen, (1, 2))
            model, table = cohort.worker._backbone, spec.train
            jobs = [
                dataclasses.replace(job, cached=compute_states(model, table, job.indices_N, (1, 2), dtype, 512))
                if chosen.uses_cache(job.client, (1, 2))
                else job
                for job in cohort.jobs()
            ]
            assert [job.cached is None for job in jobs] == [chosen is not spec] * len(SIZES)
            vectors.append(np.stack([result.vector_A for result in cohort.train(jobs)]))
        assert np.linalg.norm(vectors[0] - vectors[1]) <= tolerance * np.linalg.norm(vectors[1])


def test_all_clients_of_a_pass_have_a_trunk_or_none(folders):
    cohort = Cohort(specification(folders["roberta"]), (1,))
    first, *others = cohort.jobs()
    cached = compute_states(cohort.worker._backbone, cohort.spec.train, first.indices_N, (1,), "float32", 512)
    with pytest.raises(ValueError, match="either all clients of a pass have a frozen-layer cache or none has"):
        cohort.train([dataclasses.replace(first, cached=cached), *others])


@pytest.mark.parametrize("head", [HeadConfig(), HeadConfig(kind="classifier", pooling="mean", init_std=0.5)])
def test_evaluation_on_a_trunk_counts_the_same(folders, head):
    """Counts to the number, the loss to rounding; handed in or computed, to the bit."""
    spec = specification(folders["roberta"], head)
    off = spec.model.model_copy(update={"trunk_cache": spec.model.trunk_cache.model_copy(update={"dtype": "off"})})
    worker, without = ClientWorker(spec), ClientWorker(dataclasses.replace(spec, model=off))
    for layers in ((1, 2), (2,), (0, 1)):
        state = first_state(worker, layers)
        for start, stop in ((0, 40), (7, 19)):
            counted, cached = worker.evaluate(state, start, stop)
            again, same = worker.evaluate(state, start, stop, cached)
            plain, none = without.evaluate(state, start, stop)
            assert same is cached and none is None and (cached is None) == (layers[0] == 0)
            assert np.array_equal(counted.confusion_CC, plain.confusion_CC) and counted.num_examples == stop - start
            assert counted.loss_sum == pytest.approx(plain.loss_sum, rel=1e-6)
            assert np.array_equal(again.confusion_CC, counted.confusion_CC) and again.loss_sum == counted.loss_sum


def evaluating_with(spec, batch_size):
    analysis = dataclasses.replace(spec.analysis, evaluation_batch_size=batch_size)
    return dataclasses.replace(spec, analysis=analysis)


def test_the_size_of_a_batch_and_the_cut_into_shards_count_the_same(roberta):
    state = first_state(roberta, (1, 2))
    whole, _ = roberta.evaluate(state, 0, 40)
    for size in (1, 7, 1000):
        other = ClientWorker(evaluating_with(roberta._spec, size))
        parts = [other.evaluate(state, *edges)[0] for edges in ((0, 13), (13, 14), (14, 40))]
        total = parts[0] + parts[1] + parts[2]
        assert np.array_equal(total.confusion_CC, whole.confusion_CC)
        assert total.loss_sum == pytest.approx(whole.loss_sum, rel=1e-5)


@pytest.mark.parametrize("keep_local", [False, True])
def test_clients_are_evaluated_side_by_side_as_one_by_one(folders, keep_local):
    for family, head in (("roberta", HeadConfig(kind="classifier", init_std=0.5)), ("llama", HeadConfig())):
        keys = {"layers": {"unselected": "local"}} if keep_local else {}
        worker = ClientWorker(specification(folders[family], head, **keys))
        state, size = first_state(worker, (1,)), worker.info().full.local((1,)).size
        rng = np.random.default_rng(0)
        personal = [rng.normal(0.0, 0.5, size).astype(np.float32) if keep_local else None for _ in CLIENTS]
        states = [ClientState(client, arrays={"personal": personal[client]}) for client in CLIENTS]
        states[1] = ClientState(1)  # one that has not trained yet
        alone = worker.evaluate_clients(state, *states)
        assert len({evaluation.loss_sum for evaluation in alone}) == len(CLIENTS)
        for fuse in (2, 5, 9):
            together = worker.evaluate_clients(state, *states, fuse=fuse)
            for ours, theirs in zip(together, alone, strict=True):
                assert np.array_equal(ours.confusion_CC, theirs.confusion_CC) and theirs.num_examples == 5
                assert ours.loss_sum == pytest.approx(theirs.loss_sum, rel=1e-5)

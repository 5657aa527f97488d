"""LoRA of which one half is trained, travels, or is trained in turn: what vectors hold, what acts, what does not move."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
import torch
from cohorts import CLIENTS, Cohort, assert_same, specification
from test_packing import LENGTHS, OWNERS, SHUFFLED, texts
from tiny_models import CONFIGS, save, tiny_model

from clients.config import HeadConfig
from clients.spec import WorkerSpec
from clients.training.local_job import Parts
from clients.tuners.lora_halves import completed
from clients.worker import ClientWorker
from fedsim.core.messages import PERSONAL, VECTOR, ClientState, GlobalState, WorkGroup

CLASSIFIER = HeadConfig(kind="classifier")
HALF = {"a": "lora_A", "b": "lora_B"}


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    root = tmp_path_factory.mktemp("models")
    return {family: save(tiny_model(family), root / family) for family in CONFIGS}


def spec_of(folder: str, head: HeadConfig | None = None, client: dict | None = None, **tuner) -> WorkerSpec:
    return specification(
        folder,
        head,
        "float64",
        tuner={"kind": "lora", "rank": 2, **tuner},
        server={"kind": "fedavg"},
        client=client or {},
    )


@pytest.mark.parametrize("family", ["bert", "gpt2", "llama"])
@pytest.mark.parametrize("train", ["a", "b"])
def test_the_untrained_half_is_in_no_vector_and_acts_as_it_was_drawn(folders, family, train):
    half, both = spec_of(folders[family], train=train), spec_of(folders[family])
    worker, whole_worker = ClientWorker(half), ClientWorker(both)
    full = worker.info().full
    assert all(name.endswith(HALF[train]) for name, _ in full.geometry.trained)
    assert full.size < whole_worker.info().full.size
    generator = np.random.default_rng(1)
    tuned_CLX = 0.3 * generator.standard_normal((3, *full.tuned_shape))
    whole_CLX = np.stack([completed(half.tuner.lora, full, tuned_LX, half.training.seed)[1] for tuned_LX in tuned_CLX])
    owners, table = torch.from_numpy(OWNERS[SHUFFLED]), texts(LENGTHS)
    logits, losses = [], []
    for backbone, numbers in ((worker._backbone, tuned_CLX), (whole_worker._backbone, whole_CLX)):
        tuned = torch.from_numpy(numbers).requires_grad_()
        packed = backbone.read(table.pack(SHUFFLED), tuned, full.layers, {}, owners)[0]
        padded = backbone.forward(table.batch(SHUFFLED), tuned, full.layers, {}, owners)
        torch.testing.assert_close(packed.logits_BC, padded.logits_BC, rtol=1e-5, atol=1e-5)
        logits.append(packed.logits_BC.detach())
        (gradient,) = torch.autograd.grad(packed.loss_B.sum(), tuned)
        parts = backbone.geometry.split(gradient)
        losses.append({name: part for name, part in parts.items() if name.endswith(HALF[train])})
    torch.testing.assert_close(logits[0], logits[1], rtol=0, atol=1e-12)
    for name, gradient in losses[0].items():
        torch.testing.assert_close(gradient, losses[1][name], rtol=0, atol=1e-12)


def test_the_frozen_a_is_the_one_that_a_trained_a_starts_at(folders):
    half, both = spec_of(folders["bert"], train="b"), spec_of(folders["bert"])
    full, whole = (ClientWorker(spec).info().full for spec in (half, both))
    tuned_LX, _ = full.split(half.initial_vector(full))
    layout, made_LX = completed(half.tuner.lora, full, tuned_LX, half.training.seed)
    np.testing.assert_array_equal(made_LX, whole.split(both.initial_vector(whole))[0])
    assert layout.geometry == whole.geometry


def test_where_a_alone_is_trained_b_is_random_and_training_starts_at_the_frozen_model(folders):
    spec = spec_of(folders["bert"], train="a")
    full = ClientWorker(spec).info().full
    tuned_LX, _ = full.split(spec.initial_vector(full))
    layout, both_LX = completed(spec.tuner.lora, full, tuned_LX, spec.training.seed)
    for name, array in layout.geometry.split(both_LX).items():
        assert (array == 0).all() if name.endswith("lora_A") else 0.8 < np.abs(array).max() * 2**0.5 <= 1.0


@pytest.mark.parametrize("tuner", [{"train": "b"}, {"train": "a"}, {"exchange": "a"}])
def test_side_by_side_equals_one_by_one(folders, tuner):
    cohort = Cohort(spec_of(folders["roberta"], CLASSIFIER, **tuner))
    jobs = cohort.jobs()
    for ours, theirs in zip(cohort.train(jobs), cohort.train_alone(jobs), strict=True):
        assert_same(ours, theirs, 1e-10)
        assert not np.array_equal(ours.vector_A, cohort.start(0))


@pytest.mark.parametrize("tuner", [{"exchange": "a"}, {"exchange": "b"}, {"train": "alternate"}])
def test_the_parts_of_a_round_are_what_the_option_says(folders, tuner):
    spec = spec_of(folders["bert"], CLASSIFIER, **tuner)
    full = ClientWorker(spec).info().full
    for round in range(2):
        parts = Parts.of(full, (0, 2), False, spec.tuner, round)
        half = tuner.get("exchange") or "ba"[round]
        assert all(name.endswith(HALF[half]) for name in parts.exchanged.arrays)
        every = np.arange(parts.whole.size)
        if "exchange" in tuner:
            found = np.sort(np.concatenate([parts.exchanged_F, parts.personal_M]))
            np.testing.assert_array_equal(found, every)
        else:
            assert parts.trained == parts.exchanged and not len(parts.personal_M)
        # Positions name the same numbers in both layouts.
        vector_W = every.astype(np.float64)
        held = vector_W[parts.whole.positions(parts.exchanged)]
        arrays = parts.whole.geometry.split(parts.whole.split(vector_W)[0])
        for place in range(2):
            start = place * parts.exchanged.layer_size
            own = np.concatenate([arrays[name][place].reshape(-1) for name in parts.exchanged.arrays])
            np.testing.assert_array_equal(held[start : start + parts.exchanged.layer_size], own)


def trained(spec: WorkerSpec, round: int, vector_F: np.ndarray, layers: tuple[int, ...] = (0, 2)) -> np.ndarray:
    """Return the mean of what two clients send."""
    worker = ClientWorker(spec)
    states = [ClientState(client) for client in CLIENTS[:2]]
    returns = worker.train(WorkGroup(round, 0, CLIENTS[:2], fuse=2), GlobalState(round, layers, vector_F), *states)
    assert all(report.failure is None for report in returns.reports)
    assert {report.bytes_up for report in returns.reports} == {8 * len(returns.update.sums[VECTOR])}
    assert {report.bytes_down for report in returns.reports} == {8 * len(vector_F)}
    return returns.update.sums[VECTOR] / returns.update.weight_sum


def test_an_odd_round_in_turn_is_a_round_of_b_alone(folders):
    turn, alone = spec_of(folders["bert"], train="alternate"), spec_of(folders["bert"], train="b")
    layers = (0, 2)
    starts = [spec.initial_vector(ClientWorker(spec).info().full.exchanged(layers)) for spec in (turn, alone)]
    ours, theirs = (trained(spec, 0, start.astype(float)) for spec, start in zip((turn, alone), starts, strict=True))
    np.testing.assert_allclose(ours, theirs, rtol=0, atol=1e-12)
    assert np.abs(ours).max() > 1e-3


def test_an_even_round_in_turn_takes_the_step_that_a_takes_where_both_move(folders):
    """One step of SGD: its gradient does not know what else moves."""
    client = {
        "steps": 1,
        "epochs": None,
        "optimizer": {"kind": "sgd", "lr": 0.1, "weight_decay": 0.1, "clip_norm": None},
    }
    turn, both = (spec_of(folders["bert"], client=client, train=train) for train in ("alternate", "both"))
    layout = ClientWorker(both).info().full.exchanged((0, 2))
    vector_F = 0.3 * np.random.default_rng(3).standard_normal(layout.size)
    own = layout.positions(layout.holding(turn.tuner.turns(layout.geometry)[1]))
    ours = trained(turn, 1, vector_F)
    np.testing.assert_allclose(ours, trained(both, 1, vector_F)[own], rtol=0, atol=1e-12)
    assert np.abs(ours - vector_F[own]).max() > 1e-4


@pytest.mark.parametrize("exchange", ["a", "b"])
def test_a_client_is_evaluated_with_the_half_that_it_kept(folders, exchange):
    own, both = (spec_of(folders["bert"], CLASSIFIER, exchange=half) for half in (exchange, "both"))
    worker, whole_worker = ClientWorker(own), ClientWorker(both)
    full, layers = worker.info().full, (0, 2)
    parts = Parts.of(full, layers, False, own.tuner)
    vector_W = 0.5 * np.random.default_rng(4).standard_normal(parts.trained.size)
    personal = ClientState(2, arrays={PERSONAL: vector_W[parts.personal_M]})
    (ours,) = worker.evaluate_clients(GlobalState(3, layers, vector_W[parts.exchanged_F]), personal)
    (theirs,) = whole_worker.evaluate_clients(GlobalState(3, layers, vector_W), ClientState(2))
    assert ours.loss_sum == theirs.loss_sum
    (shared,) = worker.evaluate_clients(GlobalState(3, layers, vector_W[parts.exchanged_F]), ClientState(2))
    assert shared.loss_sum != ours.loss_sum


def test_a_rank_above_the_width_of_a_map_is_only_more_numbers(folders):
    """A change of rank 40 with zeros beyond rank 8 is one of rank 8: the maps are 32 wide."""
    narrow, wide = (dataclasses.replace(spec_of(folders["bert"], rank=rank, alpha=rank)) for rank in (8, 40))
    models = [ClientWorker(spec)._backbone for spec in (narrow, wide)]
    tuned = 0.3 * torch.randn((1, 3, models[0].geometry.layer_size), dtype=torch.float64)
    more = torch.zeros((1, 3, models[1].geometry.layer_size), dtype=torch.float64)
    for name, array in models[0].geometry.split(tuned).items():
        place = models[1].geometry.split(more)[name]
        place[..., : array.shape[-2], : array.shape[-1]] = array
    data = texts(LENGTHS).batch(SHUFFLED)
    first, second = (m.forward(data, t, (0, 1, 2), {}).logits_BC for m, t in zip(models, (tuned, more), strict=True))
    torch.testing.assert_close(first, second, rtol=0, atol=1e-10)


@pytest.mark.parametrize("family", ["bert", "gpt2"])
def test_a_residual_is_added_to_the_map_itself(folders, family):
    spec, plain = spec_of(folders[family], exact=True), spec_of(folders[family])
    model, changed = ClientWorker(spec)._backbone, ClientWorker(plain)._backbone
    tuned = torch.zeros((1, 3, model.geometry.layer_size), dtype=torch.float64)
    for name, array in model.geometry.split(tuned).items():
        if name.endswith("residual"):
            array.copy_(0.1 * torch.randn(array.shape, dtype=torch.float64))
            for layer in range(3):
                module = changed.layers[layer].get_submodule(name.removesuffix(".residual"))
                change = array[0, layer].T if family == "gpt2" else array[0, layer]
                module.weight.data = module.weight.data + change
    tuned.requires_grad_()
    table, none = texts(LENGTHS), torch.empty((1, 0, changed.geometry.layer_size), dtype=torch.float64)
    expected = changed.forward(table.batch(SHUFFLED), none, (), {}).logits_BC
    padded = model.forward(table.batch(SHUFFLED), tuned, (0, 1, 2), {})
    packed, _ = model.read(table.pack(SHUFFLED), tuned, (0, 1, 2), {}, None)
    for reading in (padded, packed):
        torch.testing.assert_close(reading.logits_BC, expected, rtol=0, atol=1e-10)
    (gradient,) = torch.autograd.grad(packed.loss_B.sum(), tuned)
    parts = model.geometry.split(gradient)
    assert not any(part.any() for name, part in parts.items() if name.endswith("residual"))

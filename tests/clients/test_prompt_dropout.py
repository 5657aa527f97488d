"""Prompt dropout: every example has its own mask, independent of who shares a pass and how passes are cut."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
import torch
from cohorts import BATCH, CLIENTS, Cohort, assert_same, specification
from support import make_tiny
from tiny_models import CONFIGS, backbone, families, prompts, save, tiny_model
from tiny_work import token_table

from clients.config import HeadConfig
from clients.tuners.prefix_tuner import PrefixTuner
from clients.tuners.prompt_dropout import PromptMask, draw_kept, kept_scale
from clients.worker import ClientWorker
from fedsim.core import seeds
from fedsim.core.messages import ClientState, FuseTrial, GlobalState, WorkGroup

CHANCE = 0.3
LAYERS = (0, 2)


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    root = tmp_path_factory.mktemp("models")
    return {family: save(tiny_model(family), root / family) for family in CONFIGS}


@pytest.fixture(scope="module")
def exact(folders) -> Cohort:
    return Cohort(specification(folders["roberta"], dtype="float64", prompt={"dropout": CHANCE}), layers=LAYERS)


def test_masks_are_fair_and_leave_the_mean_as_it_is():
    for chance in (0.1, 0.5, 0.95):
        kept_BA = draw_kept(np.random.default_rng(0), chance, 200, 1000)
        assert kept_BA.dtype == bool and kept_BA.shape == (200, 1000)
        assert abs(kept_BA.mean() - (1.0 - chance)) < 5 * (chance * (1 - chance) / kept_BA.size) ** 0.5
        assert not np.array_equal(kept_BA[0], kept_BA[1])  # each example has its own
        assert kept_scale(chance) == pytest.approx(1.0 / (1.0 - chance), rel=2e-4)
    for chance in (1e-9, 1.0 - 1e-9):  # neither nothing nor everything
        kept_BA = draw_kept(np.random.default_rng(1), chance, 100, 10_000)
        assert 0.0 < kept_BA.mean() < 1.0 < kept_scale(chance) < np.inf


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
@families
def test_packed_padded_and_by_hand_agree(folders, family, attention):
    """By hand: example by example, each with the prompt that its mask leaves."""
    model, table, owners = (
        backbone(folders[family], attention=attention, dtype="float64"),
        token_table(5),
        [0, 1, 0, 1, 1],
    )
    prompt = prompts(model, LAYERS, clients=2).detach().double().requires_grad_(True)
    shape = (5, *prompt.shape[1:])
    kept = torch.from_numpy(np.random.default_rng(2).random(shape) >= CHANCE)
    mask, of_client = PromptMask(kept, 1.0 / (1.0 - CHANCE)), torch.tensor(owners)
    indices = np.arange(5)
    tolerance = 1e-9 if attention == "sdpa" else 1e-5  # the eager functions of decoders compute softmax in float32
    packed, _ = model.read(table.pack(indices), prompt, LAYERS, {}, of_client, mask=mask)
    padded = model.forward(table.batch(indices), prompt, LAYERS, {}, of_client, mask)
    by_hand = []
    for example in range(5):
        own = prompt[owners[example]] * kept[example] / (1.0 - CHANCE)
        by_hand.append(model.forward(table.batch(indices[[example]]), own.unsqueeze(0), LAYERS, {}))
    expected = torch.cat([reading.loss_B for reading in by_hand])
    (expected_gradient,) = torch.autograd.grad(expected.sum(), prompt)
    for reading in (packed, padded):
        torch.testing.assert_close(reading.loss_B, expected, rtol=tolerance, atol=tolerance)
        (gradient,) = torch.autograd.grad(reading.loss_B.sum(), prompt)
        torch.testing.assert_close(gradient, expected_gradient, rtol=tolerance, atol=tolerance)
    plain = model.forward(table.batch(indices), prompt, LAYERS, {}, of_client)
    assert (plain.loss_B - expected).abs().min() > 1e-4


@pytest.mark.parametrize("way", ["packed", "padded"])
def test_one_client_too_has_a_mask_for_each_example(folders, way):
    model, table, indices = backbone(folders["llama"], dtype="float64"), token_table(4), np.arange(4)
    prompt = prompts(model, LAYERS).detach().double()
    kept = torch.from_numpy(np.random.default_rng(3).random((4, *prompt.shape[1:])) >= CHANCE)
    mask = PromptMask(kept, 1.5)
    if way == "packed":
        ours = model.read(table.pack(indices), prompt, LAYERS, {}, mask=mask)[0].loss_B
    else:
        ours = model.forward(table.batch(indices), prompt, LAYERS, {}, mask=mask).loss_B
    for example in range(4):
        own = model.forward(table.batch(indices[[example]]), prompt * kept[example] * 1.5, LAYERS, {})
        torch.testing.assert_close(ours[[example]], own.loss_B, rtol=1e-9, atol=1e-9)


def test_a_step_is_the_gradient_at_the_masks_of_the_clients_stream(exact):
    """One plain step of each client, from its stream and the definition alone."""
    config = exact.client_config(
        epochs=None,
        steps=1,
        shuffle=False,
        optimizer={"kind": "sgd", "lr": 0.5, "clip_norm": None, "weight_decay": 0.0},
    )
    jobs, layout, model = exact.jobs(), exact.parts.trained, exact.worker._backbone
    for job, result in zip(jobs, exact.train(jobs, config=config), strict=True):
        own = job.indices_N[:BATCH]
        rng = seeds.stream(3, 2, job.client, "prompt dropout")
        kept = torch.from_numpy(draw_kept(rng, CHANCE, len(own), layout.tuned_size))
        vector = torch.from_numpy(job.start_A).requires_grad_(True)
        losses = []
        for row, example in enumerate(own):
            dropped = vector[: layout.tuned_size] * kept[row] * kept_scale(CHANCE)
            prompt = dropped.reshape(layout.tuned_shape).unsqueeze(0)
            losses.append(model.forward(exact.spec.train.batch(np.array([example])), prompt, layout.layers, {}).loss_B)
        (gradient,) = torch.autograd.grad(torch.cat(losses).mean(), vector)
        np.testing.assert_allclose(result.vector_A, (vector - 0.5 * gradient).detach().numpy(), rtol=1e-9, atol=1e-12)


def test_side_by_side_alone_and_in_small_passes_are_the_same(exact):
    jobs = exact.jobs()
    together, alone = exact.train(jobs), exact.train_alone(jobs)
    plain = Cohort(
        dataclasses.replace(exact.spec, tuner=PrefixTuner(exact.spec.tuner.prompt.model_copy(update={"dropout": 0.0})))
    )
    for ways in (alone, *(exact.train(jobs, max_tokens=tokens) for tokens in (1, 25, 60))):
        for ours, theirs in zip(ways, together, strict=True):
            assert_same(ours, theirs, 1e-10)
    order = (2, 0, 4, 1, 3)
    for client, ours in zip(order, exact.train(exact.jobs(order)), strict=True):
        assert_same(ours, together[client], 1e-10)
    for ours, other in zip(together, plain.train(jobs), strict=True):
        assert np.abs(ours.vector_A - other.vector_A).max() > 1e-3


def test_the_trunk_is_kept_and_changes_nothing(folders):
    """Layers below the lowest prompt are computed once, with dropout on the prompts above them as without."""
    head = HeadConfig(kind="classifier", pooling="mean", init_std=0.5)
    results = []
    for cache in ("auto", "off"):
        keys = {"model": {"trunk_cache": {"dtype": cache}}, "prompt": {"dropout": CHANCE}, "client": {"fuse": 2}}
        spec = specification(folders["bert"], head, "float64", layers={"unselected": "none"}, **keys)
        assert spec.caches((1, 2)) == (cache == "auto")
        worker = ClientWorker(spec)
        size = worker.info().full.exchanged((1, 2)).size
        state = GlobalState(0, (1, 2), np.random.default_rng(0).normal(0.0, 0.3, size))
        group = WorkGroup(0, 0, CLIENTS, fuse=2)
        _, update, *_ = worker.train(group, state, *map(ClientState, CLIENTS)).pack()
        results.append(update.sums["vector"])
    np.testing.assert_allclose(results[0], results[1], rtol=1e-9, atol=1e-10)


def test_scores_and_evaluation_see_whole_prompts(folders):
    said = []
    for chance in (0.0, CHANCE):
        worker = ClientWorker(specification(folders["roberta"], prompt={"dropout": chance}))
        full = worker.info().full
        state = GlobalState(0, full.layers, np.random.default_rng(1).normal(0.0, 0.3, full.size).astype(np.float32))
        (report,) = worker.score(state, 2)
        counts = (worker.evaluate(state, 0, 20)[0], *worker.evaluate_clients(state, ClientState(2)))
        said.append((report.scores_L.tolist(), [(c.confusion_CC.tolist(), c.loss_sum) for c in counts]))
    assert said[0] == said[1]


def test_a_trial_of_shared_passes_counts_the_masks(folders):
    trials = []
    for chance in (0.0, CHANCE):
        worker = ClientWorker(specification(folders["roberta"], prompt={"dropout": chance}))
        size = worker.info().full.exchanged(LAYERS).size
        trial = worker.try_fusing(GlobalState(0, LAYERS, np.zeros(size, np.float32)), 0, 2, 4)
        assert isinstance(trial, FuseTrial)
        trials.append(trial.bytes_per_client)
    assert trials[1] - trials[0] == (3 + BATCH + BATCH) * size // 3  # a byte for each entry and example


def test_rounds_differ_in_their_masks(exact):
    first, second = (seeds.stream(0, round, 5, "prompt dropout") for round in (0, 1))
    assert not np.array_equal(draw_kept(first, 0.5, 2, 50), draw_kept(second, 0.5, 2, 50))


@pytest.mark.parametrize("chance", [1.0, -0.1, "often"])
def test_a_chance_outside_of_zero_to_one_is_refused(chance):
    with pytest.raises(Exception, match=r"prompt\.dropout"):
        make_tiny(prompt={"dropout": chance})

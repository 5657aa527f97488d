"""Clients side by side in shared passes against clients one by one: the same mathematics, another order of sums."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
import torch
from cohorts import ARRAYS, OPTIMIZERS, SIZES, Cohort, assert_same, poolings, specification
from tiny_models import CONFIGS, families, save, tiny_model

from clients.config import HeadConfig
from clients.training.local_job import num_steps
from clients.tuners.packed_prefix import PackedPrefix

CORRECTIONS = ("none", "proximal", "control", "preconditioner")
SETTINGS = {
    "plain": ({}, None),
    "clipped, warming up, falling": (
        {"schedule": {"kind": "linear", "warmup_steps": 2}, "optimizer": {"clip_norm": 0.5, "weight_decay": 0.0}},
        None,
    ),
    "kept moments, cosine": (
        {"schedule": {"kind": "cosine", "total_steps": 60}, "optimizer": {"moments": "keep", "clip_norm": None}},
        (6, 0, 41, 1, 12),
    ),
    "a number of steps": ({"epochs": None, "steps": 3, "schedule": {"kind": "linear"}}, None),
}


def settings_of(optimizer: str, correction: str, count: int) -> list[str]:
    """Return ``count`` of the settings, chosen so that any two of optimizer, correction and setting meet."""
    place = list(OPTIMIZERS).index(optimizer) + CORRECTIONS.index(correction)
    return [list(SETTINGS)[(place + step) % len(SETTINGS)] for step in range(0, len(SETTINGS), len(SETTINGS) // count)]


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    root = tmp_path_factory.mktemp("models")
    return {family: save(tiny_model(family), root / family) for family in CONFIGS}


@pytest.fixture(scope="module")
def exact(folders) -> Cohort:
    return Cohort(specification(folders["roberta"], dtype="float64"))


@pytest.fixture(scope="module")
def single(folders) -> Cohort:
    return Cohort(specification(folders["roberta"]))


def config_with(cohort: Cohort, optimizer: str, changes: dict):
    own = {**OPTIMIZERS[optimizer], **changes.get("optimizer", {})}
    return cohort.client_config(**{**changes, "optimizer": own}, proximal_mu=0.3)


@pytest.mark.parametrize("correction", CORRECTIONS)
@pytest.mark.parametrize("optimizer", OPTIMIZERS)
def test_side_by_side_equals_one_by_one(exact, optimizer, correction):
    """In float64, for every optimizer and correction, both with every schedule; clients have numbers of steps of their own."""
    for name in settings_of(optimizer, correction, 2):
        changes, kept_steps = SETTINGS[name]
        config = config_with(exact, optimizer, changes)
        jobs = exact.jobs(kept_steps=kept_steps, drift=correction == "control")
        together, alone = (way(jobs, correction, config=config) for way in (exact.train, exact.train_alone))
        assert [result.num_steps for result in together] == [num_steps(config, size) for size in SIZES]
        for job, ours, theirs in zip(jobs, together, alone, strict=True):
            assert_same(ours, theirs, 1e-10, (name, job.client))
            assert np.abs(ours.vector_A - job.start_A).max() > 1e-3
            assert ("gain" in ours.tallies) == (correction == "preconditioner")


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
def test_in_float32_the_two_differ_by_rounding(single, optimizer):
    for correction in CORRECTIONS:
        (name,) = settings_of(optimizer, correction, 1)
        changes, kept_steps = SETTINGS[name]
        config = config_with(single, optimizer, changes)
        jobs = single.jobs(kept_steps=kept_steps, drift=correction == "control")
        together, alone = (way(jobs, correction, config=config) for way in (single.train, single.train_alone))
        for ours, theirs in zip(together, alone, strict=True):
            assert ours.vector_A.dtype == np.float32
            error = np.linalg.norm(ours.vector_A - theirs.vector_A) / np.linalg.norm(theirs.vector_A)
            assert error < 1e-5, (correction, name)


@families
def test_every_family_and_head(folders, family):
    """Exchanged layers alone, with personal prompts in the others, with layers below the lowest prompt, or none at all."""
    for number, head in enumerate(poolings(family)):
        spec = specification(
            folders[family], head, "float64", prompt={"position_offset": "paper"}, client={"epochs": 1}
        )
        choices = [((0, 2), False), ((1,), True), ((2,), False), ((), head.kind == "verbalizer")]
        for layers, keep_local in (choices[number % 4], choices[(number + 1) % 4]):
            cohort = Cohort(spec, layers, keep_local)
            jobs = cohort.jobs()
            for ours, theirs in zip(cohort.train(jobs), cohort.train_alone(jobs), strict=True):
                assert_same(ours, theirs, 1e-10, (head, layers, keep_local))


@pytest.mark.parametrize("optimizer", ["adamw", "momentum"])
def test_the_size_of_a_pass_changes_last_bits_alone(exact, optimizer):
    config, jobs = config_with(exact, optimizer, {}), exact.jobs()
    whole = exact.train(jobs, "preconditioner", config=config)
    for max_tokens in (1, 25, 60, 10**6):
        cut = exact.train(jobs, "preconditioner", max_tokens, config)
        for ours, theirs in zip(cut, whole, strict=True):
            assert_same(ours, theirs, 1e-10, max_tokens)
        if max_tokens == 1:
            assert all(result.num_slots == result.num_tokens for result in cut)


def test_results_come_back_in_the_order_asked(exact):
    order = (2, 0, 4, 1, 3)
    straight, mixed = exact.train(exact.jobs()), exact.train(exact.jobs(order))
    for client, ours in zip(order, mixed, strict=True):
        assert_same(ours, straight[client], 1e-10, client)
    assert len({result.vector_A.tobytes() for result in straight}) == len(SIZES)


def copies(job):
    """Return copies of all that a job holds, by name."""
    values = dataclasses.asdict(job)
    begun = values.pop("begun")
    return {**values, **begun}


def test_side_by_side_repeats_to_the_bit_and_leaves_visits_as_they_were(single):
    jobs = single.jobs(kept_steps=(6, 0, 41, 1, 12), drift=True)
    before = [copies(job) for job in jobs]
    first, second = (single.train(jobs, "control") for _ in range(2))
    for one, two in zip(first, second, strict=True):
        assert all(np.array_equal(getattr(one, name), getattr(two, name)) for name in ARRAYS[:3])
    for job, old in zip(jobs, before, strict=True):
        for name, value in copies(job).items():
            np.testing.assert_array_equal(value, old[name])


def test_broken_numbers_of_a_client_stay_its_own(folders):
    """The others' results are those of the same pass with sound numbers, to the bit, losses included."""
    for head in (HeadConfig(), HeadConfig(kind="classifier", pooling="mean")):
        cohort = Cohort(specification(folders["bert"], head))
        jobs = cohort.jobs()
        sick = list(jobs)
        start_A = jobs[3].start_A.copy()
        start_A[0] = np.nan
        sick[3] = dataclasses.replace(jobs[3], start_A=start_A)
        well, ill = (cohort.train(some, "preconditioner") for some in (jobs, sick))
        assert np.isnan(ill[3].vector_A).any() and np.isnan(ill[3].loss_last)
        for client in (0, 1, 2, 4):
            assert all(np.array_equal(getattr(ill[client], name), getattr(well[client], name)) for name in ARRAYS)
            assert (ill[client].loss_first, ill[client].loss_last) == (well[client].loss_first, well[client].loss_last)
            assert np.isfinite(ill[client].loss_first)


def test_tokens_and_slots_are_counted_for_each_client(exact):
    """A client has its own tokens in each of two passes, and the slots of its own examples in the shared buckets."""
    jobs, lengths_N = exact.jobs(), exact.spec.train.lengths_N
    for job, shared in zip(jobs, exact.train(jobs), strict=True):
        assert shared.num_tokens == 2 * lengths_N[job.indices_N].sum()
    one_step = exact.client_config(epochs=1, batch_size=100)
    lengths_B = np.concatenate([lengths_N[job.indices_N] for job in jobs])
    owners_B = np.repeat(range(len(SIZES)), SIZES)[np.argsort(lengths_B, kind="stable")]
    prefix = PackedPrefix(torch.empty(1, 0, 2, 1, 0, 1), (), None, np.sort(lengths_B), is_causal=False)
    for client, result in enumerate(exact.train(jobs, config=one_step)):
        assert result.num_slots == prefix.slots_B[owners_B == client].sum() >= result.num_tokens
    assert prefix.slots_B.sum() > lengths_B.sum()


def test_clients_with_dropout_do_not_share_passes(single):
    config = single.client_config(dropout=True)
    with pytest.raises(
        ValueError, match=r"^clients with dropout train one by one, because each draws from its own random stream$"
    ):
        single.train(single.jobs(), config=config)
    assert len(single.train_alone(single.jobs(), config=config)) == len(SIZES)

"""Local training without gradients: shared passes of candidates as one by one, and forward passes only."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
import torch
from cohorts import Cohort, assert_same, specification
from tiny_models import save, tiny_model

from clients.budget import population_of
from clients.training.candidates import Searches
from clients.training.gradients import StepBatch, gradients, losses
from fedsim.core.messages import DEVIATION

SIZE, POPULATION = 7, 6


@pytest.fixture(scope="module")
def cohort(tmp_path_factory: pytest.TempPathFactory) -> Cohort:
    folder = save(tiny_model("roberta"), tmp_path_factory.mktemp("models") / "roberta")
    return Cohort(
        specification(
            folder,
            dtype="float64",
            tuner={"kind": "soft_prompt", "length": 3, "projection": SIZE},
            server={"kind": "fedbpt"},
            client={"optimizer": {"kind": "cma_es", "population": POPULATION}},
        )
    )


@pytest.fixture
def no_gradients(monkeypatch: pytest.MonkeyPatch) -> None:
    def refused(*_: object, **__: object) -> None:
        raise AssertionError("a gradient was asked for")

    monkeypatch.setattr(torch.autograd, "grad", refused)
    monkeypatch.setattr(torch.Tensor, "backward", refused)
    monkeypatch.setattr(torch.Tensor, "requires_grad_", lambda tensor, wanted=True: refused() if wanted else tensor)


def test_side_by_side_equals_one_by_one_and_nothing_asks_for_a_gradient(cohort, no_gradients):
    jobs = cohort.jobs()
    together, alone, cut = cohort.train(jobs), cohort.train_alone(jobs), cohort.train(jobs, max_tokens=60)
    for job, ours, theirs, in_pieces in zip(jobs, together, alone, cut, strict=True):
        assert_same(ours, theirs, 1e-10, job.client)
        assert_same(ours, in_pieces, 1e-10, job.client)
        assert np.abs(ours.vector_A - job.start_A).max() > 1e-3
    # Every candidate reads the batch.
    lengths_N, epochs = cohort.spec.train.lengths_N, cohort.spec.training.client.epochs
    assert together[2].num_tokens == POPULATION * epochs * lengths_N[jobs[2].indices_N].sum()


def test_losses_of_candidates_are_those_that_come_with_gradients(cohort):
    model, table, layout = cohort.worker._backbone, cohort.spec.train, cohort.parts.trained
    batch = StepBatch(np.array([4, 9, 2]), np.array([0, 1, 1]), np.array([1.0, 0.5, 0.5]))
    vectors = torch.randn((2 * POPULATION, SIZE), generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    found = losses(model, table, batch.for_candidates(POPULATION), layout, vectors)
    assert not found.loss_C.requires_grad and found.gradient_CA.numel() == 0
    for place in range(POPULATION):
        both = gradients(model, table, batch, layout, vectors[[place, POPULATION + place]])
        torch.testing.assert_close(found.loss_C[[place, POPULATION + place]], both.loss_C, rtol=1e-10, atol=0)


def test_a_search_begins_with_the_deviations_that_the_server_sent(cohort):
    """An entry without deviation stays where it is; the others move in proportion."""
    (job,) = cohort.jobs((2,))
    sent = {scale: scale * np.array([0.0, *np.ones(SIZE - 1)]) for scale in (1e-6, 2e-6)}
    ends = [cohort.train([dataclasses.replace(job, begun={DEVIATION: array})])[0].vector_A for array in sent.values()]
    moved, further = (end - job.start_A for end in ends)
    assert moved[0] == further[0] == 0
    np.testing.assert_allclose(further[1:], 2 * moved[1:], rtol=1e-2)


def test_the_usual_population_is_hansens(cohort):
    optimizer = cohort.spec.training.client.optimizer
    assert population_of(optimizer, 500) == POPULATION
    assert population_of(optimizer.model_copy(update={"population": None}), 500) == 22
    assert population_of(optimizer.model_copy(update={"kind": "sgd"}), 500) == 1
    searches = Searches(optimizer, cohort.jobs(), seed=3, round=2)
    assert searches.walked_C1.shape == (5, 1)

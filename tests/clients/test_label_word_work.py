"""Clients' work with label words of several tokens: training, evaluation, scores, spectra, calibration."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
import torch
from cohorts import CLIENTS, Cohort, assert_same, specification
from tiny_models import backbone, prompts, save, tiny_model
from torch.nn import functional

from clients.analysis.hessian import PromptHessian
from clients.backbone.families import FAMILIES
from clients.backbone.loading import load_shared_weights
from clients.config import HeadConfig, ModelConfig
from clients.spec import WorkerSpec
from clients.tuners.config import TunerConfig
from clients.worker import ClientWorker
from fedsim.core.messages import ClientState, GlobalState
from fedsim.core.tokens import TokenTable
from fedsim.core.words import LabelWords

LAYERS = (1, 2)
CLASSES = [[[11, 5, 9], [42]], [[11, 5, 3, 8]], [[7, 20]]]
FAMILIES_HERE = ("llama", "bert")


def wordy(table: TokenTable, words: LabelWords) -> TokenTable:
    """Return the texts of a table with the words' branches, or with more of the token that stands where they are read."""
    behind = [] if words.branches is None else words.branches.ids_Y.tolist()
    more = max(words.num_masks - 1, 0)
    rows = []
    for start, stop, read in zip(table.offsets_N1, table.offsets_N1[1:], table.read_positions_N, strict=False):
        own = table.ids_Z[start:stop].tolist()
        rows.append([*own[: read + 1], *[own[read]] * more, *own[read + 1 :], *behind])
    lengths = np.array([len(row) for row in rows])
    return dataclasses.replace(
        table,
        ids_Z=np.concatenate(rows).astype(np.int32),
        offsets_N1=np.concatenate([[0], np.cumsum(lengths)]),
        words=words,
    )


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    root = tmp_path_factory.mktemp("models")
    return {family: save(tiny_model(family), root / family) for family in FAMILIES_HERE}


def spec_of(folder: str, family: str, head: HeadConfig | None = None, **keys: object) -> WorkerSpec:
    spec = specification(folder, head, "float64", **keys)
    words = LabelWords.of(CLASSES, masks=not FAMILIES[family].predicts_next)
    train, validation = (wordy(table, words) for table in (spec.train, spec.validation))
    return dataclasses.replace(spec, train=train, validation=validation, label_word_ids_C=None)


def state_of(worker: ClientWorker, layers: tuple[int, ...]) -> GlobalState:
    size = worker.info().full.exchanged(layers).size
    return GlobalState(0, layers, np.random.default_rng(0).normal(0.0, 0.3, size))


@pytest.mark.parametrize("family", FAMILIES_HERE)
@pytest.mark.parametrize("loss", ["labels", "vocabulary"])
def test_clients_side_by_side_and_in_small_passes_train_as_one_by_one(folders, family, loss):
    cohort = Cohort(spec_of(folders[family], family, HeadConfig(loss=loss)), LAYERS)
    jobs = cohort.jobs()
    together, alone, small = cohort.train(jobs), cohort.train_alone(jobs), cohort.train(jobs, max_tokens=40)
    for job, *results in zip(jobs, together, alone, small, strict=True):
        assert np.abs(results[0].vector_A - job.start_A).max() > 1e-3
        for other in results[1:]:
            assert_same(results[0], other, 1e-9, job.client)


@pytest.mark.parametrize("family", FAMILIES_HERE)
@pytest.mark.parametrize("tuner", [{"kind": "prefix"}, {"kind": "lora"}], ids=["prefix", "lora"])
def test_a_cache_of_frozen_layers_changes_no_result(folders, family, tuner):
    """Evaluations, on the validation examples and on clients' own, with the cache and without."""
    said = []
    for cache in "auto", "off":
        keys = {"tuner": tuner} if tuner["kind"] == "lora" else {}
        model = {"trunk_cache": {"dtype": cache}}
        spec = spec_of(folders[family], family, model=model, layers={"unselected": "none"}, **keys)
        worker = ClientWorker(spec)
        assert spec.caches(LAYERS) == (cache == "auto")
        state = state_of(worker, LAYERS)
        evaluation, cached = worker.evaluate(state, 0, 40)
        assert (cached is not None) == (cache == "auto")
        assert cached is None or len(cached.hidden_ZD) == len(spec.validation.ids_Z)
        personal = worker.evaluate_clients(state, *map(ClientState, CLIENTS), fuse=2)
        said.append([evaluation, *personal])
    for ours, theirs in zip(*said, strict=True):
        np.testing.assert_array_equal(ours.confusion_CC, theirs.confusion_CC)
        assert ours.loss_sum == pytest.approx(theirs.loss_sum, rel=1e-9)
    assert 0 < np.trace(said[0][0].confusion_CC) < 40


def test_layer_scores_are_those_of_the_texts_alone(folders):
    """A text does not see the words behind it, so no word has a part in its scores."""
    plain = specification(folders["llama"], dtype="float64")
    scores = []
    for spec in plain, spec_of(folders["llama"], "llama"):
        worker = ClientWorker(spec)
        (report,) = worker.score(state_of(worker, (0, 1, 2)), 2)
        assert report.failure is None
        scores.append(report.scores_L)
    np.testing.assert_allclose(*scores, rtol=1e-12)


@pytest.mark.parametrize("family", FAMILIES_HERE)
def test_products_with_the_hessian_are_finite_differences_of_gradients(folders, family):
    spec = spec_of(folders[family], family)
    worker = ClientWorker(spec)
    state = state_of(worker, (0, 1, 2))
    (report,) = worker.spectrum(state, 2)
    assert report.failure is None and report.values_RK is not None and np.isfinite(report.values_RK).all()
    layout = worker.info().full
    batch, vector_F = spec.train.batch(np.arange(6)), torch.from_numpy(np.array(state.vector_F))
    hessian = PromptHessian(worker._backbone, batch, layout, vector_F)
    direction = torch.randn(hessian.size, generator=torch.Generator().manual_seed(4), dtype=torch.float64)
    step = 1e-3  # a LLaMA's norms compute in float32
    ends = [hessian.moved(sign * step * direction).gradient for sign in (1.0, -1.0)]
    expected = (ends[0] - ends[1]) / (2 * step)
    scale = float(expected.abs().max())
    assert scale > 1e-4
    torch.testing.assert_close(hessian.product(direction), expected, rtol=0.0, atol=2e-3 * scale)


# -- calibration -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("loss", ["labels", "vocabulary"])
@pytest.mark.parametrize("words", [True, False], ids=["several tokens", "single tokens"])
@pytest.mark.parametrize("family", FAMILIES_HERE)
def test_calibration_subtracts_what_the_frozen_model_says_of_the_empty_text(folders, family, words, loss):
    """The same numbers from every text and every prompt, so the loss over labels has them too, that over words does not."""
    own = LabelWords.of(CLASSES, masks=not FAMILIES[family].predicts_next) if words else None
    table = specification(folders[family]).validation
    table = table if own is None else wordy(table, own)
    head = HeadConfig(loss=loss)
    weights = load_shared_weights(ModelConfig(path=folders[family], head=head, dtype="float64"))
    before, after = (backbone(weights, head, dtype="float64", words=own) for _ in range(2))
    some = np.arange(7)
    empty = table_of_first(table)
    after.calibrate(empty)
    nothing = prompts(before, LAYERS, length=0).detach().double()
    offset_C = before.forward(empty.batch(np.zeros(1, np.int64)), nothing, LAYERS, {}).logits_BC[0]
    tuned = prompts(before, LAYERS).detach().double()
    plain, calibrated = (model.read(table.pack(some), tuned, LAYERS, {})[0] for model in (before, after))
    padded = after.forward(table.batch(some), tuned, LAYERS, {})
    expected = plain.logits_BC - offset_C
    assert (offset_C - offset_C.mean()).abs().max() > 1e-2
    torch.testing.assert_close(calibrated.logits_BC, expected, rtol=1e-9, atol=1e-9)
    labels = torch.from_numpy(table.labels_N[some])
    wanted = plain.loss_B if loss == "vocabulary" else functional.cross_entropy(expected, labels, reduction="none")
    torch.testing.assert_close(calibrated.loss_B, wanted, rtol=1e-9, atol=1e-9)
    torch.testing.assert_close(padded.logits_BC, expected, rtol=1e-9, atol=1e-9)


def table_of_first(table: TokenTable) -> TokenTable:
    """Return the first example alone: any text can be the one that is subtracted."""
    stop = int(table.offsets_N1[1])
    return dataclasses.replace(
        table,
        ids_Z=table.ids_Z[:stop],
        offsets_N1=table.offsets_N1[:2],
        read_positions_N=table.read_positions_N[:1],
        labels_N=table.labels_N[:1],
    )


@pytest.mark.parametrize("tuner", [{"kind": kind} for kind in ("lora", "ia3", "adapter", "soft_prompt", "late_prompt")],
                         ids=lambda tuner: tuner["kind"])  # fmt: skip
def test_what_is_subtracted_is_the_same_with_every_tuner(folders, tuner):
    own = LabelWords.of(CLASSES, masks=False)
    table = table_of_first(wordy(specification(folders["llama"]).validation, own))
    offsets = []
    for kind in (None, TunerConfig(**tuner)):
        model = backbone(folders["llama"], tuner=kind, words=own)
        model.calibrate(table)
        offsets.append(model._head.offset_C)
    torch.testing.assert_close(*offsets, rtol=0.0, atol=0.0)


def test_a_worker_subtracts_the_spec_s_empty_text(folders):
    spec = spec_of(folders["llama"], "llama", HeadConfig(calibration="empty_text"))
    plain, own = ClientWorker(spec), ClientWorker(dataclasses.replace(spec, empty=table_of_first(spec.train)))
    state = state_of(plain, LAYERS)
    losses = [worker.evaluate(state, 0, 40)[0].loss_sum for worker in (plain, own)]
    assert losses[0] != losses[1]

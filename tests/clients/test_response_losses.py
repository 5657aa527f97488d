"""Losses of responses: packed, padded, alone, and in transformers and PEFT; their counts, and what is refused."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from response_work import (
    DECODERS,
    PAIRS,
    TUNERS,
    layout_of,
    responses,
    theirs,
    vectors,
)
from support import sweep
from tiny_models import CONFIGS, backbone, runnable, save, tiny_model

from clients.backbone.frozen_states import compute_states
from clients.backbone.loading import load_shared_weights
from clients.backbone.model import Backbone
from clients.backbone.shared_weights import SharedWeights
from clients.config import HeadConfig, ModelConfig
from clients.evaluation import evaluate
from clients.training.gradients import StepBatch, gradients, shares
from clients.tuners.config import TunerConfig
from fedsim.core.errors import ModelError

HEAD = HeadConfig(kind="generation")
OWNERS = np.array([0, 2, 1, 1, 0, 2, 2, 0, 1, 2])
CLIENTS = 3
ESSENTIAL = {("llama", "lora"), ("llama", "prefix"), ("gpt2", "prefix"), ("gemma2", "prefix"), ("opt", "soft_prompt")}
cases = pytest.mark.parametrize(
    ("family", "tuner"), sweep([(family, tuner) for family in DECODERS for tuner in TUNERS], ESSENTIAL)
)


class Models(dict[tuple[str, str, str], Backbone]):
    """Backbones by family, tuner and number format, made when they are asked for."""

    def __init__(self, folder: Path) -> None:
        super().__init__()
        self._folder = folder

    def weights(self, family: str, dtype: str) -> SharedWeights:
        folder = self._folder / family
        if not folder.exists():
            save(tiny_model(family), folder)
        attention = runnable(family, "sdpa")
        return load_shared_weights(ModelConfig(path=str(folder), dtype=dtype, attention=attention, head=HEAD))

    def __missing__(self, key: tuple[str, str, str]) -> Backbone:
        family, tuner, dtype = key
        self[key] = backbone(self.weights(family, dtype), HEAD, dtype=dtype, tuner=TUNERS[tuner])
        return self[key]


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Models:
    return Models(tmp_path_factory.mktemp("models"))


def step_of(table, indices_B, owners_B) -> StepBatch:
    return StepBatch(indices_B, owners_B, shares(table, indices_B, owners_B))


def close(mine: torch.Tensor, other: torch.Tensor, tolerance: float, case: object = "") -> None:
    scale = float(other.detach().abs().max())
    assert scale > 0, case
    torch.testing.assert_close(mine, other, rtol=tolerance, atol=tolerance * scale, msg=lambda m: f"{case}: {m}")


@cases
def test_a_shared_pass_gives_each_client_the_loss_and_gradient_of_its_batch_in_transformers(models, family, tuner):
    """The mean over the batch's response tokens, to 1e-5 in float64; and of the client alone, packed and padded."""
    model, table = models[family, tuner, "float64"], responses()
    layout = layout_of(model)
    vector_CA = vectors(layout, CLIENTS)
    together = gradients(model, table, step_of(table, np.arange(10), OWNERS), layout, vector_CA)
    for client in range(CLIENTS):
        own = np.flatnonzero(client == OWNERS)
        loss, gradient, _ = theirs(family, tuner, layout, vector_CA[client], table, own)
        close(together.loss_C[client], loss, 1e-5, (family, tuner, client))
        close(together.gradient_CA[client], gradient, 1e-5, (family, tuner, client))
        alone = gradients(model, table, step_of(table, own, np.zeros_like(own)), layout, vector_CA[[client]])
        for name in ("loss_C", "gradient_CA"):
            close(getattr(alone, name)[0], getattr(together, name)[client], 1e-6, (family, tuner, client, name))
        leaf = vector_CA[[client]].clone().requires_grad_()
        tuned_CLX, _ = layout.split_rows(leaf)
        reading = model.forward(table.batch(own), tuned_CLX, layout.layers, {})
        padded = (reading.loss_B * torch.from_numpy(shares(table, own, np.zeros_like(own)))).sum()
        close(padded, alone.loss_C[0], 1e-6, (family, tuner, client))
        close(torch.autograd.grad(padded, leaf)[0][0], alone.gradient_CA[0], 1e-6, (family, tuner, client))


@cases
def test_evaluation_counts_the_tokens_that_transformers_would_write(models, family, tuner):
    model, table = models[family, tuner, "float64"], responses()
    layout = layout_of(model)
    vector_CA = vectors(layout, CLIENTS)
    parts = [np.flatnonzero(client == OWNERS) for client in range(CLIENTS)]
    found = evaluate(model, table, parts, layout, vector_CA.numpy(), 2, batch_size=4, keep_predictions=True)
    for client, (own, ours) in enumerate(zip(parts, found, strict=True)):
        loss, _, logits = theirs(family, tuner, layout, vector_CA[client], table, own)
        ids, tokens = table.batch(own).input_ids_BT, int(table.responses_N[own].sum())
        right = [
            [int(logits[row, place - 1].argmax()) == ids[row, place] for place in range(start, start + count)]
            for row, (start, count) in enumerate(PAIRS[index] for index in own)
        ]
        hits = sum(map(sum, right))
        assert ours.confusion_CC.tolist() == [[0, 0], [tokens - hits, hits]]
        assert ours.num_examples == tokens
        np.testing.assert_allclose(ours.loss_sum / tokens, float(loss), rtol=1e-5)
        assert ours.predictions.predicted_N.tolist() == [int(all(row)) for row in right]
        own_loss = (ours.predictions.loss_N * table.responses_N[own]).sum()
        np.testing.assert_allclose(own_loss, ours.loss_sum, rtol=1e-12)
    halves = [
        evaluate(model, table, [part], layout, vector_CA[:1].numpy(), 2, 3)[0] for part in (parts[0][:2], parts[0][2:])
    ]
    whole = halves[0] + halves[1]
    assert (whole.confusion_CC == found[0].confusion_CC).all()
    np.testing.assert_allclose(whole.loss_sum, found[0].loss_sum, rtol=1e-10)


def test_the_most_likely_token_is_a_hit(models):
    """Responses that the model itself would write are right to the last token, others are not."""
    model = models["llama", "prefix", "float64"]
    layout = layout_of(model)
    vector_CA = vectors(layout, 1)
    table = responses([(3, 4), (5, 2)])
    ids = table.ids_Z.copy()
    for example in range(2):
        first, stop = table.offsets_N1[[example, example + 1]]
        for place in range(first + table.response_starts_N[example], stop):
            own = replace(table, ids_Z=ids)
            _, _, logits = theirs("llama", "prefix", layout, vector_CA[0], own, np.array([example]))
            ids[place] = int(logits[0, place - first - 1].argmax())
    written = replace(table, ids_Z=ids)
    (found,) = evaluate(model, written, [np.arange(2)], layout, vector_CA.numpy(), 2, 2, keep_predictions=True)
    assert found.confusion_CC.tolist() == [[0, 0], [0, 6]] and found.predictions.predicted_N.tolist() == [1, 1]
    ids[-1] = 3 if ids[-1] != 3 else 4
    (found,) = evaluate(
        model, replace(table, ids_Z=ids), [np.arange(2)], layout, vector_CA.numpy(), 2, 2, keep_predictions=True
    )
    assert found.confusion_CC.tolist() == [[0, 0], [1, 5]] and found.predictions.predicted_N.tolist() == [1, 0]


@pytest.mark.parametrize(("family", "tuner"), [("llama", "prefix"), ("llama", "lora"), ("gpt2", "lora")])
def test_cached_states_change_nothing(models, family, tuner):
    model, table = models[family, tuner, "float64"], responses()
    layout = layout_of(model).exchanged((1, 2))
    vector_CA, indices = vectors(layout, CLIENTS), np.arange(10)
    plain = step_of(table, indices, OWNERS)
    states = compute_states(model, table, indices, layout.layers, "float64", 100)
    lengths = table.lengths_N[indices]
    cached = replace(plain, cached=states.tensor(), cached_starts_B=np.cumsum(lengths) - lengths)
    with_cache, without = (gradients(model, table, batch, layout, vector_CA) for batch in (cached, plain))
    close(with_cache.loss_C, without.loss_C, 1e-10)
    close(with_cache.gradient_CA, without.gradient_CA, 1e-10)


def test_the_order_and_the_cut_of_a_step_change_nothing(models):
    model, table = models["llama", "lora", "float64"], responses()
    layout = layout_of(model)
    vector_CA, shuffled = vectors(layout, CLIENTS), np.random.default_rng(3).permutation(10)
    whole = gradients(model, table, step_of(table, np.arange(10), OWNERS), layout, vector_CA)
    cut = gradients(model, table, step_of(table, shuffled, OWNERS[shuffled]), layout, vector_CA, max_tokens=20)
    close(cut.loss_C, whole.loss_C, 1e-10)
    close(cut.gradient_CA, whole.gradient_CA, 1e-9)


def test_one_clients_broken_numbers_stay_its_own(models):
    model, table = models["llama", "lora", "float32"], responses()
    layout = layout_of(model)
    vector_CA = vectors(layout, CLIENTS, torch.float32)
    broken_CA = vector_CA.clone()
    broken_CA[1] = torch.nan
    step = step_of(table, np.arange(10), OWNERS)
    before, after = (gradients(model, table, step, layout, vector) for vector in (vector_CA, broken_CA))
    assert after.loss_C[1].isnan() and after.gradient_CA[1].isnan().any()
    for name in ("loss_C", "gradient_CA"):
        assert torch.equal(getattr(after, name)[[0, 2]], getattr(before, name)[[0, 2]])


def test_tuners_that_stand_for_a_text_see_the_prompt_alone(models):
    """What is made for a text depends on its prompt, not on the response that follows."""
    for config in (
        TunerConfig(kind="late_prompt", length=2, generator="npg", bottleneck=4, depth=1),
        TunerConfig(kind="generated_prompt", length=2, bottleneck=4, terms=2),
    ):
        model = backbone(models.weights("llama", "float64"), HEAD, dtype="float64", tuner=config)
        layout = layout_of(model)
        tuned_CLX, _ = layout.split_rows(vectors(layout, 1))
        table, losses = responses([(4, 3)]), []
        for last in (5, 50):
            ids = table.ids_Z.copy()
            ids[-1] = last
            packed = replace(table, ids_Z=ids).pack(np.array([0]))
            hidden, _ = model._packed.pooled(packed, tuned_CLX, layout.layers, (None, None), None, None)
            losses.append(hidden)
        assert torch.equal(*losses)  # the last token is read by none


@pytest.mark.parametrize(
    "config",
    [
        TunerConfig(kind="late_prompt", length=2, generator="appg", bottleneck=4),
        TunerConfig(kind="prompt_mixture", length=2, bottleneck=4, random_sources=2),
    ],
    ids=["late_prompt", "prompt_mixture"],
)
def test_tuners_that_read_the_whole_text_are_refused(models, config):
    with pytest.raises(ModelError, match="is made of a whole text, so a response would be among what it is made of"):
        backbone(models.weights("llama", "float32"), HEAD, tuner=config)


def test_models_that_do_not_predict_the_next_token_are_refused(tmp_path):
    folder = save(tiny_model("bert"), tmp_path / "bert")
    with pytest.raises(ModelError, match=r"^model\.head\.kind=generation needs a decoder"):
        load_shared_weights(ModelConfig(path=folder, head=HEAD))
    folder = save(tiny_model("llama", is_causal=False), tmp_path / "llama")
    with pytest.raises(ModelError, match="needs causal attention: with is_causal=false"):
        load_shared_weights(ModelConfig(path=folder, head=HEAD))


def test_a_head_of_classes_does_not_read_responses(models, tmp_path):
    model = backbone(save(tiny_model("llama"), tmp_path))
    layout = layout_of(model)
    tuned_CLX, _ = layout.split_rows(vectors(layout, 1, torch.float32))
    with pytest.raises(
        ValueError, match="the head reads several tokens of an example, but the table says one, or the reverse"
    ):
        model.read(responses().pack(np.arange(3)), tuned_CLX, layout.layers, {})


@pytest.mark.parametrize("kind", ["prefix", "lora", "soft_prompt", "adapter"])
def test_the_top_layer_of_an_encoder_may_run_for_the_rows_that_are_read_alone(models, kind):
    """Several rows of an example, which are the last before and in its response, but of an encoder."""
    config = TUNERS[kind] if kind in TUNERS else TunerConfig(kind=kind, bottleneck=4)
    folder = save(tiny_model("bert"), models._folder / "bert")
    model = backbone(folder, HeadConfig(kind="classifier"), dtype="float64", tuner=config)
    layout, table, order = layout_of(model), responses(), np.array([8, 0, 9, 3, 1, 6, 2, 7, 5, 4])
    packed, owners = table.pack(order), OWNERS[order]
    leaf = vectors(layout, CLIENTS).requires_grad_()
    tuned_CLX, _ = layout.split_rows(leaf)
    assert model._parts.stack.narrows
    hidden_UD, _ = model._packed.pooled(
        packed, tuned_CLX, layout.layers, (owners, torch.from_numpy(owners)), None, None
    )
    pieces = []
    for example, index in enumerate(order):
        own = table.batch(np.array([index]))
        states = model.last_hidden_state(own, tuned_CLX[[owners[example]]], layout.layers)[0]
        pieces.append(states[own.reads.rows_U])
    expected_UD = torch.cat(pieces)
    close(hidden_UD, expected_UD, 1e-10, kind)
    weights = torch.randn(hidden_UD.shape, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    mine, other = (
        torch.autograd.grad((rows * weights).sum(), leaf, retain_graph=True)[0] for rows in (hidden_UD, expected_UD)
    )
    close(mine, other, 1e-9, kind)


def test_every_decoder_is_among_the_cases():
    assert {family for family in CONFIGS if family not in DECODERS} == {
        "bert", "roberta", "xlm-roberta", "camembert", "electra", "distilbert", "modernbert",
    }  # fmt: skip

"""Masks that are filled one after the other, against the plainest loop over transformers' own models."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
import torch
from cohorts import CLIENTS
from peft import LoraConfig, get_peft_model
from peft_oracle import random_numbers
from support import sweep
from test_attention_switches import close
from test_label_word_scores import ENCODERS, folder_of, losses, model_of, texts, theirs_of, words_of
from test_label_word_work import spec_of, state_of
from tiny_models import PAD, cache_oracle, prompts
from torch import Tensor, nn

from clients.backbone.families import FAMILIES
from clients.config import HeadConfig
from clients.tuners.config import TunerConfig
from clients.worker import ClientWorker
from fedsim.core.errors import ModelError
from fedsim.core.filled_masks import FilledMasks
from fedsim.core.messages import ClientState
from fedsim.core.tokens import TokenBatch, TokenTable
from fedsim.core.words import LabelWords

CLASSES = [[[11, 5, 9], [11, 5]], [[42]], [[7, 20], [5, 11, 9]]]
"""Words of one to three tokens; some begin alike, some have the same tokens in another order."""
STEPWISE = HeadConfig(decoding="stepwise")
LAYERS = (0, 2)
essential = pytest.mark.parametrize("family", sweep(ENCODERS, ("bert", "roberta")))


def naive(hidden: Callable[[list[int]], Tensor], lm: nn.Module, family: str, table: TokenTable) -> Tensor:
    """Return class scores [B, C]: a text for each word of each example, one forward pass for each mask."""
    scores_BC = []
    for example in range(len(table)):
        ids = table.ids_Z[slice(*table.offsets_N1[example : example + 2])].tolist()
        first, room = int(table.read_positions_N[example]), table.words.num_masks
        classes = [[] for _ in range(table.words.num_classes)]
        for word, owner in zip(table.words.words, table.words.classes_W, strict=True):
            text = [*ids[: first + len(word)], *ids[first + room :]]
            left, score = list(range(len(word))), 0.0
            while left:
                logits = lm.get_output_embeddings()(FAMILIES[family].head_transform(lm, hidden(text)))
                logp = logits[first : first + len(word)].log_softmax(-1)
                best = max(left, key=lambda place: float(logp[place, word[place]]))
                score += logp[best, word[best]]
                text[first + best] = word[best]
                left.remove(best)
            classes[owner].append(score)
        scores_BC.append([sum(own) / len(own) for own in classes])
    return torch.tensor(scores_BC, dtype=torch.float64)


def with_prefix(lm: nn.Module, prompt_LKHPD: Tensor) -> Callable[[list[int]], Tensor]:
    def hidden(text: list[int]) -> Tensor:
        ids = np.array([[*text, PAD]])  # the oracle hides a layer's prompt by its mask, so there must be one
        one = np.zeros(1, np.int64)
        data = TokenBatch(ids, np.array([[1] * len(text) + [0]]), None, one, one)
        return cache_oracle(lm, data, prompt_LKHPD, LAYERS, "none")[-1][0, : len(text)]

    return hidden


def with_lora(folder: str, family: str, shape, tuned: Tensor) -> tuple[nn.Module, Callable[[list[int]], Tensor]]:
    own = LoraConfig(r=3, target_modules=list(FAMILIES[family].lora_targets), layers_to_transform=list(LAYERS))
    theirs = get_peft_model(theirs_of(folder, family), own, autocast_adapter_dtype=False)
    for place, layer in enumerate(LAYERS):
        for name, array in shape.split(tuned).items():
            path = f"{FAMILIES[family].layers}.{layer}.{name}.default.weight"
            (found,) = [p for n, p in theirs.named_parameters() if f".{n}".endswith(f".{path}")]
            found.data = array[0, place].clone()
    lm = theirs.base_model.model
    return lm, lambda text: lm.base_model(input_ids=torch.tensor([text])).last_hidden_state[0]


@torch.no_grad()
@essential
@pytest.mark.parametrize("kind", ["prefix", "lora"])
def test_scores_are_those_of_a_loop_over_words_and_masks_with_transformers(tmp_path, family, kind):
    """In float64, of two clients in one batch and of each example alone, for both losses; PEFT's arithmetic for LoRA."""
    folder, words = folder_of(tmp_path, family, {}), words_of(family, CLASSES)
    table = texts(words)
    keys = {"tuner": TunerConfig(kind="lora", rank=3, alpha=8.0)} if kind == "lora" else {}
    expected_CBC, tuned_CLX = [], []
    model = model_of(folder, STEPWISE, words, **keys)
    for client in range(2):
        if kind == "prefix":
            tuned = prompts(model, LAYERS, seed=client).detach().double()
            lm = theirs_of(folder, family)
            hidden = with_prefix(lm, tuned[0])
        else:
            tuned = random_numbers(model.geometry).detach().double() * (1 + client)
            lm, hidden = with_lora(folder, family, model.geometry, tuned)
        expected_CBC.append(naive(hidden, lm, family, table))
        tuned_CLX.append(tuned)
    owners = np.arange(len(table)) % 2
    expected = torch.stack(expected_CBC)[owners, np.arange(len(table))]
    both, order = torch.cat(tuned_CLX), np.random.default_rng(3).permutation(len(table))
    found = model.predict(table.pack(order), both, LAYERS, {}, owners[order])
    close(found.logits_BC[np.argsort(order)], expected)
    for example in range(len(table)):
        alone = model.predict(table.pack(np.array([example])), both[owners[[example]]], LAYERS, {})
        close(alone.logits_BC[0], expected[example])
    all_at_once = model.read(table.pack(order), both, LAYERS, {}, owners[order])[0].logits_BC[np.argsort(order)]
    assert (all_at_once - expected).abs().max() > 0.1
    for loss in "labels", "vocabulary":
        other = model_of(folder, STEPWISE.model_copy(update={"loss": loss}), words, **keys)
        got = other.predict(table.pack(np.arange(len(table))), both, LAYERS, {}, owners)
        close(got.loss_B, losses(expected, table, loss))


@torch.no_grad()
def test_a_step_is_one_pass_whose_equal_texts_are_there_once(tmp_path, monkeypatch):
    """As many passes as the longest word has tokens. At first the texts of an example differ in their number of masks alone."""
    words = words_of("bert", CLASSES)
    table, model = texts(words), model_of(folder_of(tmp_path, "bert", {}), STEPWISE, words)
    passes, plain = [], model._packed.pooled
    monkeypatch.setattr(model._packed, "pooled", lambda tokens, *rest: passes.append(tokens) or plain(tokens, *rest))
    model.predict(table.pack(np.arange(len(table))), prompts(model, LAYERS).detach().double(), LAYERS, {})
    assert len(passes) == 3
    assert len(passes[0]) == 3 * len(table) and len(passes[1]) <= 4 * len(table) and len(passes[2]) <= 2 * len(table)
    assert model.texts_of_example == 5
    model.read(table.pack(np.arange(len(table))), prompts(model, LAYERS).detach().double(), LAYERS, {})
    assert len(passes) == 4 and len(passes[3]) == len(table)


def test_the_first_of_equals_is_filled_and_what_is_not_a_number_stays_in_its_word():
    words = LabelWords.of([[[11, 5]], [[7, 20]]], masks=True)
    masks = FilledMasks(texts(words, np.array([4])).pack(np.arange(1)), words)
    masks.texts()
    masks.fill(np.log([0.5, 0.5, np.nan, 0.5]))
    tokens, _ = masks.texts()
    assert tokens.reads.targets_R.tolist() == [5, 20] and tokens.reads.groups_R.tolist() == [0, 1]
    assert {11, 7} <= set(tokens.ids_Z.tolist())
    masks.fill(np.array([-np.inf, np.log(0.25)]))
    assert not masks.left
    np.testing.assert_array_equal(masks.class_scores(), [[-np.inf, np.nan]])


@torch.no_grad()
def test_words_of_one_token_have_the_scores_of_a_single_pass(tmp_path):
    for classes in [[[11]], [[42]], [[7]]], [[[11], [5]], [[42]], [[7]]]:
        folder, words = folder_of(tmp_path, "bert", {}), words_of("bert", classes)
        table, scores = texts(words), []
        for head in HeadConfig(), STEPWISE:
            model = model_of(folder, head, words)
            tuned = prompts(model, LAYERS).detach().double()
            scores.append(model.predict(table.pack(np.arange(len(table))), tuned, LAYERS, {}).logits_BC)
        assert torch.equal(*scores)


@torch.no_grad()
def test_calibration_subtracts_the_empty_text_s_scores_filled_alike(tmp_path):
    words = words_of("bert", CLASSES)
    table, empty = texts(words), texts(words, np.array([3]))
    folder = folder_of(tmp_path, "bert", {})
    plain, own = model_of(folder, STEPWISE, words), model_of(folder, STEPWISE, words)
    own.calibrate(empty)
    tuned, none = prompts(plain, LAYERS).detach().double(), prompts(plain, ()).detach().double()
    for way in (lambda model, given, *trained: model.predict(given.pack(np.arange(len(given))), *trained, {}),
                lambda model, given, *trained: model.read(given.pack(np.arange(len(given))), *trained, {})[0]):  # fmt: skip
        nothing = way(plain, empty, none, ()).logits_BC
        close(way(own, table, tuned, LAYERS).logits_BC, way(plain, table, tuned, LAYERS).logits_BC - nothing)


@pytest.mark.parametrize("tuner", [{"kind": "prefix"}, {"kind": "lora"}], ids=["prefix", "lora"])
def test_a_worker_predicts_stepwise_and_trains_as_without(tmp_path, tuner):
    """Global and personal evaluations, whatever shares a pass; nothing of the frozen layers is kept for them."""
    folder = folder_of(tmp_path, "bert", {})
    keys = {"tuner": tuner} if tuner["kind"] == "lora" else {}
    keys["layers"] = {"unselected": "none"}
    spec = spec_of(folder, "bert", STEPWISE, **keys)
    worker = ClientWorker(spec)
    state, layers = state_of(worker, (1, 2)), (1, 2)
    assert spec.caches(layers) and not spec.caches_predictions(layers)
    assert spec.cached_bytes((0, 40), layers, 32) == 0 < spec.cached_bytes(0, layers, 32)
    whole, cached = worker.evaluate(state, 0, 40, keep_predictions=True)
    assert cached is None
    parts = [worker.evaluate(state, *edges)[0] for edges in ((0, 13), (13, 40))]
    np.testing.assert_array_equal(sum(part.confusion_CC for part in parts), whole.confusion_CC)
    assert sum(part.loss_sum for part in parts) == pytest.approx(whole.loss_sum, rel=1e-9)
    states = [ClientState(client) for client in CLIENTS]
    for ours, theirs in zip(
        worker.evaluate_clients(state, *states, fuse=3), worker.evaluate_clients(state, *states), strict=True
    ):
        np.testing.assert_array_equal(ours.confusion_CC, theirs.confusion_CC)
        assert ours.loss_sum == pytest.approx(theirs.loss_sum, rel=1e-9)
    layout = worker.info().full.exchanged(layers)
    tuned_CLX, _ = layout.split_rows(torch.from_numpy(np.array(state.vector_F)[None]))
    with torch.no_grad():
        expected = worker._backbone.predict(spec.validation.pack(np.arange(40)), tuned_CLX, layers, {})
    np.testing.assert_array_equal(whole.predictions.predicted_N, expected.logits_BC.argmax(1).numpy())
    other = ClientWorker(spec_of(folder, "bert", **keys))
    assert other.evaluate(state, 0, 40)[0].loss_sum != pytest.approx(whole.loss_sum, rel=1e-3)
    read = [each._backbone.read(spec.train.pack(np.arange(9)), tuned_CLX, layers, {})[0] for each in (worker, other)]
    assert torch.equal(read[0].loss_B, read[1].loss_B)


def test_a_decoder_is_refused_before_its_weights_are_read(tmp_path):
    folder = folder_of(tmp_path, "llama", {})
    with pytest.raises(ModelError, match=r"^model\.head\.decoding=stepwise fills masks .* but a decoder has none"):
        model_of(folder, STEPWISE, words_of("llama"))

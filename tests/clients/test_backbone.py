"""The backbone's contract: heads, shapes, limits, number formats, and what it must not change."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from tiny_models import CONFIGS, LABEL_WORDS, backbone, batch, families, prompts, save, tiny_model, widened

from clients.backbone.families import FAMILIES
from clients.backbone.loading import load_shared_weights
from clients.backbone.model import Backbone
from clients.backbone.shared_weights import SharedWeights
from clients.config import HeadConfig, ModelConfig, PromptConfig
from clients.tuners.prefix_tuner import PrefixTuner
from fedsim.core.errors import ModelError
from fedsim.core.layout import PromptGeometry
from fedsim.core.tokens import TokenBatch

CLASSIFIER = HeadConfig(kind="classifier")


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    root = tmp_path_factory.mktemp("models")
    return {family: save(tiny_model(family), root / family) for family in CONFIGS}


def head_arrays(model: Backbone, clients: int = 1) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(5)
    return {
        name: torch.randn((clients, *shape), generator=generator).requires_grad_() for name, shape in model.head_shapes
    }


@families
def test_verbalizer_equals_transformers_own_forward(folders, family):
    data = batch("right")
    with torch.no_grad():
        ids, mask = torch.from_numpy(data.input_ids_BT), torch.from_numpy(data.attention_mask_BT)
        logits = tiny_model(family)(input_ids=ids, attention_mask=mask, use_cache=False).logits
    read = logits[torch.arange(4), torch.from_numpy(data.read_positions_B)]
    labels, words = torch.from_numpy(data.labels_B), torch.from_numpy(LABEL_WORDS)
    expected_loss = {
        "labels": torch.nn.functional.cross_entropy(read[:, words], labels, reduction="none"),
        "vocabulary": torch.nn.functional.cross_entropy(read, words[labels], reduction="none"),
    }
    for loss, expected in expected_loss.items():
        model = backbone(folders[family], HeadConfig(loss=loss))
        reading = model.forward(data, prompts(model, ()), (), {})
        torch.testing.assert_close(reading.logits_BC, read[:, words], rtol=1e-5, atol=1e-5)
        torch.testing.assert_close(reading.loss_B, expected, rtol=1e-5, atol=1e-5)
        assert reading.loss_B.dtype == reading.logits_BC.dtype == torch.float32
        assert model.head_shapes == ()


@families
@pytest.mark.parametrize("pooling", ["auto", "mean", "last"])
def test_classifier_reads_pooled_hidden_states(folders, family, pooling):
    model, data = backbone(folders[family], HeadConfig(kind="classifier", pooling=pooling)), batch("right")
    assert model.head_shapes == (("head.weight", (3, 32)), ("head.bias", (3,)))
    head, prompt = head_arrays(model), prompts(model, (1,))
    hidden = model.hidden_states(data, prompt, (1,))[-1]
    mask = torch.from_numpy(data.attention_mask_BT).unsqueeze(2)
    last = hidden[torch.arange(4), torch.from_numpy(data.read_positions_B)]
    first_or_last = last if model.is_causal else hidden[:, 0]
    pooled = {"auto": first_or_last, "mean": (hidden * mask).sum(1) / mask.sum(1), "last": last}[pooling]
    expected = pooled @ head["head.weight"][0].T + head["head.bias"][0]
    reading = model.forward(data, prompt, (1,), head)
    torch.testing.assert_close(reading.logits_BC, expected, rtol=1e-5, atol=1e-5)
    labels = torch.from_numpy(data.labels_B)
    torch.testing.assert_close(
        reading.loss_B, torch.nn.functional.cross_entropy(expected, labels, reduction="none"), rtol=1e-5, atol=1e-5
    )
    gradients = torch.autograd.grad(reading.loss_B.mean(), [prompt, *head.values()])
    assert all(gradient.abs().max() > 0 for gradient in gradients)


@pytest.mark.parametrize("layers", [(), (0, 2)])
def test_each_client_has_a_classifier_of_its_own(folders, layers):
    model, data = backbone(folders["bert"], CLASSIFIER), batch("right")
    head, prompt = head_arrays(model, clients=3), prompts(model, layers, clients=3)
    owner = torch.tensor([2, 0, 1, 2])
    together = model.forward(data, prompt, layers, head, owner)
    (gradient,) = torch.autograd.grad(together.loss_B.sum(), head["head.weight"])
    for row, client in enumerate(owner.tolist()):
        own_head = {name: array[client : client + 1] for name, array in head.items()}
        alone = model.forward(data, prompt[client : client + 1], layers, own_head)
        torch.testing.assert_close(together.logits_BC[row], alone.logits_BC[row], rtol=1e-5, atol=1e-5)
    alone = model.forward(data, prompt[:1], layers, {name: array[:1] for name, array in head.items()})
    (own_gradient,) = torch.autograd.grad(alone.loss_B[1], head["head.weight"])
    torch.testing.assert_close(gradient[0], own_gradient[0], rtol=1e-5, atol=1e-5)


def test_first_pooling_of_a_decoder_is_refused(folders):
    with pytest.raises(ModelError, match=r"pooling=first .* decoder"):
        backbone(folders["gpt2"], HeadConfig(kind="classifier", pooling="first"))


@families
def test_geometry_is_that_of_the_keys(folders, family):
    model = backbone(folders[family], prompt_length=5)
    values = CONFIGS[family]
    kv_heads = values.get("num_key_value_heads", 4)
    assert model.geometry == PromptGeometry(3, kv_heads, 5, values.get("head_dim", 8))
    assert model.is_causal == FAMILIES[family].predicts_next


@families
def test_the_longest_text_fits_and_one_token_more_does_not(folders, family):
    skips_padding = family in ("roberta", "xlm-roberta", "camembert")
    for position_offset, length in (("none", 0), ("paper", 4)):
        model = backbone(folders[family], position_offset=position_offset)
        assert model.max_tokens == 40 - length - (2 if skips_padding else 0)
        prompt = prompts(model, (0,))
        model.forward(batch("none", num_tokens=model.max_tokens), prompt, (0,), {})
        with pytest.raises(ModelError, match=r"lower data\.max_length"):
            model.forward(batch("none", num_tokens=model.max_tokens + 1), prompt, (0,), {})


def test_a_prompt_that_leaves_no_positions_is_refused(folders):
    with pytest.raises(ModelError, match=r"prompt.length 38 leaves no positions"):
        backbone(folders["roberta"], position_offset="paper", prompt_length=38)
    assert backbone(folders["roberta"], position_offset="none", prompt_length=38).max_tokens == 38


def test_token_types_reach_models_that_have_them(folders):
    data = batch("none")
    types = np.zeros_like(data.input_ids_BT)
    types[:, 4:] = 1
    pair = TokenBatch(data.input_ids_BT, data.attention_mask_BT, types, data.read_positions_B, data.labels_B)
    bert = backbone(folders["bert"])
    first, second = (bert.forward(d, prompts(bert, (0,)), (0,), {}).logits_BC for d in (data, pair))
    assert (first - second).abs().max() > 1e-3
    for family in ("roberta", "gpt2", "llama"):
        model = backbone(folders[family])
        first, second = (model.forward(d, prompts(model, (0,)), (0,), {}).logits_BC for d in (data, pair))
        assert torch.equal(first, second)


def test_dropout_is_off_until_asked_for(tmp_path):
    model = backbone(save(tiny_model("bert", hidden_dropout_prob=0.3), tmp_path))
    data, prompt = batch(), prompts(model, (0,))

    def logits() -> torch.Tensor:
        return model.forward(data, prompt, (0,), {}).logits_BC

    still = logits()
    assert torch.equal(still, logits())
    model.set_dropout(True)
    with torch.random.fork_rng():
        assert not torch.equal(still, logits())
    model.set_dropout(False)
    assert torch.equal(still, logits())


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
@pytest.mark.parametrize("attention", ["sdpa", "eager"])
@families
def test_prompts_stay_float32_on_a_half_precision_model(folders, family, dtype, attention):
    full = backbone(folders[family])
    half = backbone(folders[family], attention=attention, dtype=dtype)
    assert {p.dtype for p in half.model.parameters()} == {getattr(torch, dtype)}
    data, prompt = batch(), prompts(half, (0, 2))
    reading = half.forward(data, prompt, (0, 2), {})
    (gradient,) = torch.autograd.grad(reading.loss_B.mean(), prompt)
    assert gradient.dtype == reading.loss_B.dtype == torch.float32
    exact = full.forward(data, prompt, (0, 2), {})
    scale = exact.logits_BC.abs().max()
    assert (reading.logits_BC - exact.logits_BC).abs().max() < (0.1 if dtype == "bfloat16" else 0.02) * scale


def test_building_draws_no_random_numbers(folders):
    weights = load_shared_weights(ModelConfig(path=folders["llama"]))
    before = torch.random.get_rng_state()
    backbone(weights)
    assert torch.equal(before, torch.random.get_rng_state())


def test_label_words_must_fit(folders):
    config = ModelConfig(path=folders["bert"])
    weights = load_shared_weights(config)

    def build(words: np.ndarray | None, shared: SharedWeights = weights) -> Backbone:
        return Backbone.build(shared, config, PrefixTuner(PromptConfig()), 2, words, "cpu")

    with pytest.raises(ModelError, match="one label word for each of 2 classes, got 0"):
        build(None)
    with pytest.raises(ModelError, match="one label word for each of 2 classes, got 3"):
        build(np.array([1, 2, 3]))
    with pytest.raises(ModelError, match="token id 97, but the model knows 97 words"):
        build(np.array([1, 97]))
    headless = load_shared_weights(ModelConfig(path=folders["bert"], head=CLASSIFIER))
    with pytest.raises(ModelError, match="needs a model with its LM head"):
        build(np.array([1, 2]), headless)


def test_calls_that_do_not_fit_are_refused(folders):
    model, data = backbone(folders["bert"]), batch()
    two = prompts(model, (0, 1), clients=2)
    with pytest.raises(ValueError, match="client_of_example_B must assign"):
        model.forward(data, two, (0, 1), {})
    with pytest.raises(ValueError, match="do not fit layers"):
        model.forward(data, two[:1], (0,), {})
    with pytest.raises(ValueError, match="do not fit layers"):
        model.forward(data, two[:1], (0, 3), {})
    with pytest.raises(ValueError, match="do not fit layers"):
        model.forward(data, two[:1], (1, 1), {})
    classifier = backbone(folders["bert"], CLASSIFIER)
    with pytest.raises(ValueError, match="not those of 1 clients"):
        classifier.forward(data, two[:1], (0, 1), head_arrays(classifier, clients=2))


def test_padding_tokens_do_not_reach_mean_pooling(folders):
    model = backbone(folders["bert"], HeadConfig(kind="classifier", pooling="mean"))
    head, prompt = head_arrays(model), prompts(model, (0,))
    data = batch("none", num_examples=2, num_tokens=6)
    wide = widened(data, 3)
    short, long = (model.forward(d, prompt, (0,), head).logits_BC for d in (data, wide))
    torch.testing.assert_close(short, long, rtol=1e-5, atol=1e-5)

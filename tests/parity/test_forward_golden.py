"""The forward pass against numbers of the published FedPepTAO code (its RobertaPromptTuning)."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor
from transformers import RobertaConfig, RobertaForMaskedLM

from clients.backbone import Backbone
from clients.config import HeadConfig, ModelConfig, PromptConfig
from clients.loading import load_shared_weights
from fedsim.core.tokens import TokenBatch

ALL_LAYERS = (0, 1, 2)
# With personalisation off, the published code hides the prompts of layers outside the list; that is no prompt at all.
CASES = {"layers_all.pers_on": ALL_LAYERS, "layers_all.pers_off": ALL_LAYERS, "layers_1.pers_off": (1,)}
LENGTH, HEADS, NUM_LAYERS, VOCABULARY = 5, 4, 3, 200


@pytest.fixture(scope="module")
def golden(load_golden) -> dict[str, np.ndarray]:
    return load_golden("05_forward")[0]


@pytest.fixture(scope="module")
def folder(load_golden, golden, tmp_path_factory) -> str:
    """The golden weights, saved and found again as any user's model is."""
    settings = load_golden("05_forward")[1]["config"]
    known = {key: value for key, value in settings.items() if key in RobertaConfig().to_dict()}
    model = RobertaForMaskedLM(RobertaConfig(**known, tie_word_embeddings=True))
    state = {
        name.removeprefix("weights/"): torch.from_numpy(array)
        for name, array in golden.items()
        if name.startswith("weights/") and "prefix_encoder" not in name
    }
    missing, unexpected = model.load_state_dict(state, strict=False)
    assert not unexpected and set(missing) == {"lm_head.decoder.weight", "lm_head.decoder.bias"}
    path = tmp_path_factory.mktemp("golden") / "model"
    model.save_pretrained(path)
    return str(path)


@pytest.fixture(scope="module")
def data(golden) -> TokenBatch:
    names = ("input_ids", "attention_mask", "token_type_ids", "mask_pos", "labels")
    return TokenBatch(*(golden[f"batch/{name}"] for name in names))


def build(folder: str, attention: str, position_offset: str) -> Backbone:
    config = ModelConfig(path=folder, head=HeadConfig(loss="vocabulary"), attention=attention)
    prompt = PromptConfig(length=LENGTH, position_offset=position_offset)
    every_word = np.arange(VOCABULARY)  # the golden labels are token ids
    return Backbone.build(load_shared_weights(config), config, prompt, VOCABULARY, every_word, "cpu")


def prompt_of(prefix: np.ndarray) -> Tensor:
    """Turn the published [P, L * 2 * hidden] into [L, K, H, P, D]."""
    return torch.from_numpy(prefix.reshape(LENGTH, NUM_LAYERS, 2, HEADS, -1)).permute(1, 2, 3, 0, 4)


def close(actual: Tensor, expected: np.ndarray | Tensor) -> None:
    actual, expected = actual.detach().double().numpy(), np.asarray(expected, dtype=np.float64)
    assert actual.shape == expected.shape
    worst = (np.abs(actual - expected) / (0.1 + np.abs(expected))).max()
    assert worst < 3e-5, worst


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
@pytest.mark.parametrize("case", CASES)
def test_forward_equals_the_published_code(golden, folder, data, case, attention):
    model, layers = build(folder, attention, "paper"), CASES[case]
    prompt_LKHPD = prompt_of(golden["weights/prefix_encoder.embedding.weight"])
    prompt = prompt_LKHPD[list(layers)].unsqueeze(0).clone().requires_grad_()

    reading = model.forward(data, prompt, layers, {})
    loss = reading.loss_B.mean()
    (gradient,) = torch.autograd.grad(loss, prompt)

    close(reading.logits_BC, golden[f"{case}.f64.logits"])
    close(loss, golden[f"{case}.f64.loss"])
    expected_gradient = prompt_of(golden[f"{case}.f64.prefix_grad"])
    close(gradient[0], expected_gradient[list(layers)])
    assert not expected_gradient[[layer for layer in ALL_LAYERS if layer not in layers]].any()
    hidden = torch.stack(model.hidden_states(data, prompt, layers))
    token = data.attention_mask_BT.astype(bool)
    close(hidden[:, torch.from_numpy(token)], golden[f"{case}.hidden_states"][:, token])


def test_positions_that_start_at_the_text_differ_from_the_published_code(golden, folder, data):
    model = build(folder, "sdpa", "none")
    prompt = prompt_of(golden["weights/prefix_encoder.embedding.weight"]).unsqueeze(0)
    reading = model.forward(data, prompt, ALL_LAYERS, {})
    assert np.abs(reading.logits_BC.numpy() - golden["layers_all.pers_on.f64.logits"]).max() > 1e-2

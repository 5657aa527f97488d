"""The forward pass against numbers of the published FedPepTAO code (its RobertaPromptTuning)."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pytest
import torch
from torch import Tensor

from clients.backbone.loading import load_shared_weights
from clients.backbone.model import Backbone
from clients.config import HeadConfig, ModelConfig, PromptConfig
from clients.tuners.prefix_tuner import PrefixTuner
from fedsim.core.tokens import TokenBatch

# With personalisation, the published code prompts every layer, whatever is exchanged. Without it, it hides the prompts
# of layers outside the list; that is no prompt at all.
CASES = {"layers_all.pers_on": None, "layers_all.pers_off": None, "layers_1.pers_on": None, "layers_1.pers_off": (1,)}
FORMATS = {"float32": ("f32", 3e-5), "float64": ("f64", 1e-10)}
"""Name in the trace and tolerance, in parts of (0.1 + |x|), as its description states them."""


@dataclass
class Golden:
    """The trace, and what its description says of shapes."""

    arrays: dict[str, np.ndarray]
    config: dict
    folder: str

    @property
    def all_layers(self) -> tuple[int, ...]:
        return tuple(range(self.config["num_hidden_layers"]))

    @property
    def data(self) -> TokenBatch:
        names = ("input_ids", "attention_mask", "token_type_ids", "mask_pos", "labels")
        return TokenBatch(*(self.arrays[f"batch/{name}"] for name in names))

    @property
    def prompt_LKHPD(self) -> Tensor:
        return self.prompt_of(self.arrays["weights/prefix_encoder.embedding.weight"])

    def prompt_of(self, prefix: np.ndarray) -> Tensor:
        """Turn the published [P, L * 2 * hidden] into [L, K, H, P, D]."""
        shape = (len(prefix), len(self.all_layers), 2, self.config["num_attention_heads"], -1)
        return torch.from_numpy(prefix.reshape(shape)).permute(1, 2, 3, 0, 4)

    def build(self, attention: str = "sdpa", position_offset: str = "paper", dtype: str = "float32") -> Backbone:
        head = HeadConfig(loss="vocabulary")
        config = ModelConfig(path=self.folder, head=head, attention=attention, dtype=dtype)
        prompt = PrefixTuner(PromptConfig(length=self.config["num_prompt_tokens"], position_offset=position_offset))
        words = np.arange(self.config["vocab_size"])  # the golden labels are token ids
        return Backbone.build(load_shared_weights(config), config, prompt, len(words), words, "cpu")


@pytest.fixture(scope="module")
def golden(load_golden, backbone_folder) -> Golden:
    arrays, description = load_golden("05_forward")
    return Golden(arrays, description["config"], backbone_folder)


def close(actual: Tensor, expected: np.ndarray | Tensor, tolerance: float) -> None:
    actual, expected = actual.detach().double().numpy(), np.asarray(expected, dtype=np.float64)
    assert actual.shape == expected.shape
    worst = (np.abs(actual - expected) / (0.1 + np.abs(expected))).max()
    assert worst < tolerance, worst


@pytest.mark.parametrize("dtype", FORMATS)
@pytest.mark.parametrize("attention", ["sdpa", "eager"])
@pytest.mark.parametrize("case", CASES)
def test_forward_equals_the_published_code(golden, case, attention, dtype):
    model, layers = golden.build(attention, dtype=dtype), CASES[case] or golden.all_layers
    name, tolerance = FORMATS[dtype]
    prompt = golden.prompt_LKHPD[list(layers)].unsqueeze(0).to(getattr(torch, dtype)).requires_grad_()

    reading = model.forward(golden.data, prompt, layers, {})
    loss = reading.loss_B.mean()
    (gradient,) = torch.autograd.grad(loss, prompt)

    close(reading.logits_BC, golden.arrays[f"{case}.{name}.logits"], tolerance)
    close(loss, golden.arrays[f"{case}.{name}.loss"], tolerance)
    expected_gradient = golden.prompt_of(golden.arrays[f"{case}.{name}.prefix_grad"])
    close(gradient[0], expected_gradient[list(layers)], tolerance)
    assert not expected_gradient[[layer for layer in golden.all_layers if layer not in layers]].any()
    hidden = torch.stack(model.hidden_states(golden.data, prompt, layers))
    token = golden.data.attention_mask_BT.astype(bool)
    # Hidden states are stored in float32.
    close(hidden[:, torch.from_numpy(token)], golden.arrays[f"{case}.hidden_states"][:, token], 3e-5)


def test_positions_that_start_at_the_text_differ_from_the_published_code(golden):
    model = golden.build(position_offset="none")
    reading = model.forward(golden.data, golden.prompt_LKHPD.unsqueeze(0), golden.all_layers, {})
    assert np.abs(reading.logits_BC.numpy() - golden.arrays["layers_all.pers_on.f64.logits"]).max() > 1e-2

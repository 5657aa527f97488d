"""The example of a family of one's own: transformers' numbers on all ways through it, and a run."""

from __future__ import annotations

import numpy as np
import pytest
import torch
import transformers
from support import ROOT, make_tiny
from test_family_table import agree, sections
from tiny_models import PAD, VOCABULARY, backbone, batch, cache_oracle, prompts, same_at_tokens

import fedsim
from clients.backbone.loading import load_shared_weights, load_tokenizer
from clients.config import HeadConfig, ModelConfig
from fedsim.core import plugins
from fedsim.core.errors import ModelError
from fedsim.prompts.prompted_model import load_prompt

EXAMPLE = ROOT / "examples" / "starcoder2_family.py"
SIZES = {"hidden_size": 32, "num_hidden_layers": 3, "num_attention_heads": 4, "num_key_value_heads": 2}
SIZES |= {"intermediate_size": 48, "bos_token_id": 0, "eos_token_id": 2, "pad_token_id": PAD}


@pytest.fixture
def family():
    plugins.load_plugin(EXAMPLE)
    yield "starcoder2"
    plugins.unload(EXAMPLE.name)


def folder(path, words: int = VOCABULARY, positions: int = 40, **changes) -> str:
    config = transformers.Starcoder2Config(vocab_size=words, max_position_embeddings=positions, **SIZES, **changes)
    with torch.random.fork_rng():
        torch.manual_seed(3)
        model = transformers.Starcoder2ForCausalLM(config)
        for parameter in model.parameters():
            parameter.data.add_(0.2 * torch.randn_like(parameter))
    model.save_pretrained(path)
    return str(path)


def test_without_the_plug_in_it_is_refused(tmp_path):
    with pytest.raises(
        ModelError, match=r"type 'starcoder2', which is not supported; .* plug-in .* \(--load FILE\.py\)"
    ):
        load_shared_weights(ModelConfig(path=folder(tmp_path)))


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
def test_a_prefix_is_that_of_transformers_own_cache(tmp_path, family, attention):
    path = folder(tmp_path)
    model, data = backbone(path, None, attention, "paper"), batch("right")
    prompt = prompts(model, (0, 2))
    theirs = transformers.Starcoder2Model.from_pretrained(path, attn_implementation=attention).eval()
    with torch.no_grad():
        expected = cache_oracle(theirs, data, prompt[0], (0, 2), "paper")
    same_at_tokens(model.hidden_states(data, prompt, (0, 2)), expected, data)


@pytest.mark.parametrize("tuner", ["prefix", "soft_prompt", "lora", "ia3", "adapter"])
def test_every_way_agrees(tmp_path, family, tuner):
    for section in sections(tuner, family):
        for window in (None, 5):
            path = folder(tmp_path / f"{section.projection} {window}", sliding_window=window)
            agree(backbone(path, HeadConfig(kind="classifier"), dtype="float64", tuner=section), f"{tuner} {window}")


def test_a_run_and_its_prompt_file(tmp_path, family):
    tokenizer = load_tokenizer(ModelConfig())
    path = folder(tmp_path / "model", len(tokenizer), 128)
    tokenizer.save_pretrained(path)
    out = {"output": str(tmp_path / "run"), "executor": "local", "rounds": 1, "tracking": {"plots": False}}
    summary = fedsim.run(make_tiny(**out, model={"path": path}), progress=False)
    assert summary["client_updates"] == 5
    scores = load_prompt(tmp_path / "run").scores(["a fine film", "a dull film"])
    assert np.isfinite(scores).all() and not np.array_equal(scores[0], scores[1])

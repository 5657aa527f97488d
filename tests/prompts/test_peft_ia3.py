"""IA³ runs as PEFT adapters: PEFT scales the maps that were trained, no others, and computes what we compute."""

from __future__ import annotations

import json
import warnings

import numpy as np
import peft
import pytest
import torch
from peft.tuners.ia3 import IA3Layer
from safetensors.numpy import load_file
from support import sweep
from tiny_prompts import ALL_LAYERS, ENCODERS_ALONE, WITH_LM_HEAD, Prompt, batch, label_scores, run_readme

from clients.config import HeadConfig
from fedsim.prompts.peft_adapter import export_peft

TOLERANCE = {"rtol": 1e-5, "atol": 1e-5}
IA3 = {"kind": "ia3"}
OWN = {
    "bert": {"targets": ("attention.output.dense", "key"), "feedforward_targets": ()},
    "roberta": {"targets": ("dense",), "feedforward_targets": ("output.dense",)},
    "gpt2": {"targets": ("c_proj", "c_attn"), "feedforward_targets": ("attn.c_proj",)},
    "llama": {"targets": ("self_attn.o_proj", "down_proj")},
}
BASE = "base_model.model."


def attached(prompt: Prompt, folder, kind: str | None = None) -> peft.PeftModel:
    """Load an adapter with PEFT, which must have nothing to say about it."""
    base = prompt.base(kind)
    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)
        return peft.PeftModel.from_pretrained(base, str(folder)).eval()


def scaled(model: peft.PeftModel) -> dict[str, bool]:
    """Return the scaled maps of PEFT's model, and whether their input is scaled."""
    found = {name: module for name, module in model.named_modules() if isinstance(module, IA3Layer)}
    return {name.removeprefix(BASE): module.is_feedforward for name, module in found.items()}


def trained(prompt: Prompt, layers: tuple[int, ...]) -> dict[str, bool]:
    """Return the maps that the tuner scales in some layers, and whether their input is scaled."""
    top = f"{prompt.base().base_model_prefix}.{prompt.row.layers}"
    arrays = prompt.backbone.geometry.arrays
    return {f"{top}.{layer}.{name.removesuffix('.ia3_l')}": dims[0] == 1 for layer in layers for name, dims in arrays}


@pytest.mark.parametrize(
    ("family", "own", "layers"),
    [(family, *case) for family in OWN for case in ((False, ALL_LAYERS), (False, (0, 2)), (True, (1,)))]
    + sweep([(family, False, (0, 2)) for family in WITH_LM_HEAD if family not in OWN], [("deberta-v2", False, (0, 2))]),
)
def test_an_exported_adapter_gives_the_same_logits_in_peft(tmp_path, family, own, layers):
    prompt = Prompt(tmp_path, family, layers=layers, tuner={**IA3, **(OWN[family] if own else {})})
    model = attached(prompt, export_peft(tmp_path / "run", tmp_path / "adapter"))
    assert scaled(model) == trained(prompt, layers)
    for padding in ("none", "right"):
        data = batch(padding)
        torch.testing.assert_close(label_scores(model, data), prompt.scores(data), **TOLERANCE)
    with model.disable_adapter():
        assert (label_scores(model, data) - prompt.scores(data)).abs().max() > 1e-2


def test_peft_finds_the_maps_of_a_model_of_many_layers(tmp_path):
    """PEFT shortens long lists of names."""
    layers = (0, 1, 3, 4, 5, 8, 9)
    prompt = Prompt(tmp_path, "bert", layers=layers, tuner=IA3, changes={"num_hidden_layers": 11})
    model = attached(prompt, export_peft(tmp_path / "run", tmp_path / "adapter"))
    assert scaled(model) == trained(prompt, layers)


@pytest.mark.parametrize("family", ["bert", "gpt2", *ENCODERS_ALONE])
def test_a_classifier_head_reads_the_same_scores_from_the_peft_model(tmp_path, family):
    prompt = Prompt(tmp_path, family, HeadConfig(kind="classifier"), layers=(1, 2), tuner=IA3)
    folder = export_peft(tmp_path / "run", tmp_path / "adapter")
    names = run_readme(folder, prompt, batch("right"))
    torch.testing.assert_close(names["scores"], prompt.scores(batch("right")), **TOLERANCE)
    assert "one vector for each of " in (folder / "README.md").read_text()


def test_a_clients_own_layers_are_added(tmp_path):
    prompt = Prompt(tmp_path, "llama", layers=(1,), tuner=IA3)
    personal_NM = prompt.save_personal(clients=(3, 8))
    folder = export_peft(prompt.path, tmp_path / "own", client=8)
    arrays = load_file(folder / "adapter_model.safetensors")
    k_proj = prompt.backbone.geometry.split(personal_NM[1].reshape(2, -1)[1])["self_attn.k_proj.ia3_l"]
    own = arrays[f"{BASE}model.layers.2.self_attn.k_proj.ia3_l"]
    np.testing.assert_allclose(own, 1.0 + k_proj, rtol=1e-6)
    assert scaled(attached(prompt, folder)) == trained(prompt, ALL_LAYERS)
    config = json.loads((folder / "adapter_config.json").read_text())
    inputs = [f"layers.{layer}.mlp.down_proj" for layer in ALL_LAYERS]
    assert (config["peft_type"], config["feedforward_modules"]) == ("IA3", inputs)

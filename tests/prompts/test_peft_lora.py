"""LoRA runs as PEFT adapters: PEFT wraps the maps that were trained, no others, and computes what we compute."""

from __future__ import annotations

import json
import sys
import warnings
from pathlib import Path

import numpy as np
import peft
import pytest
import torch
import transformers
from peft.tuners.lora import LoraLayer
from safetensors import safe_open
from safetensors.numpy import load_file, save_file
from support import make_tiny, sweep
from tiny_prompts import (
    ALL_LAYERS,
    CLASSIFIED,
    TASK,
    Prompt,
    all_families,
    batch,
    label_scores,
    of_peft,
    run_readme,
)

import fedsim
from clients.backbone.loading import locate
from clients.config import HeadConfig, ModelConfig
from fedsim import cli
from fedsim.core.errors import ModelError
from fedsim.core.layout import VectorLayout
from fedsim.data.examples import Examples
from fedsim.data.label_words import label_words
from fedsim.data.tokenize import tokenize
from fedsim.prompts.peft_adapter import export_peft, read_peft

TOLERANCE = {"rtol": 1e-5, "atol": 1e-5}
LORA = {"kind": "lora", "rank": 3, "alpha": 5.0}
TARGETS = {
    "bert": ("output.dense", "key"),  # two places in a layer
    "roberta": ("dense",),  # three places in a layer, and the LM head has one more
    "gpt2": ("c_proj", "attn.c_attn"),
    "llama": ("down_proj", "self_attn.o_proj"),
}
BASE = "base_model.model."


def attached(prompt: Prompt, folder: Path, kind: str | None = None) -> peft.PeftModel:
    """Load an adapter with PEFT, which must have nothing to say about it."""
    base = prompt.base(kind)
    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)
        return peft.PeftModel.from_pretrained(base, str(folder)).eval()


def wrapped(model: peft.PeftModel) -> set[str]:
    return {name.removeprefix(BASE) for name, module in model.named_modules() if isinstance(module, LoraLayer)}


def trained(prompt: Prompt, layers: tuple[int, ...], kind: str | None = None) -> set[str]:
    """Return the linear maps of the base model that the tuner trains in some layers."""
    model = prompt.base(kind)
    start = "" if kind == "base" else f"{model.base_model_prefix}."
    names = {name.rpartition(".")[0] for name, _ in prompt.backbone.geometry.arrays}
    found = {f"{start}{prompt.row.layers}.{layer}.{name}" for layer in layers for name in names}
    assert found <= {name for name, _ in model.named_modules()}
    return found


@pytest.mark.parametrize(
    ("scaling", "layers"), [("standard", ALL_LAYERS), ("rslora", (0, 2)), ("standard", (1,))], ids=str
)
@all_families
def test_an_exported_adapter_gives_the_same_logits_in_peft(tmp_path, family, scaling, layers):
    prompt = Prompt(tmp_path, family, layers=layers, tuner={**LORA, "scaling": scaling})
    model = attached(prompt, export_peft(tmp_path / "run", tmp_path / "adapter"))
    assert wrapped(model) == trained(prompt, layers)
    for padding in ("none", "right", "single"):
        data = batch(padding)
        torch.testing.assert_close(label_scores(model, data), prompt.scores(data), **TOLERANCE)
    with model.disable_adapter():
        assert (label_scores(model, data) - prompt.scores(data)).abs().max() > 1e-2


@pytest.mark.parametrize("kind", [None, "base"], ids=["with LM head", "without"])
@pytest.mark.parametrize("family", TARGETS)
def test_peft_wraps_the_maps_that_were_trained_and_no_others(tmp_path, family, kind):
    head = HeadConfig(kind="classifier") if kind == "base" else None
    prompt = Prompt(tmp_path, family, head, layers=(0, 2), tuner={**LORA, "targets": TARGETS[family]})
    model = attached(prompt, export_peft(tmp_path / "run", tmp_path / "adapter"), kind)
    assert wrapped(model) == trained(prompt, (0, 2), kind)
    if kind is None:
        torch.testing.assert_close(label_scores(model, batch()), prompt.scores(batch()), **TOLERANCE)


@pytest.mark.parametrize("pooling", ["auto", "mean", "last"])
@pytest.mark.parametrize("family", sweep(CLASSIFIED, CLASSIFIED[:5]))
def test_a_classifier_head_reads_the_same_scores_from_the_peft_model(tmp_path, family, pooling):
    prompt = Prompt(tmp_path, family, HeadConfig(kind="classifier", pooling=pooling), layers=(1, 2), tuner=LORA)
    folder = export_peft(tmp_path / "run", tmp_path / "adapter")
    for data in (batch("none"), batch("right")):
        names = run_readme(folder, prompt, data)
        torch.testing.assert_close(names["scores"], prompt.scores(data), **TOLERANCE)


def test_token_types_reach_the_model_as_the_readme_says(tmp_path):
    pairs = TASK.model_copy(update={"fields": ("a", "b"), "template": "{a} ? <mask> , {b}"})
    prompt = Prompt(tmp_path, "bert", HeadConfig(kind="classifier"), task=pairs, tuner=LORA)
    folder = export_peft(tmp_path / "run", tmp_path / "adapter")
    types = np.tile(np.arange(9) > 3, (4, 1)).astype(np.int64)
    data = batch("right")
    data = type(data)(data.input_ids_BT, data.attention_mask_BT, types, data.read_positions_B, data.labels_B)
    scores = run_readme(folder, prompt, data)["scores"]
    torch.testing.assert_close(scores, prompt.scores(data), **TOLERANCE)
    assert (scores - prompt.scores(batch("right"))).abs().max() > 1e-3


def test_the_configuration_says_what_was_trained(tmp_path):
    prompt = Prompt(tmp_path, "gpt2", layers=(0, 2), tuner={**LORA, "scaling": "rslora", "targets": ("c_proj", "c_fc")})
    folder = export_peft(prompt.path, tmp_path / "adapter")
    config = json.loads((folder / "adapter_config.json").read_text())
    expected = {
        "peft_type": "LORA",
        "task_type": "CAUSAL_LM",
        "base_model_name_or_path": prompt.model,
        "r": 3,
        "lora_alpha": 5,
        "use_rslora": True,
        "target_modules": ["attn.c_proj", "mlp.c_proj", "mlp.c_fc"],
        "layers_to_transform": [0, 2],
        "layers_pattern": "h",
        "fan_in_fan_out": True,
        "bias": "none",
        "inference_mode": True,
    }
    assert {key: config[key] for key in expected} == expected
    text = (folder / "README.md").read_text()
    assert "rank 3, on `attn.c_proj`, `mlp.c_proj`, `mlp.c_fc` in layers 0, 2." in text and "x, y, z" in text
    with pytest.raises(ModelError, match="adapter of type LORA; only PREFIX_TUNING"):
        read_peft(folder)


@pytest.mark.parametrize("tuner", [None, LORA])
@pytest.mark.parametrize("products", ["bfloat16", "float32"])
def test_the_readme_says_if_the_run_multiplied_in_bfloat16(tmp_path, tuner, products):
    prompt = Prompt(tmp_path, "roberta", tuner=tuner)
    with safe_open(prompt.path, framework="numpy") as file:
        metadata = json.loads(file.metadata()["fedsim"])
    metadata["model"]["products"] = products
    save_file(load_file(prompt.path), prompt.path, metadata={"fedsim": json.dumps(metadata)})
    text = (export_peft(prompt.path, tmp_path / "out") / "README.md").read_text()
    assert text.count("multiplied the layers' matrices in bfloat16") == (products == "bfloat16")


@all_families
def test_a_clients_own_layers_are_added(tmp_path, family):
    prompt = Prompt(tmp_path, family, layers=(1,), tuner=LORA)
    personal_NM = prompt.save_personal(clients=(3, 8))
    exchanged = export_peft(prompt.path, tmp_path / "exchanged")
    own = export_peft(prompt.path, tmp_path / "own", client=8)
    shared = attached(prompt, exchanged)
    assert wrapped(shared) == trained(prompt, (1,))
    torch.testing.assert_close(label_scores(shared, batch()), prompt.scores(batch()), **TOLERANCE)

    first_X, last_X = personal_NM[1].reshape(2, -1)
    prompt.layout = VectorLayout.full(prompt.backbone.geometry)
    prompt.vector_F = np.concatenate([first_X, prompt.vector_F, last_X])
    theirs = attached(prompt, own)
    assert wrapped(theirs) == trained(prompt, ALL_LAYERS)
    torch.testing.assert_close(label_scores(theirs, batch()), prompt.scores(batch()), **TOLERANCE)


def with_adapter_beside(prompt: Prompt) -> None:
    (Path(prompt.model) / "adapter_config.json").write_text('{"peft_type": "LORA"}')


REFUSED = {
    "client without layers of its own": (
        lambda prompt: None,
        {"client": 3},
        "no personal layers .* leave --client out",
    ),
    "client that never trained": (Prompt.save_personal, {"client": 5}, "client 5 never trained.* 3, 8$"),
    "adapter beside the model": (with_adapter_beside, {}, r"move adapter_config\.json out of the folder"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_cannot_be_exported_is_refused_and_nothing_is_written(tmp_path, name):
    change, arguments, expected = REFUSED[name]
    prompt = Prompt(tmp_path, "llama", layers=(0, 2), tuner=LORA)
    change(prompt)
    with pytest.raises(ModelError, match=expected):
        export_peft(prompt.path, tmp_path / "adapter", **arguments)
    assert not (tmp_path / "adapter").exists()


def test_the_adapter_of_a_run_predicts_what_the_run_predicts(tmp_path, monkeypatch, capsys):
    """By the command, on the embedded model."""
    run = {"executor": "local", "rounds": 1, "tuner": LORA, "tracking": {"plots": False}}
    fedsim.run(make_tiny(**run, output=str(tmp_path / "run")), progress=False)
    monkeypatch.setattr(sys, "argv", ["fedsim", "export", str(tmp_path / "run"), "--to", "peft"])
    with pytest.raises(SystemExit) as ended:
        cli.main()
    assert not ended.value.code
    folder = tmp_path / "run" / "prompt" / "peft"
    assert f"adapter: {folder};" in capsys.readouterr().out
    model = fedsim.load_prompt(tmp_path / "run")
    arrays = load_file(folder / "adapter_model.safetensors")
    assert len(arrays) == 4 * len(model.layers) and all(np.any(array) for array in arrays.values())
    texts = ["the soup was cold and bland", "a wonderful evening , and the staff was kind"]
    examples = Examples([(text,) for text in texts], np.zeros(2, np.int64), {}, "texts", 0, {})
    table = tokenize(examples, model.task, model.tokenizer, head_kind="verbalizer", causal=False, max_length=128)
    data = table.batch(np.arange(2))
    base = transformers.AutoModelForMaskedLM.from_pretrained(locate(ModelConfig()), dtype=torch.float32)
    output = of_peft(peft.PeftModel.from_pretrained(base, str(folder)).eval(), data)
    words = label_words(model.task, model.tokenizer, False).single_C
    scores = output.logits[torch.arange(2), torch.from_numpy(data.read_positions_B)][:, words]
    np.testing.assert_allclose(scores.numpy(), model.scores(texts), rtol=0, atol=1e-5)

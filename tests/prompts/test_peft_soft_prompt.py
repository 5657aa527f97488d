"""Soft prompts as PEFT prompt-tuning adapters: PEFT puts them before the text where we do, and computes what we compute."""

from __future__ import annotations

import json
import re
import warnings
from pathlib import Path

import numpy as np
import peft
import pytest
import torch
from safetensors.numpy import load_file
from support import sweep
from tiny_prompts import CLASSIFIED, LABEL_WORDS, TASK, Prompt, all_families, batch, of_peft, run_readme

from clients.config import HeadConfig
from fedsim.core.errors import ModelError
from fedsim.prompts.peft_adapter import export_peft

TOLERANCE = {"rtol": 1e-5, "atol": 1e-5}
LENGTH = 5
SOFT = {"kind": "soft_prompt", "length": LENGTH}
PAIRS = TASK.model_copy(update={"fields": ("a", "b"), "template": "{a} ? <mask> , {b}"})


def soft(folder: Path, family: str, head: str = "verbalizer", **keys) -> Prompt:
    pooling = {"pooling": keys.pop("pooling")} if "pooling" in keys else {}
    return Prompt(folder, family, HeadConfig(kind=head, **pooling), layers=(0,), tuner=SOFT, **keys)


def text_logits(folder: Path, output):
    """Return the logits that the README names."""
    named = re.search(r"in `(output\.logits[^`]*)` at the", (folder / "README.md").read_text())
    return eval(named[1], {"output": output})


def check_logits(folder: Path, prompt: Prompt) -> None:
    """Check that PEFT's model scores as ours, and otherwise than the base model."""
    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)
        model = peft.PeftModel.from_pretrained(prompt.base(), str(folder)).eval()
    for padding in ("none", "right", "single"):
        data = batch(padding)
        rows = torch.arange(len(data.labels_B)), torch.from_numpy(data.read_positions_B)
        found = text_logits(folder, of_peft(model, data))[rows][:, LABEL_WORDS]
        torch.testing.assert_close(found, prompt.scores(data), **TOLERANCE)
    assert (of_peft(prompt.base(), data).logits[rows][:, LABEL_WORDS] - found).abs().max() > 1e-2


@all_families
def test_an_exported_adapter_gives_the_same_logits_in_peft(tmp_path, family):
    prompt = soft(tmp_path, family)
    check_logits(export_peft(prompt.path, tmp_path / "adapter"), prompt)


def test_virtual_tokens_fall_out_of_a_window_as_in_peft(tmp_path):
    prompt = soft(tmp_path, "mistral", changes={"sliding_window": 4})
    check_logits(export_peft(prompt.path, tmp_path / "adapter"), prompt)


@pytest.mark.parametrize("pooling", ["auto", "mean", "last"])
@pytest.mark.parametrize("family", sweep(CLASSIFIED, CLASSIFIED[:5]))
def test_a_classifier_head_reads_the_same_scores_from_the_peft_model(tmp_path, family, pooling):
    prompt = soft(tmp_path, family, "classifier", pooling=pooling)
    folder = export_peft(prompt.path, tmp_path / "adapter")
    for data in (batch("none"), batch("right")):
        names = run_readme(folder, prompt, data)
        assert names["hidden"].shape[:2] == data.input_ids_BT.shape
        torch.testing.assert_close(names["scores"], prompt.scores(data), **TOLERANCE)


def test_the_adapter_holds_the_prompt_and_says_so(tmp_path):
    prompt = soft(tmp_path, "gpt2")
    folder = export_peft(prompt.path, tmp_path / "adapter")
    config = json.loads((folder / "adapter_config.json").read_text())
    expected = {
        "peft_type": "PROMPT_TUNING", "task_type": "CAUSAL_LM", "base_model_name_or_path": prompt.model, "token_dim": 32,
        "num_virtual_tokens": LENGTH, "num_layers": 3, "num_transformer_submodules": 1, "inference_mode": True,
    }  # fmt: skip
    assert {key: config[key] for key in expected} == expected
    arrays = load_file(folder / "adapter_model.safetensors")
    assert list(arrays) == ["prompt_embeddings"]
    np.testing.assert_array_equal(arrays["prompt_embeddings"].reshape(-1), prompt.vector_F)
    text = (folder / "README.md").read_text()
    assert f"{LENGTH} virtual tokens before each text" in text and "{b}" not in text


@pytest.mark.parametrize(
    ("family", "head", "exported"),
    [("bert", "classifier", False), ("bert", "verbalizer", True), ("roberta", "classifier", True)],
)
def test_pairs_are_exported_unless_token_types_tell_them_apart(tmp_path, family, head, exported):
    prompt = soft(tmp_path, family, head, task=PAIRS)
    if exported:
        assert "token_type_ids" not in (export_peft(prompt.path, tmp_path / "out") / "README.md").read_text()
        return
    with pytest.raises(ModelError, match="by token types, and PEFT drops them in prompt tuning, so no adapter"):
        export_peft(prompt.path, tmp_path / "out")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("kind", ["late_prompt", "generated_prompt", "prompt_mixture", "adapter"])
def test_kinds_that_peft_lacks_are_refused(tmp_path, kind):
    layer = 1 if kind == "late_prompt" else 0
    prompt = Prompt(tmp_path, "bert", layers=(layer,), tuner={"kind": kind})
    with pytest.raises(ModelError, match=rf"was trained with tuner\.kind={kind}, for which PEFT has no adapter$"):
        export_peft(prompt.path, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_no_client_has_a_soft_prompt_of_its_own(tmp_path):
    with pytest.raises(ModelError, match="leave --client out"):
        export_peft(soft(tmp_path, "bert").path, tmp_path / "out", client=3)

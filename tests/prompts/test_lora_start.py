"""``tuner.start_from``: runs start exactly where a PEFT adapter or an earlier LoRA run ended, or are refused in a sentence."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pyarrow.parquet
import pytest
import torch
import transformers
from peft import LoraConfig, PeftModel, get_peft_model
from safetensors.numpy import load_file, save_file
from support import make_tiny, merged, sweep
from tiny_prompts import ALL_LAYERS, ENCODERS_ALONE, TINY, Prompt, batch, label_scores, of_peft, read_start
from tiny_prompts import start_scores as scores

import fedsim
from clients.backbone.families import FAMILIES
from clients.config import HeadConfig
from fedsim.core.errors import ModelError
from fedsim.prompts.peft_adapter import export_peft
from fedsim.prompts.prompt_file import read_prompt

LORA = {"kind": "lora", "rank": 3, "alpha": 5.0}
MAPS = {
    "bert": ["query", "attention.output.dense"],
    "roberta": ["key", "intermediate.dense"],
    "gpt2": ["c_attn", "mlp.c_fc"],
    "llama": ["q_proj", "down_proj"],
}
OLD = ("base_model_name_or_path", "bias", "fan_in_fan_out", "lora_alpha", "peft_type", "r", "target_modules")
"""Keys of an ``adapter_config.json`` of 2023."""


class Adapter:
    """A LoRA adapter that PEFT made of a tiny model, with random matrices."""

    def __init__(self, folder: Path, family: str, head: str = "lm", **keys):
        self.prompt = Prompt(folder, family, tuner=LORA)
        base = self.base(head)
        torch.manual_seed(4)
        made = LoraConfig(**{"r": 3, "lora_alpha": 5, "target_modules": MAPS[family], **keys})
        self.model = get_peft_model(base, made).eval()
        for name, parameter in self.model.named_parameters():
            if "lora_" in name:
                parameter.data.normal_(0.0, 0.3)
        self.folder = folder / "adapter"
        self.model.save_pretrained(self.folder)

    def base(self, head: str):
        if head == "lm":
            return self.prompt.base()
        auto = transformers.AutoModelForSequenceClassification
        return auto.from_pretrained(self.prompt.model, num_labels=3, dtype=torch.float32)

    def change(self, **values) -> None:
        """Change keys of the adapter's configuration; None removes one."""
        path = self.folder / "adapter_config.json"
        known = json.loads(path.read_text()) | values
        path.write_text(json.dumps({key: value for key, value in known.items() if value is not None}))

    def scores(self, data) -> torch.Tensor:
        """Return PEFT's scores of the label words."""
        return label_scores(PeftModel.from_pretrained(self.prompt.base(), str(self.folder)).eval(), data)


def start_of(prompt: Prompt, source: Path, tuner: dict | None = None, head: HeadConfig | None = None):
    return read_start(prompt, source, {**LORA, "targets": MAPS[prompt.family], **(tuner or {})}, head)


CASES = {
    "all layers": ({}, {}, False),
    "two layers, rslora": ({"use_rslora": True, "layers_to_transform": [0, 2]}, {"scaling": "rslora"}, False),
    "a configuration of 2023": ({}, {}, True),
    "fewer maps than the run": ({"target_modules": 1}, {}, False),
}


@pytest.mark.parametrize(("family", "case"), sweep(((f, c) for f in MAPS for c in CASES), [*((f, "all layers") for f in MAPS),
    ("bert", "two layers, rslora"), ("gpt2", "a configuration of 2023"), ("llama", "fewer maps than the run"),
]))  # fmt: skip
def test_a_run_starts_at_the_logits_of_the_peft_model(tmp_path, family, case):
    keys, tuner, old = CASES[case]
    keys = {**keys, **({"target_modules": MAPS[family][:1]} if "target_modules" in keys else {})}
    adapter = Adapter(tmp_path, family, **keys)
    if old:
        path = adapter.folder / "adapter_config.json"
        known = json.loads(path.read_text())
        path.write_text(json.dumps({key: known[key] for key in OLD}))
    model, layout, vector_F, _, _ = start_of(adapter.prompt, adapter.folder, tuner)
    for padding in ("none", "right"):
        data = batch(padding)
        expected = adapter.scores(data)
        torch.testing.assert_close(scores(model, layout, vector_F, data), expected, rtol=1e-5, atol=1e-5)
    plain = scores(model, layout, np.zeros_like(vector_F), data)
    assert (plain - expected).abs().max() > 1e-2


@pytest.mark.parametrize("family", ENCODERS_ALONE)
def test_an_adapter_of_a_t5s_encoder_is_a_start_and_one_of_its_decoder_too_is_refused(tmp_path, family):
    prompt, row = Prompt(tmp_path, family, HeadConfig(kind="classifier"), tuner=LORA), FAMILIES[family]
    section, data = {**LORA, "targets": ["q", "wo"]}, batch("none")

    def adapted(base: transformers.PreTrainedModel, folder: Path) -> PeftModel:
        theirs = get_peft_model(base, LoraConfig(r=3, lora_alpha=5, target_modules=["q", "wo"])).eval()
        for parameter in theirs.parameters():
            if parameter.requires_grad:
                parameter.data.normal_(0.0, 0.1)
        theirs.save_pretrained(folder)
        return theirs

    theirs = adapted(row.model_class("base").from_pretrained(prompt.model), tmp_path / "encoder")
    model, layout, vector_F, _, _ = read_start(prompt, tmp_path / "encoder", section)
    tuned_LX, _ = layout.split(torch.from_numpy(vector_F))
    found = model.last_hidden_state(data, tuned_LX.unsqueeze(0), layout.layers)
    torch.testing.assert_close(found, of_peft(theirs, data).last_hidden_state, rtol=1e-5, atol=1e-5)
    with theirs.disable_adapter():
        assert (of_peft(theirs, data).last_hidden_state - found).abs().max() > 1e-2
    whole = getattr(transformers, f"{row.title}ForConditionalGeneration")
    adapted(whole(row.config(TINY[family])), tmp_path / "both")
    with pytest.raises(
        ModelError, match=r"also trained base_model\.model\.decoder\.block\.0.*, which is no linear map in"
    ):
        read_start(prompt, tmp_path / "both", section)


@pytest.mark.parametrize("head", ["verbalizer", "classifier"])
def test_an_exported_run_its_folder_and_its_file_start_with_the_same_bits(tmp_path, head):
    prompt = Prompt(tmp_path, "bert", HeadConfig(kind=head), tuner={**LORA, "targets": MAPS["bert"]})
    found = []
    for source in (export_peft(prompt.path, tmp_path / "adapter"), prompt.path, tmp_path / "run"):
        _, layout, vector_F, said, start = start_of(prompt, source)
        assert layout == prompt.layout and np.array_equal(vector_F, prompt.vector_F) and vector_F.dtype == np.float32
        assert said == f"starting from {source}{', and its head' if head == 'classifier' else ''}"
        found.append(start.fingerprint())
    assert len(set(found)) == 1


def test_layers_that_an_earlier_run_left_alone_start_at_the_frozen_model(tmp_path):
    prompt = Prompt(tmp_path, "roberta", layers=(1,), tuner={**LORA, "targets": MAPS["roberta"]})
    model, layout, vector_F, _, _ = start_of(prompt, prompt.path)
    assert layout.layers == ALL_LAYERS
    torch.testing.assert_close(scores(model, layout, vector_F, batch()), prompt.scores(batch()), rtol=1e-5, atol=1e-5)
    first, other = (layout.geometry.split(layout.split(vector_F)[0][layer]) for layer in (0, 1))
    for name in first:
        assert np.any(first[name]) == name.endswith("lora_A") and np.any(other[name])


def test_a_classifier_of_peft_is_left_out_and_said_to_be(tmp_path):
    adapter = Adapter(tmp_path, "bert", head="classes", task_type="SEQ_CLS")
    model, layout, vector_F, said, _ = start_of(adapter.prompt, adapter.folder, head=HeadConfig(kind="classifier"))
    assert said.endswith(
        "which has no head of this shape; the head is initialised at random; its classifier (classifier.bias, "
        "classifier.weight) is left out"
    )
    data = batch("none")
    tuned_LX, _ = layout.split(torch.from_numpy(vector_F))
    with torch.no_grad():
        states = model.hidden_states(data, tuned_LX.unsqueeze(0), layout.layers)
        theirs = adapter.model.base_model.model.bert(input_ids=torch.from_numpy(data.input_ids_BT)).last_hidden_state
    torch.testing.assert_close(states[-1], theirs, rtol=1e-5, atol=1e-5)


def arrays(change):
    """Return a function that changes an adapter's arrays."""

    def act(adapter: Adapter) -> None:
        path = adapter.folder / "adapter_model.safetensors"
        save_file(change(load_file(path)), path)

    return act


def pickled(adapter: Adapter) -> None:
    (adapter.folder / "adapter_model.safetensors").rename(adapter.folder / "adapter_model.bin")


FIRST = "base_model.model.bert.encoder.layer.0.attention.self.query.lora_A.weight"
REFUSED = {
    "another rank and scale": (
        None, {"rank": 4, "alpha": 8.0, "scaling": "rslora"}, {},
        r"was trained with rank 3, alpha 5, scaling standard, but section tuner has rank 4, alpha 8, scaling rslora; set "
        r"tuner\.rank=3 tuner\.alpha=5 tuner\.scaling=standard$",
    ),
    "maps that the run has not": (
        None, {"targets": ["query"]}, {},
        r"changes attention\.output\.dense, attention\.self\.query, but this run attention\.self\.query, so a part would be "
        r"lost; set tuner\.targets=\[attention\.output\.dense,attention\.self\.query\], or start",
    ),
    "a frozen half": (None, {"train": "b"}, {}, r"with another .*\.lora_A than .* set tuner\.train=both"),
    "ranks by pattern": (None, {}, {"rank_pattern": {"query": 2}}, r"matrices of rank 2, 3 with r=3 \(rank_pattern\)"),
    "scales by pattern": (None, {}, {"alpha_pattern": {"query": 2}}, r"with alpha_pattern=\{'query': 2\}; .* one alpha"),
    "DoRA": (None, {}, {"use_dora": True}, r"adapter with use_dora=True, which is no plain LoRA"),
    "biases": (None, {}, {"bias": "lora_only"}, r"adapter with bias=lora_only: biases of the model were trained too"),
    "a module of the model": (None, {}, {"modules_to_save": ["word_embeddings"]}, r"also trained .*word_embeddings"),
    "a map outside the layers": (None, {}, {"target_modules": ["query", "transform.dense"]}, "also trained .*transform"),
    "PiSSA": (lambda a: a.change(init_lora_weights="pissa"), {}, {}, "init_lora_weights=pissa, which belongs to"),
    "a pickle": (pickled, {}, {}, r"only adapter_model\.bin, a pickle"),
    "another type": (lambda a: a.change(peft_type="LOHA"), {}, {}, "adapter of type LOHA; only LORA adapters"),
    "no rank": (lambda a: a.change(r="three"), {}, {}, r"is damaged: its adapter_config\.json has r=three"),
    "NaN": (arrays(lambda a: a | {FIRST: a[FIRST] * np.nan}), {}, {}, "NaN or infinite numbers in .*query"),
    "half of a pair": (arrays(lambda a: {k: v for k, v in a.items() if k != FIRST}), {}, {},
                       r"only one of lora_A and lora_B of attention\.self\.query in layer 0; is it the whole adapter"),
    "nothing": (arrays(lambda a: {}), {}, {}, "holds no lora_A and lora_B"),
    "another width": (arrays(lambda a: a | {FIRST: a[FIRST][:, 1:].copy()}), {}, {}, r"of shape \(3, 31\), but .* \(3, 32\)"),
    "more layers": (arrays(lambda a: a | {k.replace("layer.0", "layer.7"): v for k, v in a.items() if "layer.0" in k}), {}, {},
                    "changes layer 7, but the model .* has 3 layers"),
}  # fmt: skip


@pytest.mark.parametrize("name", REFUSED)
def test_what_would_not_be_continued_exactly_is_refused(tmp_path, name):
    change, tuner, made, sentence = REFUSED[name]
    adapter = Adapter(tmp_path, "bert", **made)
    if change is not None:
        change(adapter)
    with pytest.raises(ModelError, match=sentence) as caught:
        start_of(adapter.prompt, adapter.folder, tuner)
    assert "\n" not in str(caught.value)


def test_what_is_no_source_is_refused(tmp_path):
    prompt, other = Prompt(tmp_path / "lora", "bert", tuner=LORA), Prompt(tmp_path / "prefix", "bert")
    (tmp_path / "empty").mkdir()
    for source, sentence in (
        (other.path, "was trained with tuner.kind=prefix, but this run has tuner.kind=lora"),
        (tmp_path / "nowhere", "nowhere does not exist; give the folder of a PEFT adapter or of a run"),
        (tmp_path / "empty", "holds neither adapter_config.json .* nor prompt/global.safetensors"),
        (export_peft(other.path, tmp_path / "adapter"), "adapter of type PREFIX_TUNING; only LORA"),
    ):
        with pytest.raises(ModelError, match=sentence):
            start_of(prompt, source)


def test_a_run_goes_on_where_the_exported_run_ended(tmp_path):
    """On the embedded model; where a run started is not in its prompt file."""
    run = {"executor": "local", "rounds": 1, "tuner": LORA, "layers": {"choose": "top"}}
    fedsim.run(make_tiny(**run, output=str(tmp_path / "run")), progress=False)
    rows = pyarrow.parquet.read_table(tmp_path / "run" / "rounds.parquet").to_pylist()
    files = []
    for name, source in (("more", tmp_path / "run"), ("adapter", export_peft(tmp_path / "run", tmp_path / "peft"))):
        keys = merged(run, {"tuner": {"start_from": str(source)}, "output": str(tmp_path / name)})
        fedsim.run(make_tiny(**keys), progress=False)
        first = pyarrow.parquet.read_table(tmp_path / name / "rounds.parquet").to_pylist()[0]
        assert first["global_loss"] == rows[-1]["global_loss"] != rows[0]["global_loss"]
        files.append((tmp_path / name / "prompt" / "global.safetensors").read_bytes())
    assert files[0] == files[1]
    assert "start_from" not in read_prompt(tmp_path / "more").metadata["tuner"]

"""``tuner.start_from`` of kinds beside LoRA: runs start exactly where a PEFT adapter or earlier run ended, or are refused."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pyarrow.parquet
import pytest
import torch
import transformers
from peft import IA3Config, LoraConfig, PeftModel, PromptTuningConfig, get_peft_model
from safetensors.numpy import load_file, save_file
from support import make_tiny, merged
from tiny_prompts import LABEL_WORDS, PROMPT_LENGTH, Prompt, batch, of_peft, read_start, start_scores

import fedsim
from clients.config import HeadConfig
from fedsim.core.errors import ModelError
from fedsim.prompts.peft_adapter import export_peft
from fedsim.simulation.preparation import partition_data

TOLERANCE = {"rtol": 1e-5, "atol": 1e-5}
SOFT = {"kind": "soft_prompt", "length": PROMPT_LENGTH}
IA3 = {"kind": "ia3"}
OWN = {"targets": ["self.key", "intermediate.dense"], "feedforward_targets": ["intermediate.dense"]}
OLD = {
    "soft_prompt": ("peft_type", "num_virtual_tokens", "token_dim", "num_layers", "num_attention_heads", "task_type"),
    "ia3": ("peft_type", "target_modules", "feedforward_modules", "task_type"),
}
"""Keys of an ``adapter_config.json`` of 2023."""


class Adapter:
    """An adapter that PEFT made of a tiny model, with random numbers."""

    def __init__(self, folder: Path, family: str, section: dict, auto: str | None = None, **keys):
        self.prompt, self.section = Prompt(folder, family, tuner=section, layers=(0,)), section
        soft = section["kind"] == "soft_prompt"
        made = PromptTuningConfig(**{"num_virtual_tokens": PROMPT_LENGTH, **keys}) if soft else IA3Config(**keys)
        if made.task_type is None and soft:
            made.task_type = "CAUSAL_LM" if self.prompt.row.predicts_next else "FEATURE_EXTRACTION"
        base = self.prompt.base()
        if auto is not None:
            base = getattr(transformers, auto).from_pretrained(self.prompt.model, num_labels=3, dtype=torch.float32)
        self.model = get_peft_model(base, made).eval()
        torch.manual_seed(4)
        for name, parameter in self.model.named_parameters():
            if "ia3_l" in name or "prompt_encoder" in name:
                parameter.data.normal_(0.0 if soft else 1.0, 0.4)
        self.folder = folder / "adapter"
        self.model.save_pretrained(self.folder)

    def change(self, **values) -> None:
        """Change keys of the adapter's configuration; None removes one."""
        path = self.folder / "adapter_config.json"
        known = json.loads(path.read_text()) | values
        path.write_text(json.dumps({key: value for key, value in known.items() if value is not None}))

    def keep(self, keys) -> None:
        """Remove all other keys of the adapter's configuration."""
        known = json.loads((self.folder / "adapter_config.json").read_text())
        self.change(**{key: None for key in known if key not in keys})

    def scores(self, data) -> torch.Tensor:
        """Return PEFT's scores of the label words."""
        model = PeftModel.from_pretrained(self.prompt.base(), str(self.folder)).eval()
        logits = of_peft(model, data).logits[:, -data.input_ids_BT.shape[1] :]
        return logits[torch.arange(len(data.labels_B)), torch.from_numpy(data.read_positions_B)][:, LABEL_WORDS]

    def read(self, **section):
        return read_start(self.prompt, self.folder, {**self.section, **section})


@pytest.mark.parametrize("family", ["bert", "roberta", "gpt2", "llama"])
@pytest.mark.parametrize("section", [SOFT, IA3], ids=["soft_prompt", "ia3"])
def test_a_run_starts_at_the_logits_of_the_peft_model(tmp_path, family, section):
    """With PEFT's default maps, which are ours."""
    adapter = Adapter(tmp_path, family, section)
    expected = {padding: adapter.scores(batch(padding)) for padding in ("none", "right")}
    if family in ("bert", "llama"):
        adapter.keep(OLD[section["kind"]])
    model, layout, vector_F, said, _ = adapter.read()
    assert said == f"starting from {adapter.folder}"
    for padding, theirs in expected.items():
        torch.testing.assert_close(start_scores(model, layout, vector_F, batch(padding)), theirs, **TOLERANCE)
    other = start_scores(model, layout, np.zeros_like(vector_F), batch("right"))
    assert (other - theirs).abs().max() > 1e-2


def test_ia3_on_other_maps_of_some_layers_starts_at_the_logits_of_the_peft_model(tmp_path):
    """Maps of the run that the adapter leaves alone start at the frozen model."""
    names = [f"encoder.layer.{layer}.{name}.dense" for layer in (0, 2) for name in ("intermediate", "attention.output")]
    adapter = Adapter(tmp_path, "bert", IA3, target_modules=names, feedforward_modules=names[::2])
    targets = ["attention.output.dense", "intermediate.dense", "query"]
    found = adapter.read(targets=targets, feedforward_targets=["intermediate.dense"])
    torch.testing.assert_close(start_scores(*found[:3], batch()), adapter.scores(batch()), **TOLERANCE)


KINDS = {
    "soft_prompt": SOFT,
    "late_prompt": {"kind": "late_prompt", "length": 3, "depth": 2, "bottleneck": 5},
    "generated_prompt": {"kind": "generated_prompt", "length": 3, "bottleneck": 4, "terms": 2},
    "prompt_mixture": {"kind": "prompt_mixture", "length": 3, "bottleneck": 5, "random_sources": 2},
    "ia3": {**IA3, **OWN},
    "adapter": {"kind": "adapter", "bottleneck": 3},
    "lora": {"kind": "lora", "rank": 2, "train": "b"},
}
PLACE = {"late_prompt": (2,), "ia3": (0, 1, 2), "adapter": (0, 2), "lora": (0, 1, 2)}
"""Layers that the file holds; else the first."""


@pytest.mark.parametrize(
    ("kind", "head"), [*((kind, "verbalizer") for kind in KINDS), ("soft_prompt", "classifier"), ("ia3", "classifier")]
)
def test_a_run_its_file_and_its_export_start_with_the_same_bits(tmp_path, kind, head):
    prompt = Prompt(tmp_path, "bert", HeadConfig(kind=head), layers=PLACE.get(kind, (0,)), tuner=KINDS[kind])
    chosen = {"choose": "fixed", "fixed": PLACE.get(kind)} if kind == "adapter" else None
    exported = [export_peft(prompt.path, tmp_path / "adapter")] if kind in ("soft_prompt", "ia3", "lora") else []
    arrays = load_file(prompt.path)
    for source in (prompt.path, tmp_path / "run", *exported):
        model, layout, vector_F, said, start = read_start(prompt, source, KINDS[kind], layers=chosen)
        assert said == f"starting from {source}{', and its head' if head == 'classifier' else ''}"
        assert layout.layers == PLACE.get(kind, (0,)) and vector_F.dtype == np.float32
        if kind == "ia3":  # files hold 1 + what is trained
            for layer in layout.layers:
                for name, array in layout.geometry.split(start.tuned_of(layer)).items():
                    np.testing.assert_array_equal(1 + array, arrays[f"ia3.{layer}.{name}"])
        else:
            np.testing.assert_array_equal(vector_F, prompt.vector_F)
        torch.testing.assert_close(start_scores(model, layout, vector_F, batch()), prompt.scores(batch()), **TOLERANCE)


def array_of(change):
    """Return a function that changes an adapter's arrays."""

    def act(adapter: Adapter) -> None:
        path = adapter.folder / "adapter_model.safetensors"
        save_file(change(load_file(path)), path)

    return act


ROWS = "prompt_embeddings"
VECTOR = "base_model.model.bert.encoder.layer.0.attention.self.key.ia3_l"
REFUSED = {
    "another length": (SOFT, None, {"length": 6}, r"with length 4, but section tuner has length 6; set tuner\.length=4$"),
    "two stacks": (SOFT, lambda a: a.change(num_transformer_submodules=2), {}, "of an encoder-decoder model; only models with"),
    "another width": (SOFT, array_of(lambda a: {ROWS: a[ROWS][:, 1:].copy()}), {}, r"has token_dim=32, but .* shape \(4, 31\)"),
    "a smaller model": (SOFT, lambda a: (array_of(lambda b: {ROWS: b[ROWS][:, 1:].copy()})(a), a.change(token_dim=31)), {},
                        r"prompt of shape \(4, 31\), but the model .* takes \(4, 32\); start from an adapter or a run"),
    "a deeper model": (SOFT, lambda a: a.change(num_layers=12), {}, r"on a model of 12 layers, but the model .* has 3 layers"),
    "no number of layers": (SOFT, lambda a: a.change(num_layers="x"), {}, r"has num_layers=x, not a number"),
    "NaN": (SOFT, array_of(lambda a: {ROWS: a[ROWS] * np.nan}), {}, "NaN or infinite numbers in prompt_embeddings"),
    "no prompt": (SOFT, array_of(lambda a: {"other": a[ROWS]}), {}, "no array prompt_embeddings; is it the whole adapter"),
    "more than a prompt": (SOFT, array_of(lambda a: a | {"base_model.bert.x": a[ROWS]}), {}, "also trained base_model.bert.x"),
    "p-tuning": (SOFT, lambda a: a.change(peft_type="P_TUNING"), {}, "adapter of type P_TUNING; only PROMPT_TUNING adapters"),
    "maps that the run has not": (IA3, None, {"targets": ["self.key"]},
        r"changes attention.output.dense, .*, but this run attention.self.key, so a part would be lost; set tuner.targets=\["),
    "outputs for inputs": (IA3, None, {"feedforward_targets": ["attention.output.dense"]},
        r"scales the input of output.dense, but this run its output; set "
        r"tuner.feedforward_targets=\[attention.output.dense,output.dense\]$"),
    "inputs for outputs": (IA3, None, {"feedforward_targets": ["key", "output.dense"]},
        r"scales the output of attention.self.key, but this run its input; set tuner.feedforward_targets=\["),
    "a matrix": (IA3, array_of(lambda a: a | {VECTOR: np.ones((4, 8), np.float32)}), {}, r"of shape \(4, 8\) in layer 0"),
    "a wider model": (IA3, array_of(lambda a: a | {VECTOR: np.ones((64, 1), np.float32)}), {}, r"\(64, 1\), but the model .* "),
    "no vectors": (IA3, array_of(lambda a: {}), {}, "holds no ia3_l; is it the whole adapter"),
}  # fmt: skip


@pytest.mark.parametrize("name", REFUSED)
def test_an_adapter_that_would_not_be_continued_exactly_is_refused(tmp_path, name):
    section, change, tuner, sentence = REFUSED[name]
    adapter = Adapter(tmp_path, "bert", section)
    if change is not None:
        change(adapter)
    with pytest.raises(ModelError, match=sentence) as caught:
        adapter.read(**tuner)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("section", [SOFT, IA3], ids=["soft_prompt", "ia3"])
def test_a_classifier_of_peft_is_left_out_and_said_to_be(tmp_path, section):
    adapter = Adapter(tmp_path, "bert", section, "AutoModelForSequenceClassification", task_type="SEQ_CLS")
    assert adapter.read()[3].endswith("; its classifier (classifier.bias, classifier.weight) is left out")


OTHERS = {
    "another generator": ("late_prompt", {"generator": "appg", "depth": 1},
                          r"depth 2, generator npg, but .* depth 1, generator appg; set tuner.depth=2 tuner.generator=npg"),
    "another bottleneck": ("generated_prompt", {"bottleneck": None}, "with bottleneck 4, but section tuner has bottleneck 16"),
    "a temperature": ("prompt_mixture", {"temperature": 2.0}, "temperature null, .* temperature 2; set tuner.temperature=null"),
    "norms": ("adapter", {"layer_norms": False}, "layer_norms true, but .* false; set tuner.layer_norms=true"),
    "other random sources": ("prompt_mixture", {"seed": 1}, "another sources than this run, .* frozen, .*; set the tuner"),
    "fewer sources": ("prompt_mixture", {"random_sources": 1}, "another sources than this run"),
    "another frozen half": ("lora", {"seed": 1}, "another attention.self.query.lora_A than .*; set tuner.train=both"),
    "layers that it lacks": ("adapter", {"layers": {"choose": "all"}},
                             r"tuner.start_from .* has nothing for layer 1, only for \[0, 2\]; start from one with every"),
}  # fmt: skip


@pytest.mark.parametrize("name", OTHERS)
def test_a_run_that_would_not_be_continued_exactly_is_refused(tmp_path, name):
    kind, changes, sentence = OTHERS[name]
    prompt = Prompt(tmp_path, "bert", layers=PLACE.get(kind, (0,)), tuner=KINDS[kind])
    options = {key: changes[key] for key in ("seed", "layers") if key in changes}
    options = {"layers": {"choose": "fixed", "fixed": PLACE.get(kind, (0,))}} | options
    section = KINDS[kind] | {key: value for key, value in changes.items() if key not in options}
    with pytest.raises(ModelError, match=sentence) as caught:
        read_start(prompt, prompt.path, section, **options)
    assert "\n" not in str(caught.value)


def test_what_is_no_source_is_refused(tmp_path):
    prompt, adapter = Prompt(tmp_path, "bert", tuner=SOFT, layers=(0,)), tmp_path / "lora"
    deeper = Prompt(tmp_path / "deeper", "bert", tuner=SOFT, layers=(0,), changes={"num_hidden_layers": 4})
    get_peft_model(prompt.base(), LoraConfig(target_modules=["query"])).save_pretrained(adapter)
    for section, source, sentence in (
        (SOFT, adapter, "adapter of type LORA; only PROMPT_TUNING"),
        (IA3, prompt.path, "was trained with tuner.kind=soft_prompt, but this run has tuner.kind=ia3"),
        (
            {"kind": "adapter"},
            adapter,
            r"is a PEFT adapter, and PEFT has none for tuner.kind=adapter; give the folder or",
        ),
        (SOFT, deeper.path, "was trained on a model of 4 layers, but the model .* has 3 layers"),
    ):
        with pytest.raises(ModelError, match=sentence):
            read_start(prompt, source, section)


RUNS = {
    "soft_prompt": {"length": 3},
    "prompt_mixture": {"length": 3, "bottleneck": 4},
    "lora": {"rank": 2, "exchange": "a"},
}


@pytest.mark.parametrize("kind", RUNS)
def test_a_run_goes_on_where_the_earlier_run_ended(tmp_path, kind):
    """On the embedded model; the file of a run that goes on scores as the run did, with what never travelled in it."""
    chosen = {"layers": {"choose": "top"}} if kind == "lora" else {}
    run = {
        "executor": "local",
        "rounds": 1,
        "tuner": {"kind": kind, **RUNS[kind]},
        **chosen,
        "tracking": {"plots": False},
    }
    first = merged(run, {"tuner": {"exchange": "both"}}) if kind == "lora" else run
    fedsim.run(make_tiny(**first, output=str(tmp_path / "run")), progress=False)
    source = export_peft(tmp_path / "run", tmp_path / "peft") if kind == "soft_prompt" else tmp_path / "run"
    more = make_tiny(**merged(run, {"tuner": {"start_from": str(source)}, "output": str(tmp_path / "more")}))
    fedsim.run(more, progress=False)
    ended, begun = (
        pyarrow.parquet.read_table(tmp_path / name / "rounds.parquet").to_pylist() for name in ("run", "more")
    )
    assert begun[0]["global_loss"] == ended[-1]["global_loss"] != ended[0]["global_loss"]
    model, examples = fedsim.load_adapter(tmp_path / "more"), partition_data(more).dataset.validation
    scores = torch.from_numpy(model.scores(examples.texts))
    loss = torch.nn.functional.cross_entropy(scores, torch.from_numpy(examples.labels_N))
    assert float(loss) == pytest.approx(begun[-1]["global_loss"])

"""Prompt files of tiny random models, and what PEFT makes of them; shared by several tests and no fixture."""

from __future__ import annotations

import re
import sys
from pathlib import Path

import numpy as np
import peft
import torch
import transformers
from safetensors.numpy import load_file, save_file
from support import make_tiny

sys.path.append(str(Path(__file__).parent / "clients"))
from tiny_models import (
    CONFIGS,
    ENCODERS_ALONE,
    ESSENTIAL,
    LABEL_WORDS,
    PROMPT_LENGTH,
    TINY,
    VOCABULARY,
    WITH_LM_HEAD,
    all_families,
    backbone,
    batch,
    families,
    runnable,
    save,
    tiny_model,
)

from clients.backbone.families import FAMILIES
from clients.backbone.loading import load_shared_weights
from clients.config import HeadConfig
from clients.tuners.config import ONE_PLACE, TunerConfig
from clients.tuners.initial import initial_vector
from clients.tuners.make import make_tuner
from clients.tuners.word_vectors import WordVectors
from fedsim.core.layout import VectorLayout
from fedsim.data.config import TaskConfig
from fedsim.prompts.prompt_file import save_personal_prompts, save_prompt
from fedsim.prompts.starting_point import check_start, load_start

__all__ = [
    "CONFIGS",
    "ENCODERS_ALONE",
    "ESSENTIAL",
    "LABEL_WORDS",
    "PROMPT_LENGTH",
    "TINY",
    "WITH_LM_HEAD",
    "all_families",
    "backbone",
    "batch",
    "families",
    "save",
    "tiny_model",
]

ALL_LAYERS = (0, 1, 2)
CLASSIFIED = ("bert", "roberta", "gpt2", "llama", *ENCODERS_ALONE)
"""Families whose exported classifiers are looked at; the last ones are alike."""
ROTARY = ("llama", "mistral", "qwen2", "qwen3")
TOLERANCE = {"rtol": 0.0, "atol": 3e-6}
TURNED = {"rtol": 0.0, "atol": 3e-5}
"""Where the text is numbered otherwise, a model's own rotations of the text are rounded otherwise."""
TASK = TaskConfig(
    name="own", fields=("text",), template="{text} . It was <mask> .", labels=("a", "b", "c"), label_words=("x", "y", "z")
)  # fmt: skip


class Prompt:
    """A prompt file of a tiny model, with what is in it."""

    def __init__(self, folder: Path, family: str, head: HeadConfig | None = None, layers=ALL_LAYERS, task=TASK, **keys):
        self.family, self.row = family, FAMILIES[family]
        changes = keys.pop("changes", {})
        max_length = keys.pop("max_length", 16)
        tuner = keys.pop("tuner", None)
        self.head_config = head or HeadConfig()
        kind = "base" if self.head_config.kind == "classifier" else None
        self.model = save(tiny_model(family, kind, **changes), folder / "model")
        own = None if tuner is None else TunerConfig(**tuner)
        offset = keys.setdefault("position_offset", "paper")
        self.backbone = backbone(self.model, self.head_config, position_offset=offset, tuner=own)
        self.layout = VectorLayout.full(self.backbone.geometry, self.backbone.head_shapes).exchanged(layers)
        self.spread = 1.0 if own is None else 0.3  # a change by two matrices grows with its square
        self.vector_F = np.random.default_rng(1).normal(0.0, self.spread, self.layout.size).astype(np.float32)
        self.path = folder / "run" / "prompt" / "global.safetensors"
        model = {"path": self.model, "head": self.head_config.model_dump(), "attention": runnable(family, "sdpa")}
        section = {"prompt": {"length": PROMPT_LENGTH, **keys}} if tuner is None else {"tuner": tuner}
        config = make_tiny(model=model, data={"max_length": max_length}, **section)
        save_prompt(self.path, self.vector_F, self.layout, config, task, constants=self.backbone._tuner.constants)

    def scores(self, data) -> torch.Tensor:
        tuned_LX, head = self.layout.split(torch.from_numpy(self.vector_F))
        head_1 = {name: array.unsqueeze(0) for name, array in head.items()}
        with torch.no_grad():
            return self.backbone.forward(data, tuned_LX.unsqueeze(0), self.layout.layers, head_1).logits_BC

    def base(self, kind: str | None = None) -> transformers.PreTrainedModel:
        kind = kind or ("CausalLM" if self.row.predicts_next else "MaskedLM")
        auto = getattr(transformers, f"AutoModelFor{kind}" if kind != "base" else "AutoModel")
        return auto.from_pretrained(self.model, dtype=torch.float32)

    def save_personal(self, clients=(3, 8), seed=7) -> np.ndarray:
        rest = VectorLayout.full(self.layout.geometry).local(self.layout.layers)
        personal_NM = np.random.default_rng(seed).normal(0.0, self.spread, (len(clients), rest.size)).astype(np.float32)
        save_personal_prompts(self.path.with_name("personal.safetensors"), clients, personal_NM, rest.layers)
        return personal_NM


def of_peft(model: peft.PeftModel, data):
    ids, mask = torch.from_numpy(data.input_ids_BT), torch.from_numpy(data.attention_mask_BT)
    with torch.no_grad():
        return model(input_ids=ids, attention_mask=mask)


def label_scores(model: peft.PeftModel, data) -> torch.Tensor:
    rows = torch.arange(len(data.labels_B))
    return of_peft(model, data).logits[rows, torch.from_numpy(data.read_positions_B)][:, LABEL_WORDS]


def run_readme(folder: Path, prompt: Prompt, data) -> dict:
    """Run the README's Python on a batch, and return its names."""
    blocks = re.findall(r"```python\n(.*?)```", (folder / "README.md").read_text(), re.DOTALL)
    code = "\n".join(blocks).replace("path/to/this/folder", str(folder))
    names = {
        "input_ids": torch.from_numpy(data.input_ids_BT),
        "attention_mask": torch.from_numpy(data.attention_mask_BT),
    }
    if data.token_type_ids_BT is not None:
        names["token_type_ids"] = torch.from_numpy(data.token_type_ids_BT)
    with torch.no_grad():
        exec(code, names)
    return names


def partial(tmp_path, **keys):
    return Prompt(tmp_path, "roberta", layers=(0, 2), **keys)


def with_personal(tmp_path):
    prompt = partial(tmp_path)
    prompt.save_personal()
    return prompt


def change_array(folder: Path, change) -> None:
    """Change the arrays of an adapter."""
    arrays = load_file(folder / "adapter_model.safetensors")
    save_file(change(arrays), folder / "adapter_model.safetensors")


def read_start(prompt: Prompt, source: Path, section: dict, head: HeadConfig | None = None, seed: int = 0, layers=None):
    """Return the starting point of a run on the prompt's model: model, layout, initial vector, sentence, what was read."""
    given = {"path": prompt.model, "head": (head or prompt.head_config).model_dump()}
    tuner = {**section, "start_from": str(source)}
    chosen = {} if section["kind"] in ONE_PLACE else {"layers": layers or {"choose": "all"}}
    config = make_tiny(model=given, tuner=tuner, seed=seed, **chosen)
    weights = load_shared_weights(config.model)
    words = WordVectors(weights, frozenset(), VOCABULARY, LABEL_WORDS)
    made = make_tuner(config.tuner, config.prompt, weights.family, seed).knowing(words, seed)
    start = load_start(config, weights, made)
    model = backbone(weights, config.model.head, tuner=config.tuner)
    full = VectorLayout.full(model.geometry, model.head_shapes)
    said = check_start(config, start, full)
    layout = full.exchanged(start.layers)
    return model, layout, initial_vector(layout, made, config.model.head, seed, start), said, start


def start_scores(model, layout: VectorLayout, vector_F: np.ndarray, data) -> torch.Tensor:
    tuned_LX, head = layout.split(torch.from_numpy(vector_F))
    heads = {name: array.unsqueeze(0) for name, array in head.items()}
    with torch.no_grad():
        return model.forward(data, tuned_LX.unsqueeze(0), layout.layers, heads).logits_BC

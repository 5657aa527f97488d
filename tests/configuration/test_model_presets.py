"""Presets of models (configs/models): resolved, planned at the published sizes, and run on a tiny model of the same family."""

from __future__ import annotations

import json
import math
import re
import struct
import sys
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from support import sweep
from transformers import AutoTokenizer, PreTrainedModel

import fedsim
from clients.backbone.families import FAMILIES
from clients.backbone.lean_imports import plain_meta
from clients.backbone.location import locate
from clients.config import ModelConfig
from fedsim import cli
from fedsim.configuration.presets import presets
from fedsim.configuration.schema import Config, read_config
from fedsim.planning.memory import estimate_memory
from fedsim.planning.model_shape import model_shape

_ROPE = {"rope_type": "default", "rope_theta": 1e6}
PUBLISHED: dict[str, tuple[dict[str, object], int]] = {
    "smollm2_135m": (
        {"model_type": "llama", "hidden_size": 576, "intermediate_size": 1536, "num_hidden_layers": 30, "vocab_size": 49152,
         "num_attention_heads": 9, "num_key_value_heads": 3, "max_position_embeddings": 8192, "hidden_act": "silu",
         "tie_word_embeddings": True}, 134_515_008,
    ),
    "qwen3_0_6b": (
        {"model_type": "qwen3", "hidden_size": 1024, "intermediate_size": 3072, "num_hidden_layers": 28, "vocab_size": 151936,
         "num_attention_heads": 16, "num_key_value_heads": 8, "head_dim": 128, "max_position_embeddings": 40960,
         "hidden_act": "silu", "tie_word_embeddings": True}, 596_049_920,
    ),
    "gemma3_1b": (
        {"model_type": "gemma3_text", "hidden_size": 1152, "intermediate_size": 6912, "num_hidden_layers": 26,
         "vocab_size": 262144, "num_attention_heads": 4, "num_key_value_heads": 1, "head_dim": 256, "sliding_window": 512,
         "sliding_window_pattern": 6, "max_position_embeddings": 32768, "query_pre_attn_scalar": 256}, 999_885_952,
    ),
    "llama3_2_1b": (
        {"model_type": "llama", "hidden_size": 2048, "intermediate_size": 8192, "num_hidden_layers": 16, "vocab_size": 128256,
         "num_attention_heads": 32, "num_key_value_heads": 8, "head_dim": 64, "max_position_embeddings": 131072,
         "hidden_act": "silu", "tie_word_embeddings": True}, 1_235_814_400,
    ),
    "modernbert_base": (
        {"model_type": "modernbert", "hidden_size": 768, "intermediate_size": 1152, "num_hidden_layers": 22,
         "vocab_size": 50368, "num_attention_heads": 12, "local_attention": 128, "max_position_embeddings": 8192},
        149_655_232,
    ),
    "roberta_large": (
        {"model_type": "roberta", "hidden_size": 1024, "intermediate_size": 4096, "num_hidden_layers": 24, "vocab_size": 50265,
         "num_attention_heads": 16, "max_position_embeddings": 514, "type_vocab_size": 1}, 355_412_057,
    ),
}  # fmt: skip
"""What decides the size in each published config.json, and the published number of parameters, LM head included."""
SMALLER = {
    "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 3, "num_attention_heads": 4, "num_key_value_heads": 2,
    "head_dim": 8, "sliding_window": 40, "sliding_window_pattern": 2, "local_attention": 40, "max_position_embeddings": 160,
    "query_pre_attn_scalar": 8,
}  # fmt: skip


@pytest.fixture
def printed(monkeypatch, capsys):
    """Return a function that runs ``fedsim ARGUMENTS`` and returns (status, out, err)."""
    monkeypatch.setenv("COLUMNS", "200")

    def call(*arguments):
        monkeypatch.setattr(sys, "argv", ["fedsim", *arguments])
        try:
            cli.main()
            status = 0
        except SystemExit as ended:
            status = ended.code or 0
        return status, *capsys.readouterr()

    return call


every = pytest.mark.parametrize("name", PUBLISHED)


def built(values: dict[str, object]) -> PreTrainedModel:
    family = FAMILIES[str(values["model_type"])]
    return family.model_class(family.lm_kind)(family.config(values), **family.arguments(family.lm_kind))


def write_published(folder: Path, values: dict[str, object]) -> PreTrainedModel:
    """Write config.json, and a weight file with all names and shapes whose numbers are a hole; return the model on meta."""
    with torch.device("meta"), plain_meta():
        model = built(values)
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps(values))
    at, head = 0, {}
    for key, parameter in model.named_parameters():
        end = at + 2 * parameter.numel()
        head[key] = {"dtype": "BF16", "shape": list(parameter.shape), "data_offsets": [at, end]}
        at = end
    text = json.dumps(head).encode()
    with (folder / "model.safetensors").open("wb") as file:
        file.write(struct.pack("<Q", len(text)) + text)
        file.truncate(8 + len(text) + at)
    return model


def stored_bytes(model: PreTrainedModel, config: Config) -> int:
    """Return the bytes of the frozen weights, by the shape of each parameter; matrices of layers alone are quantised."""
    total = 0
    for key, parameter in model.named_parameters():
        matrix = parameter.ndim == 2 and re.search(r"\.\d+\.", key)
        if matrix and config.model.quantize == "int8":
            total += parameter.numel() + 2 * parameter.shape[0]
        else:
            short = matrix and config.model.product_dtype != "float32"
            total += parameter.numel() * (2 if short else 4)
    return total


def test_every_preset_of_a_model_is_under_test():
    names = {preset.name for preset in presets() if preset.name.startswith("models/")}
    assert names == {f"models/{name}" for name in PUBLISHED}


@every
def test_a_preset_is_planned_at_the_published_size(name, tmp_path, printed):
    values, parameters = PUBLISHED[name]
    model = write_published(tmp_path / "model", values)
    assert sum(parameter.numel() for parameter in model.parameters()) == parameters
    changes = [
        f"model.path={tmp_path / 'model'}",
        "model.products=float32",
        "data.source=embedded",
        "data.task=reviews",
    ]
    config = read_config(f"models/{name}", changes)
    shape = model_shape(config.model)
    assert shape is not None and shape.num_parameters == parameters
    memory = estimate_memory(config, shape, 1000, 2)
    assert memory.weights == pytest.approx(stored_bytes(model, config), rel=0.01)
    comment = next(
        line for line in Path(read_path(name)).read_text().splitlines() if line.startswith("# Frozen weights")
    )
    stated = float(re.search(r"weights ([\d.]+) GB", comment)[1])
    assert math.isclose(memory.weights / 1e9, stated, rel_tol=0.06), (memory.weights, comment)
    # With the passes of one actor it fits a machine of 16 GB.
    assert memory.driver + memory.stored + memory.actor < 16e9
    status, out, err = printed("plan", f"models/{name}", *changes, "ray.actors=1")
    assert status == 0, err
    assert "frozen weights" in out and ("while they are read" in out) == (config.model.quantize != "none")


def read_path(name: str) -> Path:
    return next(preset.path for preset in presets() if preset.name == f"models/{name}")


def test_the_plan_counts_words_gates_and_heads_of_each_family_alike(tmp_path):
    """The matrices that the plan multiplies out are those of the model, to the number."""
    for name, (values, _) in PUBLISHED.items():
        model = write_published(tmp_path / name, values)
        shape = model_shape(ModelConfig(path=str(tmp_path / name)))
        inside = sum(p.numel() for key, p in model.named_parameters() if p.ndim == 2 and re.search(r"\.\d+\.", key))
        assert shape.num_layers * sum(size_out * size_in for size_out, size_in in shape.matrices) == inside, name


@pytest.mark.parametrize("name", sweep(PUBLISHED, ("gemma3_1b", "roberta_large")))
def test_a_preset_runs_on_a_tiny_model_of_its_family(name, tmp_path):
    """As it is, but for the sizes, the data and the number of rounds and clients."""
    folder = tmp_path / "model"
    tokenizer = AutoTokenizer.from_pretrained(locate(ModelConfig()))
    values = {key: SMALLER.get(key, value) for key, value in PUBLISHED[name][0].items()}
    torch.manual_seed(0)
    tokens = {"pad_token_id": tokenizer.pad_token_id, "bos_token_id": None, "eos_token_id": None}
    built(values | tokens | {"vocab_size": len(tokenizer)}).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    config = read_config(
        f"models/{name}",
        [f"model.path={folder}", "data.source=embedded", "data.task=reviews", "data.train_examples=200", "data.max_length=48",
         "data.validation_examples=24", "partition.clients=12", "sampling.clients_per_round=3", "rounds=1", "executor=local",
         f"output={tmp_path / 'run'}", "tracking.plots=false"],
    )  # fmt: skip
    summary = fedsim.run(config, progress=False)
    assert summary["rounds"] == 1 and summary["clients_failed"] == 0
    losses = pq.read_table(tmp_path / "run" / "rounds.parquet")["global_loss"].to_pylist()
    assert np.isfinite(losses).all() and losses[0] != losses[-1]

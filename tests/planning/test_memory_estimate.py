"""Estimates against what is really stored, and against what workers go by."""

import numpy as np
import pytest

from clients.config import ModelConfig
from fedsim.checkpoint import load_latest
from fedsim.planning.memory import estimate_memory
from fedsim.planning.model_shape import model_shape
from fedsim.preparation import prepare
from fedsim.runner import run_config


def test_the_shape_is_that_of_the_embedded_model():
    shape = model_shape(ModelConfig())
    assert (shape.num_layers, shape.num_heads, shape.num_kv_heads, shape.head_dim) == (4, 4, 4, 16)
    assert (shape.hidden_size, shape.feed_forward_size, shape.gated, shape.vocab_size) == (64, 128, False, 1299)


def test_a_model_that_was_never_fetched_has_no_shape(tmp_path, monkeypatch):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    assert model_shape(ModelConfig(path="nobody/nothing")) is None


CONFIGS = {
    "as it is": {},
    "float64": {"model": {"dtype": "float64"}},
    "personal prompts and moments": {"layers": {"unselected": "local"}, "client": {"optimizer": {"moments": "keep"}}},
    "classifier without control": {"model": {"head": {"kind": "classifier"}}, "server": {"kind": "fedavg"}},
}


@pytest.mark.parametrize("changes", CONFIGS.values(), ids=CONFIGS)
def test_what_is_stored_is_within_its_bounds_and_near_them(tiny_config, changes):
    config = tiny_config(executor="local", **changes)
    spec = prepare(config).spec
    memory = estimate_memory(
        config, model_shape(config.model), len(spec.train) + len(spec.validation), spec.num_classes
    )
    # A checkpoint holds an LM head, which a classifier does not load.
    assert 0.9 * memory.weights <= spec.weights.nbytes <= 1.01 * memory.weights
    assert spec.train.nbytes + spec.validation.nbytes + spec.shards.nbytes <= memory.tokens
    assert spec._most_trunk_bytes() <= memory.trunks


@pytest.mark.parametrize("changes", CONFIGS.values(), ids=CONFIGS)
def test_what_clients_keep_and_send_is_what_is_planned(tiny_config, changes, tmp_path):
    folder = tmp_path / "run"
    base = {"executor": "local", "rounds": 1, "output": str(folder), "tracking": {"plots": False}}
    config = tiny_config(**base, partition={"clients": 5}, **changes)
    summary = run_config(config, quiet=True)
    checkpoint, _ = load_latest(folder / "checkpoints")
    memory = estimate_memory(config, model_shape(config.model), 300, 2)
    assert len(checkpoint.clients) == 5
    kept = [value for state in checkpoint.clients for value in vars(state).values() if isinstance(value, np.ndarray)]
    assert sum(array.nbytes for array in kept) == memory.client_states
    assert summary["exchanged_parameters"] * np.dtype(config.model.exchange_dtype).itemsize == memory.exchanged

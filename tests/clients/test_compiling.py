"""Compiled layers: the same losses and gradients, from graphs that serve passes of any size."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
import torch._inductor.config
from tiny_models import LABEL_WORDS, prompts, save, tiny_model
from tiny_work import token_table
from torch import nn
from torch._dynamo.testing import CompileCounter

from clients.backbone.frozen_states import compute_states
from clients.backbone.loading import load_shared_weights
from clients.backbone.model import Backbone
from clients.config import ModelConfig, PromptConfig
from clients.tuners.hooks import Hooks
from clients.tuners.prefix_tuner import PrefixTuner
from fedsim.core.errors import ResourceError


def build(path: str, *, compiled: bool) -> Backbone:
    config = ModelConfig(path=path, compile=compiled)
    weights, prompt = load_shared_weights(config), PrefixTuner(PromptConfig(length=4))
    return Backbone.build(weights, config, prompt, len(LABEL_WORDS), LABEL_WORDS, "cpu")


def gradient(model: Backbone, count: int, layers: tuple[int, ...], cached: torch.Tensor | None = None) -> torch.Tensor:
    tokens, prompt_CLKHPD = token_table(20).pack(np.arange(count)), prompts(model, layers, clients=3)
    reading, _ = model.read(tokens, prompt_CLKHPD, layers, {}, torch.arange(count) % 3, cached)
    (found,) = torch.autograd.grad(reading.loss_B.sum(), prompt_CLKHPD)
    return found


@pytest.mark.parametrize("where", ["output", "input"])
def test_hooks_of_all_layers_share_their_graphs(where: str) -> None:
    """More layers need no more graphs: past a limit of its own, torch.compile would leave layers as they are."""
    graphs = []
    for count in (3, 12):
        torch._dynamo.reset()
        counter = CompileCounter()
        layers = nn.ModuleList(nn.Sequential(nn.Linear(4, 4)) for _ in range(count))
        compiled = [torch.compile(layer.forward, backend=counter, dynamic=True) for layer in layers]
        for _ in range(2):  # every pass has hooks of its own
            hidden_BD = torch.ones(2, 4)
            with Hooks(layers, "LoRA") as hooks, torch.no_grad():
                for layer in range(count):
                    change_D = torch.full((4,), float(layer))
                    if where == "output":
                        hooks.output(layer, "0", lambda entered, left, change_D=change_D: left + entered * change_D)
                    else:
                        hooks.input(layer, "0", lambda entered, change_D=change_D: entered + change_D)
                for layer in compiled:
                    hidden_BD = layer(hidden_BD)
        graphs.append(counter.frame_count)
    assert 0 < graphs[0] == graphs[1]


@pytest.mark.wide(alone="a compiler takes a minute")
@pytest.mark.skipif(not any(map(shutil.which, ("g++", "clang++"))), reason="torch.compile needs a C++ compiler")
def test_compiled_layers_say_the_same(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(
        torch._inductor.config, "compile_threads", 1
    )  # processes to compile in cost more than they save
    path = save(tiny_model("roberta", num_hidden_layers=2), tmp_path / "model")
    plain, compiled = build(path, compiled=False), build(path, compiled=True)
    torch._dynamo.reset()
    torch._dynamo.utils.counters.clear()
    every = tuple(range(plain.geometry.num_layers))
    graphs = []
    for count in (7, 12, 19, 5):
        expected = gradient(plain, count, every)
        found = gradient(compiled, count, every)
        assert float((found - expected).norm() / expected.norm()) < 1e-5
        graphs.append(torch._dynamo.utils.counters["stats"]["unique_graphs"])
    # After a second size, whose numbers are symbols from then on, no further graph is made.
    assert graphs[0] > 0 and graphs[1] == graphs[-1]
    # The upper layers alone, on what the lower ones leave.
    tokens = token_table(20).pack(np.arange(9))
    cached_ZD = compute_states(plain, token_table(20), np.arange(9), every[1:], "float32", max_tokens=1000).tensor()
    assert len(cached_ZD) == len(tokens.ids_Z)
    expected = gradient(plain, 9, every[1:], cached_ZD)
    assert float((gradient(compiled, 9, every[1:], cached_ZD) - expected).norm() / expected.norm()) < 1e-5


def test_without_a_compiler_one_sentence_says_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = save(tiny_model("roberta"), tmp_path / "model")
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.delenv("CXX", raising=False)
    with pytest.raises(ResourceError, match=r"needs a C\+\+ compiler.*model\.compile=false"):
        build(path, compiled=True)

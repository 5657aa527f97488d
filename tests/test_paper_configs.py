"""The paper's runs: every file resolves for every task, switches on what the published code does, and runs scaled down."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import load_file

from fedsim.config import Config, read_config
from fedsim.data.tasks import HUB_SOURCES, TASKS, resolve_task
from fedsim.preparation import work_settings
from fedsim.prompted import GLOBAL_PROMPT
from fedsim.runner import run_config

FOLDER = Path(__file__).parents[1] / "configs" / "paper"
FILES = sorted(FOLDER.glob("*.yaml"))

PUBLISHED: dict[str, Any] = {
    "rounds": 100,
    "model.head.kind": "verbalizer",
    "model.head.loss": "vocabulary",
    "prompt.length": 20,
    "prompt.init_std": 0.02,
    "prompt.position_offset": "paper",
    "layers.choose": "score",
    "layers.share_rule": "density",
    "layers.unselected": "local",
    "layers.score_last": False,
    "layers.score_padding": "keep",
    "layers.spectrum.warmup_rounds": 10,
    "layers.spectrum.lanczos_steps": 50,
    "layers.spectrum.probes": 1,
    "layers.spectrum.weighting": "uniform",
    "data.source": "hub",
    "partition.kind": "dirichlet_label",
    "partition.clients": 100,
    "partition.alpha": 1.0,
    "partition.size_alpha": 5.0,
    "sampling.kind": "uniform",
    "sampling.clients_per_round": 10,
    "client.epochs": 2,
    "client.steps": None,
    "client.batch_size": 8,
    "client.dropout": True,
    "client.shuffle": True,
    "client.optimizer.kind": "adamw_published",
    "client.optimizer.moments": "keep",
    "client.optimizer.lr": 4e-2,
    "client.optimizer.beta1": 0.9,
    "client.optimizer.beta2": 0.999,
    "client.optimizer.eps": 1e-8,
    "client.optimizer.weight_decay": 0.1,
    "client.optimizer.clip_norm": 1.0,
    "client.schedule.kind": "linear",
    "client.schedule.warmup_steps": 0,
    "client.schedule.total_steps": "all_data",
    "server.kind": "fedpeptao_published",
    "server.gradient": "difference",
    "server.base": "average",
    "server.coupling": "chained",
    "server.momentum_form": "control_in_velocity",
    "server.control": True,
    "server.control_form": "scaffold",
    "server.control_timing": "after",
    "server.debias": False,
    "server.lr": 0.05,
    "server.lr_decay": 0.99,
    "server.lr_min": 1e-4,
    "server.momentum": 0.9,
    "server.weighting": "examples",
}


def value(config: Config, key: str) -> Any:
    """Return the value of a dotted key."""
    found: Any = config
    for name in key.split("."):
        found = getattr(found, name)
    return found


def test_there_is_a_file_for_every_model_of_the_paper():
    assert [path.stem for path in FILES] == ["gpt2_large", "llama_3b", "llama_7b", "roberta_large"]


@pytest.mark.parametrize("task", TASKS)
@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_every_task_resolves(path, task):
    config = read_config(path, [f"data.task={task}"])
    assert resolve_task(config.data.task) == TASKS[task]
    assert config.data.task in HUB_SOURCES


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_the_published_choices_are_on(path):
    config = read_config(path)
    wrong = {key: value(config, key) for key, expected in PUBLISHED.items() if value(config, key) != expected}
    assert not wrong
    assert config.correction == "none"
    settings = work_settings(config, 1000)
    assert settings.uses_control and settings.needs_each_client and settings.keep_local


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_the_schedule_is_as_long_as_all_examples_for_all_rounds(path):
    assert work_settings(read_config(path), 67_349).client.schedule.total_steps == 100 * 8419
    more = read_config(path, ["rounds=200"])
    assert more.identity != read_config(path).identity  # more rounds are another schedule
    assert read_config(path, ["client.schedule.total_steps=5", "rounds=200"]).identity == (
        read_config(path, ["client.schedule.total_steps=5"]).identity
    )


SCALED_DOWN = [
    "model.path=embedded",
    "data.source=embedded",
    "data.task=reviews",
    "data.train_examples=240",
    "data.validation_examples=60",
    "partition.clients=12",
    "sampling.clients_per_round=4",
    "rounds=4",
    "prompt.length=4",
    "layers.spectrum.warmup_rounds=1",
    "layers.spectrum.lanczos_steps=8",
    "evaluation.every=2",
    "evaluation.personalised_every=2",
    "executor=local",
    "tracking.plots=false",
]


def test_a_scaled_down_run_finishes_and_is_not_the_recommended_one(tmp_path):
    path = FOLDER / "roberta_large.yaml"
    scaled = {override.partition("=")[0] for override in SCALED_DOWN}
    config = read_config(path, [*SCALED_DOWN, f"output={tmp_path / 'published'}"])
    kept = [key for key in PUBLISHED if key not in scaled]
    assert len(kept) > 40 and all(value(config, key) == PUBLISHED[key] for key in kept)

    summary = run_config(config, quiet=True)
    assert summary["client_updates"] == 4 * config.rounds
    assert 1 <= len(summary["layers"]) <= 4
    assert np.isfinite(summary["global_metric"]) and np.isfinite(summary["personalised_metric"])

    other = read_config(
        path, [*SCALED_DOWN, "server=null", "server.kind=fedpeptao", f"output={tmp_path / 'recommended'}"]
    )
    assert other.server.coupling == "independent"
    run_config(other, quiet=True)
    prompts = [load_file(tmp_path / name / "prompt" / GLOBAL_PROMPT) for name in ("published", "recommended")]
    assert prompts[0].keys() == prompts[1].keys()
    assert all(not np.allclose(prompts[0][name], prompts[1][name]) for name in prompts[0])

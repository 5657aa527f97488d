"""Whole runs with shared passes and the frozen-layer cache: only time changes, to the bit where guaranteed."""

from pathlib import Path

import numpy as np
import pytest
import yaml
from safetensors.numpy import load_file
from support import UPPER, make_tiny

import fedsim
from fedsim.configuration.schema import read_config


def run(make, path, **changes):
    summary = fedsim.run(make(output=str(path), **changes), progress=False)
    return load_file(path / "prompt" / "global.safetensors"), summary


def distance(one, other):
    return max(np.linalg.norm(one[name] - other[name]) / np.linalg.norm(other[name]) for name in other)


@pytest.fixture(scope="module")
def upper(tmp_path_factory):
    """A run in this process with prompts in the upper layers: shared passes, cached states."""
    return run(make_tiny, tmp_path_factory.mktemp("upper") / "run", executor="local", **UPPER)


def test_shared_passes_change_a_run_by_rounding_alone(tiny_config, upper, tmp_path):
    prompt, summary = upper
    alone, own = run(tiny_config, tmp_path / "alone", executor="local", **UPPER, client={"fuse": "off"})
    assert (summary["fuse"], own["fuse"]) == (3, 1)
    assert 0 < distance(prompt, alone) < 1e-4
    assert own["client_tokens"] == summary["client_tokens"] > 0
    assert 0 <= summary["padding_share"] < 0.5


def test_the_trunk_cache_changes_a_run_by_rounding_alone(tiny_config, upper, tmp_path):
    prompt, summary = upper
    off = {"trunk_cache": {"dtype": "off"}}
    without, own = run(tiny_config, tmp_path / "off", executor="local", **UPPER, model=off)
    assert distance(prompt, without) < 1e-5
    assert own["trunk_cache"] == {"hits": 0, "misses": 0, "evictions": 0, "bytes": 0}
    assert summary["trunk_cache"]["hits"] > 0 and summary["trunk_cache"]["bytes"] > 0


def test_no_room_for_trunks_changes_no_bit(tiny_config, upper, tmp_path):
    model = {"trunk_cache": {"memory_mb": 0}}
    prompt, summary = run(tiny_config, tmp_path / "run", executor="local", model=model, **UPPER)
    assert all(np.array_equal(prompt[name], upper[0][name]) for name in prompt)
    assert summary["trunk_cache"]["hits"] == 0
    assert summary["global_metric"] == upper[1]["global_metric"]


def test_trunks_on_actors_change_no_bit(session_ray_run, tiny_config, tmp_path):
    folder, summary, *_ = session_ray_run
    client = {"fuse": summary["fuse"]}  # a fuse trial on a busy machine may decide differently than in this process
    expected, own = run(tiny_config, tmp_path / "run", executor="local", client=client, **UPPER)
    prompt = load_file(folder / "prompt" / "global.safetensors")
    assert all(np.array_equal(prompt[name], expected[name]) for name in prompt)
    assert summary["trunk_cache"]["hits"] > 0
    assert summary["global_metric"] == own["global_metric"]


def test_a_trunk_in_half_precision_is_close(tiny_config, upper, tmp_path):
    model = {"trunk_cache": {"dtype": "bfloat16"}}
    prompt, summary = run(tiny_config, tmp_path / "half", executor="local", **UPPER, model=model)
    assert 0 < distance(prompt, upper[0]) < 0.2
    assert summary["trunk_cache"]["bytes"] * 2 == upper[1]["trunk_cache"]["bytes"]


def test_the_record_of_a_run_gives_the_same_bits_again(tiny_config, upper, tmp_path):
    recorded = Path(upper[1]["folder"]) / "config.yaml"
    assert yaml.safe_load(recorded.read_text())["client"]["fuse"] == 3
    prompt, _ = run(lambda **changes: read_config(recorded, [f"output={changes['output']}"]), tmp_path / "again")
    assert all(np.array_equal(prompt[name], upper[0][name]) for name in prompt)


def test_a_run_that_goes_on_keeps_its_number(tiny_config, upper, tmp_path):
    path = tmp_path / "run"
    changes = {"executor": "local", **UPPER}
    fedsim.run(tiny_config(output=str(path), rounds=2, client={"fuse": 2}, **changes), progress=False)
    summary = fedsim.run(tiny_config(output=str(path), rounds=3, **changes), progress=False, resume=True)
    assert (summary["fuse"], summary["rounds"]) == (2, 3)

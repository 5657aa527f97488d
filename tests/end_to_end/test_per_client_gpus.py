"""Actors with shares of a GPU that Ray was told of, or with two of them: the bits of a run in one process."""

import json

import pytest
from support import FINAL, FINAL_TABLES

import fedsim

FEW = {
    "rounds": 1,
    "partition": {"clients": 3},
    "sampling": {"clients_per_round": 3},
    "layers": {
        "share_rule": "eigengap",
        "spectrum": {"warmup_rounds": 2, "batch_size": 4, "lanczos_steps": 10, "directions": 1},
    },
    "client": {"fuse": "off"},  # one actor a client cannot share passes
    "tracking": {"plots": False},
    **FINAL,
}


def spectra(folder):
    events = map(json.loads, (folder / "metrics.jsonl").read_text().splitlines())
    kept = ("client", "num_examples", "share", "lipschitz", "values_RK", "weights_RK")
    return [{key: event[key] for key in kept} for event in events if event["event"] == "spectrum"]


def test_an_actor_for_each_client_shares_one_declared_gpu(session_ray, tiny_config, tmp_path, capsys):
    shares = {"address": "auto", "actors": "per_client", "num_gpus_per_actor": 1 / 3}
    summary = fedsim.run(tiny_config(output=str(tmp_path / "run"), ray=shares, **FEW), progress=False)
    assert len({worker["pid"] for worker in summary["workers"]}) == 3
    # No real GPU stands behind the declared one: the run says so and records what it computed on.
    if all(worker["device"] == "cpu" for worker in summary["workers"]):
        assert "torch sees no GPU there; they compute on the CPU" in capsys.readouterr().out
    assert json.loads((tmp_path / "run" / "metrics.jsonl").read_text().splitlines()[-1])["event"] == "end"
    assert summary["client_updates"] == 3
    # Everything was given back.
    assert session_ray.cluster_resources()["GPU"] == 2

    local = fedsim.run(tiny_config(output=str(tmp_path / "local"), executor="local", **FEW), progress=False)
    for name in ("prompt/global.safetensors", *FINAL_TABLES):
        assert (tmp_path / "run" / name).read_bytes() == (tmp_path / "local" / name).read_bytes()
    assert spectra(tmp_path / "run") == spectra(tmp_path / "local") != []
    for key in ("share", "share_rule", "layers", "config_hash"):
        assert summary[key] == local[key], key
    costs = [
        {key: value for key, value in each["share_cost"].items() if not key.startswith("seconds")}
        for each in (summary, local)
    ]
    assert costs[0] == costs[1]


@pytest.mark.wide(alone="4 s; what Ray gives such an actor is tested always, in test_rooms.py and test_device.py")
def test_an_actor_with_both_declared_gpus_does_the_run(session_ray, tiny_config, tmp_path, capsys):
    """Where torch sees them the model is spread over both; without real ones the run says so, and its results are the same."""
    small = {"rounds": 1, "tracking": {"plots": False}}
    both = {"address": "auto", "actors": 1, "num_gpus_per_actor": 2}
    summary = fedsim.run(tiny_config(output=str(tmp_path / "run"), ray=both, **small), progress=False)
    (worker,) = summary["workers"]
    assert worker["device"] in ("cpu", "cuda:0, cuda:1")
    if worker["device"] == "cpu":
        assert "torch sees no GPU there; they compute on the CPU" in capsys.readouterr().out
        fedsim.run(tiny_config(output=str(tmp_path / "local"), executor="local", **small), progress=False)
        found = [(tmp_path / name / "prompt" / "global.safetensors").read_bytes() for name in ("run", "local")]
        assert found[0] == found[1]

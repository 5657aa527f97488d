"""Twelve clients as twelve actors, each with 1/12 of the one GPU that Ray was told of."""

import json

from fedsim.runner import run_config


def test_twelve_actors_share_one_declared_gpu(session_ray, tiny_config, tmp_path, capsys):
    output = tmp_path / "run"
    config = tiny_config(
        output=str(output),
        rounds=1,
        sampling={"clients_per_round": 12},
        ray={"address": "auto", "actors": "per_client", "num_gpus_per_actor": 1 / 12},
    )
    summary = run_config(config, quiet=True)
    assert len({worker["pid"] for worker in summary["workers"]}) == 12
    # No real GPU stands behind the declared one: the run says so and records what it computed on.
    if all(worker["device"] == "cpu" for worker in summary["workers"]):
        assert "torch sees no GPU there; they compute on the CPU" in capsys.readouterr().out
    clients = [json.loads(line) for line in (output / "metrics.jsonl").read_text().splitlines()]
    assert clients[-1]["event"] == "end"
    assert summary["client_updates"] == 12
    # Everything was given back.
    assert session_ray.cluster_resources()["GPU"] == 1
    local = tmp_path / "local"
    run_config(
        tiny_config(
            output=str(local),
            rounds=1,
            sampling={"clients_per_round": 12},
            executor="local",
            client={"fuse": "off"},  # one actor a client cannot share passes
        ),
        quiet=True,
    )
    name = "prompt/global.safetensors"
    assert (output / name).read_bytes() == (local / name).read_bytes()

"""The baselines of configs/methods that are configs: each has the property that defines it, on real rounds."""

from __future__ import annotations

import numpy as np
from method_rounds import Rounds, shipped

import fedsim
from clients.worker import ClientWorker
from fedsim.prompts.prompt_file import read_prompt
from fedsim.simulation.preparation import prepare


def numbers(folder) -> np.ndarray:
    file = read_prompt(folder)
    return file.tuned_LX.reshape(-1).astype(float)


def test_momd_takes_steps_with_momentum_on_devices_and_averages(tmp_path):
    """Two full batches: the second step repeats the first one, times the momentum, on top of plain SGD."""
    ends = {}
    for momentum, steps in ((0.9, 1), (0.9, 2), (0.0, 2)):
        folder = tmp_path / f"{momentum}-{steps}"
        config = shipped(
            "momd", "rounds=1", "client.epochs=", f"client.steps={steps}", "client.batch_size=200",
            f"client.optimizer.momentum={momentum}", f"output={folder}",
        )  # fmt: skip
        summary = fedsim.run(config, progress=False)
        assert summary["vectors_up"] == summary["vectors_down"] == ["prompt"] and summary["layers"] == [0, 1, 2, 3]
        ends[momentum, steps] = numbers(folder)
    spec = prepare(config).spec
    start = spec.initial_vector(ClientWorker(spec).info().full)
    first, gap = ends[0.9, 1] - start, ends[0.9, 2] - ends[0.0, 2]
    np.testing.assert_allclose(gap, 0.9 * first, rtol=0, atol=1e-3 * np.abs(first).max())


def test_moms_adamd_has_momentum_on_the_server_and_adam_without_control_on_devices():
    config = shipped("moms_adamd")
    rounds = Rounds(config)
    assert config.client.optimizer.kind == "adamw" and config.client.optimizer.weight_decay == 0
    assert not config.method.broadcast and not rounds.spec.keeps_state and len(config.traffic.up) == 1
    momentum, velocity_F = config.server.momentum, 0.0
    for round in range(3):
        before, vectors, weights, after = rounds.play(round)
        velocity_F = momentum * velocity_F + before - weights @ vectors.astype(float)
        np.testing.assert_allclose(before - after, config.server.lr * velocity_F, rtol=0, atol=1e-6)
    assert momentum > 0 and "control" not in rounds.server.arrays()

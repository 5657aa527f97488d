"""Cells that compare a GPU with a CPU: where clients' local training ends, in float32."""

from __future__ import annotations

import numpy as np

from benchmarks.gpu_report.figures import Figure
from benchmarks.gpu_report.shapes import ModelSize
from benchmarks.gpu_report.speed import Bench
from benchmarks.gpu_report.timing import release
from benchmarks.gpu_report.training import BATCH_SIZE, Work
from clients.config import ClientConfig

CLIENTS, LAYERS = 3, 4
FARTHEST = 1e-3
"""Largest distance, as a share of the way from the start, with plain SGD. There is no aim for Adam, which divides a gradient by
its own size: where one is no more than rounding, its sign may be another."""
OPTIMIZERS = {"sgd": {"kind": "sgd", "lr": 0.1}, "adamw": {"kind": "adamw", "lr": 0.001}}


def gpu_against_cpu(bench: Bench, size: ModelSize, tuner: str) -> list[Figure]:
    """Train the same clients on both devices, one by one on the CPU and in shared passes on the GPU."""
    small = size.of_layers(LAYERS)
    ends: dict[str, list[np.ndarray]] = {kind: [] for kind in OPTIMIZERS}
    starts: dict[str, np.ndarray] = {}
    for device, together in (("cpu", False), (bench.device.type, True)):
        backbone = bench.models.backbone(small, tuner, dtype="float32", device=device)
        for kind, optimizer in OPTIMIZERS.items():
            config = ClientConfig.model_validate({"epochs": 2, "batch_size": BATCH_SIZE, "optimizer": optimizer})
            work = Work(small, tuner, backbone.geometry, CLIENTS, config)
            starts[kind] = work.start_A
            results = work.train(backbone, CLIENTS, together=together)
            ends[kind].append(np.stack([result.vector_A for result in results]))
        del backbone
        release(bench.device)
    figures: list[Figure] = []
    for kind, (expected_CA, got_CA) in ends.items():
        figures += differences(kind, expected_CA, got_CA, starts[kind])
    return figures


def differences(optimizer: str, expected_CA: np.ndarray, got_CA: np.ndarray, start_A: np.ndarray) -> list[Figure]:
    """Return how far apart clients end [C, A]: the largest entry of the difference, and its norm as a share of the way."""
    way = float(np.linalg.norm(expected_CA - start_A))
    apart = got_CA.astype(np.float64) - expected_CA
    aims = {"value": FARTHEST} if optimizer == "sgd" else {}
    return [
        Figure(f"{optimizer}: largest difference", "entry", (float(np.abs(apart).max()),)),
        Figure(f"{optimizer}: distance", "of the way", (float(np.linalg.norm(apart)) / way,), aims=aims),
    ]

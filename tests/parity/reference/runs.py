"""Whole runs: AdamW on every device, then the server's rounds."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from .model import Batch, Roberta
from .rounds import Federation, Method


@dataclass
class Training:
    """Settings of a device."""

    epochs: int
    batch_size: int
    lr: float
    total_steps: int
    weight_decay: float = 0.1
    beta1: float = 0.9
    beta2: float = 0.999
    eps: float = 1e-8
    max_norm: float = 1.0


@dataclass
class Step:
    """One optimizer step."""

    round: int
    client: int
    lr: float
    norm: float
    prefix: np.ndarray


class Device:
    """One client: its data and its optimizer, which is never reset."""

    def __init__(self, number: int, data: Batch, settings: Training, shape: Sequence[int]) -> None:
        self.number, self.data, self.settings = number, data, settings
        self.first, self.second = np.zeros(shape), np.zeros(shape)
        self.steps = 0

    def train(self, model: Roberta, start: np.ndarray, visible: list[int], round: int) -> list[Step]:
        """Return all steps of one local training."""
        size, prefix, steps = self.settings.batch_size, start, []
        for _ in range(self.settings.epochs):
            for first in range(0, len(self.data), size):
                gradient = gradient_of(model, self.data[first : first + size], prefix, visible)
                # torch.nn.utils.clip_grad_norm_
                gradient = gradient * min(1.0, self.settings.max_norm / (np.linalg.norm(gradient) + 1e-6))
                prefix, lr = self._step(prefix, gradient)
                steps.append(Step(round, self.number, lr, float(np.linalg.norm(gradient)), prefix))
        return steps

    def _step(self, prefix: np.ndarray, gradient: np.ndarray) -> tuple[np.ndarray, float]:
        s = self.settings
        lr = s.lr * max(0.0, 1.0 - self.steps / s.total_steps)
        self.steps += 1
        self.first = s.beta1 * self.first + (1.0 - s.beta1) * gradient
        self.second = s.beta2 * self.second + (1.0 - s.beta2) * gradient**2
        scale = np.sqrt(1.0 - s.beta2**self.steps) / (1.0 - s.beta1**self.steps)
        prefix = prefix - lr * scale * self.first / (np.sqrt(self.second) + s.eps)
        return prefix * (1.0 - lr * s.weight_decay), lr


def gradient_of(model: Roberta, batch: Batch, prefix: np.ndarray, visible: list[int]) -> np.ndarray:
    """Return the gradient of the mean loss in the prefix, by torch's differentiation."""
    tensor = torch.from_numpy(prefix.copy()).requires_grad_()
    loss, _, _ = model(batch, tensor, visible)
    (gradient,) = torch.autograd.grad(loss, tensor)
    return gradient.numpy()


def run(
    model: Roberta, data: Sequence[Batch], selected: np.ndarray, initial: np.ndarray, training: Training, method: Method
) -> tuple[Federation, list[Step], dict[str, list[np.ndarray]]]:
    """Return the federation after all rounds, every device step, and what is evaluated after each round.

    Returns
    -------
    tuple
        The record of evaluations holds, of each round, all local prefixes and the scores of all words on every example,
        client by client, with the prefix that the client is evaluated with.
    """
    visible = list(range(model.layers)) if method.personalised else list(method.layers)
    devices = [Device(number, batch, training, initial.shape) for number, batch in enumerate(data)]
    federation = Federation.start(method, initial, len(data))
    steps: list[Step] = []
    evaluations: dict[str, list[np.ndarray]] = {"local": [], "logits": []}
    for number, cohort in enumerate(selected.tolist()):
        jobs = [devices[k].train(model, federation.start_of(k), visible, number) for k in cohort]
        sizes, counts = [len(data[k]) for k in cohort], [len(job) for job in jobs]
        federation.round(cohort, [job[-1].prefix for job in jobs], sizes, counts)
        steps += [step for job in jobs for step in job]
        evaluations["local"].append(np.stack(federation.locals))
        evaluations["logits"].append(
            np.concatenate([_scores(model, data, federation, k, visible) for k in range(len(data))])
        )
    return federation, steps, evaluations


def _scores(
    model: Roberta, data: Sequence[Batch], federation: Federation, client: int, visible: list[int]
) -> np.ndarray:
    prefix: Tensor = torch.from_numpy(federation.start_of(client))
    with torch.no_grad():
        return model(data[client], prefix, visible)[1].numpy()

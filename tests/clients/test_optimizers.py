"""The device's optimizer against torch's own and against the published formula written out once more, plainly."""

import math

import pytest
import torch

from clients.config import OptimizerConfig, ScheduleConfig
from clients.optimizers import Moments, clip, decay_and_step, direction, learning_rate


def gradients(count=20, size=31):
    generator = torch.Generator().manual_seed(3)
    return [torch.randn(size, generator=generator, dtype=torch.float64) for _ in range(count)]


def run(config, lr, grads, start):
    vector, moments = start.clone(), Moments.zeros(start)
    for gradient in grads:
        decay_and_step(config, vector, direction(config, moments, gradient), lr)
    return vector


def test_adamw_is_torch_adamw():
    config = OptimizerConfig(kind="adamw", lr=0.04, weight_decay=0.1)
    start = gradients(1)[0]
    theirs = start.clone().requires_grad_(True)
    optimizer = torch.optim.AdamW([theirs], lr=0.04, weight_decay=0.1)
    for gradient in gradients():
        theirs.grad = gradient.clone()
        optimizer.step()
    torch.testing.assert_close(run(config, 0.04, gradients(), start), theirs.detach(), rtol=1e-12, atol=1e-14)


@pytest.mark.parametrize("momentum", [0.0, 0.9])
def test_sgd_is_torch_sgd(momentum):
    config = OptimizerConfig(kind="sgd", lr=0.1, momentum=momentum, weight_decay=0.0)
    start = gradients(1)[0]
    theirs = start.clone().requires_grad_(True)
    optimizer = torch.optim.SGD([theirs], lr=0.1, momentum=momentum)
    for gradient in gradients():
        theirs.grad = gradient.clone()
        optimizer.step()
    torch.testing.assert_close(run(config, 0.1, gradients(), start), theirs.detach(), rtol=1e-12, atol=1e-14)


def test_adamw_published_is_the_formula_of_the_published_code():
    config = OptimizerConfig(
        kind="adamw_published", lr=0.04, weight_decay=0.1, eps=1e-3
    )  # a large epsilon tells the forms apart
    start = gradients(1)[0]
    p, a, b = start.clone(), torch.zeros_like(start), torch.zeros_like(start)
    for s, g in enumerate(gradients(), start=1):
        a = 0.9 * a + 0.1 * g
        b = 0.999 * b + 0.001 * g * g
        p = p - 0.04 * math.sqrt(1 - 0.999**s) / (1 - 0.9**s) * a / (b.sqrt() + 1e-3)
        p = p - 0.04 * 0.1 * p
    torch.testing.assert_close(run(config, 0.04, gradients(), start), p, rtol=1e-12, atol=1e-14)
    other = run(config.model_copy(update={"kind": "adamw"}), 0.04, gradients(), start)
    assert (other - p).abs().max() > 1e-4


@pytest.mark.parametrize("scale", [0.01, 100.0])
def test_clip_is_torch_clip_grad_norm(scale):
    gradient = gradients(1)[0] * scale
    theirs = torch.zeros_like(gradient).requires_grad_(True)
    theirs.grad = gradient.clone()
    torch.nn.utils.clip_grad_norm_([theirs], 1.0)
    clip(gradient, 1.0)
    torch.testing.assert_close(gradient, theirs.grad)
    unclipped = gradient.clone()
    clip(gradient, None)
    assert torch.equal(gradient, unclipped)


def test_schedules():
    def rates(config, steps=8):
        return [learning_rate(config, 2.0, step, steps) for step in range(steps)]

    assert rates(ScheduleConfig()) == [2.0] * 8
    assert rates(ScheduleConfig(kind="linear")) == [2.0 * (1 - step / 8) for step in range(8)]
    assert rates(ScheduleConfig(kind="linear", total_steps=4)) == [2.0, 1.5, 1.0, 0.5, 0.0, 0.0, 0.0, 0.0]
    warm = rates(ScheduleConfig(kind="cosine", warmup_steps=2))
    assert warm[:3] == [1.0, 2.0, 2.0]
    assert warm[3:] == sorted(warm[3:], reverse=True)
    assert learning_rate(ScheduleConfig(kind="cosine"), 2.0, 8, 8) == pytest.approx(0.0)

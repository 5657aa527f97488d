"""The device's optimizer against torch's own and against a plain implementation of the published formula."""

import math

import numpy as np
import pytest
import torch

from clients.optimizer_config import OptimizerConfig, ScheduleConfig
from clients.training.optimizers import Moments, clip, decay_and_step, direction, gain, learning_rate

KINDS = [
    {"kind": "adamw"},
    {"kind": "adamw_published", "eps": 1e-3},
    {"kind": "sgd"},
    {"kind": "sgd", "momentum": 0.9},
]


def gradients(count=20, size=31):
    generator = torch.Generator().manual_seed(3)
    return [torch.randn(size, generator=generator, dtype=torch.float64) for _ in range(count)]


def run(config, lr, grads, start):
    vector_1A = start.clone().unsqueeze(0)
    moments = Moments.zeros(vector_1A)
    for gradient in grads:
        decay_and_step(config, vector_1A, direction(config, moments, gradient.unsqueeze(0)), np.array([lr]))
    return vector_1A[0]


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
    before = gradient.clone()
    factor_11 = clip(gradient.unsqueeze(0), 1.0)
    torch.testing.assert_close(gradient, theirs.grad)
    torch.testing.assert_close(before * factor_11[0], gradient)
    unclipped = gradient.clone()
    assert clip(gradient.unsqueeze(0), None).tolist() == [[1.0]]
    assert torch.equal(gradient, unclipped)


def test_each_client_is_clipped_by_its_own_norm():
    gradient_CA = torch.stack([scale * row for scale, row in zip((0.01, 1.0, 100.0), gradients(3), strict=True)])
    alone = [row.clone().unsqueeze(0) for row in gradient_CA]
    factors = [clip(row, 1.0) for row in alone]
    factor_C1 = clip(gradient_CA, 1.0)
    torch.testing.assert_close(gradient_CA, torch.cat(alone), rtol=1e-14, atol=0)
    torch.testing.assert_close(factor_C1, torch.cat(factors), rtol=1e-14, atol=0)
    assert factor_C1[0] == 1.0 and factor_C1[2] < 0.01


@pytest.mark.parametrize("keys", KINDS, ids=lambda keys: "-".join(map(str, keys.values())))
def test_stacked_clients_step_as_each_would_alone(keys):
    """Rows begin with moments of 0, 3 and 40 steps, have learning rates of their own and leave after 6, 4 and 1 steps."""
    config = OptimizerConfig.model_validate({**keys, "weight_decay": 0.1})
    earlier, job, rate = (0, 3, 40), (6, 4, 1), (0.04, 0.2, 1.0)
    starts, data = torch.stack(gradients(3)), torch.stack(gradients(6 * 3)).reshape(6, 3, -1)

    def fresh():
        moments = Moments.zeros(starts)
        moments.steps_C[:] = earlier
        moments.first_CA.copy_(0.1 * torch.stack(gradients(6)[3:]))
        moments.second_CA.copy_(torch.stack(gradients(6)[3:]) ** 2)
        moments.first_CA[0], moments.second_CA[0] = 0.0, 0.0
        return moments

    together_CA, moments, gains = starts.clone(), fresh(), []
    for step in range(6):
        count = sum(steps > step for steps in job)
        head = moments.head(count)
        step_CA = direction(config, head, data[step, :count].clone())
        gains.append(gain(config, head))
        decay_and_step(config, together_CA[:count], step_CA, np.array(rate[:count]) / (step + 1))
    assert moments.steps_C.tolist() == [6, 7, 41]
    for row in range(3):
        stacked = fresh()
        own = Moments(stacked.first_CA[[row]], stacked.second_CA[[row]], stacked.steps_C[[row]])
        alone_1A = starts[[row]].clone()
        for step in range(job[row]):
            step_1A = direction(config, own, data[step, [row]].clone())
            torch.testing.assert_close(gains[step][[row]], gain(config, own), rtol=1e-12, atol=0)
            decay_and_step(config, alone_1A, step_1A, np.array([rate[row] / (step + 1)]))
        torch.testing.assert_close(together_CA[[row]], alone_1A, rtol=1e-12, atol=1e-14)
        torch.testing.assert_close(moments.first_CA[[row]], own.first_CA, rtol=1e-12, atol=1e-14)
        torch.testing.assert_close(moments.second_CA[[row]], own.second_CA, rtol=1e-12, atol=1e-14)


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

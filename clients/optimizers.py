"""The device's optimizer: AdamW in two forms, SGD, gradient clipping and the learning-rate schedule.

They work in place on one flat float32 vector of all the parameters that a client trains (suffix A), which makes a
step a handful of vector operations and lets the moments travel as two arrays.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from clients.config import OptimizerConfig, ScheduleConfig


@dataclass
class Moments:
    """State of the optimizer of one client."""

    first_A: Tensor
    second_A: Tensor
    step: int = 0
    """Steps taken since the moments were zero."""

    @classmethod
    def zeros(cls, like_A: Tensor) -> Moments:
        """Return fresh moments for a vector."""
        return cls(torch.zeros_like(like_A), torch.zeros_like(like_A))


def learning_rate(config: ScheduleConfig, base_lr: float, step: int, visit_steps: int) -> float:
    """Return the learning rate of step ``step``, counted from 0.

    Parameters
    ----------
    base_lr
        Learning rate at the top of the schedule.
    visit_steps
        Steps of one visit; the length of the schedule where ``config.total_steps`` is not given.
    """
    if step < config.warmup_steps:
        return base_lr * (step + 1) / config.warmup_steps
    if config.kind == "constant":
        return base_lr
    if isinstance(config.total_steps, str):
        raise ValueError("total_steps=all_data must be resolved before training")
    total = config.total_steps or visit_steps
    progress = min(1.0, (step - config.warmup_steps) / max(1, total - config.warmup_steps))
    return base_lr * (1.0 - progress if config.kind == "linear" else 0.5 * (1.0 + math.cos(math.pi * progress)))


def clip(gradient_A: Tensor, max_norm: float | None) -> Tensor:
    """Scale the gradient in place to a norm of at most ``max_norm``, over all layers and the head; return the factor."""
    if max_norm is None:
        return torch.ones((), dtype=gradient_A.dtype, device=gradient_A.device)
    norm = torch.linalg.vector_norm(gradient_A)
    # The published code uses torch's clip_grad_norm_, whose 1e-6 we keep.
    factor = torch.clamp(max_norm / (norm + 1e-6), max=1.0)
    gradient_A.mul_(factor)
    return factor


def direction(config: OptimizerConfig, moments: Moments, gradient_A: Tensor) -> Tensor:
    """Advance the moments by one gradient and return the step's direction, to be multiplied by the learning rate.

    ``adamw`` is the form of Loshchilov & Hutter (arXiv 1711.05101): bias-corrected moments, epsilon outside the root.
    ``adamw_published`` is the one of the published code: epsilon is added before the bias correction of the second
    moment. ``sgd`` has heavy-ball momentum.
    """
    moments.step += 1
    if config.kind == "sgd":
        if config.momentum == 0.0:
            return gradient_A
        return moments.first_A.mul_(config.momentum).add_(gradient_A).clone()
    moments.first_A.mul_(config.beta1).add_(gradient_A, alpha=1.0 - config.beta1)
    moments.second_A.mul_(config.beta2).addcmul_(gradient_A, gradient_A, value=1.0 - config.beta2)
    correction1 = 1.0 - config.beta1**moments.step
    correction2 = math.sqrt(1.0 - config.beta2**moments.step)
    root_A = moments.second_A.sqrt()
    if config.kind == "adamw":
        return moments.first_A / correction1 / (root_A / correction2).add_(config.eps)
    return moments.first_A * (correction2 / correction1) / root_A.add_(config.eps)


def gain(config: OptimizerConfig, moments: Moments) -> Tensor:
    """Return what the step just taken multiplies a steady gradient by, per entry [A]: with Adam 1/(sqrt(v) + eps).

    Call it after :func:`direction`. With SGD it is one, or what heavy-ball momentum has built up.
    """
    if config.kind == "sgd":
        built_up = (1.0 - config.momentum**moments.step) / (1.0 - config.momentum)
        return torch.full_like(moments.second_A, built_up)
    correction2 = math.sqrt(1.0 - config.beta2**moments.step)
    root_A = moments.second_A.sqrt()
    if config.kind == "adamw":
        return (root_A / correction2).add_(config.eps).reciprocal_()
    return root_A.add_(config.eps).reciprocal_().mul_(correction2)


def decay_and_step(config: OptimizerConfig, vector_A: Tensor, step_A: Tensor, lr: float) -> None:
    """Apply a step and the decoupled weight decay in place: decay first as in AdamW, last as in the published code."""
    if config.kind == "adamw_published":
        vector_A.add_(step_A, alpha=-lr).mul_(1.0 - lr * config.weight_decay)
    else:
        vector_A.mul_(1.0 - lr * config.weight_decay).add_(step_A, alpha=-lr)

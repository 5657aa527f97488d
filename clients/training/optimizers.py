"""The local optimizer: AdamW in two forms, SGD, gradient clipping and the learning-rate schedule.

Works in place on the flat vectors of several clients, one per row, so a step of all of them is a handful of operations. Rows
never mix; each has its own step count, learning rate and gradient norm.

Shape suffixes: C clients, A all parameters that a client trains; C1 a column with one number per client.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from clients.backbone.device import to_device
from clients.optimizer_config import OptimizerConfig, ScheduleConfig


@dataclass
class Moments:
    """Optimizer state of several clients."""

    first_CA: Tensor
    second_CA: Tensor
    steps_C: np.ndarray
    """int64; steps of each client since its moments were zero."""

    @classmethod
    def zeros(cls, like_CA: Tensor) -> Moments:
        """Return fresh moments."""
        return cls(torch.zeros_like(like_CA), torch.zeros_like(like_CA), np.zeros(len(like_CA), dtype=np.int64))

    def head(self, count: int) -> Moments:
        """Return a view of the state of the first ``count`` clients."""
        return Moments(self.first_CA[:count], self.second_CA[:count], self.steps_C[:count])


def column(values_C: Sequence[float] | np.ndarray, like_CA: Tensor) -> Tensor:
    """Return one number per client as a column [C, 1] with the dtype and device of ``like_CA``."""
    values = torch.as_tensor(np.asarray(values_C, dtype=np.float64)).to(like_CA.dtype)
    return to_device(values, like_CA.device).unsqueeze(1)


def learning_rate(config: ScheduleConfig, base_lr: float, step: int, job_steps: int) -> float:
    """Return the learning rate of step ``step``, counted from 0.

    Parameters
    ----------
    base_lr
        Peak learning rate of the schedule.
    job_steps
        Steps of one local training: the length of the schedule if ``config.total_steps`` is not given.
    """
    if step < config.warmup_steps:
        return base_lr * (step + 1) / config.warmup_steps
    if config.kind == "constant":
        return base_lr
    if isinstance(config.total_steps, str):
        raise ValueError("total_steps=all_data must be resolved before training")
    total = config.total_steps or job_steps
    progress = min(1.0, (step - config.warmup_steps) / max(1, total - config.warmup_steps))
    return base_lr * (1.0 - progress if config.kind == "linear" else 0.5 * (1.0 + math.cos(math.pi * progress)))


def clip(gradient_CA: Tensor, max_norm: float | None) -> Tensor:
    """Scale each client's gradient in place to a norm of at most ``max_norm``, over all its layers and its head.

    Returns
    -------
    Tensor
        The factors [C, 1].
    """
    if max_norm is None:
        return torch.ones((len(gradient_CA), 1), dtype=gradient_CA.dtype, device=gradient_CA.device)
    norm_C1 = torch.linalg.vector_norm(gradient_CA, dim=1, keepdim=True)
    # 1e-6 as in torch's clip_grad_norm_, which the published code uses.
    factor_C1 = torch.clamp(max_norm / (norm_C1 + 1e-6), max=1.0)
    gradient_CA.mul_(factor_C1)
    return factor_C1


def direction(config: OptimizerConfig, moments: Moments, gradient_CA: Tensor) -> Tensor:
    """Advance the moments by one gradient and return the step's direction, to be multiplied by the learning rate.

    ``adamw`` is the form of Loshchilov & Hutter (arXiv 1711.05101): bias-corrected moments, epsilon outside the root.
    ``adamw_published`` is that of the published code: epsilon is added before the bias correction of the second
    moment. ``sgd`` has heavy-ball momentum.
    """
    moments.steps_C += 1
    if config.kind == "sgd":
        if config.momentum == 0.0:
            return gradient_CA
        return moments.first_CA.mul_(config.momentum).add_(gradient_CA).clone()
    moments.first_CA.mul_(config.beta1).add_(gradient_CA, alpha=1.0 - config.beta1)
    moments.second_CA.mul_(config.beta2).addcmul_(gradient_CA, gradient_CA, value=1.0 - config.beta2)
    correction1_C = 1.0 - config.beta1**moments.steps_C
    correction2_C = np.sqrt(1.0 - config.beta2**moments.steps_C)
    root_CA = moments.second_CA.sqrt()
    if config.kind == "adamw":
        root_CA.div_(column(correction2_C, root_CA)).add_(config.eps)
        return (moments.first_CA / column(correction1_C, root_CA)).div_(root_CA)
    return (moments.first_CA * column(correction2_C / correction1_C, root_CA)).div_(root_CA.add_(config.eps))


def gain(config: OptimizerConfig, moments: Moments) -> Tensor:
    """Return the factor by which the current step scales a steady gradient, per entry [C, A]: 1/(sqrt(v) + eps) for Adam.

    Call it after :func:`direction`. For SGD it is 1, or the accumulated factor of heavy-ball momentum.
    """
    if config.kind == "sgd":
        built_up_C = (1.0 - config.momentum**moments.steps_C) / (1.0 - config.momentum)
        return column(built_up_C, moments.second_CA).expand_as(moments.second_CA).contiguous()
    correction2_C1 = column(np.sqrt(1.0 - config.beta2**moments.steps_C), moments.second_CA)
    root_CA = moments.second_CA.sqrt()
    if config.kind == "adamw":
        return root_CA.div_(correction2_C1).add_(config.eps).reciprocal_()
    return root_CA.add_(config.eps).reciprocal_().mul_(correction2_C1)


def decay_and_step(config: OptimizerConfig, vector_CA: Tensor, step_CA: Tensor, lr_C: np.ndarray) -> None:
    """Apply a step and the decoupled weight decay in place: decay first as in AdamW, last as in the published code."""
    lr_C1, kept_C1 = column(lr_C, vector_CA), column(1.0 - lr_C * config.weight_decay, vector_CA)
    if config.kind == "adamw_published":
        vector_CA.addcmul_(step_CA, lr_C1, value=-1.0).mul_(kept_C1)
    else:
        vector_CA.mul_(kept_C1).addcmul_(step_CA, lr_C1, value=-1.0)

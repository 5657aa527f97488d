"""Hessian-vector products of one batch's loss in the prompts, and an estimate of the Hessian's Lipschitz constant.

Shape suffixes: A prompt parameters of a layout (without the head), F entries of the exchanged vector.
"""

from __future__ import annotations

from functools import partial

import numpy as np
import torch
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel

from clients.analysis.spectrum import lanczos
from clients.backbone.model import Backbone
from fedsim.core.layout import VectorLayout
from fedsim.core.tokens import TokenBatch

NORM_STEPS = 8
"""Lanczos steps for the norm of a difference of Hessians; the largest eigenvalues converge first."""


class PromptHessian:
    """H = the second derivative of the mean loss F of one batch in its prompt parameters P, at one point.

    The gradient's graph is built once and kept, so every product costs one backward pass through it (Pearlmutter
    1994, "Fast exact multiplication by the Hessian").

    Parameters
    ----------
    backbone
        Its dropout must be off, or F would not be a function.
    batch
        The examples of F.
    layout
        Determines the prompted layers; the head in ``vector_F`` is held fixed.
    vector_F
        Point at which to take derivatives, float32 or float64, on the backbone's device.
    """

    def __init__(self, backbone: Backbone, batch: TokenBatch, layout: VectorLayout, vector_F: Tensor) -> None:
        self._backbone = backbone
        self._batch = batch
        self._layout = layout
        self._vector_F = vector_F.detach()
        self._prompt_A = self._vector_F[: layout.tuned_size].clone().requires_grad_(True)
        self._gradient_A = self._differentiable_gradient()
        self.products = 0
        """Products computed so far."""

    @property
    def size(self) -> int:
        """Number A of prompt parameters."""
        return self._layout.tuned_size

    @property
    def gradient(self) -> Tensor:
        """The gradient of F, float64 [A]."""
        return self._gradient_A.detach().double()

    @property
    def rounding(self) -> float:
        """Relative rounding error of a product: the epsilon of the coarsest number format involved."""
        return max(float(torch.finfo(dtype).eps) for dtype in (self._prompt_A.dtype, self._backbone.model.dtype))

    def product(self, vector_A: Tensor) -> Tensor:
        """Return the float64 product H v."""
        self.products += 1
        (product_A,) = torch.autograd.grad(
            self._gradient_A, self._prompt_A, vector_A.to(self._gradient_A.dtype), retain_graph=True
        )
        return product_A.double()

    def moved(self, change_A: Tensor) -> PromptHessian:
        """Return the Hessian of the same loss at P + ``change_A``."""
        vector_F = self._vector_F.clone()
        vector_F[: self.size] += change_A.to(vector_F.dtype)
        return PromptHessian(self._backbone, self._batch, self._layout, vector_F)

    def _differentiable_gradient(self) -> Tensor:
        prompt_LKHPD, head = self._layout.split(torch.cat([self._prompt_A, self._vector_F[self.size :]]))
        head_1 = {name: array.unsqueeze(0) for name, array in head.items()}
        # Fused attention kernels have first derivatives only; the plain kernel has all.
        with sdpa_kernel(SDPBackend.MATH):
            reading = self._backbone.forward(self._batch, prompt_LKHPD.unsqueeze(0), self._layout.layers, head_1)
        (gradient_A,) = torch.autograd.grad(reading.loss_B.mean(), self._prompt_A, create_graph=True)
        return gradient_A


def lipschitz_estimate(hessian: PromptHessian, rng: np.random.Generator, directions: int, radius: float) -> float:
    """Estimate the Lipschitz constant of B(D) = H D - grad F(P + D), the nonlinear part of the gradient map.

    The rule ``eigengap`` needs this constant (:func:`clients.analysis.layer_share.eigengap_share`), and no source at hand
    tells how to compute it, so the estimate is fedsim's own. The derivative of B at D is H(P) - H(P + D), so the constant on
    a ball around P is the largest spectral norm of that difference: the change of curvature within the ball. Here it is
    the largest norm at a few random D on the ball's surface, each norm the largest absolute Ritz value of ``NORM_STEPS``
    steps of Lanczos. That is a lower bound of the constant.

    Slopes |B(a) - B(b)| / |a - b| along random lines would be cheaper, but see only the root mean square of the
    eigenvalues of the difference, not the largest: less by a factor of up to sqrt(A).

    Parameters
    ----------
    rng
        Draws the directions and the start vectors of Lanczos.
    directions
        Number of points D.
    radius
        Length of D as the root mean square change of a prompt entry: |D| = radius * sqrt(A).
    """
    norms = []
    for _ in range(directions):
        change_A, start_A = torch.from_numpy(rng.standard_normal((2, hessian.size))).to(hessian.gradient.device)
        moved = hessian.moved(change_A * (radius * hessian.size**0.5 / torch.linalg.vector_norm(change_A)))
        values_K, _ = lanczos(partial(_difference, hessian, moved), start_A, NORM_STEPS)
        norms.append(float(np.abs(values_K).max()))
        hessian.products += moved.products
    return max(norms)


def _difference(first: PromptHessian, second: PromptHessian, vector_A: Tensor) -> Tensor:
    return first.product(vector_A) - second.product(vector_A)

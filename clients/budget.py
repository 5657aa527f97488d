"""What a worker's memory goes into, in figures that need neither torch nor transformers: for plans made before a run."""

from __future__ import annotations

CONTEXT_BYTES = 768 * 2**20
"""GPU memory that a process takes before its first tensor: CUDA's context, its kernels, and the workspace of cuBLAS. PyTorch's
own limit of a process does not count it."""
STEP_VECTORS = 9
"""Vectors of a client's length that a step holds at once: parameters, two moments, gradient and its leaf, the step and its
root, and two sums over steps."""

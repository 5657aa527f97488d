"""What a worker's memory goes into, in figures that need neither torch nor transformers: for plans made before a run."""

from __future__ import annotations

CONTEXT_BYTES = 768 * 2**20
"""GPU memory that a process takes before its first tensor: CUDA's context, its kernels, and the workspace of cuBLAS. PyTorch's
own limit of a process does not count it."""
STEP_VECTORS = 7
"""Vectors of a client's length that a step holds at once: parameters, two moments, gradient and its leaf, the step and its
root. The tallies of corrections come on top."""
_CPU_NUMBERS, _CPU_TOKENS = 196_608, (256, 4096)
"""Numbers in the hidden states of a pass on a CPU where ``client.micro_batch_tokens`` is auto, and the fewest and most tokens:
a layer's activations stay in the cache, and a small model's passes are long enough to be worth their calls."""
_GPU_TOKENS = 16384


def tokens_of_pass(asked: int | str, hidden_size: int, *, on_gpu: bool) -> int:
    """Return the tokens of one pass through the backbone; ``asked`` is ``client.micro_batch_tokens``."""
    if isinstance(asked, int):
        return asked
    fewest, most = _CPU_TOKENS
    return _GPU_TOKENS if on_gpu else min(most, max(fewest, _CPU_NUMBERS // hidden_size))

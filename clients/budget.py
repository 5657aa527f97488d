"""Figures for a worker's memory use, for planning a run without importing torch or transformers."""

from __future__ import annotations

from clients.optimizer_config import OptimizerConfig
from fedsim.core.cma import usual_population

CONTEXT_BYTES = 768 * 2**20
"""GPU memory of a process before its first tensor: CUDA's context, its kernels and the workspace of cuBLAS. PyTorch's own
per-process limit does not count it."""
STEP_VECTORS = 7
"""Vectors of a client's length that a step holds at once: parameters, two moments, gradient and its leaf, the step and its
root. Tallies of corrections are extra."""
_CPU_NUMBERS, _CPU_TOKENS = 196_608, (256, 4096)
"""Hidden-state entries per pass on a CPU with ``client.micro_batch_tokens: auto``, and the fewest and most tokens: small enough
that a layer's activations stay in the cache, large enough to amortise a small model's calls."""
_GPU_TOKENS = 16384
_SCORES_BYTES, _FEWEST_SCORED = (2**25, 2**28), 64
"""Most bytes of the scores of all words that are held at once, on a CPU and on a GPU, and the fewest rows of them: with fewer,
reading the LM head takes longer than the products."""


def tokens_of_pass(asked: int | str, hidden_size: int, *, on_gpu: bool) -> int:
    """Return the most tokens in one pass through the backbone; ``asked`` is ``client.micro_batch_tokens``."""
    if isinstance(asked, int):
        return asked
    fewest, most = _CPU_TOKENS
    return _GPU_TOKENS if on_gpu else min(most, max(fewest, _CPU_NUMBERS // hidden_size))


def population_of(config: OptimizerConfig, size: int) -> int:
    """Return the candidates of a step in a search of ``size`` numbers; 1 for an optimizer that has gradients."""
    if config.kind != "cma_es":
        return 1
    return config.population or usual_population(size)


def rows_of_scores(vocab_size: int, itemsize: int, *, on_gpu: bool) -> int:
    """Return the tokens whose scores of all words are held at once; ``itemsize``: bytes of a number of the LM head."""
    return max(_FEWEST_SCORED, _SCORES_BYTES[on_gpu] // (vocab_size * max(4, itemsize)))

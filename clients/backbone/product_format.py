"""Choice of ``model.products``: whether matrix products in half precision are faster here; needs no torch."""

from __future__ import annotations

from functools import cache
from pathlib import Path

from clients.config import ModelConfig

_CPUINFO = Path("/proc/cpuinfo")
_BFLOAT16 = frozenset(("avx512_bf16", "amx_bf16"))
"""Flags of x86 processors with matrix products in bfloat16, which torch uses through oneDNN: twice the speed of float32 with
AVX-512 on AMD (Zen 4), more with AMX."""


SMALLEST_HIDDEN_SIZE = 128
"""Smaller models gain nothing: their passes are kernel calls rather than arithmetic, and each map adds two conversions."""


@cache
def multiplies_bfloat16(cpuinfo: Path = _CPUINFO) -> bool:
    """Return whether the processor has instructions for products in bfloat16; False where the system does not tell."""
    try:
        lines = cpuinfo.read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        return False
    flags = next((line.partition(":")[2].split() for line in lines if line.startswith("flags")), [])
    return not _BFLOAT16.isdisjoint(flags)


def settled(model: ModelConfig, hidden_size: int, *, on_gpu: bool) -> ModelConfig:
    """Return the section with ``products`` settled: auto is decided by model and processor.

    Parameters
    ----------
    hidden_size
        The model's.
    on_gpu
        Whether passes run on a GPU, where auto is float32.
    """
    if model.products != "auto" or not model.has_products:
        return model
    half = not on_gpu and hidden_size >= SMALLEST_HIDDEN_SIZE and multiplies_bfloat16()
    return model.model_copy(update={"products": "bfloat16" if half else "float32"})

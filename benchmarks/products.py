"""Number formats of matrix products: float32, and what else a side can compute in.

A side that says nothing in its name computes in float32.
"""

from __future__ import annotations

from clients.config import ModelConfig

FLOAT32, BFLOAT16, AUTOCAST = "float32", "bfloat16", "autocast"
"""As PyTorch does; fedsim's ``model.products=bfloat16``; under ``torch.autocast("cpu", torch.bfloat16)``."""
_WORDS = {FLOAT32: "", BFLOAT16: ", bfloat16 products", AUTOCAST: ", autocast bfloat16"}
APART = 0.5
"""Largest relative difference of vectors from the same work in half precision, whose rounding Adam carries far from step to
step; how well it learns, only accuracy tells."""


def named(side: str, products: str) -> str:
    """Return a side's name with its number format."""
    return side + _WORDS[products]


def of_fedsim() -> tuple[str, ...]:
    """Return the formats in which fedsim's own sides are run: both, where the config has ``model.products``."""
    return (FLOAT32, BFLOAT16) if "products" in ModelConfig.model_fields else (FLOAT32,)


def override(products: str) -> tuple[str, ...]:
    """Return the override of a run of fedsim that computes in a format; none where the config has no such key."""
    return (f"model.products={products}",) if "products" in ModelConfig.model_fields else ()

"""What several tests share and is no fixture."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from fedsim.config import Config

ROOT = Path(__file__).parents[1]

TINY = {
    "rounds": 3,
    "group_size": 2,
    "data": {"train_examples": 240, "validation_examples": 60},
    "partition": {"clients": 12, "holdout_fraction": 0.2},
    "sampling": {"clients_per_round": 5},
    "prompt": {"length": 4},
    "layers": {"score_batch_size": 8},
    "client": {"epochs": 1},
}
"""A run of seconds on the embedded backbone: 12 clients, 5 a round in groups of 2, 3 rounds."""


def merged(base: dict[str, Any], changes: dict[str, Any]) -> dict[str, Any]:
    """Return ``base`` with nested ``changes``."""
    result = dict(base)
    for key, value in changes.items():
        result[key] = merged(result.get(key, {}), value) if isinstance(value, dict) else value
    return result


def make_tiny(**changes: Any) -> Config:
    """Return a tiny config with changes."""
    from fedsim.config import build_config

    return build_config(merged(TINY, changes))

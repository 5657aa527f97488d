"""Base class of every configuration schema.

A schema lives beside the code that it configures; ``fedsim/config.py`` composes them. The docstring under a
field is its meaning, printed by ``fedsim config`` and shown in error messages.
"""

from __future__ import annotations

from pydantic import BaseModel, ConfigDict


class Schema(BaseModel):
    """Immutable, strict about unknown keys, documented field by field."""

    model_config = ConfigDict(
        extra="forbid",
        frozen=True,
        use_attribute_docstrings=True,
        allow_inf_nan=False,
        protected_namespaces=(),
        validate_default=True,
    )

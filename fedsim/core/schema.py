"""Base class of every configuration schema.

A schema lives beside the code that it configures; ``fedsim/config.py`` composes them. The docstring under a
field is its meaning, printed by ``fedsim config`` and shown in error messages.
"""

from __future__ import annotations

from typing import Any

from pydantic import BaseModel, ConfigDict, field_validator

_MOST = 2**63 - 1
"""Largest whole number: what arrays and files hold."""


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

    @field_validator("*")
    @classmethod
    def _can_be_used(cls, value: Any) -> Any:
        """Refuse what no key has a use for, whatever it means: it would break what the value is handed to."""
        for item in value if isinstance(value, tuple) else (value,):
            if isinstance(item, str) and "\0" in item:
                raise ValueError("a NUL character stands in the text; take it out")
            if isinstance(item, int) and abs(item) > _MOST:
                raise ValueError(f"the number must be at most {_MOST}")
        return value

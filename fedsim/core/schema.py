"""Base class of every configuration schema.

A schema lives beside the code that it configures; ``fedsim/configuration/schema.py`` composes them. The docstring under a
field is its meaning, printed by ``fedsim config`` and shown in error messages.
"""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Annotated, Any

from pydantic import AfterValidator, BaseModel, ConfigDict, field_validator

_MOST = 2**63 - 1
"""Largest whole number: what arrays and files hold."""
_LONGEST_NAME, _LONGEST_PATH = 255, 4000
"""Bytes; a system refuses longer ones."""


def _possible(path: str) -> str:
    """Refuse what no system takes for a path: to ask for it would be an error and not "there is none"."""
    longest = max(len(part.encode()) for part in path.split("/"))
    if longest > _LONGEST_NAME or len(path.encode()) > _LONGEST_PATH:
        raise ValueError(
            f"the path has {len(path.encode())} bytes, its longest name {longest}; at most {_LONGEST_PATH}, and "
            f"{_LONGEST_NAME} for a name, are possible"
        )
    if path.startswith("~"):
        try:
            Path(path).expanduser()
        except RuntimeError:
            raise ValueError("the path begins with ~, but there is no such user; write it from / on") from None
    return path


PathText = Annotated[str, AfterValidator(_possible)]
"""A path, or what may be one."""


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
        if isinstance(value, dict):
            items: Iterable[Any] = (*value, *value.values())
        else:
            items = value if isinstance(value, tuple) else (value,)
        for item in items:
            if isinstance(item, str) and "\0" in item:
                raise ValueError("a NUL character stands in the text; take it out")
            if isinstance(item, int) and abs(item) > _MOST:
                raise ValueError(f"the number must be at most {_MOST}")
        return value

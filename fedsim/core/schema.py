"""Base class of every configuration schema.

A schema lives beside the code that it configures; ``fedsim/configuration/schema.py`` composes them. The docstring under a
field is its description, printed by ``fedsim config``.
"""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Annotated, Any, ClassVar

from pydantic import (
    AfterValidator,
    BaseModel,
    ConfigDict,
    SerializationInfo,
    SerializerFunctionWrapHandler,
    ValidationInfo,
    field_validator,
    model_serializer,
    model_validator,
)

from fedsim.core.uses import EVERY_KEY, Uses, refuse_useless, reset_useless, useless, without_useless

_MOST = 2**63 - 1
"""Largest integer that arrays and files can hold."""
_LONGEST_NAME, _LONGEST_PATH = 255, 4000
"""In bytes; operating systems refuse longer ones."""


def _possible(path: str) -> str:
    """Refuse a path that no system accepts: looking it up would raise an error rather than find nothing."""
    longest = max(len(part.encode()) for part in path.split("/"))
    if longest > _LONGEST_NAME or len(path.encode()) > _LONGEST_PATH:
        raise ValueError(
            f"the path has {len(path.encode())} bytes, its longest name {longest}; at most {_LONGEST_PATH} bytes are allowed, "
            f"and {_LONGEST_NAME} for a name"
        )
    if path.startswith("~"):
        try:
            Path(path).expanduser()
        except RuntimeError:
            raise ValueError("the path begins with ~, but there is no such user; give the full path from /") from None
    return path


PathText = Annotated[str, AfterValidator(_possible)]
"""Text that is, or may be, a path."""


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

    uses: ClassVar[Uses] = {}
    """Conditions under which keys of the section have an effect; see :mod:`fedsim.core.uses`."""

    @classmethod
    def all_uses(cls) -> Uses:
        """Return :attr:`uses`, extended by conditions known only at run time."""
        return cls.uses

    @property
    def useless(self) -> frozenset[str]:
        """Keys that have no effect with the section's current values; nested ones are dotted."""
        return frozenset(useless(self, self.all_uses()))

    @model_validator(mode="after")
    def _each_key_has_a_use(self, info: ValidationInfo) -> Schema:
        if info.context != EVERY_KEY:
            refuse_useless(self, self.all_uses())
            reset_useless(self, self.all_uses())
        return self

    # The type is given, since pydantic 2.10 looks for the annotation's names in the module of each subclass.
    @model_serializer(mode="wrap", return_type=dict[str, Any])
    def _without_useless(self, handler: SerializerFunctionWrapHandler, info: SerializationInfo) -> dict[str, Any]:
        values: dict[str, Any] = handler(self)
        return values if info.context == EVERY_KEY else without_useless(self, self.all_uses(), values)

    @field_validator("*")
    @classmethod
    def _can_be_used(cls, value: Any) -> Any:
        """Refuse values that no key accepts, because they would break the code that receives them."""
        if isinstance(value, dict):
            items: Iterable[Any] = (*value, *value.values())
        else:
            items = value if isinstance(value, tuple) else (value,)
        for item in items:
            if isinstance(item, str) and "\0" in item:
                raise ValueError("the text contains a NUL character; remove it")
            if isinstance(item, int) and abs(item) > _MOST:
                raise ValueError(f"the number must be at most {_MOST}")
        return value

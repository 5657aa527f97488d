"""Keys that only have an effect with some choices, and the error for giving one without effect.

A schema lists them in :attr:`fedsim.core.schema.Schema.uses`. A key without effect is refused when given and left out of
recorded configs, so that a record never claims something the run did not do.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from pydantic import BaseModel
from pydantic_core import PydanticCustomError

from fedsim.core.errors import listed

EVERY_KEY: dict[str, Any] = {"every key": True}
"""Context for dumping keys without effect as well, and for reading a record that contains them."""


@dataclass(frozen=True)
class Use:
    """Condition for a key to have an effect: another key of its section has one of some values."""

    key: str
    """The deciding attribute of the section, dotted if nested: a key, or a property computed from several."""
    values: tuple[Any, ...] = ()
    by: str | None = None
    """The key to name in a message if ``key`` is a property."""
    test: Callable[[Any], bool] | None = None
    """Test of the deciding value, in place of ``values``."""
    words: str | None = None
    """What would be right, in place of "it is a key of ..."."""

    def gives(self, section: BaseModel) -> bool:
        """Return whether the key has an effect with the section's values."""
        value = _attribute(section, self.key)
        return value in self.values if self.test is None else self.test(value)

    def sentence(self, section: BaseModel) -> tuple[str, str, str]:
        """Return the deciding key, its value in words, and what would be right."""
        by = self.by or self.key
        written, meant = _attribute(section, by), _attribute(section, self.key)
        value = _word(written) if written == meant else f"{_word(written)} (here: {_word(meant)})"
        return by, value, self.words or f"it is a key of {listed(map(_word, self.values), 20)}"


Uses = Mapping[str, tuple[Use, ...]]
"""Conditions of each dotted key, all of which must hold. A key that is not listed always has an effect."""


def useless(section: BaseModel, uses: Uses) -> dict[str, Use]:
    """Return each key without effect in the section, with the first condition that does not hold."""
    found = {key: next((use for use in needed if not use.gives(section)), None) for key, needed in uses.items()}
    return {key: use for key, use in found.items() if use is not None}


def refuse_useless(section: BaseModel, uses: Uses) -> None:
    """Refuse keys that are given but have no effect; null counts as not given.

    Raises
    ------
    PydanticCustomError
        Of type ``no_use``; ``fedsim.configuration.errors`` turns it into a sentence.
    """
    guilty = {key: use for key, use in useless(section, uses).items() if _given(section, key) is not None}
    if not guilty:
        return
    entry, use = next(iter(guilty.items()))
    by, value, right = use.sentence(section)
    others = [other for other in guilty if other != entry]
    key = _given(section, entry)
    context = {"key": key, "entry": entry, "by": by, "value": value, "right": right, "others": others}
    raise PydanticCustomError("no_use", "{key} has no use with {by}={value}; {right}", context)


def reset_useless(section: BaseModel, uses: Uses) -> None:
    """Reset keys that have no effect and were given as null to their defaults."""
    for key in useless(section, uses):
        if key in section.model_fields_set:
            section.__dict__[key] = type(section).model_fields[key].get_default(call_default_factory=True)


def without_useless(section: BaseModel, uses: Uses, values: dict[str, Any]) -> dict[str, Any]:
    """Return a section's dumped values without the keys that have no effect."""
    for key in useless(section, uses):
        values = without(values, key.split("."))
    return values


def without(values: dict[str, Any], parts: Sequence[str]) -> dict[str, Any]:
    """Return nested values with a key removed, if present."""
    first, *rest = parts
    if first not in values:
        return values
    if not rest:
        return {name: value for name, value in values.items() if name != first}
    inner = values[first]
    return {**values, first: without(inner, rest)} if isinstance(inner, dict) else values


def _given(section: BaseModel, key: str) -> str | None:
    """Return the key if it was given a value, or, for a section, the first given key in it; else None."""
    first, _, rest = key.partition(".")
    value = getattr(section, first)
    if first not in section.model_fields_set or value is None:
        return None
    if rest:
        inner = _given(value, rest)
        return None if inner is None else f"{first}.{inner}"
    if not isinstance(value, BaseModel):
        return key
    found = next(filter(None, (_given(value, name) for name in type(value).model_fields)), None)
    return None if found is None else f"{key}.{found}"


def _attribute(section: Any, path: str) -> Any:
    for name in path.split("."):
        section = getattr(section, name)
    return section


def _word(value: Any) -> str:
    """Return a value as written in a config."""
    if value is None or isinstance(value, bool):
        return {None: "null", True: "true", False: "false"}[value]
    return f"{value:g}" if isinstance(value, float) else str(list(value) if isinstance(value, tuple) else value)

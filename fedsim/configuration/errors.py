"""Error messages for a config: place, key, what is wrong, what would be right."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

from pydantic import ValidationError
from pydantic_core import ErrorDetails

from fedsim.configuration.params import schema_of
from fedsim.core.errors import ConfigError, listed, shown, suggestion
from fedsim.core.schema import Schema

Key = tuple[str | int, ...]
Where = Callable[[Key], str]
"""Returns where a key was given: file and line, or override."""


def refused(error: ValidationError, schema: type[Schema], where: Where, values: Mapping[str, Any] = {}) -> ConfigError:
    """Return the error that says what is wrong with a config, with the place and the key that it names."""
    places: dict[str, Key] = {}

    def noted(key: Key) -> str:
        place = where(key)
        places.setdefault(place, key)
        return place

    found = ConfigError(sentence(error, schema, noted, values))
    found.where = next((place for place in places if str(found).startswith(f"{place}: ")), None)
    found.key = ".".join(map(str, places[found.where])) or None if found.where is not None else None
    return found


def sentence(error: ValidationError, schema: type[Schema], where: Where, values: Mapping[str, Any] = {}) -> str:
    """Turn pydantic's first error into one sentence with place, key, and what would be right.

    Parameters
    ----------
    values
        The given values, nested.
    """
    complaints = error.errors(include_url=False)
    # If a key takes a word, a number, or a group or list, and one of these is given, only the errors inside it matter.
    inner = [
        item for item in complaints if not (isinstance(item["input"], dict | list) and _takes_no_group(item["loc"]))
    ]
    complaints = _without_results(inner or complaints)
    first = min(complaints, key=lambda item: (item["type"] != "extra_forbidden", len(item["loc"])))
    key = _schema_path(first["loc"], schema)
    if first["type"] == "extra_forbidden" and key[-1:] != first["loc"][-1:]:
        key = (*key, first["loc"][-1])  # a key named like a member of a union, such as int
    dotted = ".".join(str(part) for part in key)
    kind, context = first["type"], first.get("ctx", {})
    if kind == "extra_forbidden":
        if (of_others := _key_of_other_kinds(key, schema, values, where)) is not None:
            return f"{where(key)}: {of_others}"
        return f"{where(key)}: there is no key {shown(dotted)}{_nearest_key(key, schema)}"
    if kind == "no_use":
        return _no_use(key, context, where)
    if kind == "value_error":
        text = str(context["error"])
        # A rule over several sections has no single key: point at the keys that its sentence names, overrides first.
        # A rule within a section names that section's keys.
        named = re.findall(r"[a-z_]+(?:\.[a-z_]+)+", text) if not key else []
        inner_keys = [(*key, word) for word in re.findall(r"[a-z_0-9]+", text) if word in _fields_at(key, schema)]
        places = (
            [where(tuple(name.split("."))) for name in named] or [where(each) for each in inner_keys] or [where(key)]
        )
        place = min(places, key=lambda words: not words.startswith("override"))
        return f"{place}: {dotted + ': ' if dotted else ''}{text}"
    if kind == "missing":
        return f"{where(key[:-1])}: the key {dotted!r} is missing"
    given = first["input"]
    words = "a group of keys" if isinstance(given, dict) else json.dumps(given, default=str, ensure_ascii=False)
    words = words if len(words) <= 80 else f"{words[:77]}..."
    same_key = [item for item in complaints if _schema_path(item["loc"], schema) == key]
    return f"{where(key)}: {dotted} is {words}, but {_expected(same_key, given)}"


def _no_use(section: Key, context: Mapping[str, Any], where: Where) -> str:
    """Return the sentence for a key without effect: its cause, and the other keys without effect."""
    prefix = "".join(f"{part}." for part in section)
    key, by = (*section, *context["key"].split(".")), (*section, *context["by"].split("."))
    name, place = f"{prefix}{context['key']}", where(key)
    others = listed((prefix + other for other in context["others"]), 20)
    others = others and f" (nor {'has' if len(context['others']) == 1 else 'have'} {others})"
    remedy = _remedy(key, by, f"{prefix}{context['entry']}", where)
    return f"{place}: {name} has no use with {prefix}{context['by']}={context['value']}{others}; {context['right']}{remedy}"


def _remedy(key: Key, by: Key, entry: str, where: Where) -> str:
    """Return how to remove a key of the file that an override has left without effect."""
    overridden = where(by).startswith("override") and not where(key).startswith("override")
    return f"; give {entry}= to remove the file's value" if overridden else ""


def _key_of_other_kinds(key: Key, root: type[Schema], values: Mapping[str, Any], where: Where) -> str | None:
    """Return the sentence for a key that belongs to other kinds of its section, or None if no kind has it."""
    section = _schema_at(key[:-1], root)
    if not hasattr(section, "kinds_with"):
        return None
    name, kinds = section.kinds_with(str(key[-1]))
    if not kinds:
        return None
    prefix, name = "".join(f"{part}." for part in key[:-1]), name.rpartition(".")[2]
    given: Any = values
    for part in (*key[:-1], name):
        given = given.get(part) if isinstance(given, Mapping) else None
    chosen = section.model_fields[name].get_default() if given is None and name in section.model_fields else given
    remedy = _remedy(key, (*key[:-1], name), f"{prefix}{key[-1]}", where)
    return f"{prefix}{key[-1]} has no use with {prefix}{name}={chosen}; it is a key of {listed(kinds, 20)}{remedy}"


def _takes_no_group(location: Key) -> bool:
    """Whether an error is that of a union's word or number."""
    return bool(location) and (location[-1] in _UNION_MEMBERS or str(location[-1]).startswith("literal["))


def _without_results(complaints: list[ErrorDetails]) -> list[ErrorDetails]:
    """Drop errors about a too short list if its items are wrong: pydantic counts only the valid ones."""
    places = [item["loc"] for item in complaints]
    return [
        item
        for item in complaints
        if item["type"] != "too_short"
        or not any(len(place) > len(item["loc"]) and place[: len(item["loc"])] == item["loc"] for place in places)
    ]


def _schema_path(location: Key, root: type[Schema]) -> Key:
    """Return pydantic's location without the parts that name a member of a union rather than a key."""
    path: list[str | int] = []
    schema: Any = root
    for part in location:
        fields = schema.model_fields if schema is not None else {}
        if part in fields:
            path.append(part)
            schema = inner_schema(fields[part].annotation)
        elif isinstance(part, int):
            path.append(part)
        elif part not in _UNION_MEMBERS and "[" not in part and (schema is None or part != schema.__name__):
            path.append(part)
            schema = None
    return tuple(path)


def _fields_at(key: Key, root: type[Schema]) -> frozenset[str]:
    """Return the names of the keys in the section that ``key`` names; empty if it names a value."""
    schema = _schema_at(key, root)
    return frozenset(schema.model_fields) if schema is not None and key else frozenset()


def _schema_at(key: Key, root: type[Schema]) -> Any:
    """Return the schema of the section that ``key`` names, or None if it names a value."""
    schema: Any = root
    for part in key:
        field = schema.model_fields.get(part) if schema is not None else None
        schema = None if field is None else inner_schema(field.annotation)
    return schema


def inner_schema(annotation: Any) -> Any:
    """Return the schema class in an annotation such as ``str | TaskConfig``, or None."""
    candidates = [annotation, *getattr(annotation, "__args__", ())]
    return next((c for c in candidates if isinstance(c, type) and issubclass(c, Schema)), None)


_UNION_MEMBERS = {"str", "int", "float", "bool", "none", "constrained-int", "constrained-float"}
_TYPES = {
    "int": "a whole number",
    "float": "a number",
    "bool": "true or false",
    "string": "a word or text",
    "tuple": "a list",
    "model": "a group of keys",
    "dict": "a group of keys",
    "none": "null",
    "finite_number": "a finite number",
    "greater_than": "more than {gt}",
    "greater_than_equal": "at least {ge}",
    "less_than": "less than {lt}",
    "less_than_equal": "at most {le}",
    "string_pattern_mismatch": "made of letters, digits, '_', '.' and '-' only",
    "string_too_long": "at most {max_length} characters long",
    "too_short": "a list of at least {min_length}",
    "too_long": "a list of at most {max_length}",
}


def _expected(complaints: Sequence[Any], given: Any) -> str:
    """Return what would be right, from the errors of one key (several if the key takes several types)."""
    alternatives: list[str] = []
    choices: list[str] = []
    for item in complaints:
        kind, context = item["type"], item.get("ctx", {})
        stem = (
            kind.removesuffix("_type").removesuffix("_parsing").removesuffix("_from_float").removesuffix("_attributes")
        )
        if kind == "literal_error":
            choices = re.findall(r"'([^']*)'", context["expected"])
            alternatives.append(f"one of {', '.join(choices)}" if len(choices) > 1 else choices[0])
        elif kind == "unknown_name":
            choices = context["known"]
            ours = f"one of {listed(choices, 40)}, or " if choices else ""
            alternatives.append(f"{ours}a plug-in's name (--load FILE.py)")
        elif kind == "too_short" and isinstance(given, dict):
            alternatives.append(f"a group of at least {context['min_length']}")
        elif stem in _TYPES:
            alternatives.append(_TYPES[stem].format(**{name: _plain(value) for name, value in context.items()}))
        else:
            message = item["msg"].removeprefix("Input should be ").removeprefix("Input should ")
            alternatives.append(message[0].lower() + message[1:])
    quoted = ""
    if any(item["type"] == "string_type" for item in complaints) and isinstance(given, bool | int | float):
        quoted = f"; to make it text, quote it: {json.dumps(json.dumps(given))}"
    return f"must be {' or '.join(dict.fromkeys(alternatives))}{suggestion(str(given), choices)}{quoted}"


def _plain(value: Any) -> Any:
    """Return a bound as a user would write it: 0 rather than 0.0."""
    return int(value) if isinstance(value, float) and value.is_integer() and abs(value) < 1e15 else value


def dotted_keys(schema: type[Schema], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Yield ``(dotted key, field)`` for every key of the schema, sections included, in order."""
    for name, field in schema.model_fields.items():
        yield prefix + name, field
        inner = inner_schema(field.annotation)
        if inner is not None:
            yield from dotted_keys(inner, f"{prefix}{name}.")


def _nearest_key(key: Key, schema: type[Schema]) -> str:
    if key[0] == "params" and len(key) > 2 and (own := schema_of(str(key[1]))) is not None:
        return suggestion(".".join(map(str, key)), [f"params.{key[1]}.{name}" for name, _ in dotted_keys(own)])
    dotted = ".".join(str(part) for part in key)
    known = [name for name, _ in dotted_keys(schema)]
    same_name = [name for name in known if name.rpartition(".")[2] == str(key[-1])]
    if same_name:
        return f" (did you mean {same_name[0]!r}?)"
    return suggestion(dotted, known)

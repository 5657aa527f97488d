"""The JSON Schema (2020-12) of configs, by which editors complete and check them as they are written.

It is made from the same classes that validate: meanings, defaults, types, ranges and choices, with plug-ins that are loaded.
Keys that have a use with some choices only are refused beside the others where one file can tell. Rules over several keys, and
whatever needs data or a model, are left to the command.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, get_args

from pydantic.json_schema import GenerateJsonSchema, JsonSchemaValue
from pydantic_core import core_schema

from fedsim import __version__
from fedsim.configuration.errors import dotted_keys, inner_schema
from fedsim.configuration.schema import Config
from fedsim.core.plugins import REGISTRIES, WITH_PARAMS
from fedsim.core.registry import Registry, find
from fedsim.core.schema import Schema
from fedsim.core.uses import Use

DIALECT = "https://json-schema.org/draft/2020-12/schema"
Values = dict[str, Any]


def config_schema() -> Values:
    """Return the JSON Schema of config files."""
    return finished(with_nulls(generated(Config)), "config")


def generated(schema: type[Schema]) -> Values:
    """Return the JSON Schema of a class."""
    return schema.model_json_schema(schema_generator=_Generator, ref_template="#/$defs/{model}")


def finished(schema: Values, kind: str) -> Values:
    """Return a schema with its names, and without what only takes room."""
    nullable: set[str] = set()
    schema = _direct(schema, nullable)
    for name in nullable & set(schema["$defs"]):
        schema["$defs"][name]["type"] = ["object", "null"]
    head = {"$schema": DIALECT, "$id": f"urn:fedsim:{kind}:{__version__}", "title": f"fedsim {kind}"}
    return {**head, **{key: _tidy(value) for key, value in schema.items() if key != "title"}}


def _tidy(value: Any, names: bool = False) -> Any:
    """Drop titles made of the keys' own names, and let descriptions run on."""
    if isinstance(value, list):
        return [_tidy(item) for item in value]
    if not isinstance(value, dict):
        return value
    kept = {key: item for key, item in value.items() if names or key != "title"}
    if not names and isinstance(text := kept.get("description"), str):
        kept["description"] = " ".join(text.replace("``", "`").split())
    # The keys below these are names of a config, not words of the schema language.
    return {key: _tidy(item, key in ("properties", "$defs") and not names) for key, item in kept.items()}


class _Generator(GenerateJsonSchema):
    """Pydantic's schemas, with what our own classes add: names of registries, and keys that need a choice."""

    def function_after_schema(self, schema: core_schema.AfterValidatorFunctionSchema) -> JsonSchemaValue:
        found = super().function_after_schema(schema)
        registry = getattr(schema["function"]["function"], "registry", None)
        return found if registry is None else {**found, "enum": [*find(registry)]}

    def model_schema(self, schema: core_schema.ModelSchema) -> JsonSchemaValue:
        found = super().model_schema(schema)
        kind = schema["cls"]
        if not issubclass(kind, Schema):
            return found
        if kind is Config:
            found["properties"]["params"] |= {"properties": self._params(), "additionalProperties": False}
        for name, words in _named_choices(kind):
            value = found["properties"][name]
            if "anyOf" in value:  # a path or a definition as well: the names are what an editor offers
                value["anyOf"] = [{"enum": words}, *value["anyOf"]]
            else:
                value["enum"] = words
        rules = list(_rules(kind, found))
        if hasattr(kind, "keys_of_kinds"):
            rules += self._of_kinds(kind, found)
            found["properties"] = {name: _or_null(value) for name, value in found["properties"].items()}
        for entry in kind.all_uses():
            first, _, rest = entry.partition(".")
            if not rest and first in found["properties"]:
                found["properties"][first] = _or_null(found["properties"][first])
        return {**found, "allOf": rules} if rules else found

    def _params(self) -> Values:
        """Return the schemas of the keys of loaded plug-ins, by name."""
        owned: dict[str, Any] = {}
        for kind in WITH_PARAMS:
            for name, thing in find(REGISTRIES[kind]).items():
                if (own := getattr(thing, "Config", None)) is not None:
                    owned[name] = _or_null(self.generate_inner(own.__pydantic_core_schema__))
        return owned

    def _of_kinds(self, kind: Any, found: Values) -> list[Values]:
        """Add the keys that single kinds of a section have, and return what refuses them with other kinds."""
        from fedsim.core.method import METHODS

        rules = []
        own = {name: self._own(METHODS[name].Config) for name in METHODS}
        every = {key: value for keys in own.values() for key, value in keys.items()}
        common = set(found["properties"])
        found["properties"] |= {
            key: {**told(value), "anyOf": [{}]} for key, value in every.items() if key not in common
        }
        default = kind.model_fields["kind"].default
        for name, keys in own.items():
            theirs = {key: _or_null(value) for key, value in keys.items() if key != "kind"}
            others = {key: NOTHING for key in every if key not in keys and key not in common}
            absent = {"not": _nested(["kind"], {"not": NOTHING})}
            chosen = _is_given(["kind"], [name])
            when = {"anyOf": [chosen, absent]} if name == default else chosen
            rules.append({"if": when, "then": {"properties": {**theirs, **others}}})
        return rules

    def _own(self, config: type[Schema]) -> Values:
        """Return the schemas of a kind's own keys."""
        inner = self.generate_inner(config.__pydantic_core_schema__)
        if "$ref" in inner:
            inner = self.get_schema_from_definitions(inner["$ref"]) or inner
        return dict(inner.get("properties", {}))


NOTHING: Values = {"type": "null"}
"""A key that is not given."""


def _or_null(value: Values) -> Values:
    """Return a key's schema that takes null as well: a key without a use may be given so."""
    choices = value.get("anyOf", [{key: item for key, item in value.items() if key not in ("description", "default")}])
    return value if NOTHING in choices else {**told(value), "anyOf": [*choices, NOTHING]}


def told(value: Values) -> Values:
    """Return what a schema says to its reader."""
    return {key: item for key, item in value.items() if key in ("description", "default")}


def with_nulls(config: Values) -> Values:
    """Let the keys within sections be null that have no use with some choices of other sections."""
    for kind in _sections(Config):
        for entry in kind.all_uses():
            above, _, name = entry.rpartition(".")
            if above and (owner := _section(above, kind)) is not None:
                properties = config["$defs"][owner.__name__]["properties"]
                properties[name] = _or_null(properties[name])
    return config


def _direct(schema: Any, nullable: set[str]) -> Any:
    """Return a schema in which a section or null is a section that may be null: mistakes are then told at their own key.

    The names of such sections are added to ``nullable``.
    """
    if isinstance(schema, list):
        return [_direct(item, nullable) for item in schema]
    if not isinstance(schema, dict):
        return schema
    match schema.get("anyOf"):
        case [{"$ref": str(reference)}, {"type": "null"}]:
            nullable.add(reference.rpartition("/")[2])
            schema = {"$ref": reference, **told(schema)}
    return {key: _direct(item, nullable) for key, item in schema.items()}


def _sections(schema: type[Schema]) -> Iterator[type[Schema]]:
    yield schema
    for field in schema.model_fields.values():
        if (inner := inner_schema(field.annotation)) is not None:
            yield from _sections(inner)


# -- choices that a registry or another key decides ---------------------------------------------------------------------


def _named_choices(kind: type[Schema]) -> Iterator[tuple[str, list[str]]]:
    """Yield the keys of a section that name an entry of a registry, and the names; the default may be another word."""
    for path in REGISTRIES.values():
        registry: Registry[Any] = find(path)
        for dotted, field in dotted_keys(Config):
            above, _, name = dotted.rpartition(".")
            if (
                dotted == registry.key
                and _section(above) is kind
                and str in (field.annotation, *get_args(field.annotation))
            ):
                yield name, list(dict.fromkeys([field.default, *registry]))


def _section(dotted: str, schema: Any = Config) -> Any:
    """Return the class of a section."""
    for part in filter(None, dotted.split(".")):
        schema = inner_schema(schema.model_fields[part].annotation)
    return schema


def _rules(kind: type[Schema], found: Values) -> Iterator[Values]:
    """Yield what refuses the keys of a section that have no use with the others' values."""
    for entry, needed in kind.all_uses().items():
        parts = entry.split(".")
        for use in needed:
            if (when := _useless_when(kind, use, found)) is not None:
                words = use.words or f"it is for {use.key}: {', '.join(map(str, use.values))}"
                message = f"{entry} has no use here: {words}"
                nothing = {"type": ["null", "object"], "additionalProperties": NOTHING, "errorMessage": message}
                yield {"if": when, "then": _nested(parts, nothing, needed=False)}


def _useless_when(kind: type[Schema], use: Use, found: Values) -> Values | None:
    """Return the schema of the values of a section with which a key has no use; None if they cannot be told from one file."""
    parts = use.key.split(".")
    field, schema = None, kind
    for part in parts:
        if schema is None or part not in schema.model_fields:
            return None  # a property, made of several keys
        field = schema.model_fields[part]
        schema = inner_schema(field.annotation)
    assert field is not None
    default = field.get_default(call_default_factory=True)
    if use.test is None:
        good: Sequence[Any] = use.values
    elif (choices := _choices(kind, parts, found)) is not None:
        good = [value for value in choices if use.test(value)]
    elif not use.test(default):  # it must be given, but which values will do is not a list
        return {"not": _nested(parts, {"not": {"enum": [default, None]}})}
    else:
        return None
    if default in good:
        return _nested(parts, {"not": {"enum": [*good, None]}})
    return {"not": _is_given(parts, good)}


def _choices(kind: type[Schema], parts: Sequence[str], found: Values) -> list[Any] | None:
    """Return the words that a key can have, None if it has others."""
    if len(parts) == 1:
        return found["properties"][parts[0]].get("enum")
    own = inner_schema(kind.model_fields[parts[0]].annotation)
    inner = generated(own)
    return _choices(own, parts[1:], inner)


def _is_given(parts: Sequence[str], values: Sequence[Any]) -> Values:
    return _nested(parts, {"enum": list(values)})


def _nested(parts: Sequence[str], schema: Values, needed: bool = True) -> Values:
    """Return a schema of a section for a key in it; with ``needed`` the key must be there."""
    for part in reversed(parts):
        schema = {"properties": {part: schema}, **({"required": [part]} if needed else {})}
        if needed:
            schema["type"] = "object"
    return schema

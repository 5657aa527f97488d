"""The JSON Schema (2020-12) of study files, whose dotted keys have the schema of the config's key."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from typing import Any

from fedsim.configuration.json_schema import NOTHING, Values, finished, generated, told, with_nulls
from fedsim.configuration.schema import Config
from fedsim.study.config import StudyConfig

_PARAMS: Values = {r"^params\.": {}}


def study_schema() -> Values:
    """Return the JSON Schema of study files: dotted keys of configs have the schema of their key."""
    study, config = generated(StudyConfig), with_nulls(generated(Config))
    # The two have sections of the same name.
    config = json.loads(json.dumps(config).replace('"#/$defs/', '"#/$defs/config.'))
    definitions = {f"config.{name}": value for name, value in config.pop("$defs").items()}
    keys = _dotted(config, {f"#/$defs/{name}": value for name, value in definitions.items()})
    study["$defs"] = {**definitions, **study.get("$defs", {}), "Keys": keys}
    lists = {key: {"type": "array", "items": value} for key, value in keys["properties"].items()}
    tried = {"type": "object", "properties": lists, "patternProperties": _PARAMS, "additionalProperties": False}
    named = {"$ref": "#/$defs/Keys"}
    properties = study["properties"]
    properties["set"] |= named
    for name in ("arms", "datasets"):
        _replace_any(properties[name], named)
    search = study["$defs"]["SearchConfig"]["properties"]
    search["keys"] = {**told(search["keys"]), **tried}
    search["arms"] = {**told(search["arms"]), "type": "object", "additionalProperties": tried}
    return finished(study, "study")


def _replace_any(holder: Values, keys: Values) -> None:
    """Let a table of names hold dotted keys where pydantic knows only that it holds objects."""
    inner = holder.get("additionalProperties") or next(iter(holder["patternProperties"].values()))
    inner["anyOf"] = [keys if each.get("type") == "object" else each for each in inner["anyOf"]]


def _dotted(config: Values, definitions: Mapping[str, Any]) -> Values:
    """Return the schema of a table of dotted keys of a config; null is a key that is not given."""

    def within(schema: Values, above: str) -> Iterator[tuple[str, Any]]:
        for name, value in schema.get("properties", {}).items():
            yield above + name, {"anyOf": [value, NOTHING]}
            for each in (value, *value.get("anyOf", ())):
                yield from within(definitions.get(each.get("$ref"), {}), f"{above}{name}.")

    keys = dict(within(config, ""))
    return {"type": "object", "properties": keys, "patternProperties": _PARAMS, "additionalProperties": False}

"""The JSON Schema of what ``--json`` prints: one document, whose ``result`` depends on the command.

A new command needs a row here; a new key of a result needs none, since readers are to ignore keys that they do not know.
"""

from __future__ import annotations

from typing import Any

from fedsim.cli.machine import SCHEMA

Values = dict[str, Any]

_TEXT: Values = {"type": "string"}
_TEXTS: Values = {"type": "array", "items": _TEXT}
_WHOLE: Values = {"type": "integer"}
_NUMBER: Values = {"type": "number"}
_MAYBE_TEXT: Values = {"type": ["string", "null"]}
_MAYBE_NUMBER: Values = {"type": ["number", "null"]}
_MAYBE_WHOLE: Values = {"type": ["integer", "null"]}
_ANY_OBJECT: Values = {"type": "object"}


def _object(**keys: Values) -> Values:
    return {"type": "object", "properties": keys, "required": list(keys)}


def _list(item: Values) -> Values:
    return {"type": "array", "items": item}


def _one_of(*words: str) -> Values:
    return {"enum": list(words)}


_CACHE = _object(
    folder=_TEXT, bytes=_WHOLE, entries=_list(_object(kind=_TEXT, about=_TEXT, bytes=_WHOLE, used_at=_NUMBER))
)
_STATES = ("running", "finished", "interrupted", "failed", "silent")
_RUN_SEEN = _object(
    what=_one_of("run"),
    place=_TEXT,
    name=_TEXT,
    state=_one_of(*_STATES),
    ended=_MAYBE_TEXT,
    rounds=_WHOLE,
    rounds_total=_MAYBE_WHOLE,
    metric_name=_TEXT,
    metric=_MAYBE_NUMBER,
    best_metric=_MAYBE_NUMBER,
    bytes_down=_WHOLE,
    bytes_up=_WHOLE,
    clients_failed=_WHOLE,
    seconds=_NUMBER,
    seconds_per_round=_MAYBE_NUMBER,
    seconds_left=_MAYBE_NUMBER,
    written=_MAYBE_TEXT,
    course=_list(_ANY_OBJECT),
    events=_list(_object(time=_TEXT, event=_TEXT, sentence=_TEXT)),
)
_STUDY_SEEN = _object(
    what=_one_of("study"),
    place=_TEXT,
    name=_TEXT,
    state=_one_of(*_STATES),
    ended=_MAYBE_TEXT,
    cells=_WHOLE,
    finished=_WHOLE,
    failed=_WHOLE,
    searched=_WHOLE,
    running=_list(_object(cell=_TEXT, rounds=_WHOLE, rounds_total=_MAYBE_WHOLE, metric=_MAYBE_NUMBER)),
)
_SCALING_SEEN = _object(
    what=_one_of("scaling study"),
    place=_TEXT,
    name=_TEXT,
    state=_one_of(*_STATES),
    ended=_MAYBE_TEXT,
    points=_WHOLE,
    finished=_WHOLE,
    failed=_WHOLE,
    rounds_total=_WHOLE,
    runs=_list(
        _object(
            clients=_WHOLE,
            cohort=_WHOLE,
            actors={"type": ["integer", "string"]},
            repeat=_WHOLE,
            state=_one_of("finished", "failed", "running", "waiting"),
            rounds=_WHOLE,
            seconds_round=_MAYBE_NUMBER,
            client_updates_per_second=_MAYBE_NUMBER,
            sentence=_MAYBE_TEXT,
        )
    ),
    predictions=_list(_object(clients=_WHOLE, cohort=_WHOLE, actors=_WHOLE, seconds=_NUMBER, measured=_MAYBE_NUMBER)),
)

_RESERVED = _object(by=_TEXT, state=_TEXT, groups=_WHOLE, cpus=_NUMBER, gpus=_NUMBER, memory_bytes=_WHOLE)

RESULTS: dict[str, Values] = {
    "init": _object(config=_TEXT),
    "presets": _object(presets=_list(_object(name=_TEXT, headline=_TEXT, path=_TEXT))),
    "run": _object(
        name=_MAYBE_TEXT,
        folder=_TEXT,
        metric_name=_TEXT,
        global_metric=_MAYBE_NUMBER,
        best_global_metric=_MAYBE_NUMBER,
        best_global_round=_MAYBE_WHOLE,
        rounds=_WHOLE,
        clients=_WHOLE,
        bytes_down=_WHOLE,
        bytes_up=_WHOLE,
        seconds_total=_NUMBER,
        config_hash=_TEXT,
        contents=_ANY_OBJECT,
        versions=_ANY_OBJECT,
    ),
    "plan": _object(
        executor=_one_of("ray", "local"),
        actors=_WHOLE,
        clients_at_once=_WHOLE,
        groups=_WHOLE,
        threads=_WHOLE,
        nodes=_list(_object(name=_TEXT, actors=_WHOLE, cpus=_NUMBER, gpus=_NUMBER)),
        memory={"anyOf": [_object(weights=_WHOLE, caches=_WHOLE, exchanged=_WHOLE), {"type": "null"}]},
        warnings=_TEXTS,
    ),
    "doctor": _object(
        findings=_list(
            _object(what=_TEXT, status=_one_of("ok", "warning", "problem"), text=_TEXT, reserved=_list(_RESERVED))
        ),
    ),
    "config": _object(rounds=_WHOLE, seed=_WHOLE, model=_ANY_OBJECT, server=_ANY_OBJECT, client=_ANY_OBJECT),
    "version": _object(version=_TEXT),
    "partition": _object(
        clients=_WHOLE, examples=_WHOLE, classes=_TEXTS, counts=_list(_list(_WHOLE)), notes=_TEXTS, picture=_TEXT
    ),
    "layers": _object(
        layers=_list(_WHOLE),
        num_layers=_WHOLE,
        scores={"type": ["array", "null"], "items": _MAYBE_NUMBER},
        share=_MAYBE_NUMBER,
        share_rule=_TEXT,
        spectra=_list(_ANY_OBJECT),
        pictures=_TEXTS,
    ),
    "scale": _object(points=_list(_object(clients=_WHOLE, cohort=_WHOLE)), failures=_list(_ANY_OBJECT)),
    "watch": {"anyOf": [_RUN_SEEN, _STUDY_SEEN, _SCALING_SEEN]},
    "report": _object(files=_TEXTS),
    "compare": {
        "anyOf": [
            _object(
                name=_TEXT,
                reference=_TEXT,
                rows=_list(_ANY_OBJECT),
                pairs=_list(_ANY_OBJECT),
                failed=_list(_ANY_OBJECT),
                expectations=_list(_object(ok={"type": "boolean"}, sentence=_TEXT)),
            ),
            _object(
                name=_TEXT,
                folder=_TEXT,
                runs=_list(_object(dataset=_TEXT, arm=_TEXT, seed=_WHOLE, trial=_MAYBE_WHOLE, folder=_TEXT)),
                notes=_TEXTS,
            ),
        ]
    },
    "export": _object(folder=_TEXT),
    "schema": _ANY_OBJECT,
    "cache list": _CACHE,
    "cache clear": _CACHE,
}
"""Schema of each command's ``result``."""


def output_schema() -> Values:
    """Return the JSON Schema of the document that every command prints with ``--json``."""
    error = _object(kind=_TEXT, sentence=_TEXT, where=_MAYBE_TEXT, key=_MAYBE_TEXT, kept=_MAYBE_TEXT)
    told = {
        "kind": "Kind of error: ConfigError, DataError, ModelError, ResourceError, UsageError, RunInterrupted, Failed, ...",
        "sentence": "What is wrong, where, and what would be right.",
        "where": "File and line, or override, if the sentence is about one.",
        "key": "Dotted key of the config, if the sentence is about one.",
        "kept": "Of an interrupted command: what is saved, and how to go on.",
    }
    for name, words in told.items():
        error["properties"][name] = {**error["properties"][name], "description": words}
    head = {
        "schema": {"const": SCHEMA},
        "fedsim": {**_TEXT, "description": "Version of fedsim."},
        "command": {"enum": [*RESULTS, None], "description": "The command; null if the command line names none."},
        "exit_code": {**_WHOLE, "description": "Exit status of the process; docs/operations.md has the table."},
        "result": {"description": "What the command found; null if it ended before. NaN and infinity are null."},
        "error": {"anyOf": [error, {"type": "null"}], "description": "Null if, and only if, exit_code is 0."},
    }
    results = [
        {
            "if": {"properties": {"command": {"const": name}, "result": {"not": {"type": "null"}}}},
            "then": {"properties": {"result": result}},
        }
        for name, result in RESULTS.items()
    ]
    done = {"if": {"properties": {"exit_code": {"const": 0}}}, "then": {"properties": {"error": {"type": "null"}}}}
    return {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "$id": f"urn:{SCHEMA.replace('/', ':')}",
        "title": "What fedsim prints with --json",
        "type": "object",
        "properties": head,
        "required": list(head),
        "additionalProperties": False,
        "allOf": [*results, {**done, "else": {"properties": {"error": {"type": "object"}}}}],
    }

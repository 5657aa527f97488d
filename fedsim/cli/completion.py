"""What a shell offers at the tab key: config files, presets, keys with their values, folders of runs.

Nothing here may fail or print: a shell would show it in the middle of the line being typed.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import wraps
from importlib import import_module
from pathlib import Path
from typing import Any, Literal, get_args, get_origin

import typer

Offer = tuple[str, str]
"""A word and its meaning, which shells other than bash show."""
_MOST = 400


def _quiet(offers: Callable[..., Iterator[Offer]]) -> Callable[..., list[Offer]]:
    """Return what completes with all that goes wrong left out."""

    @wraps(offers)
    def offered(*arguments: Any, **named: Any) -> list[Offer]:
        found: list[Offer] = []
        try:
            for offer in offers(*arguments, **named):
                found.append(offer)
                if len(found) >= _MOST:
                    break
        except Exception:  # a folder that cannot be read, a plug-in that cannot be imported
            pass
        return found

    return offered


@_quiet
def configs(incomplete: str) -> Iterator[Offer]:
    """Yield config files, folders that may hold some, and presets."""
    yield from _files(incomplete, ("*.yaml", "*.yml"))
    yield from ((name, "preset") for name in _presets() if name.startswith(incomplete))


@_quiet
def places(incomplete: str) -> Iterator[Offer]:
    """Yield folders of runs and studies, the newest first, and folders that may hold some."""
    folders = [path for path in _matching(incomplete) if path.is_dir()]
    if not incomplete:
        folders += [path for path in Path("runs").glob("*") if path.is_dir()]
    for path in sorted(folders, key=lambda path: -path.stat().st_mtime):
        held = _held(path)
        yield (str(path), held) if held else (f"{path}/", "folder")


@_quiet
def overrides(ctx: typer.Context, incomplete: str) -> Iterator[Offer]:
    """Yield keys of the config; once a key is whole, ``KEY=`` with the values that it may have."""
    args = [word for given in ctx.params.values() if isinstance(given, list | tuple) for word in map(str, given)]
    if args[-1:] == ["="]:  # bash takes the sign for a word of its own
        yield from _values(args[-2], incomplete)
    elif not incomplete and args and args[-1] in _fields():  # the sign itself, which typer takes for an empty word
        yield from _values(args[-1], "")
    elif "=" in incomplete:
        key, _, part = incomplete.partition("=")
        yield from ((f"{key}={value}", meaning) for value, meaning in _values(key, part))
    else:
        yield from _keys(incomplete)


@_quiet
def words(ctx: typer.Context, incomplete: str) -> Iterator[Offer]:
    """Yield what ``compare`` and ``doctor`` take: files, folders, and then keys."""
    yield from configs(incomplete)
    yield from places(incomplete)
    if incomplete or any(ctx.params.values()):
        yield from overrides(ctx, incomplete)


def _keys(incomplete: str) -> Iterator[Offer]:
    found = {key: field for key, field in _fields().items() if key.startswith(incomplete)}
    if not incomplete:  # sections first: the keys of all would be hundreds
        heads = dict.fromkeys(f"{key.partition('.')[0]}{'.' if '.' in key else '='}" for key in found)
        yield from ((head, _meaning(_fields().get(head.rstrip(".=")))) for head in heads)
    elif len(found) == 1:
        ((key, field),) = found.items()
        yield f"{key}=", _meaning(field)  # beside a value, so that a shell sets no blank behind it
        yield from ((f"{key}={value}", meaning) for value, meaning in _values(key, ""))
    else:
        yield from ((f"{key}=", _meaning(field)) for key, field in found.items())


def _fields() -> dict[str, Any]:
    """Return the keys that hold a value, by dotted name."""
    from fedsim.configuration.errors import dotted_keys, inner_schema
    from fedsim.configuration.schema import Config
    from server.config import ServerConfig

    keys = dict(dotted_keys(Config))
    keys |= {f"server.{key}": field for key, field in ServerConfig.keys_of_kinds().items()}
    sections = {key for key, field in keys.items() if inner_schema(field.annotation) is not None}
    return {key: field for key, field in keys.items() if key not in sections or key == "data.task"}


def _values(key: str, part: str) -> Iterator[Offer]:
    """Yield the values of a key that begin with a part: its choices, or else its default."""
    field = _fields().get(key)
    if field is None:
        return
    choices = [*_named(key), *_literals(field.annotation)]
    choices += ["true", "false"] if bool in (field.annotation, *get_args(field.annotation)) else []
    default = field.get_default(call_default_factory=True)
    plain = default is None or isinstance(default, bool | int | float | str)
    standard = {None: "null", True: "true", False: "false"}.get(default, str(default)) if plain else None
    if not choices and standard is not None:
        choices = [standard]
    for value in dict.fromkeys(choices):
        if value.startswith(part):
            yield value, "default" if value == standard else ""


def _literals(annotation: Any) -> list[str]:
    if get_origin(annotation) is Literal:
        return [str(word) for word in get_args(annotation)]
    return [word for part in get_args(annotation) for word in _literals(part)]


def _named(key: str) -> list[str]:
    """Return the names of a registry, if the key names an entry of one."""
    from fedsim.core.plugins import REGISTRIES
    from fedsim.core.registry import find

    registries = (find(path) for path in REGISTRIES.values())
    also = {"compression.down.kind": "compression.up.kind"}
    return next(([*found] for found in registries if found.key == also.get(key, key)), [])


def _meaning(field: Any) -> str:
    text = " ".join((getattr(field, "description", None) or "").replace("``", "").split())
    return text if len(text) <= 70 else f"{text[:67]}..."


def _matching(incomplete: str) -> list[Path]:
    """Return the paths that begin with what is typed, without hidden ones."""
    folder, _, name = incomplete.rpartition("/")
    parent = Path(folder or ("/" if incomplete.startswith("/") else "."))
    found = (path for path in parent.iterdir() if path.name.startswith(name))
    return sorted(path for path in found if not path.name.startswith(".") or name.startswith("."))


def _files(incomplete: str, patterns: tuple[str, ...]) -> Iterator[Offer]:
    for path in _matching(incomplete):
        if path.is_dir():
            yield f"{path}/", "folder"
        elif any(path.match(pattern) for pattern in patterns):
            yield str(path), "file"


def _held(path: Path) -> str:
    return "run" if (path / "metrics.jsonl").exists() else "study" if (path / "study.json").exists() else ""


def _presets() -> list[str]:
    """Return the names of presets that come with the package; none where there are none."""
    try:
        return [preset.name for preset in import_module("fedsim.configuration.presets").presets()]
    except ImportError:
        return []

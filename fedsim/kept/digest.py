"""Keys: the SHA-256 of everything that a value depends on. Different contents have different keys."""

from __future__ import annotations

import hashlib
import struct
import sys
from collections.abc import Iterator, Mapping, Sequence
from functools import cache
from importlib import metadata
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np

from fedsim.core.registry import OURS

FORMAT = 1
"""Raised when entries change their form or a key its meaning."""
_PACKAGES = ("numpy", "safetensors", "tokenizers", "torch", "transformers")


def digest(content: Any) -> str:
    """Return the SHA-256 of nested content, as hexadecimal digits.

    Parameters
    ----------
    content
        None, booleans, integers, floats, text, bytes and NumPy arrays, in lists, tuples and mappings with text keys. Types
        count: 1, 1.0, True and ``"1"`` differ; a list and a tuple of the same items do not, nor does the order of keys.

    Raises
    ------
    TypeError
        If the content holds something else, which could not be told apart reliably.
    """
    sha = hashlib.sha256()
    for part in _parts(content):
        sha.update(part)
    return sha.hexdigest()


def _parts(content: Any) -> Iterator[bytes | memoryview]:
    """Yield bytes from which the content could be read back: each item begins with its type and its length."""
    match content:
        case None:
            yield b"n"
        case bool():
            yield b"b1" if content else b"b0"
        case int():
            yield from _sized(b"i", str(content).encode())
        case float():
            yield b"f" + struct.pack("<d", content)
        case str():
            yield from _sized(b"s", content.encode("utf-8", "surrogatepass"))
        case bytes():
            yield from _sized(b"y", content)
        case np.ndarray() if not content.dtype.hasobject:
            yield from _sized(b"a", f"{content.dtype.str} {content.shape}".encode())
            yield np.ascontiguousarray(content).reshape(-1).view(np.uint8).data
        case Mapping():
            yield from _sized(b"m", str(len(content)).encode())
            for key in sorted(content):
                yield from _parts(_text(key))
                yield from _parts(content[key])
        case Sequence():
            yield from _sized(b"l", str(len(content)).encode())
            for item in content:
                yield from _parts(item)
        case _:
            raise TypeError(f"a key cannot hold a {type(content).__name__}")


def _text(key: Any) -> str:
    if not isinstance(key, str):
        raise TypeError(f"a key's mapping needs text for its keys, not a {type(key).__name__}")
    return key


def _sized(kind: bytes, content: bytes) -> Iterator[bytes]:
    yield kind + struct.pack("<Q", len(content))
    yield content


# -- the code ----------------------------------------------------------------------------------------------------------


@cache
def code() -> dict[str, str]:
    """Return what computes: the format, the versions of Python and of packages, and the SHA-256 of fedsim's own source.

    The source, because a version says nothing of a working copy that is being changed.
    """
    found = {"format": str(FORMAT), "python": sys.version, "source": source_hash(map(_folder, sorted(OURS)))}
    for package in _PACKAGES:
        try:
            found[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            found[package] = "absent"
    return found


def source_hash(folders: Iterator[Path]) -> str:
    """Return the SHA-256 of all Python files in some packages, with their names."""
    return digest(
        [
            (file.relative_to(folder.parent).as_posix(), file.read_bytes())
            for folder in folders
            for file in sorted(folder.rglob("*.py"))
        ]
    )


def _folder(package: str) -> Path:
    spec = find_spec(package)
    assert spec is not None and spec.submodule_search_locations, package
    return Path(next(iter(spec.submodule_search_locations)))

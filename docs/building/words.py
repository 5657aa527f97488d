"""Docstrings as Markdown."""

from __future__ import annotations

import re

_ROLE = re.compile(r":\w+:`~?([^`]+)`")
_SECTION = re.compile(r"^( *)Parameters\n\1-+\n.*?(?=^\1\w[^\n]*\n\1---|\Z)", re.M | re.S)
_TOGETHER = re.compile(r"^( *)(\w+(?:, \w+)+)\n((?:\1 +[^\n]*(?:\n|\Z))+)", re.M)


def readable(text: str) -> str:
    """Return a docstring without roles, and with an entry for each parameter."""
    apart = _SECTION.sub(lambda section: _TOGETHER.sub(_apart, section[0]), text)
    return _ROLE.sub(r"`\1`", apart)


def _apart(entry: re.Match[str]) -> str:
    pad, names, words = entry.groups()
    return "".join(f"{pad}{name}\n{words.rstrip()}\n" for name in names.split(", "))


def prose(text: str | None) -> str:
    """Return a docstring's text as one line of Markdown, with links where it names a page of docs/."""
    line = " ".join((text or "").split())
    line = re.sub(r":\w+:`~?([^`]+)`", r"`\1`", line)
    line = re.sub(r"``([^`]+)``", r"`\1`", line)
    line = re.sub(r"(?<![\w/`])docs/(\w+)\.md", r"[\1](../\1.md)", line)
    parts = re.split(r"(`[^`]*`)", line)
    parts[::2] = [re.sub(r"([<*_|])", r"\\\1", part) if "](" not in part else part for part in parts[::2]]
    return "".join(parts)


def cell(text: str | None) -> str:
    """Return a docstring's text as a cell of a table."""
    return re.sub(r"(?<!\\)\|", r"\\|", prose(text))

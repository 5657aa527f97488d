"""Docstrings as Markdown."""

from __future__ import annotations

import re


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

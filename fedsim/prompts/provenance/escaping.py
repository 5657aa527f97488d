"""Texts of configs and data in Markdown, so that none is taken for markup."""

from __future__ import annotations

import re

_MARKUP = re.compile(r"([\\`*_{}\[\]<>#|~&$!])")


def inline(text: object) -> str:
    """Return text for a line of Markdown, or a cell of a table."""
    return _MARKUP.sub(r"\\\1", _one_line(text))


def code(text: object) -> str:
    """Return text as code in a line of Markdown, or a cell of a table."""
    line = _one_line(text).replace("|", "\\|") or " "
    fence = "`" * (1 + max((len(run) for run in re.findall("`+", line)), default=0))
    pad = " " if line.startswith("`") or line.endswith("`") else ""
    return f"{fence}{pad}{line}{pad}{fence}"


def indented(text: str) -> str:
    """Return text as an indented block of code, each line a line of it."""
    return "\n".join(f"    {line}" for line in text.splitlines())


def _one_line(text: object) -> str:
    return " ".join(str(text).split())

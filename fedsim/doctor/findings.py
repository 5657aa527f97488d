"""What the doctor finds, line by line."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

Status = Literal["ok", "warning", "problem"]


@dataclass(frozen=True)
class Finding:
    """One line: what was looked at, how it is, and, where it is not well, what would be right."""

    what: str
    status: Status
    text: str


def ok(what: str, text: str) -> Finding:
    """Return a finding that all is well."""
    return Finding(what, "ok", text)


def warning(what: str, text: str) -> Finding:
    """Return a finding that may spoil a run, or make it slow."""
    return Finding(what, "warning", text)


def problem(what: str, text: str) -> Finding:
    """Return a finding that a run would fail of."""
    return Finding(what, "problem", text)

"""Findings of the doctor."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

Status = Literal["ok", "warning", "problem"]


@dataclass(frozen=True)
class Reserved:
    """What somebody holds of a node of the cluster, or waits for."""

    by: str
    state: str
    groups: int
    cpus: float
    gpus: float
    memory_bytes: int


@dataclass(frozen=True)
class Finding:
    """One line of the report: what was checked, its state, and how to fix a problem."""

    what: str
    status: Status
    text: str
    reserved: tuple[Reserved, ...] = ()
    """Of findings about that, for ``--json``."""


def ok(what: str, text: str) -> Finding:
    """Return a finding without a problem."""
    return Finding(what, "ok", text)


def warning(what: str, text: str, reserved: tuple[Reserved, ...] = ()) -> Finding:
    """Return a finding that may break a run or slow it down."""
    return Finding(what, "warning", text, reserved)


def problem(what: str, text: str) -> Finding:
    """Return a finding that would make a run fail."""
    return Finding(what, "problem", text)

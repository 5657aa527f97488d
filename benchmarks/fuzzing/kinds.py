"""The kinds of input: what is done with a case of each, and how many of them and how long."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks.fuzzing.configs import config_case, key_case, one_key_cases
from benchmarks.fuzzing.data_files import data_case
from benchmarks.fuzzing.layouts import layout_case
from benchmarks.fuzzing.models import model_case
from benchmarks.fuzzing.prompts import adapter, peft_case, prompt_case
from benchmarks.fuzzing.runs import resume_case, run_case
from benchmarks.fuzzing.small_runs import finished_run


@dataclass(frozen=True)
class Kind:
    """One kind of input."""

    case: Callable[[int, Path], None]
    """What a run would do with the input of this number, as far as that is cheap, in an empty folder; it returns when the
    input was taken, and a sentence of ours is raised."""
    share: float = 0.0
    """Part of the examples: those that load a model are slow."""
    every: Callable[[], Sequence[Any]] | None = None
    """All cases, where each is tried once, whatever ``--examples`` says."""
    limit_seconds: float = 20.0
    """Longest time for a case."""
    made_once: Callable[[], Path] | None = None
    """What the cases copy and damage."""


KINDS = {
    "key": Kind(key_case, every=one_key_cases, limit_seconds=3.0),
    "config": Kind(config_case, 0.58, limit_seconds=3.0),
    "data": Kind(data_case, 0.20, limit_seconds=3.0),
    "layout": Kind(layout_case, 0.18, limit_seconds=3.0),
    "run": Kind(run_case, 0.01),
    "model": Kind(model_case, 0.01),
    "resume": Kind(resume_case, 0.01, made_once=finished_run),
    "prompt": Kind(prompt_case, 0.005, made_once=finished_run),
    "peft": Kind(peft_case, 0.005, made_once=adapter),
}

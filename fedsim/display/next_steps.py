"""What a command leaves to do: commands to copy, printed at its end."""

from __future__ import annotations

import shlex
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from rich.text import Text

from fedsim.configuration.schema import Config
from fedsim.core.plugins import loaded
from fedsim.records.remote import is_url

_AS_THEY_ARE = ("lora", "ia3", "soft_prompt")
"""Tuners that PEFT has an adapter for, whichever layers were trained."""


def next_steps(steps: Mapping[str, str]) -> Text:
    """Return commands, and what each is for, one a line."""
    width = max(map(len, steps))
    return Text("next: " + "\n      ".join(f"{command:{width}}   {what}" for command, what in steps.items()))


def typed(command: str, *words: object) -> str:
    """Return a command as a shell takes it, with the plug-ins that are loaded."""
    loads = [word for plugin in loaded() for word in ("--load", plugin.path)]
    return shlex.join(["fedsim", command, *map(str, words), *loads])


def after_init(config: str) -> Text:
    """Return what to do with a config that was written."""
    named = shlex.quote(config)
    return next_steps(
        {f"fedsim run {named}": "train", f"fedsim partition {named}": "see which client holds what first"}
    )


def after_plan(config: Path, overrides: Sequence[str]) -> Text:
    """Return what to do with a config whose run is planned."""
    words = (config, *overrides)
    return next_steps({typed("run", *words): "run it", typed("doctor", *words): "check what it reads first"})


def after_partition(config: Path, overrides: Sequence[str]) -> Text:
    """Return what to do with a config whose data are dealt out."""
    words = (config, *overrides)
    return next_steps(
        {
            typed("run", *words): "train on these clients",
            typed("plan", *words): "see what it takes first",
        }
    )


def after_doctor(words: Sequence[str], problems: int) -> Text | None:
    """Return what to do after a check; None where problems are left, whose lines say what to do.

    Parameters
    ----------
    words
        Arguments of the doctor: a config, if any, and overrides.
    """
    from fedsim.configuration.schema import read_config
    from fedsim.core.errors import FedsimError

    named = bool(words) and ("=" not in words[0] or Path(words[0]).is_file())
    run = tuple(words) if named else ("quickstart", *words)
    if problems:
        return None
    if not named:
        try:
            read_config(run[0], run[1:])
        except FedsimError:  # what was checked does not suit the quickstart
            return None
    return next_steps({typed("run", *run): "run it" if named else "a first run"})


def after_scale(command: Sequence[str], folder: Path, repeats: int, failed: int) -> Text:
    """Return what to do with a scaling study.

    Parameters
    ----------
    command
        Arguments of the command, without ``--repeats``, ``--output`` and plug-ins.
    """
    again, report = [*command, "--output", folder], typed("report", folder)
    steps = {typed("scale", *again, "--repeats", repeats): "run what failed again"} if failed else {}
    steps[report] = "the study as a page"
    if not failed:
        steps[typed("scale", *again, "--repeats", repeats + 2)] = "two more runs of each point, for medians"
    return next_steps(steps)


def after_compare(command: str, folder: Path, *, failed: int, unchecked: bool) -> Text:
    """Return what to do with a study.

    Parameters
    ----------
    command
        The command that continues it.
    unchecked
        Whether it has bands that its means were not held against.
    """
    steps = {command: "do what failed again"} if failed else {}
    steps[typed("report", folder, "--to", "md")] = "its tables, for a text"
    if unchecked and not failed:
        steps[f"{command} --check"] = "fail if a mean is outside its band"
    return next_steps(steps)


def after_run(summary: Mapping[str, Any], config: Config) -> Text | None:
    """Return what to do with a run that ended, or None if its results are elsewhere or it has to be resumed."""
    folder = str(summary.get("folder") or "")
    if not folder or is_url(folder) or summary.get("interrupted"):
        return None
    steps = {}
    if config.tracking.plots:
        steps[f"open {shlex.quote(f'{folder}/report.html')}"] = "the run as a page, in a browser"
    if _has_peft_adapter(summary, config):
        steps[f"fedsim export {shlex.quote(folder)} --to peft"] = "what it trained, as an adapter for PEFT"
    used = "generate" if config.model.head.kind == "generation" else "predict"
    steps[f"fedsim.load_adapter({folder!r}).{used}([...])"] = "use it in Python"
    return next_steps(steps)


def _has_peft_adapter(summary: Mapping[str, Any], config: Config) -> bool:
    """Whether ``fedsim export`` is known to accept the run; prefixes of some models can be moved to PEFT's positions, too."""
    if config.tuner.kind in _AS_THEY_ARE:
        return True
    everywhere = len(summary.get("layers") or ()) == summary.get("num_layers")
    return config.tuner.kind == "prefix" and everywhere and config.prompt.position_offset == "paper"

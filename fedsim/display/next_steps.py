"""What a command leaves to do: commands to copy, printed at its end."""

from __future__ import annotations

import shlex
from collections.abc import Mapping
from typing import Any

from rich.text import Text

from fedsim.configuration.schema import Config
from fedsim.records.remote import is_url

_AS_THEY_ARE = ("lora", "ia3", "soft_prompt")
"""Tuners that PEFT has an adapter for, whichever layers were trained."""


def next_steps(steps: Mapping[str, str]) -> Text:
    """Return commands, and what each is for, one a line."""
    width = max(map(len, steps))
    return Text("next: " + "\n      ".join(f"{command:{width}}   {what}" for command, what in steps.items()))


def after_init(config: str) -> Text:
    """Return what to do with a config that was written."""
    named = shlex.quote(config)
    return next_steps(
        {f"fedsim run {named}": "train", f"fedsim partition {named}": "see which client holds what first"}
    )


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

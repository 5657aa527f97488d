"""Where an adapter comes from: the run of a prompt file, as far as it is on record."""

from __future__ import annotations

import shlex
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from fedsim import __version__
from fedsim.configuration.schema import Config
from fedsim.core.errors import FedsimError
from fedsim.prompts.provenance.public import public_values
from fedsim.records.recorded_run import RecordedRun

_TYPES = {"prefix": "prefix-tuning", "soft_prompt": "prompt-tuning"}


@dataclass(frozen=True)
class Figure:
    """A measured value, and what it was measured on."""

    metric: str
    value: float
    on: str


@dataclass(frozen=True)
class Origin:
    """A prompt file and the run that it is from.

    Attributes
    ----------
    metadata
        Metadata of the prompt file.
    base
        Name of the base model on the Hugging Face hub, or None.
    client
        The client whose own layers the adapter has, or None.
    config, summary
        Those of the run; None without a record.
    ended
        When the run ended, ISO 8601; None without a record.
    """

    metadata: Mapping[str, Any]
    base: str | None
    client: int | None = None
    config: Config | None = None
    summary: Mapping[str, Any] | None = None
    ended: str | None = None

    @classmethod
    def of(cls, prompt: Path, metadata: Mapping[str, Any], base: str | None, client: int | None) -> Origin:
        """Read what lies around a prompt file, ``RUN/prompt/NAME.safetensors``."""
        run = RecordedRun(prompt.parent.parent, "")
        if prompt.parent.name != "prompt" or not (prompt.parent.parent / "config.yaml").is_file():
            return cls(metadata, base, client)
        try:
            ends = run.events("end") or [{}]
        except (OSError, ValueError, KeyError):
            ends = [{}]
        config, summary = None, None
        with suppress(FedsimError):  # such as a kind of a plug-in whose file is not loaded
            config, summary = run.config, run.summary
        return cls(metadata, base, client, config, summary, ends[-1].get("time"))

    @property
    def kind(self) -> str:
        """What was trained, as PEFT and the hub name it."""
        kind = str(self.metadata["tuner"]["kind"])
        return _TYPES.get(kind, kind)

    @property
    def task(self) -> str:
        """Name of the task."""
        return str(self.metadata["task"]["name"])

    @property
    def is_best(self) -> bool:
        """Whether this is the prompt of a run's best round."""
        return "round" in self.metadata

    @property
    def rounds(self) -> int | None:
        """Rounds after which this was the prompt."""
        if self.is_best:
            return int(self.metadata["round"])
        return None if self.summary is None else self.summary.get("rounds")

    @property
    def versions(self) -> dict[str, str]:
        """Versions that the run was made with."""
        found = {} if self.summary is None else dict(self.summary.get("versions") or {})
        return {"fedsim": str(self.metadata.get("fedsim", __version__)), **found}

    @property
    def contents(self) -> dict[str, str]:
        """SHA-256 of weights and data, by name."""
        return {} if self.summary is None else dict(self.summary.get("contents") or {})

    @property
    def plugins(self) -> dict[str, str]:
        """SHA-256 of each plug-in file."""
        return {} if self.summary is None else dict(self.summary.get("plugins") or {})

    @property
    def privacy(self) -> Mapping[str, Any] | None:
        """The guarantee after all rounds of the run, if it is private."""
        return None if self.summary is None else self.summary.get("privacy")

    @property
    def dataset(self) -> str | None:
        """Name of the data on the Hugging Face hub, if they come from there."""
        return None if self.config is None else self.config.data.hub_name

    @property
    def data_words(self) -> str:
        """Where the data come from."""
        if self.config is None:
            return "not on record"
        data = self.config.data
        if data.hub_name is not None:
            subset = f", subset {data.hub_subset}" if data.hub_subset else ""
            return f"{data.hub_name}{subset} on the Hugging Face hub, splits {data.train_split} and {data.validation_split}"
        return "local files" if data.path is not None else "the examples that come with fedsim"

    @property
    def figures(self) -> list[Figure]:
        """Figures of this adapter, with what they were measured on."""
        summary = self.summary
        if summary is None or self.client is not None:
            return []
        metric, validation = str(summary.get("metric_name")), "the task's validation examples"
        found = []
        if self.is_best:
            chosen = (
                "there too"
                if summary.get("select_on") == "validation"
                else f"on the {summary.get('select_on')} examples"
            )
            if summary.get("selected_round") == self.rounds:
                words = f"{validation}, after round {self.rounds}, the best of {summary.get('rounds')}, chosen {chosen}"
                found.append((summary.get("selected_global_metric"), words))
        else:
            found.append((summary.get("global_metric"), f"{validation}, after the last round"))
        found.append((summary.get("first_global_metric"), f"{validation}, before any training"))
        return [Figure(metric, float(value), on) for value, on in found if isinstance(value, int | float)]

    @cached_property
    def public(self) -> tuple[dict[str, Any], list[str]]:
        """The config without paths of this machine, and the keys whose paths were taken out; empty without a record."""
        return ({}, []) if self.config is None else public_values(self.config, self.base)

    @property
    def commands(self) -> list[str]:
        """Commands that make the adapter again; empty without a record."""
        if self.config is None:
            return []
        loaded = "".join(f" --load {shlex.quote(name)}" for name in self.plugins if name.endswith(".py"))
        given = "".join(f" {key}=path/to/{key.rpartition('.')[2]}" for key in dict.fromkeys(self.public[1]))
        stopped = (self.summary or {}).get("stopped") or {}
        rounds = f" rounds={self.rounds}" if stopped.get("rule") == "call" and not self.is_best else ""
        prompt = "run/prompt/best.safetensors" if self.is_best else "run"
        client = "" if self.client is None else f" --client {self.client}"
        return [
            f"fedsim run {CONFIG}{loaded} output=run{rounds}{given}",
            f"fedsim export {prompt} --to peft --output adapter{client}",
        ]


CONFIG = "fedsim-config.yaml"
"""Name of the config beside an adapter."""

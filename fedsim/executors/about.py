"""What a cluster's users are told of a run: name, configuration, rounds, and a number that no other run has."""

from __future__ import annotations

import json
import os
import secrets
from dataclasses import dataclass, field
from pathlib import PurePath
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from fedsim.configuration.schema import Config

UNNAMED = "unnamed"
JOB_VARIABLE = "RAY_JOB_CONFIG_JSON_ENV_VAR"
"""Where ``ray job submit`` tells a job's process what it is."""


@dataclass(frozen=True)
class About:
    """What a run is called, and what it runs."""

    run: str = UNNAMED
    """Its name, ``name`` of the config."""
    model: str = ""
    """Short name of the frozen model."""
    rounds: int = 0
    """Rounds of the whole run."""
    done: int = 0
    """Rounds that were done when it was begun or resumed."""
    config_hash: str = ""
    """``Config.identity``; empty as long as it is not known."""
    run_id: str = field(default_factory=lambda: secrets.token_hex(4))
    """Tells it from other runs of that name, and from itself before a resume."""

    @classmethod
    def of(cls, config: Config, done: int = 0) -> About:
        """Return what a config says of a run that goes on after ``done`` rounds."""
        return cls(config.name or UNNAMED, PurePath(config.model.location).name, config.rounds, done)

    @property
    def prefix(self) -> str:
        """What the names of its actors begin with."""
        return f"fedsim/{self.run}"

    @property
    def namespace(self) -> str:
        """Namespace of its actors' names."""
        return f"{self.prefix}/{self.run_id}"

    @property
    def tags(self) -> dict[str, str]:
        """Tags of its metrics."""
        return {"run": self.run, "run_id": self.run_id}

    @property
    def metadata(self) -> dict[str, str]:
        """Metadata of its job in Ray, which cannot be changed later: ``round`` is the one after which it begins."""
        known = {"config_hash": self.config_hash} if self.config_hash else {}
        return {**self.tags, **known, "round": str(self.done), "rounds": str(self.rounds)}


def submission() -> str | None:
    """Return the id under which this process was submitted by ``ray job submit``; None if it was not."""
    try:
        submitted = json.loads(os.environ.get(JOB_VARIABLE, "{}"))
        return str(submitted["metadata"]["job_submission_id"])
    except (ValueError, KeyError, TypeError):
        return None

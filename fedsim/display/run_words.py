"""A run in a few words, as its pictures and pages name it."""

from __future__ import annotations

from pathlib import PurePath
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from fedsim.configuration.schema import Config
    from partitions.config import PartitionConfig


class GroupWords(NamedTuple):
    """What the groups are called by which a client's examples are counted."""

    one: str
    several: str


CLASSES = GroupWords("class", "classes")
LABELS = GroupWords("label", "labels")
"""Of tasks of responses, whose labels are dealt by, not predicted."""


def group_words(head: str) -> GroupWords:
    """Return what the groups are called; ``head`` is ``model.head.kind``."""
    return LABELS if head == "generation" else CLASSES


def run_words(config: Config, task: str | None = None) -> str:
    """Return method, task, model, partition and seed of a run, such as
    ``fedpeptao, reviews, embedded, dirichlet_label α = 1, seed 0``.

    Parameters
    ----------
    task
        Name of the task; if not given, what the config says, which may be the path of a definition.
    """
    return ", ".join(
        (
            config.server.kind,
            task or PurePath(str(config.data.task)).stem,
            model_words(config),
            partition_words(config.partition),
            f"seed {config.seed}",
        )
    )


def model_words(config: Config) -> str:
    """Return the model's name: of a path, its last folder."""
    location = config.model.location
    return PurePath(location).name or location


def partition_words(partition: PartitionConfig) -> str:
    """Return a partition's kind, and its concentration if it has one."""
    alpha = "" if "alpha" in partition.useless else f" \N{GREEK SMALL LETTER ALPHA} = {partition.alpha:g}"
    return f"{partition.kind}{alpha}"

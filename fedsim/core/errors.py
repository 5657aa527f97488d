"""The errors a user can cause, each one sentence long.

The command line prints a :class:`FedsimError` as ``error: <sentence>`` and exits with status 2; any other
exception is a defect of ours and keeps its traceback.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable


class FedsimError(Exception):
    """Base of every error that names what is wrong, where, and what would be right."""


class ConfigError(FedsimError):
    """A configuration file, key or combination of keys is not valid."""


class DataError(FedsimError):
    """A dataset, a row of it, or a task definition is not valid."""


class PartitionError(FedsimError):
    """A dataset cannot be dealt out to clients as asked."""


class ModelError(FedsimError):
    """A model cannot be found, is not supported, or does not fit the task."""


class ResourceError(FedsimError):
    """CPUs, GPUs, memory or a cluster asked for are not there."""


class ClientError(FedsimError):
    """A client's own work failed; the message ends with the original traceback."""


class CheckpointError(FedsimError):
    """A checkpoint is missing, damaged, or belongs to another configuration."""


def nearest(word: str, choices: Iterable[str]) -> str:
    """Return ``" (did you mean 'x'?)"`` for the choice closest to ``word``, or an empty string if none is close."""
    match = difflib.get_close_matches(word, list(choices), n=1, cutoff=0.5)
    return f" (did you mean {match[0]!r}?)" if match else ""

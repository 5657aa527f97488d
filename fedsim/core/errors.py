"""The errors a user can cause, each one sentence long.

The command line prints a :class:`FedsimError` as ``error: <sentence>`` and exits with a status of
:mod:`fedsim.core.exit_codes`; any other exception is a bug in fedsim and keeps its traceback.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterable

_LONGEST_WORD = 240
_LONGEST_COMPARED = 200
"""In characters; comparison time grows quadratically."""


class FedsimError(Exception):
    """Base of all errors that name what is wrong, where, and what would be right.

    A file or command line may contain anything, so the sentence has line breaks and control characters escaped, and words
    of more than 240 characters shortened.

    Attributes
    ----------
    where, key
        File and line, or override, and dotted key that the sentence is about; None where these are not known, or not one.
    """

    where: str | None = None
    key: str | None = None

    def __init__(self, sentence: str = "") -> None:
        super().__init__(_on_one_line(sentence))


class ConfigError(FedsimError):
    """A configuration file, key or combination of keys is not valid."""


class PluginError(FedsimError):
    """A plug-in cannot be loaded, or what it registers cannot be used."""


class DataError(FedsimError):
    """A dataset, a row of it, or a task definition is not valid."""


class PartitionError(FedsimError):
    """A dataset cannot be partitioned over clients as requested."""


class ModelError(FedsimError):
    """A model cannot be found, is not supported, or does not fit the task."""


class ResourceError(FedsimError):
    """Requested CPUs, GPUs, memory or a cluster are not available."""


class ClientError(FedsimError):
    """A client's own work failed; the message ends with the original traceback, on lines of its own."""

    def __init__(self, message: str = "") -> None:
        Exception.__init__(self, message)


class CheckpointError(FedsimError):
    """A checkpoint is missing, damaged, or belongs to another configuration."""


def suggestion(word: str, choices: Iterable[str]) -> str:
    """Return ``" (did you mean 'x'?)"`` for the choice closest to ``word``, or an empty string if none is close."""
    match = closest(word, choices)
    return "" if match is None else f" (did you mean {match!r}?)"


def closest(word: str, choices: Iterable[str], least: float = 0.5) -> str | None:
    """Return the choice closest to ``word``, or None if none is as close as ``least``, from 0 to 1 for equal words."""
    if len(word) > _LONGEST_COMPARED:
        return None
    match = difflib.get_close_matches(word, [c for c in choices if len(c) <= _LONGEST_COMPARED], n=1, cutoff=least)
    return match[0] if match else None


def shown(value: object, most: int = 80) -> str:
    """Return a value as shown in a message: its ``repr``, cut to ``most`` characters."""
    try:
        text = repr(value)
    except ValueError:  # a number of more digits than Python writes
        text = f"a number of {int(value).bit_length()} bits" if isinstance(value, int) else type(value).__name__
    return text if len(text) <= most else f"{text[: most - 3]}..."


def listed(names: Iterable[object], most: int = 10, longest: int = 60) -> str:
    """Return names joined by commas for a message: the first ``most``, then how many more there are."""
    texts = [name if len(name) <= longest else f"{name[: longest - 3]}..." for name in map(str, names)]
    return ", ".join(texts[:most]) + (f" and {len(texts) - most} more" if len(texts) > most else "")


def _on_one_line(text: str) -> str:
    if not text.isprintable():
        text = "".join(c if c.isprintable() else c.encode("unicode_escape").decode("ascii") for c in text)
    return re.sub(rf"\S{{{_LONGEST_WORD + 1},}}", lambda word: f"{word[0][:160]}...{word[0][-40:]}", text)

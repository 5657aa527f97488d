"""Responses of a run that is resumed with other keys of ``evaluation.generate``: what is written anew, and what cannot be.

Responses are no part of a run's identity. Those of the last state, of the state before any training and of clients' own models
can be written at any time; those of rounds in between cannot, since these states are gone.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fedsim.configuration.schema import Config, read_config
from fedsim.core.errors import CheckpointError, FedsimError, listed
from fedsim.records.columns import GENERATION_COLUMNS
from fedsim.records.tables import read_table

if TYPE_CHECKING:
    from fedsim.simulation.config import GenerateConfig

_WHEN = ("every", "at_start")
"""Keys that say when the global model writes."""
_OF_CLIENTS = ("client_examples",)
"""Keys of clients' own models, which write at the end alone."""


def other_responses(config: Config, path: Path) -> list[str]:
    """Return each key of ``evaluation.generate``, with its values, by which the global model's texts on record would be others.

    None differs where the recorded run wrote nothing, or the config asks for nothing.
    """
    return [words for key, words in _differing(config, path).items() if key not in (*_WHEN, *_OF_CLIENTS)]


def lacks_responses(config: Config, summary: Mapping[str, Any], path: Path) -> bool:
    """Whether a finished run in ``path`` has other responses at its end, or fewer, than the config asks for."""
    asked, found = config.evaluation.generate, summary.get("generated")
    if asked is None:
        return False
    no_start = asked.at_start and bool(summary.get("rounds")) and "start" not in (found or {})
    return found is None or no_start or any(key not in _WHEN for key in _differing(config, path))


def check_rounds(config: Config, path: Path, round: int, folder: str) -> list[str]:
    """Refuse to continue from a round with other responses than those on record of rounds before it.

    Returns
    -------
    list[str]
        The keys for which the responses of the start and of ``round`` itself are to be forgotten.

    Raises
    ------
    CheckpointError
        With the keys that differ.
    """
    differing = other_responses(config, path)
    if not differing:
        return []
    table = read_table(path / "generations.parquet", GENERATION_COLUMNS)
    rounds = {row["round"] for row in table.select(["round", "only_at_end"]).to_pylist() if not row["only_at_end"]}
    if between := sorted(each for each in rounds if 0 < each < round):
        raise CheckpointError(
            f"{folder} has responses after {_rounds(between)}, which cannot be written again, and would have others after it: "
            f"{listed(differing, 5, 200)}; resume with the same keys, or set another output"
        )
    return differing


def check_when(config: Config, path: Path, folder: str) -> None:
    """Refuse to change when the model writes in a run that is finished.

    Raises
    ------
    CheckpointError
        With the values of ``evaluation.generate.every``.
    """
    changed = _differing(config, path).get("every")
    if changed is not None:
        raise CheckpointError(
            f"{folder} is finished, and what its model was after earlier rounds is gone, so nothing can be written for them: "
            f"{changed}; leave it, set more rounds, or set another output"
        )


def other_rounds(config: Config, path: Path, done: int) -> str | None:
    """Return why a finished run lacks responses of rounds that the config asks for, or has others; None if it has them all.

    Parameters
    ----------
    done
        Rounds of the run. Responses after its last one, and before any training, can still be written.
    """
    asked = config.evaluation.generate
    if asked is None:
        return None
    due = _due(asked.every, done)
    changed = _differing(config, path).get("every")
    recorded = _recorded(config, path) if changed is not None else None
    if recorded is not None and _due(recorded.every, done) != due:
        return f"it is finished, and {changed}: what its model was after earlier rounds is gone"
    try:
        lacking = due - _written_rounds(path, due)
    except CheckpointError as error:
        return str(error)
    if lacking:
        first = min(lacking)
        return f"it is finished without responses after round {first}, and what its model was then is gone"
    return None


def _due(every: int, done: int) -> set[int]:
    """Return the rounds before the last one after which the global model writes."""
    return set(range(every, done, every)) if every else set()


def _written_rounds(path: Path, wanted: set[int]) -> set[int]:
    if not wanted:
        return set()
    table = read_table(path / "generations.parquet", GENERATION_COLUMNS).select(["round", "only_at_end"])
    return {row["round"] for row in table.to_pylist() if not row["only_at_end"]}


def _differing(config: Config, path: Path) -> dict[str, str]:
    """Return each key of ``evaluation.generate`` that differs from the recorded run's, with both values in words."""
    asked, recorded = config.evaluation.generate, _recorded(config, path)
    if asked is None or recorded is None:
        return {}
    before, now = recorded.model_dump(mode="json"), asked.model_dump(mode="json")
    return {
        key: f"evaluation.generate.{key} was {_shown(before[key])} and is {_shown(value)}"
        for key, value in now.items()
        if before[key] != value
    }


def _recorded(config: Config, path: Path) -> GenerateConfig | None:
    if config.evaluation.generate is None:  # reading a config takes longer than all else of a look at a finished run
        return None
    try:
        return read_config(path / "config.yaml").evaluation.generate
    except FedsimError:
        return None


def _shown(value: Any) -> str:
    if isinstance(value, list):
        return f"[{', '.join(map(str, value))}]"
    return "null" if value is None else str(value).lower() if isinstance(value, bool) else str(value)


def _rounds(rounds: list[int]) -> str:
    return f"round {rounds[0]}" if len(rounds) == 1 else f"{len(rounds)} rounds, the first of them {rounds[0]}"

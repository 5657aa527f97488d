"""What ``fedsim init`` does: look at the data, guess, check that the config is one that runs, and write it."""

from __future__ import annotations

import os
import shlex
from dataclasses import dataclass, replace
from pathlib import Path

from clients.config import ModelConfig
from fedsim.configuration.given import parse_yaml
from fedsim.configuration.schema import build_config
from fedsim.core.errors import ConfigError, DataError, shown
from fedsim.core.imports import large_imports
from fedsim.data.guessing.config_file import Guess, config_name, config_yaml
from fedsim.data.guessing.profile import SPREADSHEETS, Column, Profile, look
from fedsim.data.guessing.roles import choose_client, choose_roles
from fedsim.data.guessing.written import Parts, WrittenGuess, find_parts, named_parts, no_writer, written_yaml
from fedsim.data.rows import extension
from fedsim.data.splits import TRAIN_STEMS, VALIDATION_STEMS

_USUAL_LENGTH = 128
_TEMPLATE_TOKENS = 16
"""Room for a template beside the text."""
_PROMPT_TOKENS = 64
"""Room for the text around an instruction."""
_DIALOGUE_TOKENS = 1024
"""Room before the lengths of dialogues are known."""
_LEAST_LENGTH = 64
_UNKNOWN_SHARE = 0.05
"""Share of unknown tokens from which on it is worth a note."""


@dataclass(frozen=True)
class Wishes:
    """The options of the command, as typed."""

    data: Path
    text: tuple[str, ...] = ()
    label: str | None = None
    client: str | None = None
    model: str = "embedded"
    response: str | None = None


def guess_config(wishes: Wishes) -> tuple[Guess | WrittenGuess, tuple[str, ...]]:
    """Return what a config for a data file would say, and notes.

    Raises
    ------
    DataError
        If the file cannot be read, or what a column is stays open.
    ModelError
        If the model cannot be read.
    """
    if wishes.response is not None and (
        wishes.label is not None or not 1 <= len(wishes.text) <= len(("prompt", "context"))
    ):
        raise DataError(
            "--response is the text to write: give it with --text, the prompt (twice with a context that may be empty)"
        )
    profile = look(wishes.data)
    parts = named_parts(profile, wishes.text, wishes.response) if wishes.response is not None else None
    if not (parts or wishes.text or wishes.label):
        parts = find_parts(profile)
    if parts is not None:
        return _written(wishes, profile, parts), ()
    roles = choose_roles(profile, wishes.text, wishes.label, wishes.client)
    labels = _labels(roles.label.columns[0])
    fields = Guess(profile, roles, labels, None, wishes.model, "", None, None).fields
    with large_imports():
        from fedsim.data.guessing.label_words import wording
        from fedsim.data.guessing.model_facts import ModelFacts

        facts = ModelFacts.of(_model_config(wishes.model))
        found = None
        if facts.has_lm_head:
            found = wording(labels, fields, roles.label.columns[0].name, facts.tokenizer, facts.causal)
        joined = [" ".join(texts) for texts in zip(*(column.sample for column in roles.text.columns), strict=False)]
        tokens, unknown = facts.measure(joined)
    guess = Guess(
        profile=profile,
        roles=roles,
        labels=labels,
        wording=found,
        model=wishes.model,
        folder=_folder(wishes.data),
        validation=_validation(profile),
        max_length=_max_length(tokens + _TEMPLATE_TOKENS, facts.max_positions, wishes.model),
    )
    return guess, tuple(_notes(guess, facts.has_lm_head, unknown))


def _written(wishes: Wishes, profile: Profile, parts: Parts) -> WrittenGuess:
    """Return what a config for prompts and responses would say."""
    client = choose_client(profile, parts.columns, wishes.client)
    with large_imports():
        from fedsim.data.guessing.model_facts import ModelFacts

        facts = ModelFacts.of(_model_config(wishes.model))
        chat = facts.tokenizer.chat_template is not None
        if not facts.causal or (parts.dialogue and not chat):
            raise DataError(no_writer(wishes.model, profile, parts, facts.causal))
        columns = [profile.column(name, "--data") for name in parts.columns]
        joined = [
            " ".join(texts) for texts in zip(*(column.sample for column in columns if column.filled), strict=False)
        ]
        tokens = _DIALOGUE_TOKENS if parts.dialogue else facts.measure(joined)[0] + _PROMPT_TOKENS
    return WrittenGuess(
        profile=profile,
        parts=parts,
        client=client,
        model=wishes.model,
        folder=_folder(wishes.data),
        validation=_validation(profile),
        max_length=max(_USUAL_LENGTH, min(-(-tokens // 16) * 16, facts.max_positions)),
        chat=chat,
    )


def _notes(guess: Guess, has_lm_head: bool, unknown: float) -> list[str]:
    notes = []
    if guess.wording is None:
        why = (
            f"no word of one token is known for each of the labels {', '.join(map(shown, guess.labels[:3]))}"
            + (" ..." if len(guess.labels) > 3 else "")
            if has_lm_head
            else f"the model {guess.model} has no LM head"
        )
        notes.append(f"model.head.kind is classifier: {why}")
    if unknown > _UNKNOWN_SHARE:
        notes.append(
            f"{100 * unknown:.0f} % of the tokens are unknown to the model {guess.model}"
            + (
                ", which is for trying things; for real figures give --model FOLDER_OR_NAME"
                if guess.model == "embedded"
                else ""
            )
        )
    if guess.roles.client is None and guess.roles.might_be_clients:
        names = " or ".join(
            f"--client {shlex.quote(column.name)} ({column.different:,})" for column in guess.roles.might_be_clients[:3]
        )
        notes.append(f"no column is called like clients; if they are in one, give {names}")
    return notes


def as_read(guess: Guess | WrittenGuess) -> Guess | WrittenGuess:
    """Return a guess with what reading its data as a run does has shown: rows that are left out, lengths of examples.

    Raises
    ------
    FedsimError
        If a run with it would be refused.
    """
    from fedsim.simulation.preparation import partition_data

    name = "the config"
    draft = written_yaml(guess, "", name) if isinstance(guess, WrittenGuess) else config_yaml(guess, "", name)
    values = parse_yaml(draft, name)
    values["data"]["on_bad_row"] = "skip"
    config = build_config(values, lambda key: name)
    dataset = partition_data(config).dataset
    parts = dataset.train, dataset.validation
    bad, first = sum(part.skipped for part in parts), next((p.first_skipped for p in parts if p.skipped), "")
    if not isinstance(guess, WrittenGuess):
        return replace(guess, bad_rows=bad, first_bad=first)
    with large_imports():
        from fedsim.data.guessing.model_facts import ModelFacts

        facts = ModelFacts.of(_model_config(guess.model))
        longest = facts.measure_responses(dataset.task, dataset.train)
    length = max(_LEAST_LENGTH, min(-(-longest[0] // 16) * 16, facts.max_positions))
    return replace(guess, bad_rows=bad, first_bad=first, longest=longest, max_length=length)


def checked_text(guess: Guess | WrittenGuess, command: str, name: str) -> str:
    """Return the config's text, once its data have been read and dealt out to clients as a run will do it.

    Raises
    ------
    FedsimError
        If a run with it would be refused.
    """
    from fedsim.simulation.preparation import partition_data, with_clients

    text = written_yaml(guess, command, name) if isinstance(guess, WrittenGuess) else config_yaml(guess, command, name)
    config = build_config(parse_yaml(text, name), lambda key: name)
    data = partition_data(config)
    if config.partition.clients is None:
        with_clients(config, data.shards.num_clients)
    return text


def write(path: Path, text: str, force: bool) -> None:
    """Write the config.

    Raises
    ------
    ConfigError
        If the file exists and ``force`` is not given, or it cannot be written.
    """
    refuse_existing(path, force)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, encoding="utf-8")
    except OSError as error:
        raise ConfigError(f"{path} cannot be written: {error.strerror}") from None


def names_data(path: Path) -> bool:
    """Return whether a path given in place of the folder names data: it is a file, or is called like one and is nothing yet."""
    of_data = extension(path.name) is not None or path.suffix.lower() in SPREADSHEETS
    return path.is_file() or (of_data and not path.exists())


def check_folder(folder: Path) -> None:
    """Refuse a folder for the config that is a file.

    Raises
    ------
    ConfigError
        Naming it.
    """
    if folder.is_file():
        raise ConfigError(
            f"FOLDER: {folder} is a file, where the folder for the config is expected; data are named once"
        )


def refuse_existing(path: Path, force: bool) -> None:
    """Refuse to overwrite a file that the user has not given up.

    Raises
    ------
    ConfigError
        Naming it.
    """
    if path.exists() and not force:
        raise ConfigError(f"{path} exists; give --force to overwrite it, or another folder")


def _labels(column: Column) -> tuple[str, ...]:
    """Return the labels in class order: numbers by size, words by the alphabet."""

    def order(label: str) -> tuple[float, str]:
        try:
            return float(label), label
        except ValueError:
            return 0.0, label

    return tuple(sorted(column.values or (), key=order))


def _model_config(model: str) -> ModelConfig:
    if model.startswith("package:"):
        return ModelConfig(package=model.removeprefix("package:"))
    return ModelConfig(path=model)


def _folder(data: Path) -> str:
    """Return the folder of the data as a config names it: relative if it is within the current one, where runs start."""
    folder = data.absolute().parent
    inside = folder.is_relative_to(Path.cwd())
    return os.path.relpath(folder) if inside else str(folder)


def _validation(profile: Profile) -> Path | None:
    """Return the validation file beside a training file, named like it, if it has the same columns."""
    stem, dot, ending = profile.path.name.partition(".")
    if stem not in TRAIN_STEMS:
        return None
    beside = next(
        (path for name in VALIDATION_STEMS if (path := profile.path.with_name(name + dot + ending)).is_file()), None
    )
    if beside is None:
        return None
    names = {column.name for column in profile.columns}
    other = look(beside)
    return beside if names <= {column.name for column in other.columns} and other.keys == profile.keys else None


def _max_length(tokens: int, most: int, model: str) -> int | None:
    room = most - (8 if model == "embedded" else 20)
    wanted = min(-(-tokens // 16) * 16, room)
    return wanted if wanted > _USUAL_LENGTH or room < _USUAL_LENGTH else None


__all__ = ["DataError", "Guess", "Wishes", "checked_text", "config_name", "guess_config", "refuse_existing", "write"]

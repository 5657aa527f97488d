"""Texts and settings of a trained model, as programs give them."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from pydantic import ValidationError

from fedsim.core.errors import ConfigError, ModelError, listed, shown
from fedsim.data.chat import ASSISTANT, SYSTEM, USER
from fedsim.data.config import TaskConfig
from fedsim.data.dialogue import Messages, as_text, read_messages
from fedsim.data.response_rules import used_fields

if TYPE_CHECKING:
    from fedsim.simulation.config import GenerateConfig

Prompt = str | Sequence[str] | Mapping[str, str] | Sequence[Mapping[str, str]]
"""A text; several, in the order of :func:`prompt_fields`; texts by field; or messages of a dialogue."""


def as_list(given: Any, name: str) -> list[Any]:
    """Return what stands for a list of texts as one; ``name`` is the argument's.

    Raises
    ------
    ModelError
        If it is one text, a mapping or no collection.
    """
    if _is_collection(given):
        return list(given)
    example = f", here [{shown(given, 40)}]" if isinstance(given, str) else ""
    raise ModelError(f"{name} is {_of_type(given)}; give a list of texts{example}")


def texts_of(example: Any, what: str) -> tuple[str, ...]:
    """Return the texts of an example, which is a text or a collection of texts; ``what`` names it.

    Raises
    ------
    ModelError
        If it is neither.
    """
    if isinstance(example, str):
        return (example,)
    if not _is_collection(example):
        raise ModelError(
            f"{what} is {_of_type(example)}; give a text, or a tuple of texts for a task of several fields"
        )
    texts = tuple(example)
    _refuse_other_than_text(texts, what)
    return texts


def settings(**given: Any) -> GenerateConfig:
    """Return the settings of a call of ``generate``, under the rules of ``evaluation.generate``; None is not given.

    Raises
    ------
    ConfigError
        If a value is not allowed, or has no use.
    """
    from fedsim.configuration.errors import refused
    from fedsim.configuration.values import plain
    from fedsim.simulation.config import GenerateConfig

    text = json.dumps(plain({name: value for name, value in given.items() if value is not None}))
    try:
        return GenerateConfig.model_validate_json(text, strict=True)
    except ValidationError as error:
        raise refused(error, GenerateConfig, lambda key: "generate") from None


def check_batch_size(batch_size: Any) -> None:
    """Refuse a number of texts per pass that is no whole number of at least 1.

    Raises
    ------
    ConfigError
        Saying what it is.
    """
    if isinstance(batch_size, bool) or not isinstance(batch_size, int | np.integer) or batch_size < 1:
        raise ConfigError(f"batch_size is {shown(batch_size)}; give a whole number of texts per pass, 1 or more")


def prompt_fields(task: TaskConfig) -> list[str]:
    """Return the fields that a task's prompt is made of, in the order of ``fields``."""
    texts = " ".join([task.template or "", *task.template_without.values()])
    return used_fields(texts, task.fields)


def prompt_rows(task: TaskConfig, prompts: Sequence[Prompt]) -> list[tuple[str, ...]]:
    """Return the texts of all fields for each prompt; those of the response alone are empty.

    Raises
    ------
    ModelError
        If the task is none of responses, or a prompt does not fit it.
    """
    if not task.of_responses:
        raise ModelError(
            f"task {task.name!r} tells classes apart; generate is for models of tasks of responses, predict for this one"
        )
    prompts = as_list(prompts, "prompts")
    if task.dialogue:
        return [(as_text(_asked(number, prompt)),) for number, prompt in enumerate(prompts)]
    fields = prompt_fields(task)
    return [_row(task, fields, number, prompt) for number, prompt in enumerate(prompts)]


def _row(task: TaskConfig, fields: list[str], number: int, prompt: Any) -> tuple[str, ...]:
    if isinstance(prompt, Mapping):
        optional = [name for name in fields if name not in task.optional_fields]
        missing = [name for name in optional if name not in prompt]
        unknown = [str(name) for name in prompt if name not in task.fields]
        if missing or unknown:
            wrong = f"lacks {missing[0]!r}" if missing else f"has {unknown[0]!r}"
            raise ModelError(f"prompt {number} {wrong}; task {task.name!r} has the fields {listed(fields)}")
        given = {name: prompt[name] for name in fields if name in prompt}
    else:
        texts = texts_of(prompt, f"prompt {number}")
        if len(texts) != len(fields):
            raise ModelError(
                f"prompt {number} has {len(texts)} texts, but task {task.name!r} takes {len(fields)}: {listed(fields)}"
            )
        given = dict(zip(fields, texts, strict=True))
    _refuse_other_than_text(given.values(), f"prompt {number}")
    return tuple(given.get(name, "") for name in task.fields)


def _asked(number: int, prompt: Any) -> Messages:
    """Return a dialogue that ends with a question, with an empty answer behind it."""
    if not isinstance(prompt, str) and not _is_collection(prompt):
        raise ModelError(f"prompt {number} is {_of_type(prompt)}; give a text or a list of messages")
    said = [{"role": USER, "content": prompt}] if isinstance(prompt, str) else list(prompt)
    found = read_messages([*said, {"role": ASSISTANT, "content": "?"}])
    if isinstance(found, str):
        raise ModelError(
            f"prompt {number} {found}; give messages of {USER} and {ASSISTANT}, after one of {SYSTEM} or none"
        )
    return [*found[:-1], (ASSISTANT, "")]


def _is_collection(value: Any) -> bool:
    return isinstance(value, Iterable) and not isinstance(value, str | bytes | Mapping)


def _of_type(value: Any) -> str:
    return "None" if value is None else f"of type {type(value).__name__}, {shown(value, 40)}"


def _refuse_other_than_text(texts: Iterable[Any], what: str) -> None:
    for text in texts:
        if not isinstance(text, str):
            raise ModelError(f"{what} has {shown(text)}, which is no text but of type {type(text).__name__}")

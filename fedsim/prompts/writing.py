"""Prompts to write responses to, as programs give them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from fedsim.core.errors import ModelError, listed, shown
from fedsim.data.chat import ASSISTANT, SYSTEM, USER
from fedsim.data.config import TaskConfig
from fedsim.data.dialogue import Messages, as_text, read_messages
from fedsim.data.response_rules import used_fields

Prompt = str | Sequence[str] | Mapping[str, str] | Sequence[Mapping[str, str]]
"""A text; several, in the order of :func:`prompt_fields`; texts by field; or messages of a dialogue."""


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
        texts = (prompt,) if isinstance(prompt, str) else tuple(prompt)
        if len(texts) != len(fields):
            raise ModelError(
                f"prompt {number} has {len(texts)} texts, but task {task.name!r} takes {len(fields)}: {listed(fields)}"
            )
        given = dict(zip(fields, texts, strict=True))
    wrong_kind = next((text for text in given.values() if not isinstance(text, str)), None)
    if wrong_kind is not None:
        raise ModelError(f"prompt {number} has {shown(wrong_kind)}, which is no text")
    return tuple(given.get(name, "") for name in task.fields)


def _asked(number: int, prompt: Any) -> Messages:
    """Return a dialogue that ends with a question, with an empty answer behind it."""
    said = [{"role": USER, "content": prompt}] if isinstance(prompt, str) else list(prompt)
    found = read_messages([*said, {"role": ASSISTANT, "content": "?"}])
    if isinstance(found, str):
        raise ModelError(
            f"prompt {number} {found}; give messages of {USER} and {ASSISTANT}, after one of {SYSTEM} or none"
        )
    return [*found[:-1], (ASSISTANT, "")]

"""What the keys of a task have to fit: what is asked of the model; prompt, response, chat and optional fields of responses."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

from fedsim.core.errors import suggestion

if TYPE_CHECKING:
    from fedsim.data.config import TaskConfig

OF_RESPONSES = "token_accuracy"
"""The metric of tasks of responses."""
_PLACEHOLDER = re.compile(r"(?<!\{)\{([A-Za-z_]\w*)\}(?!\})")
_OF_CLASSES = ("accuracy", "matthews", "accuracy_f1")


def check_kind(task: TaskConfig) -> None:
    """Refuse a task of which nothing says what is asked: no classes, and no response.

    Raises
    ------
    ValueError
        With what is given of either, and what each of them takes.
    """
    twice = next((name for name in task.fields if task.fields.count(name) > 1), None)
    if twice is not None:
        raise ValueError(f"fields has {twice!r} twice; every field is one column")
    if task.labels or task.response is not None:
        return
    classes = f"labels, the values of column {task.label_field!r}"
    of_classes = {"label_words": bool(task.label_words), "template": "<mask>" in (task.template or "")}
    asked = next((key for key, given in of_classes.items() if given), None)
    if asked is not None:
        has = "has <mask>, the place of a label word" if asked == "template" else "has the words of classes"
        raise ValueError(f"{asked} {has}, but labels is not given; give {classes}, in the order of the words")
    begun = f"metric {OF_RESPONSES} is one of responses, but " if task.metric == OF_RESPONSES else ""
    messages = (
        f", or dialogue: true with chat: true if {task.fields[0]!r} is a column of messages"
        if len(task.fields) == 1
        else ""
    )
    raise ValueError(
        f"{begun}neither labels nor response is given, so nothing is asked of the model; give {classes}, for it to tell apart, "
        f"or response, the text for it to write, such as '{{{task.fields[-1]}}}'{messages}"
    )


def check_responses(task: TaskConfig) -> None:
    """Refuse keys of a task of responses that do not fit together.

    Raises
    ------
    ValueError
        With a sentence that begins with the key.
    """
    if task.metric in _OF_CLASSES:
        raise ValueError(f"metric {task.metric} is one of classes; a task of responses has {OF_RESPONSES}")
    unknown = next((name for name in task.optional_fields if name not in task.fields), None)
    if unknown is not None:
        raise ValueError(f"optional_fields names {unknown!r}, which is none of fields {list(task.fields)}")
    if task.dialogue:
        _check_dialogue(task)
    else:
        _check_texts(task)


def check_placeholders(task: TaskConfig) -> None:
    """Refuse a placeholder that names no field, which would be read as text. Other braces are text.

    Raises
    ------
    ValueError
        With a sentence that begins with the key.
    """
    texts = {"template": task.template, "response": task.response}
    texts |= {f"template_without.{name}": text for name, text in task.template_without.items()}
    for key, text in texts.items():
        unknown = next((name for name in _PLACEHOLDER.findall(text or "") if name not in task.fields), None)
        if unknown is not None:
            raise ValueError(
                f"{key} has {{{unknown}}}, but {unknown!r} is none of fields {list(task.fields)}"
                f"{suggestion(unknown, task.fields)}; every placeholder is the name of a field"
            )


def used_fields(text: str, fields: tuple[str, ...]) -> list[str]:
    """Return the fields that a text has a placeholder for."""
    return [name for name in fields if "{" + name + "}" in text]


def _check_dialogue(task: TaskConfig) -> None:
    if len(task.fields) > 1:
        raise ValueError(f"dialogue needs one field, the column of messages, not {list(task.fields)}")
    if not task.chat:
        raise ValueError("dialogue needs chat: true, since messages are told apart by the chat template")
    if task.response != "{" + task.fields[0] + "}":
        raise ValueError("response of a dialogue is its last answer; leave the key out")
    if task.optional_fields:
        raise ValueError("optional_fields has no use in a dialogue, whose one field is its messages")


def _check_texts(task: TaskConfig) -> None:
    assert task.response is not None
    written = used_fields(task.response, task.fields)
    if not written:
        raise ValueError(f"response has none of the fields {list(task.fields)}, as in {{{task.fields[-1]}}}")
    optional = [name for name in written if name in task.optional_fields]
    if len(optional) == len(written):
        raise ValueError(f"optional_fields has {optional[0]!r}, without which the response would be empty")
    if task.chat and task.template is None:
        raise ValueError(
            "chat needs template, the user's message"
            + ("" if len(task.fields) > 1 else f", or dialogue: true if {task.fields[0]!r} is a column of messages")
        )
    prompts = {"template": task.template or ""}
    prompts |= {f"template_without.{name}": text for name, text in task.template_without.items()}
    for key, prompt in prompts.items():
        _check_prompt(task, key, prompt, written)
    unused = next(
        (name for name in task.fields if name not in written + used_fields(prompts["template"], task.fields)), None
    )
    if unused is not None:
        raise ValueError(
            f"template lacks {{{unused}}}, and so does response; drop the field, or put it into one of the two"
        )
    for name, prompt in task.template_without.items():
        if name not in task.optional_fields:
            raise ValueError(
                f"template_without names {name!r}, which is none of optional_fields {list(task.optional_fields)}"
            )
        if name in used_fields(prompt, task.fields):
            raise ValueError(f"template_without.{name} has {{{name}}}, which is empty in its rows")


def _check_prompt(task: TaskConfig, key: str, prompt: str, written: list[str]) -> None:
    told = next((name for name in used_fields(prompt, task.fields) if name in written), None)
    if told is not None:
        raise ValueError(f"{key} has {{{told}}}, which is the response; the prompt would give it away")
    if "<mask>" in prompt:
        raise ValueError(f"{key} of a task of responses is the prompt, without <mask>")

"""Dialogues: a column of messages as OpenAI (``role``, ``content``) or ShareGPT (``from``, ``value``) write them.

The last answer of a dialogue is its response, and the messages before it are the prompt. Messages behind the last answer
are left out. A dialogue is held as one text, the JSON of its roles and messages.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from fedsim.core.errors import shown
from fedsim.data.chat import ASSISTANT, SYSTEM, USER

Messages = list[tuple[str, str]]
"""Role and text of each message."""

_ROLES = {
    "user": USER, "human": USER, "prompter": USER, "assistant": ASSISTANT, "gpt": ASSISTANT, "chatgpt": ASSISTANT,
    "model": ASSISTANT, "bot": ASSISTANT, "system": SYSTEM,
}  # fmt: skip
_KEYS = (("role", "content"), ("from", "value"))


def as_text(messages: Messages) -> str:
    """Return a dialogue as one text."""
    return json.dumps(messages, ensure_ascii=False)


def from_text(text: str) -> Messages:
    """Return the dialogue that :func:`as_text` wrote."""
    return [(role, message) for role, message in json.loads(text)]


def read_messages(value: object) -> Messages | str:
    """Return a column's messages up to the last answer, or what is wrong with them.

    A dialogue is a system message, if there is one, and then messages of user and assistant in turn.
    """
    if not isinstance(value, list | tuple):
        return f"is not a list of messages but {type(value).__name__} {shown(value, 40)}"
    messages: Messages = []
    for number, item in enumerate(value, start=1):
        message = _message(item)
        if isinstance(message, str):
            return f"has a message, number {number}, that {message}"
        messages.append(message)
    while messages and messages[-1][0] != ASSISTANT:
        messages.pop()
    if not messages:
        return "has no answer of the assistant"
    turns = [role for role, _ in messages]
    spoken = turns[1:] if turns[0] == SYSTEM else turns
    if spoken != [USER, ASSISTANT] * (len(spoken) // 2):
        return f"has messages of {', '.join(turns[:8])}, where user and assistant have to take turns, the user first"
    return messages


def _message(item: Any) -> tuple[str, str] | str:
    keys = next((keys for keys in _KEYS if isinstance(item, Mapping) and keys[0] in item and keys[1] in item), None)
    if keys is None:
        return f"has neither role and content nor from and value but is {shown(item, 60)}"
    who, text = item[keys[0]], item[keys[1]]
    role = _ROLES.get(who.lower()) if isinstance(who, str) else None
    if role is None:
        return f"is of {shown(who, 40)}, who is neither user, assistant nor system"
    if not isinstance(text, str) or not text.strip():
        return f"has {'no text' if text is None or text == '' else 'not text but'} {shown(text, 40)}"
    try:
        text.encode()
    except UnicodeEncodeError:
        return "holds half of a surrogate pair, which is not a character"
    return role, text.strip()

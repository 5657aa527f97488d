"""What a row of a task of responses says: the text of its prompt, where the fields are in it, and its response."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, replace

from fedsim.data.chat import ASSISTANT, SYSTEM, USER, ChatTemplate, Frame
from fedsim.data.config import TaskConfig
from fedsim.data.dialogue import Messages, from_text
from fedsim.data.templates import Field, FilledText, Piece, fill

Texts = tuple[str, ...]


@dataclass(frozen=True)
class Written:
    """Prompt and response of an example as text."""

    prompt: FilledText
    """With the spans of its fields, which may be shortened."""
    response: str
    """With what a chat template puts around it."""
    answers: tuple[tuple[int, int], ...] = ()
    """First character, and that behind the last, of each answer in the whole text; empty where the response is all that is
    learned."""

    @property
    def whole(self) -> str:
        """Prompt and response as one text."""
        return self.prompt.text + self.response


def reference(texts: Texts, task: TaskConfig) -> str:
    """Return the response of an example as its data have it, to which generated texts are compared."""
    if task.dialogue:
        return from_text(texts[0])[-1][1]
    return fill(_pieces(task.response or "", task.fields), texts).text


def literals(task: TaskConfig) -> list[str]:
    """Return the texts of a task of responses that stand in every row: those around its fields."""
    texts = (
        task.template or "",
        *task.template_without.values(),
        "" if task.dialogue else task.response or "",
        task.system or "",
    )
    pieces = (piece for text in texts for piece in _pieces(text, task.fields))
    return [piece.strip() for piece in pieces if isinstance(piece, str) and piece.strip()]


class Writer:
    """Writes the examples of a task as prompt and response.

    Parameters
    ----------
    chat
        The tokenizer's chat template, for tasks with ``chat``.
    """

    def __init__(self, task: TaskConfig, chat: ChatTemplate | None) -> None:
        self._task, self._chat = task, chat
        self._response = _pieces(task.response or "", task.fields)
        self._prompt = _pieces(task.template or "", task.fields)
        self._without = {
            task.fields.index(name): _pieces(text, task.fields) for name, text in task.template_without.items()
        }

    def write(self, texts: Texts) -> Written:
        """Return an example as text."""
        if self._chat is None:
            prompt, response = self._filled(texts), fill(self._response, texts).text
            return _spaces_moved(Written(prompt, response))
        if self._task.dialogue:
            return self.conversation(from_text(texts[0]))
        texts = tuple(map(self._chat.apart, texts))
        content, answer = self._filled(texts), fill(self._response, texts).text
        content = _stripped(content)
        system = [] if self._task.system is None else [(SYSTEM, self._task.system)]
        return _framed(self._chat, [*system, (USER, content.text), (ASSISTANT, answer.strip())], content.spans)

    def conversation(self, messages: Messages) -> Written:
        """Return a dialogue as text; the field is its last question."""
        assert self._chat is not None
        said = [(role, self._chat.apart(text)) for role, text in messages]
        if self._task.system is not None and said[0][0] != SYSTEM:
            said.insert(0, (SYSTEM, self._task.system))
        written = _framed(self._chat, said, ((0, len(said[-2][1])),))
        return replace(written, answers=_answers(self._chat, said)) if self._task.learns_all else written

    def _filled(self, texts: Texts) -> FilledText:
        pieces = next((pieces for place, pieces in self._without.items() if not texts[place].strip()), self._prompt)
        return fill(pieces, texts)


def without_oldest(messages: Messages) -> Messages | None:
    """Return a dialogue without its first question and answer; None if the last ones are all that there is."""
    system = messages[:1] if messages[0][0] == SYSTEM else []
    turns = messages[len(system) :]
    return None if len(turns) <= len((USER, ASSISTANT)) else [*system, *turns[2:]]


def _framed(chat: ChatTemplate, messages: Messages, spans: Sequence[tuple[int, int]]) -> Written:
    """Put messages into the chat template; ``spans`` are those of the fields in the last question."""
    frame: Frame = chat.frame(tuple(role for role, _ in messages))
    prompt = ""
    for literal, (_, text) in zip(frame.before, messages, strict=False):
        prompt += literal
        start, prompt = len(prompt), prompt + text
    moved = tuple((start + first, start + last) for first, last in spans)
    return Written(FilledText(prompt + frame.prompt_end, moved), frame.lead + messages[-1][1] + frame.tail)


def _answers(chat: ChatTemplate, messages: Messages) -> tuple[tuple[int, int], ...]:
    """Return where each answer of a dialogue stands in its text, with what is learned around it."""
    roles = tuple(role for role, _ in messages)
    frame, around = chat.frame(roles), iter(chat.answers(roles))
    spans, place = [], 0
    for literal, (role, text) in zip((*frame.before, frame.prompt_end + frame.lead), messages, strict=True):
        start = place + len(literal)
        place = start + len(text)
        if role == ASSISTANT:
            own = next(around)
            spans.append((start - own.before, place + own.behind))
    return tuple(spans)


def _stripped(filled: FilledText) -> FilledText:
    """Return a message without white space around it, as chat templates strip it."""
    cut = len(filled.text) - len(filled.text.lstrip())
    text = filled.text.strip()
    return FilledText(
        text, tuple((min(max(a - cut, 0), len(text)), min(max(b - cut, 0), len(text))) for a, b in filled.spans)
    )


def _spaces_moved(written: Written) -> Written:
    """Move spaces at the prompt's end to the response, since tokens of words begin with the space before them."""
    prompt, response = written.prompt, written.response
    bare = prompt.text.rstrip(" ")
    spans = tuple((min(start, len(bare)), min(stop, len(bare))) for start, stop in prompt.spans)
    return Written(FilledText(bare, spans), prompt.text[len(bare) :] + response)


def _pieces(text: str, fields: tuple[str, ...]) -> tuple[Piece, ...]:
    """Return a text's literal parts and fields; braces that do not name a field are literal."""
    names = "|".join(re.escape(name) for name in fields)
    parts = re.split("({(?:" + names + ")})", text)
    pieces: list[Piece] = [Field(fields.index(part[1:-1])) if i % 2 else part for i, part in enumerate(parts)]
    return tuple(piece for piece in pieces if piece != "")

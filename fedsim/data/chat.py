"""The chat template of a tokenizer: the literal text around the messages of a conversation, and what ends an answer.

A template is rendered once for each sequence of roles, with a mark in place of each message; the messages then go where their
marks were. So no message can act on the template, and an answer ends where the template ends it.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass
from datetime import date
from functools import cached_property
from typing import TYPE_CHECKING

from fedsim.core.errors import ModelError, shown
from fedsim.data.turns import Around, by_marks, cannot_be_found, common_end, with_marks

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

USER, ASSISTANT, SYSTEM = "user", "assistant", "system"
TODAY = date(2024, 7, 26)
"""The date for templates that write one: that of LLaMA 3's own default, so that tokens do not change from day to day."""
_DATE = re.compile(r"""strftime_now\(\s*(["'])(.*?)\1\s*\)""")
_BYTE = re.compile("<0x[0-9A-F]{2}>")
"""Tokens of single bytes, which some tokenizers list among their special tokens."""


@dataclass(frozen=True)
class Frame:
    """The literal text around the messages of a conversation that ends with an answer."""

    before: tuple[str, ...]
    """Text before each message but the answer."""
    prompt_end: str
    """Text behind the last of them: the end of its turn, and the cue of the answer."""
    lead: str
    """Text before the answer that the cue does not have; nearly always empty."""
    tail: str
    """Text behind the answer, as the end of its turn."""


class ChatTemplate:
    """The chat template of a tokenizer.

    Raises
    ------
    ModelError
        If the tokenizer has none.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase) -> None:
        self._tokenizer = tokenizer
        self._frames: dict[tuple[str, ...], Frame] = {}
        self._answers: dict[tuple[str, ...], tuple[Around, ...]] = {}
        try:
            self._template = _DATE.sub(lambda call: repr(TODAY.strftime(call[2])), tokenizer.get_chat_template())
        except ValueError:
            raise ModelError(
                f"model: tokenizer {type(tokenizer).__name__} has no chat template, which data.task.chat needs; use a model "
                "whose tokenizer has one, or data.task.chat=false and a template with the text around messages"
            ) from None

    def frame(self, roles: tuple[str, ...]) -> Frame:
        """Return the text around messages of these roles, the last of which is the assistant's.

        Raises
        ------
        ModelError
            If the template refuses these roles, changes messages, or has no cue that the answer continues.
        """
        if roles not in self._frames:
            self._frames[roles] = self._made(roles)
        return self._frames[roles]

    def answers(self, roles: tuple[str, ...]) -> tuple[Around, ...]:
        """Return what of the text around each of the assistant's messages is learned with it.

        Raises
        ------
        ModelError
            Where :meth:`frame` does, or if earlier answers cannot be told from the text around them.
        """
        if roles not in self._answers:
            self._answers[roles] = self._found(roles)
        return self._answers[roles]

    def _found(self, roles: tuple[str, ...]) -> tuple[Around, ...]:
        frame, (messages, marks) = self.frame(roles), _marked(roles)
        numbers = [number for number, role in enumerate(roles) if role == ASSISTANT]
        whole, marked = self._rendered(messages, cue=False), with_marks(self._template)
        if marked is not None:
            by_itself = by_marks(self._rendered(messages, cue=False, template=marked), whole, marks, numbers)
            if isinstance(by_itself, str):
                raise cannot_be_found(self._tokenizer, by_itself)
            return tuple(by_itself)
        last = Around(len(frame.lead), len(frame.tail))
        return (*(self._earlier(messages, whole, frame, number) for number in numbers[:-1]), last)

    def _earlier(self, messages: list[dict[str, str]], whole: str, frame: Frame, number: int) -> Around:
        """Return what is learned around an earlier answer."""
        start = whole.index(messages[number]["content"])
        # Where the last answer has an empty thought, earlier ones mostly have none: their cue is that of one that thinks.
        cues = (self._rendered(messages[:number], cue=True, thinks=thinks) for thinks in (False, True))
        cue = next((cue for cue in cues if whole.startswith(cue)), None)
        if cue is None:
            raise cannot_be_found(self._tokenizer, "does not write earlier answers behind its generation prompt")
        end = _first(self._tokens, frame.tail)
        behind = common_end(frame.tail, frame.before[number + 1], list(self._tokens), end)
        if behind is None:
            raise cannot_be_found(self._tokenizer, "does not end earlier answers with the token that ends the last one")
        return Around(start - len(cue), len(behind))

    def _made(self, roles: tuple[str, ...]) -> Frame:
        messages, marks = _marked(roles)
        prompt, whole = self._rendered(messages[:-1], cue=True), self._rendered(messages, cue=False)
        if any(whole.count(mark) != 1 for mark in marks) or not whole.startswith(prompt):
            raise ModelError(
                f"model: the chat template of tokenizer {type(self._tokenizer).__name__} does not write the messages "
                f"{', '.join(roles)} as they are, one behind the other, with the answer behind the generation prompt; use "
                "data.task.chat=false and a template with the text around messages"
            )
        *before, prompt_end = re.split("|".join(marks[:-1]), prompt) if len(marks) > 1 else [prompt]
        lead, tail = whole[len(prompt) :].split(marks[-1])
        return Frame(tuple(before), prompt_end, lead, tail)

    def _rendered(
        self, messages: list[dict[str, str]], cue: bool, *, thinks: bool = False, template: str | None = None
    ) -> str:
        import jinja2

        try:
            text = self._tokenizer.apply_chat_template(
                messages,
                chat_template=template or self._template,
                tokenize=False,
                add_generation_prompt=cue,
                # Templates of models that think put an empty thought before the answer: answers of data have none.
                enable_thinking=thinks,
                date_string=TODAY.strftime("%d %b %Y"),
            )
        except (jinja2.TemplateError, ValueError, TypeError) as error:
            roles = ", ".join(message["role"] for message in messages)
            raise ModelError(
                f"model: the chat template of tokenizer {type(self._tokenizer).__name__} refuses messages of {roles}: "
                f"{shown(str(error), 200)}"
            ) from error
        return str(text)

    @cached_property
    def _tokens(self) -> dict[str, int]:
        """All tokens that are looked for in a text before it is split, such as ``<|im_end|>``."""
        return {str(token): number for number, token in self._tokenizer.added_tokens_decoder.items() if str(token)}

    @cached_property
    def marker_ids(self) -> frozenset[int]:
        """Tokens that a message must not hold: special ones, and those with which the template ends a turn."""
        frame = self.frame((USER, ASSISTANT))
        ends = {self._tokens.get(_first(self._tokens, text) or "") for text in (frame.prompt_end, frame.tail)}
        added = self._tokenizer.added_tokens_decoder.items()
        special = {number for number, token in added if token.special and not _BYTE.fullmatch(str(token))}
        return frozenset(number for number in (*special, *self._tokenizer.all_special_ids, *ends) if number is not None)

    @cached_property
    def end_id(self) -> int | None:
        """The token that ends an answer; None if the template puts no token of its own behind one."""
        return self._tokens.get(_first(self._tokens, self.frame((USER, ASSISTANT)).tail) or "")

    @cached_property
    def _spelt(self) -> re.Pattern[str]:
        names = {str(self._tokenizer.convert_ids_to_tokens(number)) for number in self.marker_ids}
        return re.compile("|".join(map(re.escape, sorted(names, key=len, reverse=True))) or r"(?!)")

    def has_more(self, ids: Iterable[int], text: str) -> bool:
        """Whether a text's tokens hold more markers than the text spells out; unknown characters do not count."""
        counted = self.marker_ids - {self._tokenizer.unk_token_id}
        return sum(token in counted for token in ids) > sum(1 for _ in self._spelt.finditer(text))

    def apart(self, text: str) -> str:
        """Insert a space into each marker that a message spells out, so that it stays text: ``< |im_end|>``."""
        return self._spelt.sub(lambda found: f"{found[0][0]} {found[0][1:]}", text)


def _marked(roles: tuple[str, ...]) -> tuple[list[dict[str, str]], list[str]]:
    """Return messages of these roles with a mark as the text of each, and the marks."""
    marks = [f"fedsim{number}message" for number in range(len(roles))]
    return [{"role": role, "content": mark} for role, mark in zip(roles, marks, strict=True)], marks


def _first(tokens: Iterable[str], text: str) -> str | None:
    """Return the token that comes first in a text, the longest of those that begin there."""
    places = [(text.find(token), -len(token), token) for token in tokens if token in text]
    return min(places)[2] if places else None

"""Tokenise tasks of responses: the ids of prompt and response, and where the response begins.

Prompt and response are encoded as one text, so the ids are those of the whole. The prompt's ids are also those that the
prompt has by itself, as when it is generated from: where a token of the whole would reach from the prompt into the
response, the two are encoded apart. A response ends with the tokenizer's end token, or as the chat template ends an answer.

Of a dialogue the tokens of every answer may be learned (``task.learn``), each where it stands in the whole.

Too long an example loses the ends of the prompt's fields first, the longest field first, each down to one token, and then
the end of its response. Of a dialogue whole turns go before that, the oldest first.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import chain
from typing import TYPE_CHECKING

import numpy as np

from fedsim.core.errors import DataError, ModelError, shown
from fedsim.core.tokens import TokenTable
from fedsim.data.chat import ChatTemplate
from fedsim.data.config import TaskConfig
from fedsim.data.dialogue import from_text
from fedsim.data.examples import Examples
from fedsim.data.several import encode_plain
from fedsim.data.spelt_out import with_special_tokens_apart
from fedsim.data.truncation import cut_counts, encode_with_fields, longest_first
from fedsim.data.turns import token_spans
from fedsim.data.written import Writer, Written, without_oldest

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

Ids = list[int]


@dataclass(frozen=True)
class Responses:
    """Token ids of prompts with their responses, one list an example."""

    ids: list[Ids]
    starts: Ids
    """Position of each response's first token."""
    wholes: Ids
    """Number of tokens of each example before anything was cut."""
    cut_prompts: int
    """Number of examples whose prompt was shortened."""
    cut_responses: int
    """Number of those whose response was cut as well, so that it has no end."""
    learned: list[list[tuple[int, int]]] | None = None
    """Tokens of each example's answers, first and behind the last; None where the response is all that is learned."""
    cut_answers: int = 0
    """Number of earlier answers that were left out."""


class ResponseEncoder:
    """Encodes the examples of a task of responses.

    Raises
    ------
    ModelError
        If the tokenizer lacks what the task needs: a chat template, or an end token.
    """

    def __init__(self, task: TaskConfig, tokenizer: PreTrainedTokenizerBase) -> None:
        self._task, self._tokenizer = task, tokenizer
        self._chat = ChatTemplate(tokenizer) if task.chat else None
        self._writer = Writer(task, self._chat)
        self._start = _begin(tokenizer) if self._chat is None else []
        self._end = () if self._chat is not None and self._chat.end_id is not None else (_end_token(tokenizer),)

    @property
    def end_ids(self) -> tuple[int, ...]:
        """The tokens with which a response ends: where one of them is generated, generation is over."""
        ended = None if self._chat is None else self._chat.end_id
        both = (ended, self._tokenizer.eos_token_id)
        return tuple(dict.fromkeys(int(token) for token in both if token is not None))

    def encode(self, examples: Examples, max_length: int) -> Responses:
        """Return the ids of examples, of at most ``max_length`` tokens each.

        Raises
        ------
        DataError
            If ``max_length`` leaves no room for prompt and response, a response has no token, or a text holds a token that
            would end its turn.
        """
        texts = with_special_tokens_apart(self._tokenizer, examples.texts) if self._chat is None else examples.texts
        written = [self._writer.write(row) for row in texts]
        prompts, responses = self._ids(written, examples.origin)
        sizes = [(len(prompt), len(response)) for prompt, response in zip(prompts, responses, strict=True)]
        room = max_length - len(self._start)
        long = [i for i, (prompt, response) in enumerate(sizes) if prompt + response > room]
        answers = sum(len(one.answers) for one in written)
        if self._task.dialogue:
            self._drop_turns(texts, written, prompts, responses, long, room, examples.origin)
        self._cut(written, prompts, responses, room, max_length, examples.origin)
        ids = [self._start + prompt + response for prompt, response in zip(prompts, responses, strict=True)]
        return Responses(
            ids=ids,
            # The first token of all has nothing before it that could predict it.
            starts=[max(1, len(self._start) + len(prompt)) for prompt in prompts],
            wholes=[len(self._start) + prompt + response for prompt, response in sizes],
            cut_prompts=sum(len(prompts[i]) < sizes[i][0] for i in long),
            cut_responses=sum(len(responses[i]) < sizes[i][1] for i in long),
            learned=self._learned(written, prompts, responses) if self._task.learns_all else None,
            cut_answers=answers - sum(len(one.answers) for one in written),
        )

    def _learned(self, written: list[Written], prompts: list[Ids], responses: list[Ids]) -> list[list[tuple[int, int]]]:
        """Return the tokens of each dialogue's answers; what is cut of the last one is not among them."""
        found = []
        for one, prompt, response in zip(written, prompts, responses, strict=True):
            start, stop = one.answers[-1]
            last = len(prompt), len(prompt) + len(response)
            earlier = token_spans(one.prompt.text, one.answers[:-1], prompt, self._encoded)
            if (start, stop) != (len(one.prompt.text), len(one.whole)):  # the template's own marks say where it is
                inside = tuple(max(0, edge - len(one.prompt.text)) for edge in (start, stop))
                ((first, behind),) = token_spans(one.response, ((inside[0], inside[1]),), response, self._encoded)
                last = len(prompt) + first, len(prompt) + (behind or len(response))
            found.append([*earlier, last])
        return found

    def prompts(self, rows: list[tuple[str, ...]]) -> list[Ids]:
        """Return the ids of prompts alone, for texts whose response is to be written; nothing is cut."""
        texts = with_special_tokens_apart(self._tokenizer, rows) if self._chat is None else rows
        written = [self._writer.write(tuple(row)) for row in texts]
        encoded = self._encoded([one.prompt.text for one in written])
        return [self._start + prompt for prompt in encoded]

    def _ids(self, written: list[Written], origin: str) -> tuple[list[Ids], list[Ids]]:
        """Return the ids of prompts and of responses with their end."""
        prompts = self._encoded([one.prompt.text for one in written])
        wholes = self._encoded([one.prompt.text + one.response for one in written])
        apart = [
            i for i, (prompt, whole) in enumerate(zip(prompts, wholes, strict=True)) if whole[: len(prompt)] != prompt
        ]
        responses = [whole[len(prompt) :] for prompt, whole in zip(prompts, wholes, strict=True)]
        for i, response in zip(apart, self._encoded([written[i].response for i in apart]), strict=True):
            responses[i] = response
        for one, prompt, response in zip(written, prompts, responses, strict=True):
            if not response:
                raise DataError(f"{origin}: the response {shown(one.response)} yields no token with this tokenizer")
            self._check_turns(one, prompt, response, origin)
            response.extend(self._end)
        return prompts, responses

    def _encoded(self, texts: Sequence[str]) -> list[Ids]:
        """Encode texts; special tokens in them are recognised only where a chat template wrote them."""
        if self._chat is None:
            return encode_plain(self._tokenizer, texts)
        return list(self._tokenizer(list(texts), add_special_tokens=False, verbose=False)["input_ids"]) if texts else []

    def _check_turns(self, one: Written, prompt: Ids, response: Ids, origin: str) -> None:
        """Refuse a text that a tokenizer's normaliser turns into a token with which the template ends or begins a turn."""
        whole = one.prompt.text + one.response
        if self._chat is not None and self._chat.has_more(chain(prompt, response), whole):
            raise DataError(
                f"{origin}: a message of {shown(whole)} holds what this tokenizer reads as a special "
                "token, which would end its turn; leave the row out"
            )

    def _drop_turns(
        self,
        texts: list[tuple[str, ...]],
        written: list[Written],
        prompts: list[Ids],
        responses: list[Ids],
        long: list[int],
        room: int,
        origin: str,
    ) -> None:
        """Leave out the oldest questions and answers of dialogues that are too long, until they fit or one is left."""
        left = {i: from_text(texts[i][0]) for i in long}
        while left := {i: less for i, messages in left.items() if (less := without_oldest(messages)) is not None}:
            shorter = [self._writer.conversation(messages) for messages in left.values()]
            for i, one, prompt, response in zip(list(left), shorter, *self._ids(shorter, origin), strict=True):
                written[i], prompts[i], responses[i] = one, prompt, response
                if len(prompt) + len(response) <= room:
                    del left[i]

    def _cut(
        self,
        written: list[Written],
        prompts: list[Ids],
        responses: list[Ids],
        room: int,
        max_length: int,
        origin: str,
    ) -> None:
        """Cut the fields of prompts that are too long, then responses."""
        long = [i for i in range(len(written)) if len(prompts[i]) + len(responses[i]) > room]
        filled = [written[i].prompt for i in long]
        sides = encode_with_fields(self._tokenizer, filled, split_special_tokens=self._chat is None)
        for i, side in zip(long, sides, strict=True):
            lengths = [len(field) for field in side.fields]
            literal, fewest = len(side.ids) - sum(lengths), sum(length > 0 for length in lengths)
            if literal + fewest >= room:
                raise DataError(
                    f"data.max_length: {max_length} tokens leave no room for the texts of {origin}, since prompt and special "
                    f"tokens take {literal + max_length - room}"
                )
            quotas = longest_first(lengths, max(fewest, room - literal - len(responses[i])))
            cut = {place for field, quota in zip(side.fields, quotas, strict=True) for place in field[quota:]}
            prompts[i] = side.without(cut)
            responses[i] = responses[i][: room - len(prompts[i])]


def response_table(
    examples: Examples, task: TaskConfig, tokenizer: PreTrainedTokenizerBase, max_length: int, pad: int
) -> TokenTable:
    """Return the token table of a task of responses; each example's label is 1, the class of tokens that are right."""
    found = ResponseEncoder(task, tokenizer).encode(examples, max_length)
    starts_N = np.asarray(found.starts, dtype=np.int32)
    lengths_N = np.fromiter(map(len, found.ids), np.int64, len(found.ids))
    offsets_N1 = np.concatenate([np.zeros(1, np.int64), np.cumsum(lengths_N)])
    learned_Z = None
    if found.learned is not None:
        learned_Z = np.zeros(int(offsets_N1[-1]), np.uint8)
        for offset, spans in zip(offsets_N1.tolist(), found.learned, strict=False):
            for first, behind in spans:
                learned_Z[offset + first : offset + behind] = 1
    return TokenTable(
        ids_Z=np.fromiter(chain.from_iterable(found.ids), np.int32, int(offsets_N1[-1])),
        offsets_N1=offsets_N1,
        read_positions_N=starts_N - 1,
        labels_N=np.ones(len(starts_N), np.int64),
        pad_id=pad,
        response_starts_N=starts_N,
        learned_Z=learned_Z,
        **cut_counts(found.wholes, max_length),
        cut_prompts=found.cut_prompts,
        cut_responses=found.cut_responses,
        cut_answers=found.cut_answers,
    )


def _begin(tokenizer: PreTrainedTokenizerBase) -> Ids:
    """Return the special tokens that a tokenizer puts before a text."""
    encoded = tokenizer("a", return_special_tokens_mask=True, verbose=False)
    ids, special = list(encoded["input_ids"]), list(encoded["special_tokens_mask"])
    return ids[: special.index(0)] if 0 in special else ids


def _end_token(tokenizer: PreTrainedTokenizerBase) -> int:
    if tokenizer.eos_token_id is None:
        raise ModelError(f"model: tokenizer {type(tokenizer).__name__} has no end token, with which a response ends")
    return int(tokenizer.eos_token_id)

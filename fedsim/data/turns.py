"""All answers of a dialogue: where they stand in what a chat template writes, and which tokens are theirs.

A template with ``{% generation %}`` marks says itself what the assistant writes, as transformers' assistant mask has it. Of
any other template an answer begins where the template's cue ends: the conversation before it, rendered by itself with the
cue, has to be the beginning of the whole. It ends with what stands behind the last answer as well, its end token at least.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from typing import NamedTuple

from fedsim.core.errors import ModelError

Ids = list[int]
Spans = tuple[tuple[int, int], ...]

_OPENS = re.compile(r"\{%([-+]?)\s*generation\s*([-+]?)%\}")
_CLOSES = re.compile(r"\{%([-+]?)\s*endgeneration\s*([-+]?)%\}")
_OPEN, _CLOSE = "fedsim0answer", "fedsim1answer"


class Around(NamedTuple):
    """How many characters of literal text around a message are learned with it."""

    before: int
    behind: int


def with_marks(template: str) -> str | None:
    """Return a chat template that writes a word where its ``generation`` marks stand; None if it has none."""
    if not _OPENS.search(template):
        return None
    # In blocks as before, so that white space around them is dropped or kept as it was.
    for found, word in ((_OPENS, _OPEN), (_CLOSES, _CLOSE)):
        template = found.sub(
            lambda tag, word=word: f"{{%{tag[1]} if true %}}{word}{{% endif {tag[2]}%}}",  # type: ignore[misc]
            template,
        )
    return template


def by_marks(rendered: str, whole: str, messages: Sequence[str], answers: Sequence[int]) -> list[Around] | str:
    """Return what is learned around each answer by a template's own marks, or what is wrong with these.

    Parameters
    ----------
    rendered
        The conversation as the template of :func:`with_marks` writes it.
    whole
        As the template itself writes it.
    messages
        The text of each message, which stands once in the whole.
    answers
        Numbers of the assistant's messages.
    """
    if rendered.replace(_OPEN, "").replace(_CLOSE, "") != whole:
        return "writes another text where its generation marks are followed"
    spans, place, opened = [], 0, None
    for piece in re.split(f"({_OPEN}|{_CLOSE})", rendered):
        if piece == _OPEN:
            opened = place
        elif piece == _CLOSE and opened is not None:
            spans.append((opened, place))
        elif piece not in (_OPEN, _CLOSE):
            place += len(piece)
    within = [[n for n, text in enumerate(messages) if start <= whole.index(text) < stop] for start, stop in spans]
    if within != [[number] for number in answers]:
        return "has generation marks around something else than each of the assistant's messages"
    places = [whole.index(messages[number]) for number in answers]
    return [
        Around(at - start, stop - at - len(messages[number]))
        for (start, stop), at, number in zip(spans, places, answers, strict=True)
    ]


def common_end(tail: str, behind: str, tokens: Sequence[str], end: str | None) -> str | None:
    """Return the end that an earlier answer has in common with the last one; None unless the end token is in it.

    Parameters
    ----------
    tail
        Text behind the last answer.
    behind
        Text behind the earlier one, up to the next message.
    tokens
        Texts of the tokenizer's added tokens, between which any text is split.
    end
        The one that ends an answer.
    """
    longest_first = sorted(tokens, key=len, reverse=True)
    common = ""
    for piece in re.split(f"({'|'.join(map(re.escape, longest_first))})", tail) if tokens else [tail]:
        if not behind.startswith(common + piece):
            break
        common += piece
    return common if end is not None and end in common else None


def cannot_be_found(tokenizer: object, why: str) -> ModelError:
    """Return the refusal of a chat template whose earlier answers cannot be told from the text around them."""
    return ModelError(
        f"model: the chat template of tokenizer {type(tokenizer).__name__} {why}, so that the tokens of earlier answers cannot "
        "be told from those around them; set data.task.learn=last_answer, or use a tokenizer whose template has "
        "{% generation %} marks around the assistant's messages"
    )


def token_spans(
    text: str, spans: Spans, ids: Ids, encoded: Callable[[Sequence[str]], list[Ids]]
) -> list[tuple[int, int]]:
    """Return the tokens of stretches of a text, first and behind the last.

    What comes before an edge is encoded by itself: the tokens that it has in common with the whole are before the edge. A token
    that reaches over the beginning of a stretch therefore belongs to it, and one that reaches over its end does not.

    Parameters
    ----------
    spans
        Characters of the stretches, in order.
    ids
        Tokens of the text.
    encoded
        Encodes texts.
    """
    edges = [edge for span in spans for edge in span]
    places = [_common(ids, before) for before in encoded([text[:edge] for edge in edges])]
    return list(zip(places[::2], places[1::2], strict=True))


def _common(ids: Ids, others: Ids) -> int:
    """Return how many tokens at the beginning of two texts are the same."""
    if ids[: len(others)] == others:
        return len(others)
    return next(n for n, (one, other) in enumerate(zip([*ids, -1], others, strict=False)) if one != other)

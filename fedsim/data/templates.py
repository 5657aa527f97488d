"""Templates of the verbalizer head: the text around an example's fields, and where the model fills in a word."""

from __future__ import annotations

import re
from dataclasses import dataclass
from functools import cached_property

from fedsim.core.errors import DataError
from fedsim.data.config import TaskConfig

MASK = "<mask>"


@dataclass(frozen=True)
class Field:
    """Stands for the text of one of the task's fields."""

    index: int


Piece = str | Field


@dataclass(frozen=True)
class Template:
    """What stands before and after the mask: literal text and fields, in order."""

    before: tuple[Piece, ...]
    after: tuple[Piece, ...]

    @cached_property
    def cue(self) -> str:
        """Literal text right before the mask, with its white space; empty if a field or nothing stands there."""
        last = self.before[-1] if self.before else ""
        return last if isinstance(last, str) else ""

    def as_causal(self) -> Template:
        """Return the template for a decoder, which reads from left to right and answers at the end.

        What follows the mask cannot be read before answering. So the part after the mask, up to its last field, is
        moved to the front, and the literal text that led it stands between the two; text behind the last field is
        dropped. ``{text} . It was <mask> .`` becomes ``{text} . It was``; ``{a} ? <mask> , {b}`` becomes
        ``{b} , {a} ?``; ``<mask> : {text}`` becomes ``{text} :``.
        """
        fields = [place for place, piece in enumerate(self.after) if isinstance(piece, Field)]
        if not fields:
            return Template(self.before, ())
        lead, moved = self.after[: fields[0]], self.after[fields[0] : fields[-1] + 1]
        return Template((*moved, *(lead or (" ",)), *self.before), ())


def parse_template(task: TaskConfig) -> Template:
    """Return a task's template in pieces. Braces that do not name one of the task's fields are literal text.

    Raises
    ------
    DataError
        If the task has no template.
    """
    if task.template is None:
        raise DataError(
            f"data.task.template: task {task.name!r} has no template, which the verbalizer head needs; give one with "
            f"{MASK} and {' and '.join('{' + name + '}' for name in task.fields)}, or use the classifier head"
        )
    before, after = task.template.split(MASK)
    return Template(_pieces(before, task.fields), _pieces(after, task.fields))


def _pieces(text: str, fields: tuple[str, ...]) -> tuple[Piece, ...]:
    names = "|".join(re.escape(name) for name in fields)
    parts = re.split("({(?:" + names + ")})", text)
    pieces: list[Piece] = [Field(fields.index(part[1:-1])) if i % 2 else part for i, part in enumerate(parts)]
    return tuple(piece for piece in pieces if piece != "")


@dataclass(frozen=True)
class FilledText:
    """A template's pieces with one example's texts in them."""

    text: str
    spans: tuple[tuple[int, int], ...]
    """Start and stop of each field's text in ``text``, in the order of the pieces."""


def fill(pieces: tuple[Piece, ...], texts: tuple[str, ...]) -> FilledText:
    """Put an example's texts, without white space around them, into a template's pieces."""
    text, spans = "", []
    for piece in pieces:
        part = piece if isinstance(piece, str) else texts[piece.index].strip()
        if isinstance(piece, Field):
            spans.append((len(text), len(text) + len(part)))
        text += part
    return FilledText(text, tuple(spans))

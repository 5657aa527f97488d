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
    """Placeholder for the text of one of the task's fields."""

    index: int


Piece = str | Field


@dataclass(frozen=True)
class Template:
    """The parts before and after the mask: literal text and fields, in order."""

    before: tuple[Piece, ...]
    after: tuple[Piece, ...]

    @cached_property
    def cue(self) -> str:
        """Literal text directly before the mask, with its white space; empty if there is none."""
        last = self.before[-1] if self.before else ""
        return last if isinstance(last, str) else ""

    def as_causal(self) -> Template:
        """Return the template for a decoder, which reads left to right and predicts at the end.

        A decoder cannot see what follows the mask. So the part after the mask, up to its last field, is
        moved to the front, with its leading literal text between the two; text after the last field is
        dropped. ``{text} . It was <mask> .`` becomes ``{text} . It was``; ``{a} ? <mask> , {b}`` becomes
        ``{b} , {a} ?``; ``<mask> : {text}`` becomes ``{text} :``.
        """
        fields = [place for place, piece in enumerate(self.after) if isinstance(piece, Field)]
        if not fields:
            return Template(self.before, ())
        lead, moved = self.after[: fields[0]], self.after[fields[0] : fields[-1] + 1]
        return Template((*moved, *(lead or (" ",)), *self.before), ())


def parse_template(task: TaskConfig) -> Template:
    """Parse a task's template. Braces that do not name one of the task's fields are literal text.

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
    """One side of a template filled with an example's texts."""

    text: str
    spans: tuple[tuple[int, int], ...]
    """Start and stop of each field's text in ``text``, in the order of the pieces."""


def fill(pieces: tuple[Piece, ...], texts: tuple[str, ...]) -> FilledText:
    """Fill an example's stripped texts into a template."""
    text, spans = "", []
    for piece in pieces:
        part = piece if isinstance(piece, str) else texts[piece.index].strip()
        if isinstance(piece, Field):
            spans.append((len(text), len(text) + len(part)))
        text += part
    return FilledText(text, tuple(spans))

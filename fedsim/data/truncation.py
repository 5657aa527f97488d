"""Truncate the texts of an example to a token budget, never the template around them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from fedsim.core.errors import DataError
from fedsim.data.templates import FilledText

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

Ids = list[int]


def cut_counts(wholes: Sequence[int], max_length: int) -> dict[str, Any]:
    """Return how many examples are too long, and the length of the longest of them, as fields of a token table.

    Parameters
    ----------
    wholes
        Number of tokens of each example before anything is cut.
    """
    long = [length for length in wholes if length > max_length]
    return {"cut_examples": len(long), "longest_uncut": max(long, default=0)}


@dataclass(frozen=True)
class Side:
    """An example's tokens on one side of the mask."""

    ids: Ids
    fields: list[Ids]
    """Positions in ``ids`` of each field's tokens."""

    def without(self, positions: set[int]) -> Ids:
        """Return the token ids without those at ``positions``."""
        return [token for place, token in enumerate(self.ids) if place not in positions]


def encode_with_fields(
    tokenizer: PreTrainedTokenizerBase, filled: list[FilledText], split_special_tokens: bool = True
) -> list[Side]:
    """Encode texts with the character span of each token."""
    if not filled:
        return []
    encoded = tokenizer(
        [side.text for side in filled],
        add_special_tokens=False,
        return_offsets_mapping=True,
        split_special_tokens=split_special_tokens,
        verbose=False,
    )
    pairs = zip(filled, encoded["input_ids"], encoded["offset_mapping"], strict=True)
    return [Side(ids, _field_tokens(side, offsets)) for side, ids, offsets in pairs]


def _field_tokens(filled: FilledText, offsets: list[tuple[int, int]]) -> list[Ids]:
    """Return the positions of each field's tokens: those that cover no character of literal text."""
    starts, stops = np.asarray(offsets, dtype=np.int64).reshape(-1, 2).T
    fields = []
    for start, stop in filled.spans:
        with_space = len(filled.text[:start].rstrip())  # a word's token may begin with the space before it
        inside = (starts >= with_space) & (stops > start) & (stops <= stop)
        fields.append(np.flatnonzero(inside).tolist())
    return fields


def shorten(sides: list[Side], budget: int, max_length: int, origin: str) -> list[Ids]:
    """Truncate the fields' ends, longest field first, until both sides together fit ``budget`` tokens."""
    lengths = [len(field) for side in sides for field in side.fields]
    literal = sum(len(side.ids) for side in sides) - sum(lengths)
    room = budget - literal
    if room < sum(length > 0 for length in lengths):
        raise DataError(
            f"data.max_length: {max_length} tokens leave no room for the text of {origin}, since template, mask and "
            f"special tokens take {max_length - room}"
        )
    quotas = iter(longest_first(lengths, room))
    return [side.without({place for field in side.fields for place in field[next(quotas) :]}) for side in sides]


def longest_first(lengths: Sequence[int], room: int) -> list[int]:
    """Return the truncated lengths: the longest (of equals, the last) loses one token until all fit in ``room``."""
    quotas = list(lengths)
    cut = list(range(len(lengths)))
    for i in sorted(cut, key=lambda i: lengths[i]):
        if lengths[i] * len(cut) > room:
            break
        cut.remove(i)  # short enough to stay whole
        room -= lengths[i]
    for place, i in enumerate(cut):
        quotas[i] = room // len(cut) + (place < room % len(cut))
    return quotas

"""Encode texts without special tokens, and more than two texts with a pair's special tokens in between."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from fedsim.core.errors import DataError, ModelError
from fedsim.data.truncation import longest_first

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

Ids = list[int]


def encode_plain(tokenizer: PreTrainedTokenizerBase, texts: Sequence[str]) -> list[Ids]:
    """Encode texts without adding special tokens or recognising any in them."""
    if not texts:
        return []
    encoded = tokenizer(
        list(texts),
        add_special_tokens=False,
        return_attention_mask=False,
        return_token_type_ids=False,
        split_special_tokens=True,
        verbose=False,
    )
    ids: list[Ids] = encoded["input_ids"]
    return ids


def encode_several(
    columns: Sequence[Sequence[str]], tokenizer: PreTrainedTokenizerBase, max_length: int, origin: str
) -> tuple[list[Ids], list[Ids] | None, Ids]:
    """Encode examples of several texts by extending the pair format: its separator goes between any two texts.

    All texts but the first have the token type of a pair's second. The longest text is truncated to fit.

    Parameters
    ----------
    columns
        Texts of each field.

    Returns
    -------
    tuple
        Token ids of each example, token types, None for tokenizers without, and the number of tokens of each before it was
        truncated.

    Raises
    ------
    DataError
        If ``max_length`` leaves no room for an example's texts.
    ModelError
        If the tokenizer's special tokens for a pair cannot be determined.
    """
    around = _AroundPair.of(tokenizer)
    taken = len(around.start) + len(around.stop) + len(around.between) * (len(columns) - 1)
    room = max_length - taken
    all_ids, all_types, wholes = [], [], []
    for texts in zip(*(encode_plain(tokenizer, column) for column in columns), strict=True):
        lengths = [len(text) for text in texts]
        wholes.append(sum(lengths) + taken)
        if sum(lengths) > room:
            if room < sum(length > 0 for length in lengths):
                raise DataError(
                    f"data.max_length: {max_length} tokens leave no room for the {len(columns)} texts of {origin}, since "
                    f"special tokens take {taken}"
                )
            lengths = longest_first(lengths, room)
        first, *rest = (text[:length] for text, length in zip(texts, lengths, strict=True))
        ids = [*around.start, *first]
        of_first = len(ids) + around.between_of_first
        for text in rest:
            ids += [*around.between, *text]
        ids += around.stop
        all_ids.append(ids)
        all_types.append([0] * of_first + [1] * (len(ids) - of_first))
    return all_ids, all_types if around.has_types else None, wholes


@dataclass(frozen=True)
class _AroundPair:
    """The special tokens that a tokenizer puts around a pair."""

    start: Ids
    between: Ids
    stop: Ids
    has_types: bool
    """Whether the texts have different token types."""
    between_of_first: int
    """How many of the separator tokens have the first text's type."""

    @classmethod
    def of(cls, tokenizer: PreTrainedTokenizerBase) -> _AroundPair:
        probe = tokenizer("a", "a", return_special_tokens_mask=True, verbose=False)
        ids: Ids = list(probe["input_ids"])
        texts = [place for place, special in enumerate(probe["special_tokens_mask"]) if not special]
        inner = len(encode_plain(tokenizer, ["a"])[0])
        if len(texts) != 2 * inner:
            raise ModelError(
                f"model: how tokenizer {type(tokenizer).__name__} puts texts together cannot be told; use the verbalizer "
                f"head, whose template takes any number of fields"
            )
        start, stop = texts[inner - 1] + 1, texts[inner]
        types = list(probe.get("token_type_ids") or [0] * len(ids))
        differ = types[texts[0]] != types[stop]
        return cls(
            ids[: texts[0]], ids[start:stop], ids[texts[-1] + 1 :], differ, types[start:stop].count(types[texts[0]])
        )

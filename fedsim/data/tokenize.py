"""Tokenise examples into the columnar token table.

The verbalizer head reads a template filled with the example's texts. The parts before and after the mask are encoded
separately, with special tokens in the text split like ordinary characters, so that ``<mask>`` or ``</s>`` in a text
stay text; the mask goes between the two. Tokenizers split at special tokens first, so the result equals the encoding
of the whole. For label words of several tokens there are as many masks as the longest word has tokens, or, in a decoder, the
branches of the words stand behind the text. Only the texts' tokens are truncated to fit ``max_length``: template and mask
always stay, unlike in the published code, whose truncation can drop the mask.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from itertools import chain
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from fedsim.core.errors import DataError, ModelError, shown
from fedsim.core.tokens import TokenTable
from fedsim.core.words import LabelWords
from fedsim.data.config import TaskConfig
from fedsim.data.examples import Examples
from fedsim.data.label_words import label_words
from fedsim.data.responses import response_table
from fedsim.data.several import encode_plain, encode_several
from fedsim.data.spelt_out import with_special_tokens_apart
from fedsim.data.templates import Field, FilledText, Piece, Template, fill, parse_template
from fedsim.data.truncation import cut_counts, encode_with_fields, shorten

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

Ids = list[int]
HeadKind = Literal["verbalizer", "classifier", "generation"]
_TEXTS_OF_A_PAIR = 2


def tokenize(
    examples: Examples,
    task: TaskConfig,
    tokenizer: PreTrainedTokenizerBase,
    *,
    head_kind: HeadKind,
    causal: bool,
    max_length: int,
) -> TokenTable:
    """Encode examples for a head.

    Parameters
    ----------
    examples
        The examples of one split.
    task
        Their task; the verbalizer head needs its template.
    tokenizer
        A fast transformers tokenizer, left unchanged; without a padding token it pads with its end token.
    head_kind
        ``verbalizer``: the filled template, read at the mask token or tokens, or by a causal model at the last
        token of :meth:`Template.as_causal` and in the branches behind it. ``classifier``: the text or pair as the tokenizer
        encodes it (more texts extend the pair format), read at the last token. ``generation``: prompt and response
        (:mod:`fedsim.data.responses`).
    causal
        Whether the model is a decoder.
    max_length
        Most tokens per example, including special tokens and mask; the longest text is truncated first.

    Raises
    ------
    DataError
        If the task has no template, ``max_length`` leaves no room for the text, or a text yields no token.
    ModelError
        If the tokenizer is not a fast one, or has no mask token where one is needed.
    """
    if not tokenizer.is_fast:
        raise ModelError(
            f"model: tokenizer {type(tokenizer).__name__} is not a fast one; use a model with a tokenizer.json"
        )
    if task.of_responses:
        return response_table(examples, task, tokenizer, max_length, pad_id(tokenizer))
    examples = replace(examples, texts=with_special_tokens_apart(tokenizer, examples.texts))
    types: list[Ids] | None = None
    words: LabelWords | None = None
    if head_kind == "classifier":
        ids, types, wholes = _encode_classifier(examples, tokenizer, max_length)
        positions = [len(row) - 1 for row in ids]
    else:
        words = several_words(task, tokenizer, causal)
        ids, positions, wholes = _Verbalizer.build(task, tokenizer, causal, words).encode(examples, max_length)
        if causal:
            positions = [len(row) - 1 for row in ids]
    empty = next((i for i, row in enumerate(ids) if not row), None)
    if empty is not None:
        raise DataError(
            f"{examples.origin}: the text {shown(examples.texts[empty])} yields no token with this tokenizer"
        )
    if words is not None and words.branches is not None:
        behind = words.branches.ids_Y.tolist()
        ids = [row + behind for row in ids]
    table = _table(ids, types, positions, examples.labels_N, pad_id(tokenizer))
    return replace(table, words=words, **cut_counts(wholes, max_length))


def empty_text(
    task: TaskConfig, tokenizer: PreTrainedTokenizerBase, *, head_kind: HeadKind, causal: bool, max_length: int
) -> TokenTable:
    """Return the task's template with empty fields, as the one example of a table; parameters as of :func:`tokenize`."""
    nothing = Examples([("",) * len(task.fields)], np.zeros(1, np.int64), origin="the empty text")
    return tokenize(nothing, task, tokenizer, head_kind=head_kind, causal=causal, max_length=max_length)


def several_words(task: TaskConfig, tokenizer: PreTrainedTokenizerBase, causal: bool) -> LabelWords | None:
    """Return the task's label words if some are of several tokens, or several of a class; else None."""
    words = None if task.label_words is None else label_words(task, tokenizer, causal)
    return None if words is None or words.single_C is not None else words


def pad_id(tokenizer: PreTrainedTokenizerBase) -> int:
    """Return the token id for padding: the padding token, else end of text, else 0; it is always masked."""
    candidates = (tokenizer.pad_token_id, tokenizer.eos_token_id, 0)
    return next(int(token) for token in candidates if token is not None)


def _table(ids: list[Ids], types: list[Ids] | None, positions: Ids, labels_N: np.ndarray, pad: int) -> TokenTable:
    lengths_N = np.fromiter(map(len, ids), np.int64, len(ids))
    offsets_N1 = np.concatenate([np.zeros(1, np.int64), np.cumsum(lengths_N)])
    total = int(offsets_N1[-1])
    # No model has token types above 255: they are clipped to the largest storable one, which is then refused.
    types_Z = None if types is None else np.fromiter((min(t, 255) for t in chain.from_iterable(types)), np.uint8, total)
    return TokenTable(
        ids_Z=np.fromiter(chain.from_iterable(ids), np.int32, total),
        offsets_N1=offsets_N1,
        read_positions_N=np.asarray(positions, dtype=np.int32),
        labels_N=labels_N.astype(np.int64),
        pad_id=pad,
        # A model with token types reads missing ones as zeros, so all zeros need not be stored.
        type_ids_Z=types_Z if types_Z is not None and types_Z.any() else None,
    )


def _encode_classifier(
    examples: Examples, tokenizer: PreTrainedTokenizerBase, max_length: int
) -> tuple[list[Ids], list[Ids] | None, Ids]:
    """Return token ids, for tokenizers that tell the texts of a pair apart token types, and lengths before truncation."""
    if not examples.texts:
        return [], None, []
    columns = [[text.strip() for text in column] for column in zip(*examples.texts, strict=True)]
    if len(columns) > _TEXTS_OF_A_PAIR:
        return encode_several(columns, tokenizer, max_length, examples.origin)
    settings: Any = {"return_attention_mask": False, "split_special_tokens": True, "verbose": False}
    whole = tokenizer(*columns, **settings)
    ids, types = whole["input_ids"], whole.get("token_type_ids")
    wholes = [len(row) for row in ids]
    long = [i for i, length in enumerate(wholes) if length > max_length]
    if long:
        rows = [[column[i] for i in long] for column in columns]
        cut = tokenizer(*rows, truncation="longest_first", max_length=max_length, **settings)
        for place, i in enumerate(long):
            ids[i] = cut["input_ids"][place]
            if types is not None:
                types[i] = cut["token_type_ids"][place]
    return ids, types, wholes


@dataclass(frozen=True)
class _Verbalizer:
    """A template prepared for encoding: both sides of the mask, and the special tokens around the whole."""

    tokenizer: PreTrainedTokenizerBase
    template: Template
    prefix: Ids
    mask: Ids
    suffix: Ids
    behind: int = 0
    """Positions to keep free behind the text."""

    @classmethod
    def build(
        cls, task: TaskConfig, tokenizer: PreTrainedTokenizerBase, causal: bool, words: LabelWords | None
    ) -> _Verbalizer:
        template = parse_template(task)
        if causal:
            # No suffix: an end token would separate the text from the word that continues it.
            behind = 0 if words is None or words.branches is None else int(words.branches.depths_Y.max())
            return cls(tokenizer, template.as_causal(), _special_tokens(tokenizer, "a")[0], [], [], behind)
        if tokenizer.mask_token is None:
            raise ModelError(
                f"model: tokenizer {type(tokenizer).__name__} has no mask token, which the verbalizer head of a masked "
                f"language model needs; use the classifier head"
            )
        prefix, suffix = _special_tokens(tokenizer, tokenizer.mask_token)
        masks = [int(tokenizer.mask_token_id)] * (1 if words is None else words.num_masks)
        return cls(tokenizer, template, prefix, masks, suffix)

    def encode(self, examples: Examples, max_length: int) -> tuple[list[Ids], Ids, Ids]:
        """Return of each example the token ids, the (virtual) position of the first mask, and the tokens before truncation."""
        before, before_ids = self._side(self.template.before, examples, ends_at_mask=True)
        after, after_ids = self._side(self.template.after, examples, ends_at_mask=False)
        budget = max_length - len(self.prefix) - len(self.mask) - len(self.suffix) - self.behind
        wholes = [
            len(left) + len(right) + max_length - budget for left, right in zip(before_ids, after_ids, strict=True)
        ]
        long = [i for i, whole in enumerate(wholes) if whole > max_length]
        before_sides = encode_with_fields(self.tokenizer, [before[i] for i in long])
        after_sides = encode_with_fields(self.tokenizer, [after[i] for i in long])
        for i, *sides in zip(long, before_sides, after_sides, strict=True):
            before_ids[i], after_ids[i] = shorten(sides, budget, max_length, examples.origin)
        positions = [len(self.prefix) + len(left) for left in before_ids]
        ids = [
            self.prefix + left + self.mask + right + self.suffix
            for left, right in zip(before_ids, after_ids, strict=True)
        ]
        return ids, positions, wholes

    def _side(
        self, pieces: tuple[Piece, ...], examples: Examples, ends_at_mask: bool
    ) -> tuple[list[FilledText], list[Ids]]:
        """Fill and encode one side of the mask for all examples."""
        has_field = any(isinstance(piece, Field) for piece in pieces)
        filled = [fill(pieces, texts) for texts in (examples.texts if has_field else examples.texts[:1])]
        if ends_at_mask:
            # In RoBERTa's and all later vocabularies, the space before the mask belongs to the word in its place.
            filled = [FilledText(side.text.rstrip(" "), side.spans) for side in filled]
        ids = encode_plain(self.tokenizer, [side.text for side in filled])
        repeats = 1 if has_field else len(examples)
        return filled * repeats, ids * repeats


def _special_tokens(tokenizer: PreTrainedTokenizerBase, probe: str) -> tuple[Ids, Ids]:
    """Return the special token ids before and after a single text."""
    encoded = tokenizer(probe, return_special_tokens_mask=True, verbose=False)
    ids, special = list(encoded["input_ids"]), list(encoded["special_tokens_mask"])
    start = special.index(0) if 0 in special else len(ids)
    stop = len(ids) - special[::-1].index(0) if 0 in special else len(ids)
    return ids[:start], ids[stop:]

"""Check, before anything starts, that the model has embeddings for every token of its tokenizer.

A tokenizer may have more tokens than its model, if words or a padding token were added without resizing the embeddings.
"""

from __future__ import annotations

import json
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np

from fedsim.core.errors import ModelError, shown
from fedsim.core.tokens import TokenTable
from fedsim.core.words import LabelWords
from fedsim.data.config import TaskConfig
from fedsim.data.examples import Examples
from fedsim.data.templates import parse_template
from fedsim.data.written import literals

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

    from clients.backbone.shared_weights import SharedWeights


@dataclass(frozen=True)
class Vocabulary:
    """Tokens and token types that a model has embeddings for."""

    model: str
    """Model name for errors."""
    num_tokens: int
    """Token ids are below it."""
    num_types: int
    """Token types are below it; with one or none the model ignores types."""
    pad_id: int | None
    """Padding token of the model, if any."""

    @classmethod
    def of(cls, weights: SharedWeights, model: str) -> Vocabulary:
        """Return the vocabulary of loaded weights."""
        values = json.loads(weights.config_json)
        types = values.get("type_vocab_size") or 0
        return cls(model, int(values["vocab_size"]), int(types), values.get("pad_token_id"))

    def has(self, token: object) -> bool:
        """Return whether a token id is one of the model's."""
        return isinstance(token, int) and 0 <= token < self.num_tokens


def fitted(
    table: TokenTable,
    examples: Examples,
    task: TaskConfig,
    tokenizer: PreTrainedTokenizerBase,
    vocabulary: Vocabulary,
) -> TokenTable:
    """Return a token table that the model can read, padded with any token it has, since padding is masked.

    Parameters
    ----------
    table
        From :func:`fedsim.data.tokenize.tokenize`.
    examples, task, tokenizer
        What the table was made from.

    Raises
    ------
    ModelError
        If a text, the template or the special tokens contain a token or token type that the model lacks.
    """
    _check_tokens(table, examples, task, tokenizer, vocabulary)
    _check_types(table, examples, vocabulary)
    if vocabulary.has(table.pad_id):
        return table
    candidates = (vocabulary.pad_id, tokenizer.eos_token_id, 0)
    return replace(table, pad_id=next(token for token in candidates if token is not None and vocabulary.has(token)))


def _check_tokens(
    table: TokenTable,
    examples: Examples,
    task: TaskConfig,
    tokenizer: PreTrainedTokenizerBase,
    vocabulary: Vocabulary,
) -> None:
    place = _first(table.ids_Z >= vocabulary.num_tokens)
    if place is None:
        return
    token = int(table.ids_Z[place])
    named = f"the token {_name(token, tokenizer)}"
    if token in tokenizer.all_special_ids:
        what = f"the tokenizer puts {named} into every text"
    elif token in _literal_ids(task, tokenizer):
        what = f"data.task.template: {shown(task.template)} has {named}"
    else:
        what = f"{_text(table, examples, place)} has {named}"
    raise _unknown(what, vocabulary)


def _check_types(table: TokenTable, examples: Examples, vocabulary: Vocabulary) -> None:
    if table.type_ids_Z is None or vocabulary.num_types <= 1:
        return
    place = _first(table.type_ids_Z >= vocabulary.num_types)
    if place is not None:
        raise ModelError(
            f"{_text(table, examples, place)} has tokens of type {table.type_ids_Z[place]}, but the model {vocabulary.model} "
            f"knows the types 0 to {vocabulary.num_types - 1} (type_vocab_size); use the tokenizer that it was trained with"
        )


def check_label_words(
    words: LabelWords, task: TaskConfig, tokenizer: PreTrainedTokenizerBase, vocabulary: Vocabulary
) -> None:
    """Refuse label words that the model does not know.

    Parameters
    ----------
    words
        Their tokens, from :func:`fedsim.data.label_words.label_words`.

    Raises
    ------
    ModelError
        Naming the first such word.
    """
    place = _first(words.ids_Q >= vocabulary.num_tokens)
    if place is not None:
        names = [word for own in task.words_of_classes for word in own]
        word = shown(names[int(np.searchsorted(np.cumsum(words.lengths_W), place, side="right"))])
        named = _name(int(words.ids_Q[place]), tokenizer)
        is_it = "is" if words.single_C is not None else "has"
        raise _unknown(f"data.task.label_words: {word} {is_it} the token {named}", vocabulary)


def _unknown(what: str, vocabulary: Vocabulary) -> ModelError:
    return ModelError(
        f"{what}, but the model {vocabulary.model} knows the tokens 0 to {vocabulary.num_tokens - 1} only; use its own "
        "tokenizer, or resize its embeddings (model.resize_token_embeddings(len(tokenizer))), train them, and save it"
    )


def _name(token: int, tokenizer: PreTrainedTokenizerBase) -> str:
    return f"{shown(str(tokenizer.convert_ids_to_tokens(token)))} (id {token})"


def _literal_ids(task: TaskConfig, tokenizer: PreTrainedTokenizerBase) -> set[int]:
    """Return the tokens of the words in the task's template."""
    if task.of_responses:
        texts = literals(task)
    elif task.template is None:
        return set()
    else:
        template = parse_template(task)
        texts = [piece.strip() for piece in (*template.before, *template.after) if isinstance(piece, str)]
    ids: set[int] = set()
    for text in filter(None, texts):
        ids.update(tokenizer(text, add_special_tokens=False)["input_ids"])
    return ids


def _text(table: TokenTable, examples: Examples, place: int) -> str:
    """Return the name, for errors, of the text that contains a token."""
    row = int(np.searchsorted(table.offsets_N1, place, side="right")) - 1
    texts = examples.texts[row]
    return f"{examples.origin}: the text {shown(texts[0] if len(texts) == 1 else texts)}"


def _first(found: np.ndarray) -> int | None:
    """Return the first index that is set, or None."""
    return int(found.argmax()) if found.any() else None

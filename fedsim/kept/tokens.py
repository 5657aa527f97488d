"""Kept tokens: a tokenised split, keyed by its texts, the task, and the tokenizer as it is in memory."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from fedsim.core.tokens import TokenTable
from fedsim.data.config import TaskConfig
from fedsim.data.examples import Examples
from fedsim.kept.kept import Kept
from fedsim.kept.store import Record

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

_PLACES = ("name_or_path", "vocab_file", "merges_file", "tokenizer_file", "is_local", "local_files_only", "cache_dir")
"""Settings of a tokenizer that say where it was read, not how it encodes."""
_ARRAYS = ("ids_Z", "offsets_N1", "read_positions_N", "labels_N")
_OPTIONAL = ("type_ids_Z", "response_starts_N", "learned_Z")
_DTYPES = {
    "ids_Z": "<i4",
    "offsets_N1": "<i8",
    "read_positions_N": "<i4",
    "labels_N": "<i8",
    "type_ids_Z": "|u1",
    "response_starts_N": "<i4",
    "learned_Z": "|u1",
}
_COUNTS = ("pad_id", "cut_examples", "longest_uncut", "cut_prompts", "cut_responses", "cut_answers")


def kept_tokens(
    kept: Kept,
    examples: Examples,
    task: TaskConfig,
    tokenizer: dict[str, Any] | None,
    settings: dict[str, Any],
    compute: Callable[[], TokenTable],
) -> TokenTable:
    """Return the tokens of a split, from an earlier run if its texts, task, tokenizer and settings were the same.

    Parameters
    ----------
    tokenizer
        From :func:`state_of`; None computes the tokens.
    settings
        The further arguments of :func:`fedsim.data.tokenize.tokenize`.
    """

    def content() -> dict[str, Any] | None:
        if tokenizer is None:
            return None
        return {
            "texts": _packed(examples.texts),
            "labels": examples.labels_N,
            "task": task.model_dump(mode="json"),
            "tokenizer": tokenizer,
            "settings": settings,
        }

    slot = kept.slot("tokens", content, f"{task.name}, {len(examples):,} examples")
    table = slot.get(lambda record: _table(record, len(examples)))
    if table is None:
        table = compute()
        slot.put(_record(table))
    return table


def state_of(tokenizer: PreTrainedTokenizerBase) -> dict[str, Any] | None:
    """Return everything that decides how a tokenizer encodes; None if that cannot be told, as for code of a model's own.

    To be asked before the first text is encoded: a tokenizer remembers how it was last told to truncate.
    """
    kind = type(tokenizer)
    if kind.__module__.partition(".")[0] != "transformers" or not tokenizer.is_fast:
        return None
    try:
        text = tokenizer.backend_tokenizer.to_str()
    except Exception:  # what it raises for parts written in Python has no class of its own
        return None
    settings = {name: repr(value) for name, value in tokenizer.init_kwargs.items() if name not in _PLACES}
    return {
        "class": f"{kind.__module__}.{kind.__qualname__}",
        "backend": text,
        "settings": settings,
        "special": {name: str(token) for name, token in tokenizer.special_tokens_map.items()},
        "inputs": list(tokenizer.model_input_names),
        "chat": repr(tokenizer.chat_template),
        "sides": [tokenizer.padding_side, tokenizer.truncation_side],
    }


def _packed(texts: Sequence[Sequence[str]]) -> list[Any]:
    """Return texts as few large parts, which say where each one ends."""
    flat = [text for fields in texts for text in fields]
    fields_N = np.fromiter(map(len, texts), np.int64, len(texts))
    return [fields_N, np.fromiter(map(len, flat), np.int64, len(flat)), "".join(flat)]


def _record(table: TokenTable) -> Record:
    optional = {name: getattr(table, name) for name in _OPTIONAL if getattr(table, name) is not None}
    arrays = {name: getattr(table, name) for name in _ARRAYS} | optional
    return Record({name: getattr(table, name) for name in _COUNTS}, arrays)


def _table(record: Record, examples: int) -> TokenTable:
    arrays: dict[str, Any] = dict(record.arrays)
    if any(array.dtype.str != _DTYPES[name] or array.ndim != 1 for name, array in arrays.items()):
        raise ValueError("an array of other numbers")
    counts: dict[str, Any] = {name: int(record.values[name]) for name in _COUNTS}
    table = TokenTable(**arrays, **counts)
    of_examples = (table.read_positions_N, table.labels_N, table.response_starts_N)
    lengths = {len(table.offsets_N1) - 1, *(len(array) for array in of_examples if array is not None)}
    tokens = {len(array) for array in (table.ids_Z, table.type_ids_Z, table.learned_Z) if array is not None}
    if lengths != {examples} or tokens != {int(table.offsets_N1[-1])}:
        raise ValueError("arrays of other lengths")
    return table

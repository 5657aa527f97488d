"""Encode spelled-out special tokens such as ``</s>`` in a text as plain text.

Tokenizers split special tokens in a text like ordinary characters if told to (``split_special_tokens``). One whose
model is Unigram (XLM-RoBERTa, CamemBERT) still finds the same string in its vocabulary and produces the special token.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

Texts = list[tuple[str, ...]]


def with_special_tokens_apart(tokenizer: PreTrainedTokenizerBase, texts: Texts) -> Texts:
    """Insert a space into each special token that the tokenizer would still recognise: ``< /s>``."""
    taken = sorted((token for token in tokenizer.all_special_tokens if _is_taken(tokenizer, token)), key=len)
    if not taken:
        return texts
    pattern = re.compile("|".join(map(re.escape, reversed(taken))))

    def apart(text: str) -> str:
        return pattern.sub(lambda found: f"{found[0][0]} {found[0][1:]}", text)

    return [tuple(map(apart, fields)) for fields in texts]


def _is_taken(tokenizer: PreTrainedTokenizerBase, token: str) -> bool:
    """Whether spelling out the token produces it despite splitting; the unknown token is allowed for unknown characters."""
    if len(token) == 1 or token == tokenizer.unk_token:
        return False
    encoded = tokenizer(token, add_special_tokens=False, split_special_tokens=True, verbose=False)
    return tokenizer.convert_tokens_to_ids(token) in encoded["input_ids"]

"""Keeps a text that spells a special token, such as ``</s>``, a text.

Tokenizers split special tokens of a text up as ordinary characters where they are told to (``split_special_tokens``). One whose
model is Unigram (XLM-RoBERTa, CamemBERT) then finds the same word in its vocabulary, and gives the special token all the same.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

Texts = list[tuple[str, ...]]


def with_special_tokens_apart(tokenizer: PreTrainedTokenizerBase, texts: Texts) -> Texts:
    """Return the texts with a space inside each special token that the tokenizer would take for one, ``< /s>``."""
    taken = sorted((token for token in tokenizer.all_special_tokens if _is_taken(tokenizer, token)), key=len)
    if not taken:
        return texts
    pattern = re.compile("|".join(map(re.escape, reversed(taken))))

    def apart(text: str) -> str:
        return pattern.sub(lambda found: f"{found[0][0]} {found[0][1:]}", text)

    return [tuple(map(apart, fields)) for fields in texts]


def _is_taken(tokenizer: PreTrainedTokenizerBase, token: str) -> bool:
    """Whether a text that spells the token gives it, though it is to be split up; unknown characters may be called unknown."""
    if len(token) == 1 or token == tokenizer.unk_token:
        return False
    encoded = tokenizer(token, add_special_tokens=False, split_special_tokens=True, verbose=False)
    return tokenizer.convert_tokens_to_ids(token) in encoded["input_ids"]

"""The embedded backbone's tokenizer: byte-level BPE, so that it can encode any text."""

from __future__ import annotations

import itertools
from collections.abc import Iterable

from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from transformers import PreTrainedTokenizerFast

from fedsim.data import lexicon
from fedsim.data.embedded import EMBEDDED_TASKS
from fedsim.data.tasks import TASKS

SPECIAL_TOKENS = ("<s>", "<pad>", "</s>", "<unk>", "<mask>")
WORD_WEIGHT = 50
"""Repetitions of each required word in the training text, so that it becomes a token however rare it is."""


def required_words() -> list[str]:
    """Return the words that must be single tokens: label words of all built-in tasks, and words that carry meaning."""
    words = {*lexicon.AGREE, *lexicon.DISAGREE, *lexicon.POSITIVE, *lexicon.NEGATIVE}
    words.update(itertools.chain(*lexicon.TOPIC_NOUNS.values()))
    for task in (*TASKS.values(), *EMBEDDED_TASKS.values()):
        words.update(itertools.chain(*task.words_of_classes))
    return sorted(words)


def train_tokenizer(texts: Iterable[str], vocabulary: int, max_length: int) -> PreTrainedTokenizerFast:
    """Return a byte-level BPE tokenizer of at most ``vocabulary`` tokens, with RoBERTa's special tokens.

    A word has the same token at the beginning of a text and after a space.

    Raises
    ------
    ValueError
        If a required word is not a single token.
    """
    tokenizer = Tokenizer(models.BPE(unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=True)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocabulary,
        special_tokens=[AddedToken(token, lstrip=token == "<mask>", special=True) for token in SPECIAL_TOKENS],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(itertools.chain(texts, WORD_WEIGHT * [" ".join(required_words())]), trainer)
    ids = tokenizer.get_vocab()
    tokenizer.post_processor = processors.RobertaProcessing(
        ("</s>", ids["</s>"]), ("<s>", ids["<s>"]), add_prefix_space=True
    )
    fast = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        bos_token="<s>",
        eos_token="</s>",
        sep_token="</s>",
        cls_token="<s>",
        unk_token="<unk>",
        pad_token="<pad>",
        mask_token="<mask>",
        model_max_length=max_length,
        model_input_names=["input_ids", "attention_mask"],
    )
    for word in required_words():
        tokens = fast.tokenize(" " + word)
        if len(tokens) != 1:
            raise ValueError(f"the tokenizer splits {word!r} into {tokens}; a larger vocabulary is needed")
    return fast

#!/usr/bin/env bash
# split_special_tokens=True is to keep a text that spells a special token ("</s>", "<mask>") a text. With a tokenizer whose model is
# Unigram, as XLM-RoBERTa's and CamemBERT's is, the text gives the special token all the same: it stands in the vocabulary as a
# piece, and Unigram takes the likeliest piece. With BPE of the same letters the text stays a text.
# Seen with transformers 5.23.0, tokenizers 0.23.3. Exit status 0: still so; 1: it has changed.
set -euo pipefail
work=$(mktemp -d); trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/venv"
"$work/venv/bin/python" -m pip install --quiet transformers==5.23.0 tokenizers==0.23.3
"$work/venv/bin/python" - 2>/dev/null <<'PYTHON'
import sys
from tokenizers import Tokenizer, models
from transformers import PreTrainedTokenizerFast

SPECIAL, LETTERS = ["<unk>", "</s>", "<mask>"], "ab</>mask"
names = {"unk_token": "<unk>", "eos_token": "</s>", "mask_token": "<mask>"}
pieces = list(dict.fromkeys([*SPECIAL, *LETTERS]))
unigram = Tokenizer(models.Unigram([(piece, 0.0 if piece in SPECIAL else -3.0) for piece in pieces], unk_id=0))
bpe = Tokenizer(models.BPE({piece: number for number, piece in enumerate(pieces)}, [], unk_token="<unk>"))


def tokens(model, **how):
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=model, **names)
    return tokenizer("ab</s><mask>", add_special_tokens=False, **how).tokens()


split = tokens(unigram, split_special_tokens=True), tokens(bpe, split_special_tokens=True)
print(f"Unigram, split_special_tokens=True: {split[0]}")
print(f"BPE,     split_special_tokens=True: {split[1]}")
sys.exit(0 if split[0] == ["a", "b", "</s>", "<mask>"] == tokens(bpe) and not set(SPECIAL) & set(split[1]) else 1)
PYTHON

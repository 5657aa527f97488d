#!/usr/bin/env bash
# A BERT whose config.json says "is_causal": true reads a text from left to right only while its batch has no padding. With padding
# the same text is read in both directions, and with eager attention always: an encoder builds its mask without a look at
# is_causal, but hands the key down as an argument of attention, which goes by it where the mask was left out as needless.
# Decoders (Llama here) go by the key in both cases.
# Seen with transformers 5.23.0, torch 2.13.0 (CPU). Exit status 0: still so; 1: it has changed.
set -euo pipefail
work=$(mktemp -d); trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/venv"
"$work/venv/bin/python" -m pip install --quiet torch==2.13.0
"$work/venv/bin/python" -m pip install --quiet transformers==5.23.0
"$work/venv/bin/python" - <<'PYTHON'
import sys
import torch
from transformers import BertConfig, BertModel, LlamaConfig, LlamaModel

SIZES = dict(vocab_size=50, hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=4, initializer_range=0.3)


@torch.no_grad()
def by_padding(model_class, config, attention):
    """How far the hidden states of 8 tokens move when 2 masked tokens of padding stand behind them."""
    torch.manual_seed(0)
    config._attn_implementation = attention
    model = model_class(config).eval()
    text = torch.randint(1, 50, (1, 8), generator=torch.Generator().manual_seed(1))
    padded = torch.cat([text, torch.zeros((1, 2), dtype=torch.long)], dim=1)
    mask = (torch.arange(10) < 8).long()[None]
    plain = model(input_ids=text).last_hidden_state[0]
    return float((plain - model(input_ids=padded, attention_mask=mask).last_hidden_state[0, :8]).abs().max())


bert = by_padding(BertModel, BertConfig(**SIZES, is_causal=True), "sdpa")
others = {
    "BERT, sdpa, key absent": by_padding(BertModel, BertConfig(**SIZES), "sdpa"),
    "BERT, eager, is_causal true": by_padding(BertModel, BertConfig(**SIZES, is_causal=True), "eager"),
    "Llama, sdpa, is_causal true": by_padding(LlamaModel, LlamaConfig(**SIZES, is_causal=True), "sdpa"),
    "Llama, sdpa, is_causal false": by_padding(LlamaModel, LlamaConfig(**SIZES, is_causal=False), "sdpa"),
}
print(f"BERT, sdpa, is_causal true: padding moves hidden states by {bert:.2f}")
for name, moved in others.items():
    print(f"{name}: by {moved:.0e}")
sys.exit(0 if bert > 0.1 and max(others.values()) < 1e-4 else 1)
PYTHON

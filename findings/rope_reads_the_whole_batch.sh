#!/usr/bin/env bash
# Rotary positions of type "longrope" and "dynamic" make the output for a text depend on other texts: on those that share its
# batch, masked apart by the attention mask, and on those that the model read before.
#   longrope  every forward pass writes inv_freq in place, chosen by the longest text of the batch
#   dynamic   inv_freq grows with the longest text so far, and only a text shorter than the original length takes it back
# Seen with transformers 5.23.0, torch 2.13.0 (CPU). Exit status 0: still so; 1: it has changed.
set -euo pipefail
work=$(mktemp -d); trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/venv"
"$work/venv/bin/python" -m pip install --quiet torch==2.13.0
"$work/venv/bin/python" -m pip install --quiet transformers==5.23.0
"$work/venv/bin/python" - <<'PYTHON'
import sys
import torch
from transformers import LlamaConfig, LlamaForCausalLM


def model(rope, positions=64):
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=50, hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=4,
        num_key_value_heads=4, max_position_embeddings=positions, initializer_range=0.3, pad_token_id=0, rope_parameters=rope,
    )
    return LlamaForCausalLM(config).eval()


def padded(ids, pad_to):
    """A text padded at its right, and the mask that hides the padding."""
    row = torch.zeros((1, pad_to), dtype=torch.long)
    row[0, : len(ids)] = ids
    return row, (torch.arange(pad_to) < len(ids)).long()[None]


def far(a, b):
    return float((a - b).abs().max() / a.abs().max())


generator = torch.Generator().manual_seed(1)
short, middle, long = (torch.randint(1, 50, (n,), generator=generator) for n in (8, 24, 48))

longrope = model({
    "rope_type": "longrope", "rope_theta": 10000.0, "factor": 4.0, "original_max_position_embeddings": 16,
    "short_factor": [1.0] * 4, "long_factor": [4.0] * 4,
})
with torch.no_grad():
    alone = longrope(input_ids=short[None]).logits[0, -1]
    rows, masks = zip(*(padded(ids, 48) for ids in (short, long)))
    together = longrope(input_ids=torch.cat(rows), attention_mask=torch.cat(masks)).logits[0, len(short) - 1]
    plain = model({"rope_type": "default", "rope_theta": 10000.0})
    plain_alone = plain(input_ids=short[None]).logits[0, -1]
    plain_together = plain(input_ids=torch.cat(rows), attention_mask=torch.cat(masks)).logits[0, len(short) - 1]
by_company, control = far(alone, together), far(plain_alone, plain_together)
print(f"longrope: 8 tokens alone and beside 48: logits differ by {by_company:.3f} of their size (type default: {control:.0e})")

dynamic = model({"rope_type": "dynamic", "rope_theta": 10000.0, "factor": 4.0}, positions=16)
with torch.no_grad():
    before = dynamic(input_ids=middle[None]).logits[0, -1]
    dynamic(input_ids=torch.randint(1, 50, (1, 60), generator=generator))
    after = dynamic(input_ids=middle[None]).logits[0, -1]
by_history = far(before, after)
print(f"dynamic: 24 tokens before and after a text of 60: logits differ by {by_history:.3f} of their size")
sys.exit(0 if by_company > 0.01 and control < 1e-5 and by_history > 0.01 else 1)
PYTHON

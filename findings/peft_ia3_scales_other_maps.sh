#!/usr/bin/env bash
# The paper of IA3 scales three things in each layer: keys, values, and the feed-forward's inner activations. PEFT's defaults (no
# target_modules given) do not everywhere:
# * BERT, RoBERTa: the feed-forward target is "output.dense", and names are matched by their ends, so the input of attention's own
#   output projection, attention.output.dense, is scaled as well: four vectors a layer. The feed-forward's map alone cannot be
#   named by such an end.
# * Qwen2: queries are scaled and keys are not.
# Nothing says so: the adapter trains, and its config.json shows only the names asked for.
# Seen with peft 0.21.2, transformers 5.23.0, torch 2.13.0. Exit status 0: still so; 1: it has changed.
set -euo pipefail
work=$(mktemp -d); trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/venv"
"$work/venv/bin/python" -m pip install --quiet torch==2.13.0 peft==0.21.2 transformers==5.23.0
"$work/venv/bin/python" - <<'PYTHON'
import sys
from peft import IA3Config, get_peft_model
from transformers import BertConfig, BertModel, Qwen2Config, Qwen2Model

small = dict(hidden_size=32, num_hidden_layers=1, num_attention_heads=4, intermediate_size=48, vocab_size=97)
models = {
    "BERT": BertModel(BertConfig(**small)),
    "Qwen2": Qwen2Model(Qwen2Config(**small, num_key_value_heads=2)),
}
scaled = {}
for name, model in models.items():
    tuned = get_peft_model(model, IA3Config())
    found = {}
    for path, module in tuned.named_modules():
        if hasattr(module, "ia3_l") and hasattr(module, "is_feedforward"):
            end = ".".join(path.split(".")[-3:])
            found[end] = "input" if module.is_feedforward else "output"
    scaled[name] = found
    print(name, "scales:")
    for end, side in found.items():
        print(f"  {side:6} of {end}")
bert = [end for end, side in scaled["BERT"].items() if side == "input"]
qwen = list(scaled["Qwen2"])
still = (
    any("attention.output.dense" in end for end in bert)
    and len(bert) == 2
    and any(end.endswith("q_proj") for end in qwen)
    and not any(end.endswith("k_proj") for end in qwen)
)
print("still so" if still else "it has changed")
sys.exit(0 if still else 1)
PYTHON

#!/usr/bin/env bash
# Weight-only int8 of torchao makes a frozen linear layer a quarter of its float32 size. But a pass whose gradient flows through it to
# what lies below (prompts, prefixes, adapters) multiplies by a dequantised copy and keeps that copy, in float32, for the backward pass:
# for each layer of the pass a dense matrix of full size, until backward has run. So tuning a prompt on a model quantised this way needs
# more memory than on the plain model, whose backward keeps the one weight that is there anyway. Without gradients nothing is kept.
# Seen with torchao 0.18.0, torch 2.13.0 on a CPU. Exit status 0: still so; 1: it has changed.
set -euo pipefail
work=$(mktemp -d); trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/venv"
"$work/venv/bin/python" -m pip install --quiet torch==2.13.0 torchao==0.18.0
"$work/venv/bin/python" - <<'PYTHON'
import sys
import torch
from torchao.quantization import Int8WeightOnlyConfig, quantize_

OUT, IN, LAYERS = 512, 512, 3
plain = torch.nn.Sequential(*(torch.nn.Linear(IN, OUT, bias=False) for _ in range(LAYERS))).requires_grad_(False)
own = {parameter.data_ptr() for parameter in plain.parameters()}


def kept(model):
    """Bytes of dense float32 matrices that a pass keeps for backward beside the model's own weights."""
    found = {}

    def keep(tensor):
        if type(tensor) is torch.Tensor and tensor.dtype == torch.float32 and set(tensor.shape[-2:]) == {OUT, IN}:
            if tensor.data_ptr() not in own:
                found[tensor.data_ptr()] = tensor.untyped_storage().nbytes()
        return tensor

    prompt = torch.randn(4, IN, requires_grad=True)  # what is trained lies below the frozen layers
    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        output = model(prompt)
        total = sum(found.values())  # counted while the graph holds them
        output.sum().backward()
    return total


before = kept(plain)
quantize_(plain, Int8WeightOnlyConfig())
after = kept(plain)
dense = LAYERS * OUT * IN * 4
print(f"weights of {LAYERS} layers in float32: {dense:,} bytes, in int8 about {dense // 4:,}")
print(f"kept for backward beside the weights: plain {before:,} bytes, quantised {after:,} bytes")
still = before == 0 and after >= dense
print("still so" if still else "it has changed")
sys.exit(0 if still else 1)
PYTHON

#!/usr/bin/env bash
# A linear layer in bfloat16 on a CPU keeps memory for every number of rows that it has ever seen: 400 batches of 301 to 700 tokens
# through one layer of 384 x 1536 leave hundreds of megabytes behind that neither the layer (1.2 MB) nor its outputs (freed) hold, and
# a number of rows seen for the first time takes longer. The same in float32 leaves nothing. oneDNN makes a kernel for each shape,
# and torch keeps up to 1,024 of them. Batches of packed or unpadded text have a new number of tokens nearly every time; whoever
# rounds the rows up to multiples of 32 is rid of it.
# The other way is two caches that both have to be limited (LRU_CACHE_CAPACITY and ONEDNN_PRIMITIVE_CACHE_CAPACITY): one alone
# changes nothing.
# Seen with torch 2.13.0 (CPU build) on an AMD EPYC with AVX-512 BF16. Exit status 0: still so; 1: it has changed; 2: this processor
# has no products in bfloat16.
set -euo pipefail
grep -qE "avx512_bf16|amx_bf16" /proc/cpuinfo || { echo "this processor has no products in bfloat16"; exit 2; }
work=$(mktemp -d); trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/venv"
"$work/venv/bin/python" -m pip install --quiet torch==2.13.0
cat > "$work/rows.py" <<'PYTHON'
import statistics
import sys
import time

import torch

torch.set_num_threads(1)
kind, step = getattr(torch, sys.argv[1]), int(sys.argv[2])


def private_megabytes():
    with open("/proc/self/smaps_rollup") as lines:
        return next(int(line.split()[1]) for line in lines if line.startswith("Private_Dirty")) / 1024


def through_all(layer, rows):
    seconds = []
    for count in range(301, 701):
        count = -(-count // step) * step
        started = time.perf_counter()
        layer(rows[:count])
        seconds.append((time.perf_counter() - started) / count)
    return statistics.median(seconds) * 1e6


with torch.inference_mode():
    layer, rows = torch.nn.Linear(384, 1536).to(kind), torch.randn(704, 384).to(kind)
    layer(rows[:300])
    before = private_megabytes()
    first, again = through_all(layer, rows), through_all(layer, rows)
    kept = private_megabytes() - before
    print(f"{sys.argv[1]:8} rows in multiples of {step:2}: {kept:4.0f} MB kept; {first:.1f} us a row, the second time {again:.1f}", file=sys.stderr)
    print(round(kept))
PYTHON
python="$work/venv/bin/python $work/rows.py"
plain=$($python float32 1); half=$($python bfloat16 1); rounded=$($python bfloat16 32)
one=$(LRU_CACHE_CAPACITY=16 $python bfloat16 1)
both=$(LRU_CACHE_CAPACITY=16 ONEDNN_PRIMITIVE_CACHE_CAPACITY=16 $python bfloat16 1)
echo "kept, MB: float32 $plain, bfloat16 $half, in multiples of 32 $rounded; one cache limited $one, both $both"
if [ "$half" -gt 200 ] && [ "$plain" -lt 50 ] && [ "$rounded" -lt 60 ] && [ "$one" -gt 200 ] && [ "$both" -lt 60 ]; then
  echo "still so"
else
  echo "it has changed"; exit 1
fi

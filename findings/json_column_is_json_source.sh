#!/usr/bin/env bash
# One row whose text is no string makes datasets 5 give the whole column its type Json. datasets itself decodes it, so texts look
# right there; in the Parquet or Arrow files that it writes, every text is JSON source. Arrow reads that as type arrow.json and
# pandas as plain strings, without a word: in quotes, with \" and \n and \u00e8 spelt out.
# Seen with datasets 5.2.0, pyarrow 26.0.1, pandas 3.1.1. Exit status 0: still so; 1: it has changed.
set -euo pipefail
work=$(mktemp -d); trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/venv"
"$work/venv/bin/python" -m pip install --quiet datasets==5.2.0 pyarrow==26.0.1 pandas==3.1.1
export HF_HOME="$work/hf" HF_HUB_OFFLINE=1
cd "$work"
"$work/venv/bin/python" - <<'PYTHON'
import json
import sys

import datasets
import pandas
import pyarrow.parquet

datasets.disable_progress_bars()
texts = ['say "hello"', "caf\u00e8\nbar"]


def written(rows, name):
    with open(f"{name}.jsonl", "w") as file:
        file.writelines(json.dumps({"text": text}) + "\n" for text in rows)
    split = datasets.load_dataset("json", data_files=f"{name}.jsonl", split="train")
    split.to_parquet(f"{name}.parquet")
    return split, pyarrow.parquet.read_table(f"{name}.parquet").schema.field("text").type, pandas.read_parquet(f"{name}.parquet")["text"]


plain, plain_type, plain_texts = written([*texts, "7"], "plain")
mixed, mixed_type, mixed_texts = written([*texts, 7], "mixed")
print(f"all texts strings:  {plain.features['text']}, in Parquet {plain_type}: {plain_texts.tolist()}")
print(f"one a number:       {mixed.features['text']}, in Parquet {mixed_type}: {mixed_texts.tolist()}")
print(f"read by datasets:   {mixed['text'][:2]}")
source = [json.dumps(text) for text in texts]
ok = plain_texts.tolist()[:2] == texts and mixed["text"][:2] == texts and mixed_texts.tolist()[:2] == source
sys.exit(0 if ok else 1)
PYTHON

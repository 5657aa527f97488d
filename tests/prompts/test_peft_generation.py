"""What is generated here is, token for token, what transformers generates with the exported adapter in PEFT."""

from __future__ import annotations

import sys
from pathlib import Path

import peft
import pytest
import torch
from support import sweep
from tiny_prompts import ALL_LAYERS, Prompt, backbone

from clients.tuners.config import TunerConfig
from fedsim.prompts.peft_adapter import export_peft

sys.path.append(str(Path(__file__).parents[1] / "clients"))
from tiny_models import doubled
from tiny_texts import DECODERS, GREEDY, generated_alone, lists, texts

TUNERS = {
    "prefix": (None, ALL_LAYERS),
    "lora": ({"kind": "lora", "rank": 3, "alpha": 5.0}, (0, 2)),
    "ia3": ({"kind": "ia3"}, ALL_LAYERS),
    "soft_prompt": ({"kind": "soft_prompt", "length": 5}, (0,)),
}


PLAIN = [
    ("gpt2", "prefix"),
    ("llama", "lora"),
    ("mistral", "prefix"),
    ("gemma3_text", "lora"),
    ("qwen3", "prefix"),
    ("opt", "lora"),
]


@pytest.mark.parametrize(("family", "kind"), sweep([(family, kind) for family in DECODERS for kind in TUNERS], PLAIN))
def test_the_exported_adapter_generates_the_same(tmp_path, family, kind):
    tuner, layers = TUNERS[kind]
    prompt, some = Prompt(tmp_path, family, layers=layers, tuner=tuner), texts()
    base = doubled(prompt.base())
    theirs = peft.PeftModel.from_pretrained(base, str(export_peft(prompt.path, tmp_path / "adapter"))).eval().double()
    own = None if tuner is None else TunerConfig(**tuner)
    ours = backbone(prompt.model, dtype="float64", position_offset="paper", tuner=own)
    tuned_1LX = torch.from_numpy(prompt.vector_F)[None]
    tuned_1LX = prompt.layout.split_rows(tuned_1LX)[0]
    expected = generated_alone(theirs, some)
    assert lists(ours.generate(some, tuned_1LX, layers, GREEDY)) == expected
    alone = [ours.generate([text], tuned_1LX, layers, GREEDY)[0].tolist() for text in some]
    assert alone == expected
    assert expected != lists(ours.generate(some, tuned_1LX[:, :0], (), GREEDY))

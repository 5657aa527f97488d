"""SmolLM2-135M writes, over 200 prompts, token for token what transformers generates with the exported adapter in PEFT.

Needs a folder of the model in ``FEDSIM_SMOLLM2``, and takes minutes of two cores; tests/prompts/test_peft_generation.py has the
same law on tiny models.
"""

import json
import os
import sys
from pathlib import Path

import numpy as np
import peft
import pytest
import torch
import transformers
from support import make_tiny

from clients.backbone.loading import load_shared_weights
from clients.backbone.model import Backbone
from clients.tuners.make import make_tuner
from fedsim.core.decoding import Decoding
from fedsim.core.layout import VectorLayout
from fedsim.data.config import TaskConfig
from fedsim.prompts.peft_adapter import export_peft
from fedsim.prompts.prompt_file import save_prompt

sys.path.append(str(Path(__file__).parents[1] / "clients"))
from tiny_texts import generated_alone, lists

NEW = 5
TUNERS = {
    "lora": ({"tuner": {"kind": "lora", "rank": 8}}, 0.02),
    "prefix": ({"prompt": {"length": 8, "position_offset": "paper"}}, 0.3),
}
TASK = TaskConfig(
    name="own", fields=("text",), template="{text} It was <mask>", labels=("a", "b"), label_words=("x", "y")
)


@pytest.fixture(scope="module")
def smollm2() -> str:
    folder = os.environ.get("FEDSIM_SMOLLM2")
    if not folder or not (Path(folder) / "config.json").is_file():
        pytest.skip("no real decoder: set FEDSIM_SMOLLM2 to a folder of SmolLM2-135M")
    return folder


@pytest.mark.timeout(3600)
@pytest.mark.wide(
    alone="a real decoder writes 200 texts three times; tests/prompts/test_peft_generation.py has the law"
)
@pytest.mark.parametrize("kind", TUNERS)
def test_200_prompts_are_continued_as_by_transformers_and_peft(tmp_path, smollm2, data_folder, kind):
    section, spread = TUNERS[kind]
    config = make_tiny(model={"path": smollm2, "dtype": "float32"}, layers={"choose": "all"}, **section)
    weights = load_shared_weights(config.model)
    tuner = make_tuner(config.tuner, config.prompt, weights.family)
    ours = Backbone.build(weights, config.model, tuner, 2, np.array([30, 31]), "cpu")
    layout = VectorLayout.full(ours.geometry, ours.head_shapes)
    vector_F = np.random.default_rng(0).normal(0.0, spread, layout.size).astype(np.float32)
    path = tmp_path / "run" / "prompt" / "global.safetensors"
    save_prompt(path, vector_F, layout, config, TASK)
    base = transformers.AutoModelForCausalLM.from_pretrained(smollm2, dtype=torch.float32)
    adapter = str(export_peft(path, tmp_path / "adapter"))
    theirs = peft.PeftModel.from_pretrained(base, adapter).eval()

    lines = (data_folder / "sst2" / "validation.jsonl").read_text().splitlines()[:200]
    tokenizer = transformers.AutoTokenizer.from_pretrained(smollm2)
    texts = [np.array(tokenizer(json.loads(line)["text"])["input_ids"][:8]) for line in lines]
    assert len(texts) == 200
    ends = [int(tokenizer.eos_token_id)]
    tuned_1LX = layout.split_rows(torch.from_numpy(vector_F)[None])[0]
    decoding = Decoding(NEW, tuple(ends))
    batched = lists(ours.generate(texts, tuned_1LX, layout.layers, decoding, limit=600))
    alone = [ours.generate([text], tuned_1LX, layout.layers, decoding)[0].tolist() for text in texts]
    plain = lists(ours.generate(texts[:20], tuned_1LX[:, :0], (), decoding))
    expected = generated_alone(theirs, texts, NEW, ends)
    assert batched == alone == expected
    assert plain != expected[:20]

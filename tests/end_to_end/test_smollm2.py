"""SmolLM2-135M, a real decoder with its LM head: it learns, and its PEFT adapter says what its prompt file says.

Needs a folder of the model in ``FEDSIM_SMOLLM2``, and takes half a minute of two cores; tests/test_peft_adapter.py has the
same law on tiny models.
"""

import os
from pathlib import Path

import numpy as np
import peft
import pyarrow.parquet as pq
import pytest
import torch
import transformers

import fedsim
from fedsim.data.label_words import label_words
from fedsim.data.sources import load_dataset
from fedsim.data.tokenize import tokenize
from fedsim.prompts.peft_adapter import export_peft
from fedsim.prompts.prompted_model import load_prompt


@pytest.fixture(scope="module")
def smollm2() -> str:
    folder = os.environ.get("FEDSIM_SMOLLM2")
    if not folder or not (Path(folder) / "config.json").is_file():
        pytest.skip("no real decoder: set FEDSIM_SMOLLM2 to a folder of SmolLM2-135M")
    return folder


def test_the_adapter_of_a_real_decoder_gives_the_scores_of_its_prompt_file(tiny_config, tmp_path, smollm2, data_folder):
    data = {"task": "sst2", "source": "files", "path": str(data_folder / "sst2"), "max_length": 32}
    config = tiny_config(
        output=str(tmp_path / "run"),
        executor="local",
        rounds=1,
        model={"path": smollm2},
        data={**data, "train_examples": 64, "validation_examples": 32},
        partition={"kind": "iid", "clients": 4},
        sampling={"clients_per_round": 2},
        prompt={"position_offset": "paper"},
        layers={"choose": "all"},
    )
    fedsim.run(config, progress=False)
    losses = pq.read_table(tmp_path / "run" / "rounds.parquet")["global_loss"].to_pylist()
    assert losses[-1] < losses[0]

    ours = load_prompt(tmp_path / "run")
    validation = load_dataset(config.data, config.seed).validation
    folder = export_peft(tmp_path / "run", tmp_path / "adapter")
    base = transformers.AutoModelForCausalLM.from_pretrained(smollm2, dtype=torch.float32)
    theirs = peft.PeftModel.from_pretrained(base, str(folder)).eval()
    table = tokenize(validation, ours.task, ours.tokenizer, head_kind="verbalizer", causal=True, max_length=32)
    words_C = label_words(ours.task, ours.tokenizer, True).single_C
    scores_NC = ours.scores(validation.texts, batch_size=16)
    with torch.no_grad():
        for start in range(0, len(table), 16):
            batch = table.batch(np.arange(start, start + 16))
            logits_BTV = theirs(
                input_ids=torch.from_numpy(batch.input_ids_BT),
                attention_mask=torch.from_numpy(batch.attention_mask_BT),
            ).logits
            theirs_BC = logits_BTV[torch.arange(16), torch.from_numpy(batch.read_positions_B)][:, words_C]
            np.testing.assert_allclose(scores_NC[start : start + 16], theirs_BC.numpy(), atol=1e-4, rtol=0)

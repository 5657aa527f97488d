"""Tasks of responses from end to end on the embedded corpus: a tiny decoder learns to write, and a run says what it cut.

The embedded backbone is an encoder, so the decoder is made here, with its tokenizer.
"""

import pyarrow.parquet as pq
import pytest
import torch
import transformers

import fedsim
from clients.backbone.loading import load_tokenizer
from clients.config import ModelConfig

CHATML = (
    "{% for m in messages %}{{ '<s>' + m.role + '\n' + m.content + '</s>\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<s>assistant\n' }}{% endif %}"
)


@pytest.fixture(scope="module")
def decoder(tmp_path_factory):
    """A folder with a tiny LLaMA that reads the embedded corpus, and its chat template."""
    folder = tmp_path_factory.mktemp("decoder")
    tokenizer = load_tokenizer(ModelConfig(path="embedded"))
    tokenizer.chat_template = CHATML
    tokenizer.save_pretrained(folder)
    sizes = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 2}
    with torch.random.fork_rng():
        torch.manual_seed(0)
        config = transformers.LlamaConfig(vocab_size=len(tokenizer), max_position_embeddings=256, **sizes)
        transformers.LlamaForCausalLM(config).save_pretrained(folder)
    return str(folder)


@pytest.fixture
def written(tiny_config, tmp_path, decoder):
    """Run a task of responses, and return its summary and the losses by round."""

    def go(task, **data):
        config = tiny_config(
            output=str(tmp_path / "run"),
            executor="local",
            rounds=3,
            model={"path": decoder, "head": {"kind": "generation"}},
            data={"task": task, "train_examples": 120, "validation_examples": 24, **data},
            partition={"kind": "iid", "clients": 4},
            sampling={"clients_per_round": 2},
            tuner={"kind": "lora"},
            layers={"choose": "all"},
            server={"kind": "fedavg"},
            client={"correction": "none", "optimizer": {"kind": "adamw", "lr": 0.02}},
        )
        summary = fedsim.run(config, progress=False)
        return summary, pq.read_table(tmp_path / "run" / "rounds.parquet")["global_loss"].to_pylist()

    return go


CHAT = {
    "name": "questions", "fields": ["text", "question", "answer"], "template": "{text} {question}", "response": "{answer}",
    "chat": True, "system": "be brief",
}  # fmt: skip


@pytest.mark.parametrize("task", ["questions", "writing", CHAT], ids=["prompt", "no prompt", "chat"])
def test_a_decoder_learns_to_write(written, task):
    summary, losses = written(task)
    assert losses[-1] < losses[0]
    assert (summary["metric_name"], summary["num_classes"]) == ("token_accuracy", 2)


def test_what_was_cut_is_said(written, capsys):
    written("writing", max_length=12)
    said = capsys.readouterr().out
    assert "of 120 training examples have more than data.max_length=12 tokens, the longest" in said
    assert "responses have lost their end; data.max_length=" in said

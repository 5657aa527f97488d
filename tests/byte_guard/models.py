"""Tiny models of several families whose weights no library's way of drawing them can change."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import torch
import transformers

import fedsim

_SHAPE = {"hidden_size": 16, "num_hidden_layers": 3, "num_attention_heads": 2, "max_position_embeddings": 160}
_TOKENS = {"bos_token_id": 0, "pad_token_id": 1, "eos_token_id": 2}
_ENCODER = _SHAPE | {"intermediate_size": 24}
_DECODER = _ENCODER | {"num_key_value_heads": 1, "tie_word_embeddings": False}
# The usual activation written by torch's GELU and not by its tanh, which is MKL's vector function: no variable pins that.
_GPT2 = {"n_embd": 16, "n_layer": 3, "n_head": 2, "activation_function": "gelu_pytorch_tanh"}
FAMILIES = {
    "bert": (transformers.BertConfig, transformers.BertForMaskedLM, _ENCODER),
    "roberta": (transformers.RobertaConfig, transformers.RobertaForMaskedLM, _ENCODER | {"type_vocab_size": 1}),
    "gpt2": (transformers.GPT2Config, transformers.GPT2LMHeadModel, _GPT2),
    "llama": (transformers.LlamaConfig, transformers.LlamaForCausalLM, _DECODER),
    "qwen3": (transformers.Qwen3Config, transformers.Qwen3ForCausalLM, _DECODER | {"head_dim": 8}),
}
FAMILIES["llama-chat"] = FAMILIES["llama"]
CHAT = (
    "{% for m in messages %}{{ '<s>' + m.role + '\n' + m.content + '</s>\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<s>assistant\n' }}{% endif %}"
)
"""Chat template of a family whose name ends so."""


def save_model(family: str, folder: Path) -> str:
    """Save a model of the family with the embedded model's tokenizer, once; return its folder."""
    if folder.exists():
        return str(folder)
    folder.mkdir(parents=True)
    assets = next(Path(fedsim.__file__).parent.rglob("tokenizer.json")).parent
    for name in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copy(assets / name, folder)
    if family.endswith("-chat"):
        (folder / "chat_template.jinja").write_text(CHAT)
    vocabulary = len(transformers.AutoTokenizer.from_pretrained(folder))
    config_class, model_class, values = FAMILIES[family]
    model = model_class(config_class(vocab_size=vocabulary, **_TOKENS, **values))
    _fill(model)
    model.save_pretrained(folder)
    return str(folder)


def _fill(model: torch.nn.Module) -> None:
    """Set all weights from NumPy's doubles between 0 and 1, which are the same bits everywhere."""
    rng = np.random.default_rng(11)
    with torch.no_grad():
        for name, parameter in sorted(model.named_parameters()):
            values = rng.random(tuple(parameter.shape)) - 0.5
            is_gain = parameter.ndim == 1 and name.endswith("weight")
            parameter.copy_(torch.from_numpy(1.0 + 0.4 * values if is_gain else 0.8 * values))

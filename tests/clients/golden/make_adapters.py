"""Traces of the package ``adapters``: hidden states and gradients of tiny models with bottlenecks in every layer.

``adapters`` needs an older transformers than the project, so it runs in an environment of its own:

    python -m venv /tmp/adapters && . /tmp/adapters/bin/activate
    pip install torch==2.13.0 "transformers==4.57.*" && pip install --no-deps adapters==1.3.0
    python tests/clients/golden/make_adapters.py

writes ``adapters.npz`` beside this file. Models are built from ``CONFIGS`` and filled by name, in both environments alike.
"""

from __future__ import annotations

import re
import zlib
from pathlib import Path

import numpy as np
import torch
import transformers

TRACES = Path(__file__).with_name("adapters.npz")
BOTTLENECK = 4
_COMMON = {"vocab_size": 31, "pad_token_id": 1, "bos_token_id": 0, "eos_token_id": 2}
_OWN = {
    "hidden_size": 16,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "intermediate_size": 24,
    "max_position_embeddings": 24,
}
_ENCODER = _COMMON | _OWN | {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}
CONFIGS = {
    "bert": ("Bert", _ENCODER | {"type_vocab_size": 2}),
    "roberta": ("Roberta", _ENCODER | {"type_vocab_size": 1}),
    "gpt2": (
        "GPT2",
        _COMMON
        | {"n_embd": 16, "n_layer": 2, "n_head": 4, "n_positions": 24}
        | {"resid_pdrop": 0.0, "embd_pdrop": 0.0, "attn_pdrop": 0.0},
    ),
    "llama": ("Llama", _COMMON | _OWN | {"num_key_value_heads": 2, "tie_word_embeddings": False}),
}
NORMS = {
    "bert": ("attention.output.LayerNorm", "output.LayerNorm"),
    "roberta": ("attention.output.LayerNorm", "output.LayerNorm"),
    "gpt2": ("ln_1", "ln_2"),
    "llama": ("input_layernorm", "post_attention_layernorm"),
}


def filled(family: str) -> transformers.PreTrainedModel:
    """Return the base model, each parameter drawn from a stream of its name."""
    title, values = CONFIGS[family]
    config = getattr(transformers, f"{title}Config")(**values)
    more = {"add_pooling_layer": False} if family in ("bert", "roberta") else {}
    model = getattr(transformers, f"{title}Model")(config, **more)
    for name, parameter in model.named_parameters():
        parameter.data.copy_(torch.from_numpy(drawn(name, tuple(parameter.shape), 0.3)))
        if parameter.ndim == 1 and name.endswith("weight"):
            parameter.data.add_(1.0)
    return model.eval()


def drawn(name: str, shape: tuple[int, ...], std: float) -> np.ndarray:
    """Return normal numbers, float32, of a stream that the name seeds."""
    return np.random.default_rng(zlib.crc32(name.encode())).normal(0.0, std, shape).astype(np.float32)


def _ours(family: str, name: str) -> str | None:
    """Return the project's name of a parameter that is trained, with its layer in front; None if it is frozen."""
    place = re.search(r"\b(?:layer|layers|h)\.(\d+)\.(.*)", name)
    if place is None:
        return None
    layer, rest = place.groups()
    bottleneck = re.search(r"\.adapter_(down\.0|up)\.(weight|bias)$", rest)
    if bottleneck:
        where = "attention" if rest.startswith("attention") else "feed_forward"
        return f"{layer}/{where}.{bottleneck[1].removesuffix('.0')}.{bottleneck[2]}"
    path, _, part = rest.rpartition(".")
    return f"{layer}/{path}.{part}_change" if path in NORMS[family] else None


def trace(family: str) -> dict[str, np.ndarray]:
    """Return inputs, trained numbers, hidden states and gradients of one family."""
    import adapters

    model = filled(family)
    adapters.init(model)
    config = adapters.DoubleSeqBnConfig(
        # The paper's: the residual and the layer's own norm come behind the bottleneck; gelu as in its code, by tanh.
        reduction_factor=16 / BOTTLENECK,
        non_linearity="gelu_new",
        original_ln_before=False,
        original_ln_after=True,
    )
    model.add_adapter("own", config=config)
    model.train_adapter("own")
    found, trained = {}, {}
    for name, parameter in model.named_parameters():
        ours = _ours(family, name)
        parameter.requires_grad_(ours is not None)
        if ours is None:
            continue
        numbers = drawn(ours, tuple(parameter.shape), 0.3)
        own = torch.from_numpy(numbers)
        parameter.data.copy_(parameter.data + own if ours.endswith("_change") else own)
        found[f"number/{ours}"], trained[ours] = numbers, parameter
    model.eval()
    ids = np.random.default_rng(0).integers(3, 31, (3, 7))
    mask = np.ones_like(ids)
    mask[1, 5:], mask[2, 3:] = 0, 0
    ids[mask == 0] = 1
    output = model(
        input_ids=torch.from_numpy(ids),
        attention_mask=torch.from_numpy(mask),
        output_hidden_states=True,
        use_cache=False,
    )
    weight = drawn("loss", (3, 16), 1.0)
    last = mask.sum(1) - 1
    loss = (output.last_hidden_state[torch.arange(3), torch.from_numpy(last)] * torch.from_numpy(weight)).sum()
    gradients = torch.autograd.grad(loss, list(trained.values()))
    found |= {f"gradient/{name}": gradient.numpy() for name, gradient in zip(trained, gradients, strict=True)}
    found |= {f"state/{i}": state.detach().numpy() for i, state in enumerate(output.hidden_states)}
    return found | {"ids": ids, "mask": mask, "loss_weight": weight}


if __name__ == "__main__":
    arrays = {f"{family}/{name}": array for family in CONFIGS for name, array in trace(family).items()}
    np.savez_compressed(TRACES, **arrays)
    print(f"{TRACES}: {TRACES.stat().st_size} bytes, {len(arrays)} arrays")

"""05_forward and 05b_forward_hessian: a tiny RoBERTa with a prefix."""

from __future__ import annotations

import numpy as np
import torch
from reference.model import Batch, Roberta
from reference.spectrum import lanczos, search

from .ratio import unambiguous

CONFIG = {
    "hidden_size": 12,
    "num_hidden_layers": 3,
    "num_attention_heads": 2,
    "intermediate_size": 16,
    "vocab_size": 32,
    "max_position_embeddings": 20,
    "type_vocab_size": 1,
    "pad_token_id": 1,
    "bos_token_id": 0,
    "eos_token_id": 2,
    "mask_token_id": 4,
    "layer_norm_eps": 1e-5,
    "hidden_act": "gelu",
    "num_prompt_tokens": 2,
    "tied_word_embeddings": True,
}
LABELS = (11, 12)
"""Token ids of the label words."""
EXAMPLES, TOKENS, LANCZOS_STEPS = 3, 7, 28
LAYERS = list(range(CONFIG["num_hidden_layers"]))
CASES = {
    "layers_all.pers_on": LAYERS,
    "layers_all.pers_off": LAYERS,
    "layers_1.pers_on": LAYERS,
    "layers_1.pers_off": [1],
}
"""Which layers see their prefix: with personalisation all of them, whatever is exchanged."""
PREFIX = "prefix_encoder.embedding.weight"


def traces(rng: np.random.Generator) -> dict[str, tuple[dict, dict]]:
    """Return the arrays and descriptions of both traces."""
    weights, batch = make_weights(rng), make_batch(rng, EXAMPLES, TOKENS, CONFIG["vocab_size"])
    arrays = {f"weights/{name}": array for name, array in weights.items()}
    arrays |= {f"batch/{name}": array.astype(np.int64) for name, array in batch.items()}
    summaries = {}
    for case, visible in CASES.items():
        for name, dtype in (("f32", torch.float32), ("f64", torch.float64)):
            loss, logits, states, gradient = _forward(weights, batch, visible, dtype)
            key = f"{case}.{name}"
            arrays |= {f"{key}.logits": logits, f"{key}.loss": loss, f"{key}.prefix_grad": gradient}
            summaries[key] = {"loss": float(loss)}
        arrays[f"{case}.hidden_states"] = states.astype(np.float32)
    description = {
        "what": "RoBERTa for masked words with a prefix in every layer, dropout off",
        "config": CONFIG,
        "meaning": {
            f"weights/{PREFIX}": "the prefix [P, L*2*H]; viewed as [P, L, 2, heads, H/heads], index 0 of axis 2 = key",
            "<case>.f32|f64.logits": "[batch, vocab] scores of all words at mask_pos",
            ".loss": "mean cross-entropy over the whole vocabulary against labels (token ids)",
            ".prefix_grad": "d loss / d prefix",
            "<case>.hidden_states": "[L+1, batch, tokens, H] float32",
        },
        "summary": summaries,
        "tolerance": "3e-5 of (0.1 + |x|) for f32, 1e-10 for f64",
    }
    return {"05_forward": (arrays, description), "05b_forward_hessian": _hessian(rng, weights, batch)}


def make_weights(rng: np.random.Generator) -> dict[str, np.ndarray]:
    """Return float32 weights by the names of a RobertaForMaskedLM; tied copies are left out."""
    size, inner = CONFIG["hidden_size"], CONFIG["intermediate_size"]
    shapes: dict[str, tuple[int, ...]] = {}
    for name, rows in (
        ("word", "vocab_size"),
        ("position", "max_position_embeddings"),
        ("token_type", "type_vocab_size"),
    ):
        shapes[f"roberta.embeddings.{name}_embeddings.weight"] = (CONFIG[rows], size)
    linears = {"lm_head.dense": (size, size)}
    norms = ["roberta.embeddings.LayerNorm", "lm_head.layer_norm"]
    for layer in LAYERS:
        name = f"roberta.encoder.layer.{layer}"
        linears |= {f"{name}.attention.self.{part}": (size, size) for part in ("query", "key", "value")}
        linears |= {f"{name}.attention.output.dense": (size, size), f"{name}.intermediate.dense": (inner, size)}
        linears |= {f"{name}.output.dense": (size, inner)}
        norms += [f"{name}.attention.output.LayerNorm", f"{name}.output.LayerNorm"]
    for name, shape in linears.items():
        shapes |= {f"{name}.weight": shape, f"{name}.bias": shape[:1]}
    shapes |= {"lm_head.bias": (CONFIG["vocab_size"],), PREFIX: (CONFIG["num_prompt_tokens"], len(LAYERS) * 2 * size)}
    # Large enough for a prefix to matter, and for gradients that are clipped now and then.
    weights = {name: rng.normal(0.0, 0.4, shape) for name, shape in shapes.items()}
    for name in norms:
        weights |= {f"{name}.weight": rng.normal(1.0, 0.1, size), f"{name}.bias": rng.normal(0.0, 0.1, size)}
    return {name: array.astype(np.float32) for name, array in weights.items()}


def make_batch(rng: np.random.Generator, examples: int, tokens: int, labels_below: int = 0) -> dict[str, np.ndarray]:
    """Return random texts with the mask before the end, padded to the longest.

    Parameters
    ----------
    labels_below
        Labels are any token id below; 0 stands for one of ``LABELS``.
    """
    lengths = rng.integers(4, tokens + 1, examples)
    ids = np.full((examples, lengths.max()), CONFIG["pad_token_id"])
    for row, length in zip(ids, lengths, strict=True):
        row[:length] = rng.integers(5, CONFIG["vocab_size"], length)
        row[0], row[length - 2], row[length - 1] = (CONFIG[f"{key}_token_id"] for key in ("bos", "mask", "eos"))
    return {
        "input_ids": ids,
        "attention_mask": (np.arange(ids.shape[1]) < lengths[:, None]).astype(int),
        "token_type_ids": np.zeros_like(ids),
        "mask_pos": lengths - 2,
        "labels": rng.integers(5, labels_below, examples) if labels_below else rng.choice(LABELS, examples),
    }


def as_batch(arrays: dict[str, np.ndarray]) -> Batch:
    """Return what the model reads."""
    names = ("input_ids", "attention_mask", "mask_pos", "labels")
    return Batch(*(torch.from_numpy(arrays[name].astype(np.int64)) for name in names))


def as_model(weights: dict[str, np.ndarray], dtype: torch.dtype) -> tuple[Roberta, torch.Tensor]:
    """Return the model and its prefix [P, L, 2, H]."""
    model = Roberta(CONFIG, {name: torch.from_numpy(array).to(dtype) for name, array in weights.items()})
    prefix = model.weights[PREFIX]
    return model, prefix.reshape(len(prefix), len(LAYERS), 2, -1)


def _forward(weights: dict, batch: dict, visible: list[int], dtype: torch.dtype) -> tuple[np.ndarray, ...]:
    model, prefix = as_model(weights, dtype)
    prefix = prefix.clone().requires_grad_()
    loss, logits, states = model(as_batch(batch), prefix, visible)
    (gradient,) = torch.autograd.grad(loss, prefix)
    hidden = torch.stack(states).detach().numpy()
    return loss.detach().numpy(), logits.detach().numpy(), hidden, gradient.reshape(len(prefix), -1).numpy()


def _hessian(rng: np.random.Generator, weights: dict, batch: dict) -> tuple[dict, dict]:
    model, prefix = as_model(weights, torch.float64)
    texts = as_batch(batch)
    matrix = torch.autograd.functional.hessian(
        lambda vector: model(texts, vector.reshape(prefix.shape), LAYERS)[0], prefix.reshape(-1)
    ).numpy()

    def searched() -> dict[str, np.ndarray]:
        probe = (2 * rng.integers(0, 2, len(matrix)) - 1).astype(np.int8)
        values, shares = lanczos(lambda vector: matrix @ vector, probe, LANCZOS_STEPS)
        found, looked = search(values[None], shares[None])
        ritz = {"ritz_values": values[None], "ritz_weights": shares[None]}
        return {"H_times_probe": matrix @ probe, "probe": probe, **ritz, "trace": looked, "ratio": np.array(found)}

    arrays = {"H_eigenvalues": np.linalg.eigvalsh(matrix), **unambiguous(searched)}
    return arrays, {
        "what": "Lanczos density of the loss's Hessian in the prefix, model and batch of 05_forward, all layers, "
        f"{LANCZOS_STEPS} steps in float64, and the search for a ratio on it",
        "meaning": {"H_times_probe": "H @ probe", "trace": "(t, ratio) pairs looked at", "ratio": "result"},
    }

"""06_run_*: whole runs on the model of 05_forward."""

from __future__ import annotations

import numpy as np
import torch
from reference.rounds import Method
from reference.runs import Training, run

from .forward import LABELS, LAYERS, as_batch, as_model, make_batch

CLIENT_SAMPLES, COHORT, ROUNDS, PREFIX_ROUNDS, TOKENS = (5, 3, 9, 2), 2, 3, 2, 8
VARIANTS = {
    "06_run_all": (LAYERS, True, True),
    "06_run_layer1": ([1], True, True),
    "06_run_layer1_nopers": ([1], False, True),
    "06_run_layer1_unaliased": ([1], True, False),
}


def traces(rng: np.random.Generator, weights: dict[str, np.ndarray]) -> dict[str, tuple[dict, dict]]:
    """Return the arrays and descriptions of all variants; data, initial prefix and cohorts are those of each."""
    return {name: _trace(rng, weights, list(layers), *choices) for name, (layers, *choices) in VARIANTS.items()}


def _trace(
    rng: np.random.Generator, weights: dict, layers: list[int], personalised: bool, aliased: bool
) -> tuple[dict, dict]:
    batch_size = 4
    total = -(-sum(CLIENT_SAMPLES) // batch_size) * ROUNDS
    training = Training(epochs=2, batch_size=batch_size, lr=0.04, total_steps=total)
    method = Method(layers, personalised, aliased, COHORT / len(CLIENT_SAMPLES), lr=training.lr, server_lr=0.05)
    model, prefix = as_model(weights, torch.float64)
    data = [make_batch(rng, examples, TOKENS) for examples in CLIENT_SAMPLES]
    initial = rng.normal(0.0, 0.02, tuple(prefix.shape))
    selected = np.stack([rng.permutation(len(data))[:COHORT] for _ in range(ROUNDS)])
    federation, steps, evaluations = run(model, [as_batch(d) for d in data], selected, initial, training, method)
    arrays = {f"data/{i}/{name}": array.astype(np.int16) for i, d in enumerate(data) for name, array in d.items()}
    arrays |= {"initial_prefix": initial.reshape(len(initial), -1), "selected": selected}
    for name in ("aggregated", "global_after", "global_v", "global_c", "clients_c"):
        arrays[name] = _flat(np.stack(federation.record[name]))
    arrays |= {
        "local": _flat(np.stack(evaluations["local"])),
        "server_lr": np.stack(federation.record["server_lr"]),
        "verbalizer_logits": np.stack(evaluations["logits"])[..., list(LABELS)].astype(np.float32),
        "step_round_client": np.array([(step.round, step.client) for step in steps], dtype=np.int16),
        "step_lr": np.array([step.lr for step in steps]),
        "step_grad_norm_after_clip": np.array([step.norm for step in steps]),
        "step_prefix": _flat(np.stack([step.prefix for step in steps if step.round < PREFIX_ROUNDS])),
    }
    return arrays, _description(training, method)


def _description(training: Training, method: Method) -> dict:
    return {
        "what": "a whole run: client AdamW, schedule, clipping, server step",
        "config": {
            "model": "weights of 05_forward (every weight but the prefix), dropout 0, run in float64",
            "client_samples": CLIENT_SAMPLES,
            "batch_size": training.batch_size,
            "batches": "in order (no shuffling)",
            "local_eps": training.epochs,
            "learning_rate": training.lr,
            "weight_decay": training.weight_decay,
            "adam_eps": training.eps,
            "betas": [training.beta1, training.beta2],
            "max_grad_norm": training.max_norm,
            "server_lr_start": method.server_lr,
            "sample_rate": method.sample_rate,
            "rounds": ROUNDS,
            "schedule": f"linear from learning_rate to 0 over {training.total_steps} steps, one scheduler per client",
            "prompt_layer_list": method.layers,
            "personalization": method.personalised,
            "prefix_view": "[P, L, 2, H]",
            "aliasing": "as published" if method.aliased else "switched off",
        },
        "meaning": {
            "local": "[round, client, ...] stored local prefixes after the round",
            "step_*": "one row per client optimizer step in order; step_prefix: prefix after the step, for the first "
            f"{PREFIX_ROUNDS} rounds only",
            "verbalizer_logits": f"[round, all samples client by client, 2] logits of tokens {LABELS[0]} and {LABELS[1]} "
            "in eval mode with the parameters used for evaluation after the round",
        },
        "tolerance": "1e-5 in float64",
    }


def _flat(prefixes: np.ndarray) -> np.ndarray:
    return prefixes.reshape(*prefixes.shape[:-3], -1).astype(np.float32)

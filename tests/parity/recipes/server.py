"""01_server_*: server rounds on given local results."""

from __future__ import annotations

import numpy as np
from reference.rounds import Federation, Method

CLIENTS, COHORT, ROUNDS, LENGTH, LAYERS, HIDDEN = 4, 3, 3, 2, 5, 2
VARIANTS = {
    "01_server_all": (range(LAYERS), True, True),
    "01_server_layers134": ([1, 3, 4], True, True),
    "01_server_layers134_nopers": (range(LAYERS), False, True),
    "01_server_all_unaliased": (range(LAYERS), True, False),
    "01_server_layers134_unaliased": ([1, 3, 4], True, False),
}
"""Layers, personalisation, aliasing. As in the published run, the third exchanges all layers."""


def traces(rng: np.random.Generator) -> dict[str, tuple[dict, dict]]:
    """Return the arrays and descriptions of all variants."""
    return {name: _trace(rng, list(layers), *choices) for name, (layers, *choices) in VARIANTS.items()}


def _trace(rng: np.random.Generator, layers: list[int], personalised: bool, aliased: bool) -> tuple[dict, dict]:
    method = Method(layers, personalised, aliased, COHORT / CLIENTS, lr=0.04, server_lr=0.05)
    initial = rng.normal(0.0, 0.1, (LENGTH, LAYERS, 2, HIDDEN)).astype(np.float32)
    sizes, steps = rng.integers(3, 40, CLIENTS), rng.integers(1, 9, CLIENTS)
    federation = Federation.start(method, initial.astype(float), CLIENTS)
    orders = [rng.permutation(CLIENTS)[:COHORT] for _ in range(ROUNDS)]
    starts, trained = [], []
    for order in orders:
        starts.append(np.stack([federation.start_of(k) for k in order]))
        # Inputs of the trace: float32 numbers, so that they are exact in any number format.
        trained.append((starts[-1] + rng.normal(0.0, 0.05, starts[-1].shape)).astype(np.float32))
        federation.round(order, list(trained[-1].astype(float)), sizes[order], steps[order])
    arrays = {name: _flat(np.stack(values)) for name, values in federation.record.items() if name != "server_lr"}
    arrays |= {
        "server_lr": np.stack(federation.record["server_lr"]),
        "initial_prefix": _flat(initial),
        "selected": np.stack(orders),
        "start_params": _flat(np.stack(starts)),
        "local_params": _flat(np.stack(trained)),
        "n_samples": sizes[np.stack(orders)],
        "steps": steps[np.stack(orders)],
        "client_n_samples": sizes,
        "client_steps_per_visit": steps,
        "eval_params": _flat(np.stack([federation.start_of(k) for k in range(CLIENTS)])),
    }
    return arrays, {
        "what": f"{ROUNDS} server rounds, {COHORT} of {CLIENTS} clients",
        "config": {
            "num_clients": CLIENTS,
            "per_round": COHORT,
            "sample_rate": method.sample_rate,
            "learning_rate": method.lr,
            "server_lr_start": method.server_lr,
            "server_momentum": method.beta,
            "prompt_tokens": LENGTH,
            "layers": LAYERS,
            "hidden": HIDDEN,
            "weight_view": "[P, L, 2 (0=key, 1=value), H]",
        },
        "prompt_layer_list": layers,
        "personalization": personalised,
        "aliasing": "as published" if aliased else "switched off",
        "tolerance": "1e-6 of (0.1 + |x|) on the exchanged layers, in float64; 1e-4 in float32",
    }


def _flat(prefixes: np.ndarray) -> np.ndarray:
    """Return [..., P, L * 2 * H] in float32."""
    return prefixes.reshape(*prefixes.shape[:-3], -1).astype(np.float32)

"""04_partition: label counts of clients, dealt as the published code deals."""

from __future__ import annotations

import numpy as np
from reference.deals import METHODS, summary

CLIENTS, EXAMPLES, SEEDS = 50, 2000, 10
CLASS_SHARES = {"2": [0.44, 0.56], "6": [0.22, 0.23, 0.02, 0.22, 0.15, 0.16]}
SETTINGS = (
    ("iid", 1.0),
    ("dirichlet_quantity", 1.0),
    ("dirichlet_quantity", 10.0),
    ("dirichlet_label", 0.1),
    ("dirichlet_label", 1.0),
    ("dirichlet_label", 10.0),
)


def traces(rng: np.random.Generator) -> dict[str, tuple[dict, dict]]:
    """Return the arrays and the description."""
    arrays: dict[str, np.ndarray] = {}
    summaries = {}
    for classes, shares in CLASS_SHARES.items():
        labels = np.repeat(np.arange(int(classes)), np.round(np.array(shares) * EXAMPLES).astype(int))
        for method, alpha in SETTINGS:
            name = f"{method}.k{classes}.a{alpha:g}"
            results = [METHODS[method](labels, int(classes), CLIENTS, alpha, rng) for _ in range(SEEDS)]
            deals = [result[0] for result in results if result is not None]
            nothing = np.full((CLIENTS, int(classes)), -1)
            arrays[f"{name}.train"] = np.stack([nothing if r is None else r[0] for r in results]).astype(np.int16)
            unplaced = np.array([0 if r is None else r[1] for r in results])
            if unplaced.any():
                arrays[f"{name}.unplaced"] = unplaced
            summaries[name] = {"usable_train_partitions": len(deals), **(summary(deals) if deals else {})}
    description = {
        "what": "label counts of clients",
        "config": {
            "num_clients": CLIENTS,
            "seeds": list(range(SEEDS)),
            "train": EXAMPLES,
            "class_shares": CLASS_SHARES,
        },
        "meaning": {
            "<method>.k<classes>.a<alpha>.train": "int16 [seed, client, class] counts; -1 where a client would be empty",
            "<...>.unplaced": "examples not yet placed when the deal was stuck; the counts of such deals are partial",
        },
        "summary": summaries,
    }
    return {"04_partition": (arrays, description)}

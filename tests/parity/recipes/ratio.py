"""03_ratio: spectral density, share above a threshold, threshold search, Lanczos on quadratics and on small networks."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch
from reference.spectrum import AmbiguousError, density, lanczos, ratio, search

Array = np.ndarray
THRESHOLDS = np.array([-0.5, -0.1, 0.0, 0.01, 0.05, 0.1, 0.2, 0.5, 1.0, 2.0, 50.0])
QUADRATICS = {
    "quad200": (20, 12, 2),
    "quad200_f32": (20, 12, 1),
    "quad12_full": (12, 12, 1),
    "quad12_overrun": (12, 20, 1),
}
"""Dimension, Lanczos steps, probes. The names are those of the published traces, whatever the dimension."""
INPUTS, INNER, CLASSES, EXAMPLES, MLP_STEPS = 2, 3, 3, 8, 10


def traces(rng: np.random.Generator) -> dict[str, tuple[dict, dict]]:
    """Return the arrays and the description."""
    arrays: dict[str, Array] = {"ratio.t": THRESHOLDS}
    cases: dict[str, dict] = {}
    for name, (eigenvalues, weights) in _spectra(rng).items():
        arrays |= _density(name, eigenvalues, weights)
    for name in _searches(rng):
        arrays |= unambiguous(lambda name=name: _random_search(rng, name))
    for name, (size, steps, probes) in QUADRATICS.items():
        hessian = _symmetric(rng, size)
        arrays |= {f"{name}.H": hessian} | _lanczos(name, hessian, _probes(rng, probes, size), steps)
        cases[name] = _case(size, steps, probes, "torch.float32" if name.endswith("_f32") else "torch.float64")
    for name in ("mlp_random", "mlp_trained", "mlp_large"):
        arrays |= unambiguous(lambda name=name: _mlp(rng, name))
        cases[name] = _case(len(arrays[f"{name}.H"]), MLP_STEPS, 1, "torch.float32")
        cases[name]["search_steps"] = len(arrays[f"{name}.trace"])
    description = {
        "what": "spectral density, ratio, Lanczos and the threshold search",
        "cases": cases,
        "tolerance": "density and ratio 1e-9; Ritz values and weights 1e-6 in float64; float32: density or ratio 1e-2, "
        "moments sum(w * l^p) for p = 0..4 to 1e-3; quad12_overrun runs past the dimension and is no target",
    }
    return {"03_ratio": (arrays, description)}


def _case(size: int, steps: int, probes: int, dtype: str) -> dict:
    return {"n": size, "lanczos_steps": steps, "probes": probes, "dtype": dtype}


def _spectra(rng: np.random.Generator) -> dict[str, tuple[Array, Array]]:
    values = {
        "one_run": rng.normal(0.2, 0.5, (1, 6)),
        "two_runs": rng.normal(0.2, 0.5, (2, 3)),
        "wide": rng.uniform(-70.0, 55.0, (1, 20)),
        "narrow": rng.normal(0.0, 0.02, (1, 20)),
    }
    return {name: (np.sort(array), _weights(rng, *array.shape)) for name, array in values.items()}


def _searches(rng: np.random.Generator) -> dict[str, Array]:
    values = {
        "one_run": rng.normal(0.2, 0.5, (1, 6)),
        "two_runs": rng.normal(0.2, 0.5, (2, 3)),
        "wide": rng.uniform(-70.0, 55.0, (1, 20)),
        "narrow": rng.normal(0.0, 0.02, (1, 20)),
        "all_negative": rng.uniform(-2.0, -0.04, (1, 10)),
        "all_positive_far": rng.uniform(1.1, 2.0, (1, 10)),
        "half_at_0.25": np.array([[-0.2, 0.25, 0.9]]),
        "spike_near_0": np.array([[-0.1, 0.003, 0.4, 0.8]]),
    }
    return {name: np.sort(array) for name, array in values.items()}


def _weights(rng: np.random.Generator, runs: int, size: int) -> Array:
    weights = rng.uniform(0.2, 1.0, (runs, size))
    return weights / weights.sum(1, keepdims=True)


def _density(name: str, eigenvalues: Array, weights: Array) -> dict[str, Array]:
    grid, values = density(eigenvalues, weights)
    return {
        f"{name}.eigenvalues": eigenvalues,
        f"{name}.weights": weights,
        f"{name}.grid_ends": grid[[0, -1]],
        f"{name}.density_every_10th": values[::10].astype(np.float32),
        f"{name}.density_sum_times_step": np.array(values.sum() * (grid[1] - grid[0])),
        f"{name}.ratio": np.array([ratio(grid, values, threshold) for threshold in THRESHOLDS]),
    }


def _search(name: str, eigenvalues: Array, weights: Array) -> dict[str, Array]:
    found, looked = search(eigenvalues, weights)
    return {
        f"{name}.eigenvalues": eigenvalues,
        f"{name}.weights": weights,
        f"{name}.trace": looked,
        f"{name}.ratio": np.array(found),
    }


def _random_search(rng: np.random.Generator, name: str) -> dict[str, Array]:
    eigenvalues = _searches(rng)[name]
    return _search(f"search_{name}", eigenvalues, _weights(rng, *eigenvalues.shape))


def unambiguous(draw: Callable[[], dict[str, Array]]) -> dict[str, Array]:
    """Return the first draw for which the search's answer is defined."""
    while True:
        try:
            return draw()
        except AmbiguousError:
            continue


def _symmetric(rng: np.random.Generator, size: int) -> Array:
    half = rng.normal(size=(size, size)).astype(np.float32)
    return (half + half.T) / np.float32(2 * np.sqrt(size))


def _probes(rng: np.random.Generator, runs: int, size: int) -> Array:
    return (2 * rng.integers(0, 2, (runs, size)) - 1).astype(np.int8)


def _lanczos(name: str, hessian: Array, probes: Array, steps: int) -> dict[str, Array]:
    exact = hessian.astype(float)
    values, weights = zip(*(lanczos(lambda vector: exact @ vector, probe, steps) for probe in probes), strict=True)
    return {f"{name}.probe": probes, f"{name}.ritz_values": np.stack(values), f"{name}.ritz_weights": np.stack(weights)}


def _mlp(rng: np.random.Generator, name: str) -> dict[str, Array]:
    """Return a network z = W2 tanh(W1 x + b1) + b2 with mean cross-entropy, and what the search finds for it."""
    shapes = {"w1": (INNER, INPUTS), "b1": (INNER,), "w2": (CLASSES, INNER), "b2": (CLASSES,)}
    x = torch.from_numpy(rng.normal(size=(EXAMPLES, INPUTS)).astype(np.float32))
    y = torch.from_numpy(rng.integers(0, CLASSES, EXAMPLES))
    sizes = [int(np.prod(shape)) for shape in shapes.values()]
    scale = 3.0 if name == "mlp_large" else 0.5

    def loss(vector: torch.Tensor) -> torch.Tensor:
        w1, b1, w2, b2 = (
            piece.reshape(shape) for piece, shape in zip(vector.split(sizes), shapes.values(), strict=True)
        )
        scores = torch.tanh(x.double() @ w1.T + b1) @ w2.T + b2
        return torch.nn.functional.cross_entropy(scores, y)

    vector = torch.from_numpy(rng.normal(0.0, scale, sum(sizes)))
    if name == "mlp_trained":
        for _ in range(300):
            vector = vector - 0.5 * torch.func.grad(loss)(vector)
    vector = vector.float().double()  # what is stored is what the Hessian is of
    hessian = torch.autograd.functional.hessian(loss, vector).numpy()
    arrays = {f"{name}.x": x.numpy(), f"{name}.y": y.numpy(), f"{name}.H": hessian}
    for part, piece, shape in zip(shapes, vector.split(sizes), shapes.values(), strict=True):
        arrays[f"{name}.{part}"] = piece.reshape(shape).float().numpy()
    arrays |= _lanczos(name, hessian, _probes(rng, 1, len(hessian)), MLP_STEPS)
    found = _search(name, arrays[f"{name}.ritz_values"], arrays[f"{name}.ritz_weights"])
    return arrays | {key: found[key] for key in (f"{name}.trace", f"{name}.ratio")}

"""Lanczos, spectral density and threshold search against the published code, on small matrices and on a real model."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from reference.spectrum import SHORT
from reference.spectrum import lanczos as published_lanczos
from test_forward_golden import Golden, golden  # noqa: F401 - a fixture

from clients.analysis.hessian import PromptHessian
from clients.analysis.layer_share import density_share
from clients.analysis.spectrum import VARIANCE, lanczos, spectral_density
from fedsim.core.layout import VectorLayout

DENSITIES = ("one_run", "two_runs", "wide", "narrow")
SEARCHES = (
    "search_one_run", "search_two_runs", "search_wide", "search_narrow", "search_all_negative", "search_all_positive_far",
    "search_half_at_0.25", "search_spike_near_0", "mlp_random", "mlp_trained", "mlp_large",
)  # fmt: skip
MATRICES = ("quad200", "quad200_f32", "quad12_full", "mlp_random", "mlp_trained", "mlp_large")


@pytest.fixture(scope="module")
def trace(load_golden) -> dict[str, np.ndarray]:
    return load_golden("03_ratio")[0]


@pytest.mark.parametrize("name", DENSITIES)
def test_density_and_ratio(trace, name):
    ours = spectral_density(trace[f"{name}.eigenvalues"], trace[f"{name}.weights"])
    np.testing.assert_allclose(ours.grid_G[[0, -1]], trace[f"{name}.grid_ends"], rtol=1e-14)
    expected = trace[f"{name}.density_every_10th"]  # float32
    np.testing.assert_allclose(ours.density_G[::10], expected, rtol=2e-7, atol=2e-7 * expected.max())
    step = ours.grid_G[1] - ours.grid_G[0]
    np.testing.assert_allclose(ours.density_G.sum() * step, trace[f"{name}.density_sum_times_step"], rtol=1e-12)
    shares = [ours.share_above(threshold) for threshold in trace["ratio.t"]]
    np.testing.assert_allclose(shares, trace[f"{name}.ratio"], rtol=0, atol=1e-9)


def assert_same_search(values_RK, weights_RK, looks, ratio):
    ours = density_share(values_RK, weights_RK)
    thresholds, shares = np.array(ours.looks).T
    np.testing.assert_array_equal(thresholds, looks[:, 0])
    np.testing.assert_allclose(shares, looks[:, 1], rtol=0, atol=1e-8)
    assert ours.share == pytest.approx(float(ratio), abs=1e-8)
    assert (ours.threshold, ours.share) == ours.looks[-1]


@pytest.mark.parametrize("name", SEARCHES)
def test_every_look_of_the_search(trace, name):
    kinds = ("eigenvalues", "weights") if name.startswith("search") else ("ritz_values", "ritz_weights")
    assert_same_search(*(trace[f"{name}.{kind}"] for kind in kinds), trace[f"{name}.trace"], trace[f"{name}.ratio"])


def test_search_on_the_real_models_spectrum(load_golden):
    arrays, _ = load_golden("05b_forward_hessian")
    assert_same_search(*(arrays[key] for key in ("ritz_values", "ritz_weights", "trace", "ratio")))


Spectrum = tuple[np.ndarray, np.ndarray]
"""Ritz values and weights, [R, K] each."""


def transport(one: Spectrum, other: Spectrum) -> float:
    """Return how far the weight of one spectrum has to be moved, on average, to become the other (Wasserstein-1)."""
    values = np.concatenate([one[0].ravel(), other[0].ravel()])
    weights = np.concatenate([one[1].ravel() / len(one[0]), -other[1].ravel() / len(other[0])])
    order = np.argsort(values)
    return float(np.abs(np.cumsum(weights[order])[:-1]) @ np.diff(values[order]))


def assert_agrees(ours: Spectrum, published: Spectrum, recipe: Spectrum, looks: np.ndarray) -> None:
    """Compare what we compute with the published numbers, within bounds that follow from how these were made.

    ``recipe`` is what the published code does on the same products, in float64. It differs from ours by its vectors, which
    are too short; the published numbers differ from it by float32: a rounding of every product and of the matrix, relative to
    its norm. A Gaussian smoothing turns a distance of the spectra into one of the shares above a threshold; and a
    threshold may fall on the other side of a point of the grid, whose ends are those of the spectrum.
    """
    norm = np.abs(published[0]).max()
    steps = published[0].shape[1]
    assert transport(recipe, published) <= 2 * steps * np.finfo(np.float32).eps * norm
    one, other = spectral_density(*ours), spectral_density(*published)
    narrowest = min(np.ptp(density.grid_G) for density in (one, other))
    steepest = 1.0 / (2 * np.pi * VARIANCE * max(1.0, narrowest)) ** 0.5
    apart = transport(ours, published) * steepest + 1e-5  # the smoothing itself follows the width of the spectrum
    step = other.grid_G[1] - other.grid_G[0]
    for t in looks:
        least, most = other.share_above(t + step) - apart, other.share_above(t - step) + apart
        assert least <= one.share_above(t) <= most, t


def shortest(values_K: np.ndarray, weights_K: np.ndarray) -> float:
    """Return the smallest entry beside the diagonal of the Lanczos matrix with these Ritz values and weights."""
    vectors = [np.sqrt(weights_K)]
    beside = []
    for _ in range(len(values_K) - 1):
        rest = values_K * vectors[-1]
        for vector in (*vectors, *vectors):
            rest = rest - (rest @ vector) * vector
        beside.append(np.linalg.norm(rest))
        vectors.append(rest / beside[-1])
    return min(beside)


def assert_within_the_shortening(ours: Spectrum, published: Spectrum) -> None:
    """Vectors that are shorter by d shrink the matrix by 2 d at most, and so move its spectrum by 2 d of its norm."""
    short = max(SHORT / shortest(*run) for run in zip(*ours, strict=True))
    rounding = 2 * published[0].shape[1] * np.finfo(np.float32).eps
    assert transport(ours, published) <= (2 * short + rounding) * np.abs(published[0]).max()


@pytest.mark.parametrize("name", MATRICES)
def test_lanczos(load_golden, trace, name):
    about = load_golden("03_ratio")[1]["cases"][name]
    matrix = torch.from_numpy(trace[f"{name}.H"]).double()
    steps, probes = about["lanczos_steps"], trace[f"{name}.probe"]
    ours = stacked(lanczos(lambda v: matrix @ v, torch.from_numpy(probe).double(), steps) for probe in probes)
    recipe = stacked(published_lanczos(lambda v: matrix.numpy() @ v, probe, steps) for probe in probes)
    published = trace[f"{name}.ritz_values"], trace[f"{name}.ritz_weights"]
    assert_agrees(ours, published, recipe, np.linspace(published[0].min(), published[0].max(), 200))
    assert_within_the_shortening(ours, published)


def stacked(runs) -> Spectrum:
    values_RK, weights_RK = (np.stack(part) for part in zip(*runs, strict=True))
    return values_RK, weights_RK


def test_lanczos_ends_with_the_space_where_the_published_code_runs_on(load_golden, trace):
    steps = load_golden("03_ratio")[1]["cases"]["quad12_overrun"]["lanczos_steps"]
    matrix = torch.from_numpy(trace["quad12_overrun.H"]).double()
    start = torch.from_numpy(trace["quad12_overrun.probe"][0]).double()
    values_K, weights_K = lanczos(lambda v: matrix @ v, start, steps)
    exact, vectors = np.linalg.eigh(matrix.numpy())
    assert steps > len(matrix) == len(values_K)
    np.testing.assert_allclose(values_K, exact, atol=1e-10)
    np.testing.assert_allclose(weights_K, (vectors.T @ start.numpy()) ** 2 / len(matrix), atol=1e-10)


def published_order(golden: Golden) -> torch.Tensor:  # noqa: F811
    """Return where each entry of our flat prompt stands in the published flat prefix."""
    prefix = golden.arrays["weights/prefix_encoder.embedding.weight"]
    return golden.prompt_of(np.arange(prefix.size).reshape(prefix.shape)).reshape(-1)


def hessian_of(golden: Golden, attention: str, dtype: str) -> PromptHessian:  # noqa: F811
    model = golden.build(attention, dtype=dtype)
    vector = golden.prompt_LKHPD.reshape(-1).to(getattr(torch, dtype))
    return PromptHessian(model, golden.data, VectorLayout.full(model.geometry), vector)


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
@pytest.mark.parametrize(("dtype", "tolerance"), [("float32", 1e-5), ("float64", 1e-11)])
def test_hessian_vector_product_of_a_model(load_golden, golden, attention, dtype, tolerance):  # noqa: F811
    arrays, _ = load_golden("05b_forward_hessian")
    order = published_order(golden)
    product = hessian_of(golden, attention, dtype).product(torch.from_numpy(arrays["probe"])[order])
    expected = arrays["H_times_probe"][order]
    assert np.abs(product.numpy() - expected).max() < tolerance * np.abs(expected).max()


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_spectrum_of_a_model(load_golden, golden, dtype):  # noqa: F811
    arrays, _ = load_golden("05b_forward_hessian")
    hessian = hessian_of(golden, "sdpa", dtype)
    start = torch.from_numpy(arrays["probe"])[published_order(golden)]
    published = arrays["ritz_values"], arrays["ritz_weights"]
    steps = published[0].shape[1]
    ours = stacked([lanczos(hessian.product, start, steps, tolerance=hessian.rounding)])
    assert hessian.products == steps == ours[0].shape[1]
    np.testing.assert_allclose(ours[0][0, [0, -1]], arrays["H_eigenvalues"][[0, -1]], rtol=2e-4)

    def times(vector: np.ndarray) -> np.ndarray:
        return hessian.product(torch.from_numpy(vector)).numpy()

    recipe = stacked([published_lanczos(times, start.numpy(), steps)])
    assert_agrees(ours, published, recipe, arrays["trace"][:, 0])
    assert_within_the_shortening(ours, published)

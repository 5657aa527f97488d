"""Hessian-vector products, Lanczos, spectral density and the two rules, against matrices and functions known exactly."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from tiny_models import backbone, batch, families, save, tiny_model

from clients.analysis.hessian import PromptHessian, lipschitz_estimate
from clients.analysis.layer_share import density_share, eigengap_share
from clients.analysis.spectrum import lanczos, probe, spectral_density
from clients.backbone.model import Backbone
from clients.config import HeadConfig
from fedsim.core.layout import VectorLayout


def matrix_with(values, seed=0):
    """Return a symmetric matrix with these eigenvalues, and its eigenvectors."""
    rng = np.random.default_rng(seed)
    vectors, _ = np.linalg.qr(rng.normal(size=(len(values), len(values))))
    return torch.from_numpy(vectors @ np.diag(values) @ vectors.T), vectors


def start(size, seed=1):
    return torch.from_numpy(np.random.default_rng(seed).normal(size=size))


# -- Lanczos -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("scale", [1e-9, 1.0, 1e9])
def test_as_many_steps_as_dimensions_give_the_whole_spectrum(scale):
    exact = np.sort(np.concatenate([np.linspace(-3, 2, 17), [50.0, -40.0]])) * scale
    matrix, vectors = matrix_with(exact)
    vector = start(19)
    values, weights = lanczos(lambda v: matrix @ v, vector, 19)
    np.testing.assert_allclose(values, exact, atol=1e-11 * scale * 50)
    np.testing.assert_allclose(weights, (vectors.T @ (vector / vector.norm()).numpy()) ** 2, atol=1e-8)


def test_few_steps_are_a_gauss_quadrature():
    exact = np.random.default_rng(3).normal(size=200)
    matrix, _ = matrix_with(exact)
    vector = start(200)
    values, weights = lanczos(lambda v: matrix @ v, vector, 10)
    assert len(values) == 10 and weights.sum() == pytest.approx(1.0, abs=1e-12) and (np.diff(values) > 0).all()
    moment = vector / vector.norm()
    for power in range(20):  # exact for all polynomials up to degree 2 * 10 - 1
        assert (weights * values**power).sum() == pytest.approx(
            float(vector @ moment / vector.norm()), rel=1e-9, abs=1e-9
        )
        moment = matrix @ moment


def test_vectors_stay_orthogonal_where_plain_lanczos_would_repeat_eigenvalues():
    exact = np.concatenate([np.linspace(0, 1, 99), [1e6]])
    matrix, _ = matrix_with(exact)
    values, _ = lanczos(lambda v: matrix @ v, start(100), 60)
    assert (values > 10).sum() == 1


@pytest.mark.parametrize(
    ("exact", "distinct"),
    [(np.zeros(12), 1), (np.full(12, 7.0), 1), ([0.0] * 40 + [1.0, 2.0, -5.0], 4), ([1.0, 1.0, 2.0, 2.0, 3.0], 3)],
)
def test_an_invariant_subspace_ends_the_run(exact, distinct):
    matrix, _ = matrix_with(np.array(exact, dtype=float))
    asked = []
    values, weights = lanczos(lambda v: (asked.append(1), matrix @ v)[1], start(len(exact)), 500)
    np.testing.assert_allclose(values, np.unique(exact), atol=1e-9)
    assert weights.sum() == pytest.approx(1.0) and len(asked) == distinct


def test_rounding_noise_of_a_float32_product_is_not_taken_for_directions():
    matrix, _ = matrix_with(np.array([0.0] * 60 + [1.0, 2.0, 3.0]))
    coarse = matrix.float()
    values, _ = lanczos(lambda v: coarse @ v.float(), start(63), 50, tolerance=8 * torch.finfo(torch.float32).eps)
    assert len(values) <= 6
    on_noise, _ = lanczos(lambda v: coarse @ v.float(), start(63), 50)
    assert len(on_noise) == 50


def test_a_product_that_is_not_finite_is_an_error_of_ours():
    with pytest.raises(ArithmeticError, match="not finite in step 1"):
        lanczos(lambda v: v * float("nan"), start(5), 3)


def test_probes_are_signs_drawn_from_the_stream_and_short_runs_are_filled_up():
    seen = []

    def matvec(vector):
        seen.append(vector.clone())
        return vector * torch.tensor([1.0] * 3 + [2.0] * 3, dtype=torch.float64)

    values, weights = probe(matvec, 6, np.random.default_rng(0), 5, 50)
    assert values.shape == weights.shape == (5, 2)
    np.testing.assert_allclose(weights.sum(1), 1.0)
    np.testing.assert_allclose((values * weights).sum(1), 1.5)  # of signs, half the weight is on either half
    assert {round(float(x), 6) for x in seen[0].abs()} == {round(6**-0.5, 6)}
    again = probe(matvec, 6, np.random.default_rng(0), 5, 50)
    np.testing.assert_array_equal(values, again[0])


def test_a_run_that_ends_early_repeats_its_largest_value_without_weight():
    ones = torch.ones(4, 4, dtype=torch.float64)  # signs in balance are in its null space, others see 0 and 4
    values, weights = probe(lambda v: ones @ v, 4, np.random.default_rng(0), 12, 9)
    assert values.shape == weights.shape == (12, 2)
    short = weights[:, 1] == 0
    assert 0 < short.sum() < 12
    np.testing.assert_allclose(weights.sum(1), 1.0)
    np.testing.assert_allclose(values[short, 1], values[short, 0])
    np.testing.assert_allclose(values[~short, 0], 0, atol=1e-12)
    constant = np.isclose(values[short, 0], 4)  # all signs alike: an eigenvector as well
    np.testing.assert_allclose(values[short][~constant], 0, atol=1e-12)


def test_probes_that_all_lie_beside_their_mean_are_refused():
    with pytest.raises(ArithmeticError, match="nothing in common"):
        spectral_density(np.array([[0.0, 0.0], [4.0, 4.0]]), np.full((2, 2), 0.5))


# -- density -----------------------------------------------------------------------------------------------------------

SPECTRA = st.lists(st.floats(-50, 50), min_size=1, max_size=30).map(lambda values: np.sort(np.array(values)))


def even(values):
    return np.full(len(values), 1.0 / len(values))


@given(SPECTRA)
def test_density_integrates_to_one_and_shares_fall_from_one_to_zero(values):
    density = spectral_density(values, even(values))
    step = density.grid_G[1] - density.grid_G[0]
    assert density.density_G.sum() * step == pytest.approx(1.0)
    shares = [density.share_above(threshold) for threshold in np.linspace(-60, 60, 40)]
    assert shares[0] == 1.0 and (np.diff(shares) <= 0).all()
    assert shares[-1] == pytest.approx(density.density_G[-1] * step, abs=1e-9)  # the last point is never below


def test_share_above_counts_eigenvalues():
    values = np.array([-2.0, -1.0, 0.5, 1.0])
    density = spectral_density(values, np.array([0.1, 0.2, 0.3, 0.4]))
    for threshold, share in ((-3, 1.0), (-1.5, 0.9), (0, 0.7), (0.75, 0.4)):
        # The grid ends 0.01 beyond the outermost eigenvalues and cuts their tails.
        assert density.share_above(threshold) == pytest.approx(share, abs=1e-2)


# -- the two rules -----------------------------------------------------------------------------------------------------


@given(SPECTRA)
def test_the_search_ends_with_a_share_between_half_of_that_above_zero_and_it(values):
    result = density_share(values, even(values))
    above_zero = spectral_density(values, even(values)).share_above(0.0)
    assert 0.0 <= result.share <= 1.0 and result.share <= above_zero
    # The last look of a plateau may be below half by what a plateau allows.
    assert result.share >= above_zero / 2 - 0.005
    assert result.looks[-1] == (result.threshold, result.share)


@pytest.mark.parametrize("rule", [density_share, lambda values, weights: eigengap_share(values, weights, 1.0)])
@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_a_spectrum_that_is_not_finite_is_refused(rule, bad):
    with pytest.raises(ArithmeticError, match="not finite"):
        rule(np.array([0.0, bad]), np.array([0.5, 0.5]))


def test_a_constant_that_is_not_finite_is_refused():
    with pytest.raises(ArithmeticError, match="not finite"):
        eigengap_share(np.array([0.0, 1.0]), np.array([0.5, 0.5]), float("nan"))


def test_eigengap_on_a_known_spectrum():
    values = np.array([-1.0, -0.9, 0.0, 0.3, 3.0, 3.1, 9.0, 9.5])
    for lipschitz, below in ((0.2, 2), (0.24, 4), (0.6, 4), (0.7, 6), (1.0, 6)):
        result = eigengap_share(values, even(values), lipschitz)
        assert result.share == pytest.approx((8 - below) / 8)  # (R - m) / R
        assert result.threshold == pytest.approx((values[below - 1] + values[below]) / 2)
    nothing = eigengap_share(values, even(values), 1.5)
    assert (nothing.share, nothing.threshold) == (1.0, None)


def test_the_gap_must_be_wider_not_as_wide():
    assert eigengap_share(np.array([0.0, 4.0]), np.array([0.5, 0.5]), 1.0).threshold is None


def test_a_gap_must_be_free_of_the_values_of_every_probe():
    values, weights = np.array([[0.0, 5.0], [2.5, 9.0]]), np.array([[0.6, 0.4], [0.8, 0.2]])
    # 0, 2.5, 5, 9 with weights 0.3, 0.4, 0.2, 0.1: the first gap wider than 3 lies above 5.
    assert eigengap_share(values, weights, 0.75).share == pytest.approx(0.1)


@given(SPECTRA, st.floats(0, 5), st.sampled_from([0.25, 2.0, 1024.0]), st.integers(-64, 64))
def test_eigengap_is_a_share_and_depends_on_neither_scale_nor_shift(values, lipschitz, scale, shift):
    values = np.round(values * 64) / 64  # so that scaling and shifting are exact
    lipschitz = round(lipschitz * 64) / 64
    share = eigengap_share(values, even(values), lipschitz).share
    assert 0.0 <= share <= 1.0
    assert eigengap_share(scale * values, even(values), scale * lipschitz).share == share
    assert eigengap_share(values + shift, even(values), lipschitz).share == share


# -- Hessians of models ------------------------------------------------------------------------------------------------

DOUBLE_INSIDE = ("bert", "roberta", "xlm-roberta", "camembert", "electra", "distilbert", "gpt2")
"""Families that compute in the weights' format all over; with the norms, angles or softmax of the others in float32, finite
differences must be coarser."""


def hessian_of(model: Backbone, dtype=torch.float64, scale=0.3) -> tuple[PromptHessian, VectorLayout, torch.Tensor]:
    layout = VectorLayout.full(model.geometry, model.head_shapes)
    vector = torch.from_numpy(np.random.default_rng(0).normal(0, scale, layout.size)).to(dtype)
    return PromptHessian(model, batch(), layout, vector), layout, vector


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    known = {}

    def folder(family, kind=None):
        if (family, kind) not in known:
            path = tmp_path_factory.mktemp(f"{family}-{kind}")
            known[family, kind] = save(tiny_model(family, kind), path)
        return known[family, kind]

    return folder


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
@families
def test_products_equal_finite_differences_of_the_gradient(folders, family, attention):
    hessian, layout, _ = hessian_of(backbone(folders(family), attention=attention, dtype="float64"))
    step, tolerance = (3e-2, 1e-3) if family not in DOUBLE_INSIDE else (1e-4, 1e-7)
    if family == "opt":  # a coarse step would cross a kink of its relu
        step, tolerance = 1e-3, 2e-3
    first, second = start(hessian.size, 1), start(hessian.size, 2)
    first, second = first / first.norm(), second / second.norm()
    product = hessian.product(first)
    difference = (hessian.moved(step * first).gradient - hessian.moved(-step * first).gradient) / (2 * step)
    assert float((product - difference).norm() / product.norm()) < tolerance
    assert float(second @ product) == pytest.approx(float(first @ hessian.product(second)), abs=tolerance)
    assert hessian.size == layout.size and hessian.products == 2


def test_the_head_is_held_fixed(folders):
    model = backbone(folders("roberta", "base"), head=HeadConfig(kind="classifier"), dtype="float64")
    hessian, layout, vector = hessian_of(model)
    assert layout.size > hessian.size == layout.tuned_size == len(hessian.gradient)
    direction = start(hessian.size) / hessian.size**0.5
    difference = (hessian.moved(1e-4 * direction).gradient - hessian.moved(-1e-4 * direction).gradient) / 2e-4
    torch.testing.assert_close(hessian.product(direction), difference, rtol=1e-5, atol=1e-10)
    # The head counts for the loss, so it counts for the Hessian.
    vector[layout.tuned_size :] *= 2
    other = PromptHessian(model, batch(), layout, vector)
    assert not torch.allclose(other.product(direction), hessian.product(direction), rtol=1e-2)


def test_spectrum_of_a_model_by_lanczos_and_in_full(folders):
    hessian, _, _ = hessian_of(backbone(folders("bert"), dtype="float64", prompt_length=1))
    full = torch.stack([hessian.product(row) for row in torch.eye(hessian.size, dtype=torch.float64)])
    torch.testing.assert_close(full, full.T, rtol=0, atol=1e-14)
    exact = torch.linalg.eigvalsh(full).numpy()
    values, weights = probe(hessian.product, hessian.size, np.random.default_rng(0), 1, 40, hessian.rounding)
    np.testing.assert_allclose(values[0, [0, -1]], exact[[0, -1]], rtol=1e-6)
    trace = [float((weights * values).sum() * hessian.size)]
    for seed in range(1, 60):
        values, weights = probe(hessian.product, hessian.size, np.random.default_rng(seed), 1, 3, hessian.rounding)
        trace.append(float((weights * values).sum() * hessian.size))
    assert abs(np.mean(trace) - exact.sum()) < 4 * np.std(trace) / 60**0.5  # Hutchinson's estimate of the trace


def test_lipschitz_constant_of_the_nonlinear_rest(folders):
    hessian, _, _ = hessian_of(backbone(folders("bert"), dtype="float64", prompt_length=1))
    estimates = [lipschitz_estimate(hessian, np.random.default_rng(0), 2, radius) for radius in (1e-4, 1e-3, 1e-2)]
    # Near P the Hessian changes linearly, so ten times the radius is ten times the constant.
    assert estimates[1] / estimates[0] == pytest.approx(10, rel=0.05)
    assert estimates[2] / estimates[1] == pytest.approx(10, rel=0.05)
    # No slope of B(D) = H D - grad F(P + D) near the point where it was taken is steeper.
    rng = np.random.default_rng(0)
    change, _ = torch.from_numpy(rng.standard_normal((2, hessian.size)))
    change *= 1e-2 * hessian.size**0.5 / change.norm()
    one = lipschitz_estimate(hessian, np.random.default_rng(0), 1, 1e-2)
    for seed in range(5):
        side = 1e-6 * start(hessian.size, seed)
        rise = hessian.product(side) - hessian.moved(change + side).gradient + hessian.moved(change).gradient
        assert float(rise.norm() / side.norm()) <= one * 1.01
    # The norm of the difference of the Hessians there, from below.
    eye, moved = torch.eye(hessian.size, dtype=torch.float64), hessian.moved(change)
    full = torch.stack([hessian.product(row) - moved.product(row) for row in eye])
    norm = float(torch.linalg.matrix_norm(full, 2))
    assert 0.95 * norm <= one <= norm * (1 + 1e-9)


def test_products_of_the_other_hessians_are_counted(folders):
    hessian, _, _ = hessian_of(backbone(folders("bert")), torch.float32)
    lipschitz_estimate(hessian, np.random.default_rng(0), 3, 0.1)
    assert hessian.products == 3 * 2 * 8


@pytest.mark.parametrize(("dtype", "expected"), [("float32", 2**-23), ("bfloat16", 2**-7), ("float64", 2**-52)])
def test_the_coarsest_number_format_sets_the_rounding(folders, dtype, expected):
    vector_dtype = torch.float64 if dtype == "float64" else torch.float32
    hessian, _, _ = hessian_of(backbone(folders("bert"), dtype=dtype), vector_dtype)
    assert hessian.rounding == expected
    assert hessian.product(start(hessian.size)).dtype == torch.float64

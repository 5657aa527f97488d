"""Layer share: how much of its prompt parameters a device needs, by two rules on its Hessian spectrum.

Shape suffixes: R probes, K Ritz values of a probe, N examples of a client.
"""

from __future__ import annotations

import time
import traceback
from dataclasses import dataclass, replace

import numpy as np
import torch

from clients.analysis.hessian import PromptHessian, lipschitz_estimate
from clients.analysis.spectrum import probe, spectral_density
from clients.analysis.spectrum_settings import SpectrumSettings
from clients.backbone.model import Backbone
from fedsim.core import seeds
from fedsim.core.layout import VectorLayout
from fedsim.core.messages import ClientFailure, GlobalState, SpectrumReport
from fedsim.core.tokens import TokenTable

FIRST_STEP = 0.1
"""density: step between thresholds in the first pass."""
PLATEAU = 0.005
"""density: shares that differ by less are one plateau ..."""
PLATEAU_POINTS = 4
"""... if this many follow each other."""
MAX_LOOKS = 100_000
"""density: thresholds to try before giving up; real spectra need up to a few hundred."""


@dataclass(frozen=True)
class Share:
    """Result of a rule on a spectrum."""

    share: float
    """Share of the parameters to keep, in [0, 1]."""
    threshold: float | None
    """Eigenvalues above it are kept; None if no gap was found, so that all are."""
    looks: tuple[tuple[float, float], ...] = ()
    """density: every threshold tried and the share above it, in order."""


def density_share(values_RK: np.ndarray, weights_RK: np.ndarray) -> Share:
    """Search for a threshold on the smoothed spectral density, like the published code.

    The share above the thresholds t = 0, s, 2 s, ... is evaluated, with s = 0.1, until it falls below half of the share
    above 0; then again with half the step. The result is the share at the end of the first plateau: four in a row whose
    neighbours differ by less than 0.005.

    The code defines no threshold: the result is the first plateau that the sequence of steps happens to
    meet. If there is none, it is some share between that above 0 and half of it, found once the steps are small
    compared with the smoothing. Step and smoothing are absolute numbers, so the result depends on the scale of the loss:
    if the spectrum is narrow compared with the smoothing (a standard deviation of 0.003), it is about 0.49 or 0.26,
    whatever the spectrum, because every eigenvalue looks like one at zero.

    Raises
    ------
    ArithmeticError
        If the spectrum is not finite, or no plateau was found after ``MAX_LOOKS`` thresholds.
    """
    density = spectral_density(values_RK, weights_RK)
    at_zero = density.share_above(0.0)
    looks: list[tuple[float, float]] = []
    step = FIRST_STEP
    while (
        len(looks) < MAX_LOOKS
    ):  # every pass ends: shares fall from at most 1, and four in a row without a fall are a plateau
        threshold, share, row = 0.0, at_zero, 1
        looks.append((threshold, share))
        while row < PLATEAU_POINTS and share >= at_zero / 2.0:
            threshold += step
            before, share = share, density.share_above(threshold)
            row = row + 1 if abs(share - before) < PLATEAU else 1
            looks.append((threshold, share))
        if row == PLATEAU_POINTS:
            return Share(share, threshold, tuple(looks))
        step /= 2.0
    raise ArithmeticError(f"no plateau of the spectral density was found among {MAX_LOOKS} thresholds")


def eigengap_share(values_RK: np.ndarray, weights_RK: np.ndarray, lipschitz: float) -> Share:
    """Keep what lies above the first spectral gap wider than four times the Lipschitz constant.

    The rule is attributed to the FedPepTAO paper (arXiv 2310.15080); neither its abstract nor its code contains it, and its
    text was not at hand, so this reading is unconfirmed. With the eigenvalues l_1 <= ... <= l_R of the Hessian H of a device's
    loss F in its prompt parameters P, and the Lipschitz constant L of B(D) = H D - grad F(P + D), find the first m with
    l_{m+1} - l_m > 4 L, and keep the share (R - m) / R. It is the spectral gap condition of inertial manifolds for the flow
    dD/dt = -H D + B(D): across such a gap B cannot mix the two groups of directions.

    Choices made here:

    * Eigenvalues are the Ritz values of Lanczos, and (R - m) / R is the sum of the weights above the gap (an unbiased
      estimate of it over random signs). With all eigenvalues given, each of weight 1/R, it is exactly that share.
    * Several probes are pooled, each weight divided by their number: a gap must be free of all their Ritz values.
    * "First" is from below, negative eigenvalues included. A few isolated negative eigenvalues therefore
      end the search at once, and nearly everything is kept.
    * Ritz values in a dense part of the spectrum are further apart than its eigenvalues, so a gap is reliable only
      with enough steps, or if it is much wider than its neighbours.
    * Without a gap everything is kept.

    Multiplying the loss by a number, or adding a multiple of the identity to H, changes nothing.

    Parameters
    ----------
    lipschitz
        Estimate of L, for example that of :func:`clients.analysis.hessian.lipschitz_estimate`.

    Raises
    ------
    ArithmeticError
        If the spectrum or the constant is not finite.
    """
    values_RK, weights_RK = np.atleast_2d(values_RK, weights_RK)
    if not (np.isfinite(values_RK).all() and np.isfinite(weights_RK).all() and np.isfinite(lipschitz)):
        raise ArithmeticError("the spectrum or its Lipschitz constant is not finite")
    order = np.argsort(values_RK, axis=None, kind="stable")
    values, weights = values_RK.ravel()[order], weights_RK.ravel()[order] / len(values_RK)
    wide = np.flatnonzero(np.diff(values) > 4.0 * lipschitz)
    if len(wide) == 0:
        return Share(1.0, None)
    below = int(wide[0])
    share = min(max(float(weights[below + 1 :].sum()), 0.0), 1.0)
    return Share(share, float(values[below] + values[below + 1]) / 2.0)


def spectrum_report(
    backbone: Backbone,
    table: TokenTable,
    indices_N: np.ndarray,
    full: VectorLayout,
    state: GlobalState,
    settings: SpectrumSettings,
    *,
    seed: int,
    client: int,
) -> SpectrumReport:
    """Estimate one client's spectrum and share on one batch, at the prompts of ``state``; a failure is reported.

    Parameters
    ----------
    indices_N
        The client's training examples in ``table``; the batch is drawn among them.
    full
        Layout with a prompt in every layer.
    """
    started = time.perf_counter()
    report = SpectrumReport(client, len(indices_N))
    try:
        drawn = seeds.stream(seed, state.round, client, "spectrum/batch").permutation(indices_N)
        vector_F = torch.from_numpy(np.array(state.vector_F)).to(backbone.device)
        batch = table.batch(drawn[: settings.batch_size])
        hessian = PromptHessian(backbone, batch, full.exchanged(state.layers), vector_F)
        values_RK, weights_RK = probe(
            hessian.product,
            hessian.size,
            seeds.stream(seed, state.round, client, "spectrum"),
            settings.probes,
            settings.lanczos_steps,
            tolerance=hessian.rounding,
            device=backbone.device,
        )
        lipschitz = None
        if settings.rule == "eigengap":
            rng = seeds.stream(seed, state.round, client, "spectrum/lipschitz")
            lipschitz = lipschitz_estimate(hessian, rng, settings.directions, settings.radius)
            result = eigengap_share(values_RK, weights_RK, lipschitz)
        else:
            result = density_share(values_RK, weights_RK)
    except Exception as error:
        failure = ClientFailure("error", f"{type(error).__name__}: {error}", traceback.format_exc())
        return replace(report, failure=failure, seconds=time.perf_counter() - started)
    return replace(
        report,
        share=result.share,
        threshold=result.threshold,
        values_RK=values_RK,
        weights_RK=weights_RK,
        lipschitz=lipschitz,
        products=hessian.products,
        seconds=time.perf_counter() - started,
    )

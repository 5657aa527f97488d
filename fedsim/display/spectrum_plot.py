"""Plot of the clients' Hessian spectra and of the share of the prompts that they keep.

Shape suffixes: G points of a grid.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from fedsim.display.figure import BLUE, GREY, INK, Stamp, drawn, new_figure, save

_POINTS = 20_000
_DECADES = 6
"""Powers of ten shown on the density axis."""
_RULES = {
    "density": "threshold of each client",
    "eigengap": "middle of the gap of each client",
}


@drawn
def plot_spectrum(
    spectra: Sequence[Mapping[str, Any]], choice: Mapping[str, Any], path: Path, stamp: Stamp | None = None
) -> Path:
    """Draw the clients' mean spectral density, with the kept part highlighted.

    Parameters
    ----------
    spectra
        One entry per client: ``values_RK``, ``weights_RK``, ``threshold``, ``weight`` (of the client in the mean), as in the
        events ``spectrum``.
    choice
        ``share``, ``share_rule``, ``layers`` and ``num_layers``, as in the event ``layers``.
    path
        The PNG to write.
    """
    grid_G, whole_G, kept_G = _mean_density(spectra)
    share, layers = choice["share"], len(choice["layers"])
    title = f"Hessian spectrum of what is trained: share {share:.3f}, so {layers} of {choice['num_layers']} layers exchanged"
    figure, axes = new_figure(title, "eigenvalue", "spectral density")
    floor = whole_G.max() * 10.0**-_DECADES
    kept = f"kept: {share:.1%} of the parameters ({choice['share_rule']})"
    for density_G, color, label in ((whole_G, GREY, "not kept"), (kept_G, BLUE, kept)):
        # With an edge, so that thin peaks of a wide spectrum stay visible.
        axes.fill_between(grid_G, floor, density_G, where=density_G > floor, color=color, lw=0.8, zorder=2, label=label)
    thresholds = [entry["threshold"] for entry in spectra if entry["threshold"] is not None]
    without = len(spectra) - len(thresholds)
    for number, threshold in enumerate(thresholds):
        name = _RULES[choice["share_rule"]] if number == 0 else None
        axes.axvline(threshold, color=INK, lw=0.9, ls=(0, (4, 3)), zorder=3, label=name)
    if without:
        axes.plot([], [], " ", label=f"{without} of {len(spectra)} clients: no gap, all kept")
    axes.set_yscale("log")
    axes.set_ylim(floor, whole_G.max() * 2)
    axes.set_xlim(grid_G[0], grid_G[-1])
    axes.legend(loc="upper left", bbox_to_anchor=(0.0, -0.14), ncols=2, frameon=False, fontsize=9, labelcolor=INK)
    return save(figure, path, stamp)


def _mean_density(spectra: Sequence[Mapping[str, Any]]) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return a grid over all spectra, the weighted mean of the clients' densities, and of those above their thresholds."""
    from clients.analysis.spectrum import spectral_density  # here, because it brings torch

    densities = [spectral_density(np.array(entry["values_RK"]), np.array(entry["weights_RK"])) for entry in spectra]
    grid_G = np.linspace(min(d.grid_G[0] for d in densities), max(d.grid_G[-1] for d in densities), _POINTS)
    whole_G, kept_G = np.zeros((2, _POINTS))
    total = sum(entry["weight"] for entry in spectra)
    for entry, density in zip(spectra, densities, strict=True):
        density_G = np.interp(grid_G, density.grid_G, density.density_G, left=0.0, right=0.0) * entry["weight"] / total
        whole_G += density_G
        kept_G += density_G if entry["threshold"] is None else np.where(grid_G > entry["threshold"], density_G, 0.0)
    return grid_G, whole_G, kept_G

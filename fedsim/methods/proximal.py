"""FedProx: pulls devices towards the global vector (Li et al. 2020, arXiv 1812.06127)."""

from __future__ import annotations

from typing import Any

from fedsim.core.method import CORRECTIONS, METHODS, Correction, Local, Method


@CORRECTIONS.register("proximal")
class Proximal(Correction):
    """Adds the gradient of mu/2 |p - P_t|^2 on the exchanged entries.

    Parameters
    ----------
    mu
        Strength of the pull.
    """

    def __init__(self, mu: float) -> None:
        self.mu = mu

    @classmethod
    def of(cls, client: Any, params: Any = None) -> Correction:
        """Build the correction with ``client.proximal_mu``."""
        return cls(client.proximal_mu)

    def gradient(self, local: Local, gradient_CA: Any) -> Any:
        """Add mu (p - P_t)."""
        return local.add_to(gradient_CA, self.mu * (local.vector_CF - local.start_CF))


@METHODS.register("fedprox")
class FedProx(Method):
    """FedAvg with the proximal correction on devices."""

    correction = "proximal"
    allowed = ("proximal",)

"""Schema of the section ``privacy``."""

from __future__ import annotations

from typing import ClassVar, Literal

from pydantic import Field, PositiveFloat, model_validator

from fedsim.core.schema import Schema
from fedsim.core.uses import Use, Uses


class AdaptiveClippingConfig(Schema):
    """A clipping norm that follows a quantile of the clients' changes (Andrew et al. 2021, arXiv 1905.03871)."""

    quantile: float = Field(default=0.5, ge=0.0, le=1.0)
    """Share of the clients whose change is to be within the norm."""
    lr: PositiveFloat = 0.2
    """Learning rate of the logarithm of the norm, which moves by it times (share within the norm - quantile) a round."""
    bit_noise: PositiveFloat | None = None
    """Standard deviation of the noise on the number of clients within the norm; a twentieth of ``sampling.clients_per_round``
    if not given. It counts in epsilon, so it must be more than half of ``privacy.noise_multiplier``."""


class PrivacyConfig(Schema):
    """Client-level differential privacy: clients' changes are clipped, and their sum gets Gaussian noise (docs/privacy.md)."""

    clip_norm: PositiveFloat
    """Longest change that a client sends, as the norm over everything that it exchanges; with ``adaptive`` that of the first
    round."""
    adaptive: AdaptiveClippingConfig | None = None
    """Let the clipping norm follow a quantile of the clients' changes; null keeps it fixed."""
    noise_multiplier: PositiveFloat | None = None
    """Standard deviation of the noise on the sum of the clients' changes, divided by the clipping norm. Replacing a client
    changes that sum by up to twice the norm, adding or removing one by the norm."""
    target_epsilon: PositiveFloat | None = None
    """Find the least noise whose epsilon after all ``rounds`` is at most this, in place of ``noise_multiplier``."""
    delta: float = Field(default=1e-5, gt=0.0, lt=1.0)
    """Delta at which epsilon is stated; less than one over the number of clients."""
    noise: Literal["server", "clients"] = "server"
    """Who adds the noise: the server, or each client of the cohort its share of the variance, so that the sum that the server
    sees has the noise already."""
    accountant: Literal["auto", "rdp", "pld"] = "auto"
    """How epsilon is computed: by Renyi divergences (rdp) or privacy loss distributions (pld, tighter); auto is pld where it
    applies: to ``sampling.draw: poisson``, and where every client takes part in every round."""
    public: tuple[Literal["start", "validation"], ...] = ()
    """What you state to hold no data of these clients: what a ``start_from`` names (start), or the examples that
    ``data.validation_from_train`` sets aside (validation). Without it they are refused."""

    uses: ClassVar[Uses] = {
        "target_epsilon": (Use("noise_multiplier", (None,), words="it finds that number"),),
    }

    @model_validator(mode="after")
    def _noise_is_known(self) -> PrivacyConfig:
        if self.noise_multiplier is None and self.target_epsilon is None:
            raise ValueError("privacy needs noise_multiplier, or target_epsilon to find it")
        return self

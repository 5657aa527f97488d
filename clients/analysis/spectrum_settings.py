"""Settings of the Hessian spectra."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class SpectrumSettings:
    """Settings for estimating a device's share, from the config's ``layers`` section."""

    rule: str
    """density or eigengap."""
    batch_size: int
    lanczos_steps: int
    probes: int
    directions: int
    radius: float

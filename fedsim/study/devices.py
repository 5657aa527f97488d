"""Schema of the model of devices and network that gives a study its modelled time."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field, NonNegativeInt

from fedsim.core.schema import Schema
from fedsim.world.config import Positive, Spread

__all__ = ["DevicesConfig", "Spread"]


class DevicesConfig(Schema):
    """Devices and network, the same for all arms: ours, no part of the published study."""

    tokens_per_second: Positive | Spread = 500.0
    """Tokens that a device trains on in a second, forward and backward pass."""
    downlink_megabits: Positive | Spread = 20.0
    """Megabits that a device receives in a second."""
    uplink_megabits: Positive | Spread = 5.0
    """Megabits that a device sends in a second."""
    latency_seconds: Annotated[float, Field(ge=0.0)] = 0.05
    """Time for a message to arrive, each way."""
    seed: NonNegativeInt = 0
    """Seed of the draws; a client has the same device in all arms."""

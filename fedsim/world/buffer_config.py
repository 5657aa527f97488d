"""Schema of the section ``buffer``."""

from __future__ import annotations

from pydantic import Field, NonNegativeInt, PositiveInt, model_validator

from fedsim.core.schema import Schema


class BufferConfig(Schema):
    """Buffered asynchronous rounds: the server takes a step whenever enough clients have arrived (docs/asynchronous.md)."""

    size: PositiveInt = 10
    """Arrivals that a server step takes in; 1 steps at every arrival."""
    concurrency: PositiveInt = 20
    """Clients that train at a time: one that arrives is replaced by another, which starts from the newest state."""
    staleness_exponent: float = Field(default=0.5, ge=0.0, le=10.0)
    """A change that arrives s server steps after its start counts (1 + s) to the power of minus this; 0 counts all changes in
    full."""
    max_staleness: NonNegativeInt | None = None
    """Clients that arrive more server steps after their start are left out, and recorded as late; null leaves nobody out. It
    bounds how many earlier states the server keeps."""

    @model_validator(mode="after")
    def _fills_up(self) -> BufferConfig:
        if self.concurrency < self.size:
            raise ValueError(
                f"concurrency={self.concurrency} is less than size={self.size}: a step would wait for more clients than train; "
                f"set concurrency={self.size} or more"
            )
        return self

"""Schema of the section ``world``: the devices that clients are, and how long the server waits for them."""

from __future__ import annotations

from typing import Annotated, ClassVar, Literal

from pydantic import Field, PositiveFloat, model_validator

from fedsim.core.schema import PathText, Schema
from fedsim.core.uses import Use, Uses

Positive = Annotated[float, Field(gt=0.0)]


class Spread(Schema):
    """A log-normal distribution over clients."""

    median: Positive
    """Value that half of the clients exceed."""
    sigma: Annotated[float, Field(ge=0.0, le=5.0)] = 0.0
    """Standard deviation of the natural logarithm."""
    least: Positive | None = None
    """Smaller values become this one; must not exceed the median."""
    most: Positive | None = None
    """Larger values become this one."""

    @model_validator(mode="after")
    def _ordered(self) -> Spread:
        if (self.least or self.median) > self.median or (self.most or self.median) < self.median:
            raise ValueError(f"least <= median <= most does not hold: {self.least}, {self.median}, {self.most}")
        return self


_NO_TRACE = ("markov", "diurnal")


class AvailabilityConfig(Schema):
    """When devices can be reached: idle, charging, on a network that costs nothing."""

    kind: Literal["markov", "diurnal", "always", "trace"] = "markov"
    """markov (a device is available and away in turn, for exponential times), diurnal (once a day, most devices around
    ``peak_hour``), always, or trace (intervals of a file)."""
    share: Annotated[float, Field(gt=0.0, lt=1.0)] | tuple[float, float, float] = (0.001, 0.055, 0.26)
    """markov, diurnal: share of the time that a device is available: one for all, or the 10th, 50th and 90th percentile over
    devices. The default is that of phones."""
    cycle_hours: Positive | Spread = Spread(median=10.0, sigma=0.3)
    """markov: mean time from the beginning of one interval to that of the next; 10 hours are 12 intervals in 5 days."""
    peak_hour: Annotated[float, Field(ge=0.0, lt=24.0)] = 2.0
    """diurnal: hour of the day around which most devices are available; the clock starts at midnight."""
    peak_spread_hours: Annotated[float, Field(ge=0.0)] = 3.0
    """diurnal: standard deviation over devices of the middle of their interval."""
    file: PathText | None = None
    """trace: CSV or Parquet of our form, JSON of FLHetBench, or the availability pickle of FedScale; see docs/world.md."""

    uses: ClassVar[Uses] = {
        "share": (Use("kind", _NO_TRACE),),
        "cycle_hours": (Use("kind", ("markov",)),),
        **dict.fromkeys(("peak_hour", "peak_spread_hours"), (Use("kind", ("diurnal",)),)),
        "file": (Use("kind", ("trace",)),),
    }

    @model_validator(mode="after")
    def _possible(self) -> AvailabilityConfig:
        if self.kind == "trace" and self.file is None:
            raise ValueError("kind: trace needs file, the path of the intervals")
        if isinstance(self.share, tuple) and not 0.0 < self.share[0] <= self.share[1] <= self.share[2] < 1.0:
            raise ValueError(f"share must be three shares between 0 and 1 that do not descend, not {list(self.share)}")
        return self


class DevicesConfig(Schema):
    """The devices that clients are, drawn with the run's seed. The defaults are phones, as far as is known of them."""

    file: PathText | None = None
    """Devices of a file instead of drawn ones: CSV or Parquet of our form, or the capacity pickle of FedScale; see
    docs/world.md. What the file does not state is drawn as below."""
    tokens_per_second: Positive | Spread = Spread(median=500.0, sigma=0.7)
    """Tokens that a device trains on in a second, forward and backward through all layers of the model."""
    downlink_megabits: Positive | Spread = Spread(median=40.0, sigma=1.0, least=0.002, most=98.0)
    """Megabits that a device receives in a second."""
    uplink_megabits: Positive | Spread = Spread(median=10.0, sigma=1.0, least=0.002, most=98.0)
    """Megabits that a device sends in a second."""
    latency_seconds: Annotated[float, Field(ge=0.0)] = 0.05
    """Time for a message to arrive, each way."""
    gigabytes: Positive | Spread = Spread(median=4.0, sigma=0.4)
    """Memory that a device can spare, in 10^9 bytes."""
    needed_gigabytes: Positive | None = None
    """Memory that training takes; if not given, the frozen weights and what the optimizer keeps of the trained numbers. A
    client whose device has less is never drawn."""
    slow_share: Annotated[float, Field(ge=0.0, le=1.0)] = 0.0
    """Share of the clients, drawn with the seed, whose devices compute slower by ``slow_factor``: stragglers."""
    slow_factor: Annotated[float, Field(ge=1.0)] = 10.0
    """How many times slower these are."""
    availability: AvailabilityConfig = AvailabilityConfig()
    """When devices can be reached."""

    uses: ClassVar[Uses] = {
        "slow_factor": (Use("slow_share", test=lambda share: share > 0, words="it is for shares above 0"),),
    }


_DEVICES = Use(
    "devices", test=lambda devices: devices is not None, words="it is for simulated devices: give world.devices"
)


class WorldConfig(Schema):
    """Simulated devices and their clock; nothing actually waits."""

    devices: DevicesConfig | None = None
    """The clients' devices; null simulates none, and no time."""
    deadline_seconds: PositiveFloat | None = None
    """Clients that have not answered so long after the last one of the cohort began are left out and recorded as late; the
    fastest client is never late. null waits for all."""
    over_selection: Annotated[float, Field(ge=0.0, le=10.0)] = 0.0
    """Draw so many more clients, as a share of the cohort, and take the first answers that make up a cohort."""

    uses: ClassVar[Uses] = {"deadline_seconds": (_DEVICES,), "over_selection": (_DEVICES,)}

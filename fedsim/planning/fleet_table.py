"""The table of ``fedsim plan`` on simulated devices."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from fedsim.configuration.schema import Config
from fedsim.display.report import format_bytes, format_seconds
from fedsim.planning.fleet_forecast import FleetForecast
from fedsim.world.devices import Devices


def fleet_rows(config: Config, found: FleetForecast) -> list[tuple[str, str]]:
    """Describe who can be drawn, what a visit takes, and how the first server steps go."""
    devices = found.devices
    rows = [("devices", _drawable(devices)), *_visits(devices), *_steps(config, found)]
    if not found.exact:
        rows.append(("exactness", _not_exact(config)))
    return rows


def _drawable(devices: Devices) -> str:
    clients = devices.drawable
    here = int((devices.available_N(0.0) & devices.able_N).sum())
    why = f"; {', and '.join(clients.reasons)}" if clients.reasons else ""
    now = "all in reach" if here == clients.able else f"{here:,} in reach"
    return f"{clients.able:,} of the {clients.holding:,} clients with examples can be drawn{why}; {now} when the clock starts"


def _visits(devices: Devices) -> Iterator[tuple[str, str]]:
    """Describe a visit of the median and of the slowest device that can be drawn, and the first ones where they differ."""
    able = np.flatnonzero(devices.able_N)
    later, first = devices.seconds_N(0)[able], devices.seconds_N(0, None)[able]
    hardware = devices.hardware.of(able)
    middle, slowest = (int(np.argsort(later, kind="stable")[at]) for at in ((len(able) - 1) // 2, -1))
    down, up = devices.cost.travel(0)
    for name, at in (("median visit", middle), ("slowest visit", slowest)):
        parts = (
            ("down", hardware.latency_seconds_N[at] + down / hardware.downlink_bytes_N[at]),
            ("training", devices.cost.tokens_N[able][at] / hardware.tokens_per_second_N[at]),
            ("up", hardware.latency_seconds_N[at] + up / hardware.uplink_bytes_N[at]),
        )
        text = f"{format_seconds(later[at])}: " + ", ".join(f"{format_seconds(value)} {word}" for word, value in parts)
        if not np.isclose(first[at], later[at], rtol=0.005):
            text += f"; the first time {format_seconds(first[at])}"
        yield name, text


def _steps(config: Config, found: FleetForecast) -> Iterator[tuple[str, str]]:
    lengths, steps = found.lengths(), found.steps
    name, noun = ("a round", "rounds") if config.buffer is None else ("a step", "steps")
    first = (
        f"the first {len(steps)} of {found.total:,} {noun}" if len(steps) < found.total else f"all {len(steps)} {noun}"
    )
    first = f"the first of {found.total:,} {noun}" if len(steps) == 1 < found.total else first
    spread = f", from {format_seconds(lengths.min())} to {format_seconds(lengths.max())}" if len(steps) > 1 else ""
    yield name, f"{format_seconds(float(np.median(lengths)))} on the virtual clock (median of {first}){spread}"
    yield "simulated time", f"{format_seconds(float(lengths.sum()))} for {first}"
    waited = np.array([step.waited_seconds or 0.0 for step in steps])
    if waited.any():
        yield "waiting", f"{format_seconds(float(waited.mean()))} a round (mean) until enough clients are in reach"
    left_out = (("late", [len(step.late) for step in steps]), ("out of reach", [len(step.absent) for step in steps]))
    told = [f"{float(np.mean(counts)):.3g} {word}" for word, counts in left_out if any(counts)]
    if told:
        taken = float(np.mean([len(step.visits) for step in steps]))
        yield "left out", f"{', '.join(told)} in {name} (mean); {taken:.3g} count"
    if config.buffer is not None:
        stale, kept = found.staleness(), [len(getattr(step, "under_way", ())) + 1 for step in steps]
        yield (
            "staleness",
            f"{stale.mean():.3g} steps (mean), at most {stale.max()}; up to {max(kept)} versions of the state are kept",
        )
    down, up = found.traffic()
    yield "traffic", f"at most {format_bytes(down)} down, {format_bytes(up)} up, all clients together, for {first}"


def _not_exact(config: Config) -> str:
    unknown = "which layers are exchanged is not known yet, so times are those of the lowest ones: at most"
    return (
        unknown
        if config.layers.choose == "score" or config.layers.share_rule != "fixed"
        else "token counts are a sample's"
    )

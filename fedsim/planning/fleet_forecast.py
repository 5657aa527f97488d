"""What simulated devices will do in a run: who can be drawn, what visits take, and when server steps end; nothing is trained.

A schedule follows from config, seed and devices alone, so that of a plan is that of the run, where layers are known ahead.
Shape suffixes: N clients, E training examples.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from itertools import pairwise

import numpy as np

from clients.backbone.location import locate
from clients.config import ModelConfig
from fedsim.configuration.schema import Config
from fedsim.planning.memory import MemoryEstimate, layouts
from fedsim.planning.model_shape import ModelShape
from fedsim.simulation.buffered import buffered_schedule
from fedsim.simulation.fleet import Work, check_clients, devices_of, mean_lengths
from fedsim.simulation.layers_ahead import known_ahead, stand_in
from fedsim.simulation.preparation import PartitionedData, tuner_of
from fedsim.simulation.round import Draw
from fedsim.simulation.short_rounds import short_round
from fedsim.world.devices import Devices
from fedsim.world.schedule import Step
from fedsim.world.traces.read import read_recorded

_STEPS = 50
"""First server steps that are followed."""
_TEXTS = 5_000
"""Training texts whose tokens are counted; more are sampled evenly."""


@dataclass(frozen=True)
class FleetForecast:
    """The devices of a run and its first server steps."""

    devices: Devices
    steps: tuple[Step, ...]
    total: int
    """Server steps of the run."""
    exact: bool
    """Whether the layers and the lengths of all texts are known, so that the run will do the same to the last digit."""
    warnings: tuple[str, ...] = ()

    def lengths(self) -> np.ndarray:
        """Return how long each step lasts, in virtual seconds."""
        ends = [0.0, *(float(step.ended_seconds or 0.0) for step in self.steps)]
        return np.array([after - before for before, after in pairwise(ends)])

    def staleness(self) -> np.ndarray:
        """Return the staleness of each visit that the steps take in."""
        return np.array([step.number - visit.version for step in self.steps for visit in step.visits])

    def traffic(self) -> tuple[int, int]:
        """Return the bytes down and up of the visits that the steps take in."""
        down = up = 0
        last: dict[int, int] = {}
        for step in self.steps:
            for visit in step.visits:
                before = last.get(visit.client)
                received, sent = self.devices.cost.travel(
                    visit.version, None if before is None else visit.version - before
                )
                last[visit.client] = visit.version
                down, up = down + received, up + sent
        return down, up


def forecast(
    config: Config, data: PartitionedData, shape: ModelShape | None, memory: MemoryEstimate | None
) -> FleetForecast | None:
    """Return what the devices of a run will do; None without devices, or where the model is not on this machine yet.

    Raises
    ------
    FedsimError
        If a file of devices or traces cannot be used, or too few clients can be drawn.
    """
    if config.world.devices is None:
        return None
    recorded, sizes_N = read_recorded(config.world), data.shards.train_sizes
    check_clients(config, sizes_N, recorded)
    if shape is None or memory is None:
        return None
    full, _ = layouts(config, shape, data.task.num_classes)
    work, counted = _work(config, data, memory.weights)
    known = known_ahead(config, full)
    check_clients(config, sizes_N, recorded, work.needed_bytes(config, full, stand_in(config, full, least=True)))
    layers = stand_in(config, full)
    devices = devices_of(config, work, full, layers, recorded)
    assert devices is not None, "a config without devices has returned"
    return replace(_followed(config, work, devices), exact=counted and known is not None)


def _followed(config: Config, work: Work, devices: Devices) -> FleetForecast:
    draw = Draw.of(config, work.sizes_N, devices)
    schedule = draw.schedule if config.buffer is None else buffered_schedule(config, draw)
    # With selection by utility, later cohorts depend on losses that only training tells.
    many = 1 if config.sampling.kind in ("oort", "power_of_choice") else min(config.rounds, _STEPS)
    steps = tuple(schedule.step(number) for number in range(many))
    warnings = (short_round(config, draw) if config.buffer is None else None, _few_in_time(config, steps))
    told = tuple(each.removeprefix("warning: ") for each in warnings if each is not None)
    return FleetForecast(devices, steps, config.rounds, exact=False, warnings=told)


def _few_in_time(config: Config, steps: tuple[Step, ...]) -> str | None:
    """Warn of a deadline that leaves no more than half of the cohort."""
    deadline, drawn = config.world.deadline_seconds, config.sampling.clients_per_round
    taken = float(np.mean([len(step.visits) for step in steps]))
    if deadline is None or taken > drawn / 2:
        return None
    return (
        f"world.deadline_seconds={deadline:g} leaves {taken:.3g} of a round's {drawn} clients (mean of the first "
        f"{len(steps)} rounds); give a longer one, faster devices, or less work"
    )


def _work(config: Config, data: PartitionedData, weight_bytes: int) -> tuple[Work, bool]:
    """Return what visits cost follows from, and whether all texts were counted."""
    from clients.backbone.families import family_of
    from clients.backbone.loading import config_values

    described = config_values(locate(config.model), config.model.location)
    family = family_of(described, config.model.location)
    keep_local = config.layers.unselected == "local"
    lengths_E, counted = _lengths(config.model, config, data, causal=family.lm_kind == "causal_lm")
    work = Work(
        tuner=tuner_of(config, family, described),
        sizes_N=data.shards.train_sizes,
        mean_tokens_N=mean_lengths(data.shards, lengths_E),
        weight_bytes=float(weight_bytes),
        keep_local=keep_local,
        may_cache=config.model.trunk_cache.dtype != "off" and not config.client.dropout and not keep_local,
    )
    return work, counted


def _lengths(model: ModelConfig, config: Config, data: PartitionedData, *, causal: bool) -> tuple[np.ndarray, bool]:
    """Return the length of each training example in tokens, and whether all were counted; others have the mean length."""
    from clients.backbone.loading import load_tokenizer
    from fedsim.data.tokenize import tokenize

    train, head = data.dataset.train, model.head.kind
    some = np.unique(np.linspace(0, len(train) - 1, min(len(train), _TEXTS)).round().astype(int))
    sample = train.take(some)
    base = head == "classifier"
    table = tokenize(
        sample,
        data.task,
        load_tokenizer(model),
        head_kind=head,
        causal=causal and not base,
        max_length=config.data.max_length,
    )
    counted_S = np.asarray(table.lengths_N, dtype=float)
    lengths_E = np.full(len(train), counted_S.mean())
    lengths_E[some] = counted_S
    return lengths_E, len(some) == len(train)

"""Rounds that are known beforehand to have too few clients for the server's robust rule."""

from __future__ import annotations

from fedsim.configuration.schema import Config
from fedsim.core.errors import ConfigError
from fedsim.simulation.round import Draw
from fedsim.world.synchronous import Synchronous

_ROUNDS = 200
"""First rounds that are looked at."""


def short_round(config: Config, draw: Draw) -> str | None:
    """Return a warning of the first round that will end the run, since its deadline or devices leave too few clients.

    Raises
    ------
    ConfigError
        If that is the first round of the run.
    """
    rule, sampling = config.rule, draw.sampling
    timed = draw.devices is not None or sampling.delay.deadline_seconds is not None
    if rule is None or not timed or sampling.kind in ("oort", "power_of_choice"):  # these need losses
        return None
    # A schedule of its own: that of the run goes forward only.
    schedule = Synchronous(sampling, draw.seed, draw.sizes_N, draw.work_N, draw.devices, draw.world)
    for number in range(min(config.rounds, _ROUNDS)):
        many = len(schedule.step(number).visits)
        if (problem := rule.problem(many)) is not None:
            clients = f"{many} client{'s' * (many != 1)}"
            sentence = (
                f"round {number + 1} will have {clients} in time of {sampling.clients_per_round} drawn, but {problem}"
            )
            if number == 0:
                raise ConfigError(f"{sentence}; give a longer deadline, or devices that are faster or longer in reach")
            return f"warning: {sentence}; the run ends there"
    return None

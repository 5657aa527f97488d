"""What simulated devices refuse, as far as the config alone tells."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from fedsim.core.errors import ConfigError

if TYPE_CHECKING:
    from fedsim.configuration.schema import Config


def check_world(config: Config) -> None:
    """Refuse what needs devices where there are none, and two clocks at once.

    Raises
    ------
    ValueError
        Naming the keys, their values, and what would be right.
    """
    sampling, devices = config.sampling, config.world.devices
    if devices is None and sampling.kind in ("tiers", "oort"):
        raise ValueError(f"sampling.kind={sampling.kind} chooses by the speed of devices; give world.devices")
    if devices is not None and sampling.delay.seconds_per_example:
        raise ValueError(
            "sampling.delay simulates times of its own beside those of world.devices; leave one of them out, or set "
            "sampling.delay.seconds_per_example=0"
        )
    if sampling.candidates is not None and sampling.candidates < sampling.clients_per_round:
        raise ValueError(
            f"sampling.candidates={sampling.candidates} is less than sampling.clients_per_round="
            f"{sampling.clients_per_round}; set sampling.candidates={sampling.clients_per_round} or more"
        )


def check_devices(config: Config) -> None:
    """Refuse rounds that want more clients than the config's devices leave; files and data are not read for it.

    The clients' memory is drawn here as the run will draw it, so a model that no device holds is found at once.

    Raises
    ------
    ValueError
        Naming the keys, their values, and what would be right.
    """
    devices, clients = config.world.devices, config.partition.clients
    if devices is None or clients is None:  # known only after the data are read
        return
    if devices.slow_share and not round(devices.slow_share * clients):
        raise ValueError(
            f"world.devices.slow_share={devices.slow_share:g} of partition.clients={clients} is nobody; set "
            f"world.devices.slow_share={1 / clients:g} or more, or 0"
        )
    from fedsim.world.draws import drawn
    from fedsim.world.enough import GIGABYTE, Drawable, check_enough

    memory_bytes_N, needed_bytes = np.zeros(clients), 0.0
    if devices.needed_gigabytes is not None and devices.file is None:
        memory_bytes_N = drawn(devices.gigabytes, config.seed, "memory", clients) * GIGABYTE
        needed_bytes = devices.needed_gigabytes * GIGABYTE
    sampling = config.sampling.model_copy(update={"clients_per_round": config.clients_per_step})
    found = Drawable.of(np.ones(clients), memory_bytes_N, needed_bytes)
    try:
        check_enough(sampling, config.world, config.buffer, found)
    except ConfigError as error:
        raise ValueError(str(error)) from None

"""Carrying vectors in fedsim; run by ``benchmarks.peers`` like the peers. Prompt tuning is the command ``fedsim run``."""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np

from benchmarks.carrying import Carrying
from benchmarks.peers.files import Events
from fedsim.configuration.schema import build_config
from fedsim.executors.make import make_executor

GROUPS = 4
"""Actor calls of a round, two for each actor. Where a client's work takes less than a call, groups are made large."""


def group_size(clients: int) -> int:
    """Return the clients of a group when ``clients`` take part in a round."""
    return -(-clients // GROUPS)


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--rounds", type=int, required=True)
    parser.add_argument("--clients", type=int, required=True)
    parser.add_argument("--elements", type=int, required=True)
    options = parser.parse_args()
    config = build_config({"partition": {"clients": options.clients}, "ray": {"num_cpus": 2}, "client": {"threads": 1}})
    carrying = Carrying(
        make_executor(config, lambda: None, print),
        options.clients,
        options.elements,
        group_size=group_size(options.clients),
    )
    events = Events(options.out)
    try:
        carrying.start()
        for number in range(1, options.rounds + 1):
            carrying.round()
            events.round(number)
        carrying.check()
    finally:
        carrying.close()
    events.end(np.full(options.elements, carrying.rounds, dtype=np.float32))

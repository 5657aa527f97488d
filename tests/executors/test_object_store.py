"""The object store is as full after many rounds as after the first: nothing leaks."""

from __future__ import annotations

import time

from benchmarks.carrying import Carrying
from benchmarks.memory import stored_bytes
from fedsim.configuration.schema import build_config
from fedsim.executors.make import make_executor

CLIENTS, ELEMENTS, ROUNDS = 12, 100_000, 6
SETTLED_SECONDS = 2.0
STATE_BYTES = 4 * ELEMENTS
"""Large enough for the store; what is smaller than 100 KB never enters it."""


def settled_bytes(wanted: int | None = None) -> int:
    """Return the bytes in the store once they are ``wanted``, or else have not changed for some time.

    Ray frees objects that nobody holds any more now and then, about once a second.
    """
    stored, since = stored_bytes(), time.monotonic()
    while stored != wanted and time.monotonic() - since < SETTLED_SECONDS:
        time.sleep(0.05)
        now = stored_bytes()
        if now != stored:
            stored, since = now, time.monotonic()
    return stored


def test_bytes_in_the_store_are_constant_over_rounds(session_ray):
    config = build_config({"partition": {"clients": CLIENTS}, "ray": {"address": "auto", "actors": 1}})
    executor = make_executor(config, lambda: None, print)
    carrying = Carrying(executor, CLIENTS, ELEMENTS, group_size=3)
    try:
        carrying.start()
        carrying.round()
        first = settled_bytes()
        assert first >= STATE_BYTES
        for _ in range(ROUNDS):
            carrying.round()
        assert settled_bytes(wanted=first) == first

        # Whoever kept the states would be seen: this measurement can fail.
        kept = []
        for _ in range(3):
            carrying.round()
            kept.append(executor.server.global_state())
        executor.get(kept)
        assert settled_bytes() >= first + 3 * STATE_BYTES
        kept.clear()
        assert settled_bytes(wanted=first) == first
        carrying.check()
    finally:
        carrying.close()

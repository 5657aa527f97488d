"""The memory benchmark: what it distinguishes, and what its runs share."""

from __future__ import annotations

import numpy as np
import psutil

from benchmarks.memory import CONFIG, SAME_WORK, carry, own_bytes, stored_bytes, write_data
from fedsim.configuration.schema import build_config, read_config
from fedsim.executors.make import make_executor
from fedsim.simulation.preparation import partition_data

SIZE = 40_000_000


def test_objects_in_the_store_are_not_counted_as_own_memory(session_ray):
    process = psutil.Process()
    stored, own = stored_bytes(), own_bytes(process)
    held = session_ray.put(np.ones(SIZE, np.uint8))
    mapped = session_ray.get(held)
    assert mapped.sum() == SIZE
    assert stored_bytes() - stored >= 0.99 * SIZE
    assert own_bytes(process) - own < 0.5 * SIZE
    own = own_bytes(process)
    ballast = bytearray(b"x") * SIZE
    assert own_bytes(process) - own > 0.9 * len(ballast)


def test_carrying_reports_what_rounds_took(session_ray):
    config = build_config({"ray": {"address": "auto", "actors": 1}})
    above = carry(lambda: make_executor(config, lambda: None, print), 8, 400_000, rounds=3)
    assert set(above) == {"processes", "object store", "together"}
    # A state and the sums of a group are in the store at some time of every round.
    assert above["object store"] > 1.6


def test_every_number_of_clients_finds_its_mini_batches_in_the_same_data(tmp_path):
    write_data(tmp_path, 6000)
    found = []
    for clients in (100, 3000):
        config = read_config(str(CONFIG), [*SAME_WORK, f"data.path={tmp_path}", f"partition.clients={clients}"])
        assert config.client.steps == 4 and config.sampling.clients_per_round == 10
        data = partition_data(config)
        assert data.shards.num_clients == clients and data.shards.train_sizes.min() >= config.client.batch_size
        found.append(data.dataset.train.texts)
    assert found[0] == found[1] and len(found[0]) == 6000

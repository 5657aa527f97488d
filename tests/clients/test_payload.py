"""Payloads: prompts and counts, never the frozen model."""

import pickle

import numpy as np
from support import make_tiny

from fedsim.core.messages import ClientState, GlobalState, WorkGroup
from fedsim.simulation.preparation import prepare

HEADER_BYTES = 4096
"""Reports, names of classes and fields."""


def test_a_group_brings_and_sends_no_more_than_prompts_and_a_small_header():
    spec = prepare(make_tiny()).spec
    worker = spec.build("cpu")
    vector_F = np.zeros(worker.info().full.size, np.float32)
    state = GlobalState(0, worker.info().full.layers, vector_F, {"control": np.zeros_like(vector_F)})
    group = WorkGroup(0, 0, (0, 1, 2))
    states = [ClientState(client) for client in group.clients]
    assert len(pickle.dumps((group, states))) < HEADER_BYTES
    reports, update, *new_states = worker.train(group, state, *states).pack()
    assert all(report.failure is None and report.bytes_up <= 3 * vector_F.nbytes for report in reports)
    sums = 5 * 8 * vector_F.size  # float64: of vectors, control variates and the common metric
    assert len(pickle.dumps((reports, update))) < sums + HEADER_BYTES
    kept = 4 * vector_F.size  # float32: a client's control variate
    assert len(pickle.dumps(new_states)) < len(states) * (kept + HEADER_BYTES)
    assert spec.nbytes > 10 * sums  # a frozen model would be seen

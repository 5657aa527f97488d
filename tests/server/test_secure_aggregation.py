"""What a server with secure aggregation sees, the sums of a round, is all that a method reads which says so."""

from dataclasses import replace

import numpy as np
import pytest
from method_rounds import Rounds
from support import make_tiny

from clients.training.sums import GroupSums
from fedsim.core.messages import ClientState, WorkGroup
from fedsim.core.method import METHODS
from server.aggregation import Fold
from server.core import Server

SUMS = {
    "fedavg": {}, "fedavgm": {}, "fedadam": {}, "fedyogi": {}, "fedadagrad": {}, "fedprox": {}, "feddyn": {},
    "scaffold": {}, "fedpeptao": {},
}  # fmt: skip
SINGLES = {
    "fedpeptao_published": {"server": {"kind": "fedpeptao_published"}},
    "median": {"server": {"kind": "fedavg", "aggregation": "median"}},
    "exact": {"server": {"kind": "fedavg"}, "tuner": {"kind": "lora", "exact": True}},
}


def test_every_method_says_what_it_needs():
    assert {kind for kind in METHODS if METHODS[kind]().sums_are_enough(robust=False)} >= set(SUMS)
    for changes in SINGLES.values():
        assert not make_tiny(**changes, layers={"choose": "all"}).sums_are_enough
    assert not any(METHODS[kind]().sums_are_enough(robust=True) for kind in METHODS)


@pytest.mark.parametrize("kind", SUMS)
def test_the_sums_of_a_round_alone_give_the_same_bits(kind):
    """Three groups in one server; their total, in the name of all clients at once, in the other."""
    config = make_tiny(server={"kind": kind}, layers={"choose": "fixed", "fixed": [3]}, prompt={"length": 2})
    assert config.sums_are_enough
    rounds = Rounds(config)
    state, clients = rounds.server.global_state(), rounds.clients
    updates = [
        rounds.worker.train(WorkGroup(0, group, (client,)), state, ClientState(client)).update
        for group, client in enumerate(clients)
    ]
    for update in updates:
        assert not update.each and update.weights_k is None  # no array of a single client travels
    fold = Fold()
    for update in updates:
        fold.add(update)
    total = fold.result(clients, config.method.average)
    whole = replace(
        updates[0],
        clients=tuple(sorted(clients)),
        weight_sum=total.weight_sum,
        steps_sum=total.steps_sum,
        sums=total.sums,
    )
    shown = Server(config.method, state.vector_F, state.layers, 0.5)
    rounds.server.apply(0, clients, *updates)
    shown.apply(0, clients, whole)
    after, before = rounds.server.arrays(), shown.arrays()
    assert after.keys() == before.keys()
    for name, array in after.items():
        assert np.array_equal(array, before[name]), name


def test_single_clients_are_sent_where_a_method_says_so():
    config = make_tiny(**SINGLES["median"], layers={"choose": "all"})
    singles = config.method.singles(robust=True)
    sums = GroupSums(WorkGroup(0, 0, (0,)), 3, singles=singles)
    assert singles and not config.sums_are_enough and sums.update() is None

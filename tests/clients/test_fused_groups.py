"""Work groups whose clients share passes: the group's sums and states, and failures that stay with their client."""

from __future__ import annotations

import dataclasses
import time
from itertools import product

import numpy as np
import pytest
from cohorts import CLIENTS, OPTIMIZERS, specification
from support import sweep
from tiny_models import save, tiny_model

from clients.config import HeadConfig
from clients.worker import ClientWorker
from fedsim.core.errors import ConfigError
from fedsim.core.messages import ClientState, GlobalState, WorkGroup

NO_TRUNK, TRUNK = (0, 2), (1, 2)
METHODS = {
    "fedavg": {"server": {"kind": "fedavg"}},
    "fedprox": {"server": {"kind": "fedprox"}, "client": {"proximal_mu": 0.3}},
    "scaffold": {"server": {"kind": "scaffold"}},
    "fedpeptao": {"server": {"kind": "fedpeptao"}},
    "kept moments": {
        "client": {"optimizer": {**OPTIMIZERS["adamw_published"], "moments": "keep"}},
        "server": {"kind": "fedavg"},
    },
    "personal prompts": {"layers": {"unselected": "local"}, "server": {"kind": "fedavg"}},
    "classifier": {"head": HeadConfig(kind="classifier", pooling="mean", init_std=0.5)},
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> str:
    return save(tiny_model("roberta"), tmp_path_factory.mktemp("model") / "roberta")


@pytest.fixture(scope="module")
def spec(folder):
    return specification(folder)


def first_state(worker: ClientWorker, layers: tuple[int, ...], round: int = 0) -> GlobalState:
    size = worker.info().full.exchanged(layers).size
    rng = np.random.default_rng(round)
    dtype = worker._spec.model.exchange_dtype
    draw = rng.normal(0.0, 0.5, size).astype(dtype), rng.normal(0.0, 0.01, size).astype(dtype)
    return GlobalState(round, layers, draw[0], {"control": draw[1]})


def arrays_of(record) -> dict[str, np.ndarray]:
    """Return all arrays of a record, those in its mappings as ``field/name``."""
    found = {}
    for field in dataclasses.fields(record):
        value = getattr(record, field.name)
        if isinstance(value, np.ndarray):
            found[field.name] = value
        elif isinstance(value, dict):
            found |= {f"{field.name}/{name}": array for name, array in value.items()}
    return found


def assert_close(ours, theirs, tolerance: float) -> None:
    """Compare two records: arrays in parts of their largest entry (0: to the bit), everything else exactly."""
    mine, other = arrays_of(ours), arrays_of(theirs)
    assert mine.keys() == other.keys()
    for name, array in other.items():
        assert mine[name].shape == array.shape
        error = np.abs(mine[name] - array).max(initial=0.0) / max(np.abs(array).max(initial=0.0), 1e-30)
        assert error <= tolerance, f"{name}: {error:.1e}"
    for field in dataclasses.fields(ours):
        if not isinstance(getattr(theirs, field.name), np.ndarray | dict):
            assert getattr(ours, field.name) == getattr(theirs, field.name), field.name


@pytest.mark.parametrize(
    ("method", "layers"),
    sweep(
        product(METHODS, (NO_TRUNK, TRUNK)),
        [*((name, TRUNK) for name in ("scaffold", "kept moments", "classifier")),
         *((name, NO_TRUNK) for name in ("fedavg", "fedprox", "fedpeptao", "personal prompts"))],
    ),
)  # fmt: skip
def test_a_group_of_two_rounds_is_the_same_however_many_share_passes(folder, method, layers):
    """Sums, states and reports, in float64; the second round starts from the states of the first."""
    keys = dict(METHODS[method])
    worker = ClientWorker(specification(folder, keys.pop("head", None), "float64", **keys))
    expected: list = []
    for fuse in (1, 2, 5):
        states, records = [ClientState(client) for client in CLIENTS], []
        for round in range(2):
            group = WorkGroup(round, 0, CLIENTS, fuse=fuse)
            reports, update, *states = worker.train(group, first_state(worker, layers, round), *states).pack()
            assert all(report.failure is None for report in reports)
            records += [update, *states, *reports]
        if fuse == 1:
            expected = records
            continue
        for ours, theirs in zip(records, expected, strict=True):
            if hasattr(ours, "seconds"):
                assert ours.num_slots >= ours.num_tokens
                np.testing.assert_allclose(
                    [ours.loss_first, ours.loss_last], [theirs.loss_first, theirs.loss_last], rtol=1e-10
                )
                same = ("loss_first", "loss_last", "seconds", "num_slots")
                ours = dataclasses.replace(ours, **{name: getattr(theirs, name) for name in same})
            assert_close(ours, theirs, 1e-10)


def test_clients_with_and_without_a_trunk_stand_in_one_group(folder):
    """With two steps of four, only clients of up to eight examples see all of them, and only they have a frozen-layer cache."""
    worker = ClientWorker(specification(folder, dtype="float64", client={"epochs": None, "steps": 2}))
    state = first_state(worker, TRUNK)
    assert [worker._spec.uses_cache(client, TRUNK) for client in CLIENTS] == [True, True, False, True, True]
    alone, together = (
        worker.train(WorkGroup(0, 0, CLIENTS, fuse=fuse, keep_cached=CLIENTS), state, *map(ClientState, CLIENTS))
        for fuse in (1, 5)
    )
    assert [report.client for report in together.reports] == list(CLIENTS)
    assert_close(together.update, alone.update, 1e-10)
    assert [cached is None for cached in together.caches] == [False, False, True, False, False]


def test_time_is_shared_out_by_tokens(spec):
    worker = ClientWorker(spec)
    started = time.perf_counter()
    reports = worker.train(
        WorkGroup(0, 0, CLIENTS, fuse=5), first_state(worker, NO_TRUNK), *map(ClientState, CLIENTS)
    ).reports
    elapsed = time.perf_counter() - started
    assert 0 < sum(report.seconds for report in reports) <= elapsed
    rates = [report.seconds / report.num_tokens for report in reports]
    np.testing.assert_allclose(rates, rates[0], rtol=1e-9)


# -- failures ----------------------------------------------------------------------------------------------------------


def broken(spec, client: int, fault: str):
    """Return the specification with a real fault in one client's examples."""
    table, shards = spec.train, spec.shards
    if fault == "an example that is not there":
        indices = shards.indices_N.copy()
        indices[shards.offsets_C1[client]] = len(table) + 1000
        return dataclasses.replace(spec, shards=dataclasses.replace(shards, indices_N=indices))
    ids = table.ids_Z.copy()
    ids[table.offsets_N1[shards.train(client)[-1]]] = 10**6  # a token that the backbone does not know
    return dataclasses.replace(spec, train=dataclasses.replace(table, ids_Z=ids))


@pytest.mark.parametrize("layers", [NO_TRUNK, TRUNK])
@pytest.mark.parametrize("fault", ["an example that is not there", "a token that is not there"])
@pytest.mark.parametrize("fuse", [2, 5])
def test_one_client_that_raises_is_reported_alone(spec, layers, fault, fuse):
    """The others' results are those that they have by themselves, to the bit: that is how they are tried again."""
    worker, healthy = ClientWorker(broken(spec, 2, fault)), ClientWorker(spec)
    state, others = first_state(worker, layers), (0, 1, 3, 4)
    group = WorkGroup(0, 0, CLIENTS, fuse=fuse)
    reports, update, *states = worker.train(group, state, *map(ClientState, CLIENTS)).pack()
    assert [report.client for report in reports if report.failure is not None] == [2]
    assert reports[2].failure.kind == "error" and "IndexError" in reports[2].failure.message
    assert "clients/" in reports[2].failure.traceback
    assert states[2] == ClientState(2) and update.clients == others
    assert (reports[2].num_steps, reports[2].bytes_up) == (0, 0)
    _, expected, *_ = healthy.train(WorkGroup(0, 0, others), state, *map(ClientState, others)).pack()
    assert_close(update, expected, 0.0 if fuse == 5 else 1e-5)


def test_a_group_of_failures_has_no_sums(spec):
    worker = ClientWorker(broken(broken(spec, 1, "a token that is not there"), 4, "an example that is not there"))
    state = first_state(worker, TRUNK)
    reports, update, *states = worker.train(
        WorkGroup(0, 0, (1, 4), fuse=2), state, ClientState(1), ClientState(4)
    ).pack()
    assert update is None and [report.failure.kind for report in reports] == ["error", "error"]
    assert states == [ClientState(1), ClientState(4)]


def test_one_client_with_numbers_that_are_not_finite_is_reported_alone(folder):
    """It shares passes to the end, and the others' results are those of the same passes with sound numbers, to the bit."""
    worker = ClientWorker(specification(folder, layers={"unselected": "local"}, server={"kind": "scaffold"}))
    state, personal = first_state(worker, (1,)), worker.info().full.local((1,)).size
    well = [ClientState(client, arrays={"personal": np.full(personal, 0.1, np.float32)}) for client in CLIENTS]
    ill = list(well)
    ill[3] = dataclasses.replace(well[3], arrays={"personal": np.full(personal, np.nan, np.float32)})
    group = WorkGroup(0, 0, CLIENTS, fuse=5)
    reports, update, *states = worker.train(group, state, *ill).pack()
    sound, _, *expected = worker.train(group, state, *well).pack()
    assert [report.failure and report.failure.kind for report in reports] == [None, None, None, "non_finite", None]
    assert states[3] is ill[3] and update.clients == (0, 1, 2, 4)
    assert np.isfinite(update.sums["vector"]).all()
    for client in update.clients:
        assert_close(states[client], expected[client], 0.0)
        assert (reports[client].loss_first, reports[client].loss_last) == (
            sound[client].loss_first,
            sound[client].loss_last,
        )


def test_clients_that_overflow_do_not_take_the_others_along(folder):
    """A client whose own control variate is out of all measure goes to infinity; its neighbours train on."""
    worker = ClientWorker(specification(folder, server={"kind": "scaffold"}))
    state = first_state(worker, NO_TRUNK)
    states = [ClientState(client) for client in CLIENTS]
    states[0] = ClientState(0, arrays={"control": np.full(len(state.vector_F), 3e38, np.float32)})
    reports, update, *_ = worker.train(WorkGroup(0, 0, CLIENTS, fuse=5), state, *states).pack()
    assert [report.failure is not None for report in reports] == [True, False, False, False, False]
    assert reports[0].failure.kind == "non_finite" and np.isfinite(update.sums["vector"]).all()


def test_dropout_is_refused_with_fusing_and_trains_one_by_one_without(tmp_path):
    expected = r"dropout draws from a separate random stream for each client.* set fuse=off, not 4, or dropout=false"
    with pytest.raises(ConfigError, match=expected):
        specification("/", client={"dropout": True, "fuse": 4})
    folder = save(tiny_model("roberta", hidden_dropout_prob=0.3), tmp_path)
    still, dropping = (ClientWorker(specification(folder, client={"dropout": active})) for active in (False, True))
    state = first_state(still, TRUNK)
    states = tuple(map(ClientState, CLIENTS))
    plain, one, five = (
        worker.train(WorkGroup(0, 0, CLIENTS, fuse=fuse), state, *states).update
        for worker, fuse in ((still, 1), (dropping, 1), (dropping, 5))
    )
    assert_close(one, five, 0.0)
    assert np.abs(plain.sums["vector"] - one.sums["vector"]).max() > 1e-3

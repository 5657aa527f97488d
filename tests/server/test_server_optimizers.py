"""Server optimizers against slow twins written client by client from the papers."""

from dataclasses import dataclass, replace
from itertools import product

import numpy as np
import pytest

from fedsim.core.errors import CheckpointError
from fedsim.core.messages import VECTOR, CombinedUpdate, GroupUpdate
from fedsim.core.method import METHODS
from fedsim.methods.control import CHANGE, CONTROL, control_by_steps, control_by_weights
from server.aggregation import combine
from server.config import ServerConfig
from server.core import Server
from server.sampling import cut
from server.step import initial_state, state_from_arrays, state_to_arrays, step

KINDS = [kind for kind in METHODS if kind != "fedbpt"]  # it steps on searches: tests/end_to_end/test_fedbpt.py
ADAPTIVE = ["fedadam", "fedyogi", "fedadagrad"]
NUM_CLIENTS, SIZE, RATE = 9, 7, 4 / 9
WEIGHT = 222.0
"""Training examples of all clients."""


@dataclass
class LocalJob:
    """What one client brings home."""

    n: int
    T: int
    P: np.ndarray
    c_before: np.ndarray
    c_after: np.ndarray


def random_round(rng, order, controls):
    """Return random visits of a cohort; ``controls`` holds c_i of all clients and is updated."""
    visits = {}
    for client in order:
        after = rng.normal(size=SIZE)
        visits[client] = LocalJob(
            int(rng.integers(1, 50)), int(rng.integers(1, 9)), rng.normal(size=SIZE), controls[client], after
        )
        controls[client] = after
    return visits


def method_of(**keys):
    return ServerConfig(**keys).method()


def share(config, job):
    return job.T if config.control_mean == "steps" else job.n


def fold(method, visits, order, group_size=2, round=0):
    """Return the combined update that work groups of the cohort give."""
    updates, config = [], method.config
    for number, group in enumerate(cut(order, group_size)):
        v = [visits[client] for client in group]
        sums, each = {VECTOR: sum(x.n * x.P for x in v)}, {}
        if CONTROL in method.serves:
            timing = getattr(config, "control_timing", "after")
            used = [x.c_before if timing == "before" else x.c_after for x in v]
            sums[CHANGE] = sum(share(config, x) * (x.c_after - x.c_before) for x in v)
            sums[CONTROL] = sum(x.n * c for x, c in zip(v, used, strict=True))
            each = {CONTROL: np.stack(used)} if method.one_by_one else {}
        updates.append(
            GroupUpdate(
                round=round,
                group=number,
                part=0,
                clients=group,
                weight_sum=float(sum(x.n for x in v)),
                steps_sum=sum(x.T for x in v),
                sums=sums,
                each=each,
                weights_k=np.array([float(x.n) for x in v]) if method.one_by_one else None,
            )
        )
    return combine(updates, order)


# -- FedPepTAO -------------------------------------------------------------------------------------------------------


class SlowFedPepTAO:
    """One client after another, entry by entry in meaning: the round as the method's page states it."""

    def __init__(self, P, config, eta=0.05, decay=0.99, beta=0.9):
        self.P, self.c, self.v, self.previous = P, np.zeros_like(P), np.zeros_like(P), None
        self.config = config
        self.eta, self.decay, self.beta, self.round, self.gradients = eta, decay, beta, 0, 0

    def apply(self, visits, order):
        choices = self.config
        if self.round > 0:
            self.eta = max(self.decay * self.eta, 1e-4)
        self.round += 1
        weights = {i: visits[i].n / sum(job.n for job in visits.values()) for i in order}
        average = sum(weights[i] * visits[i].P for i in order)
        delta = self.P - average
        all_steps = sum(job.T for job in visits.values())
        c_before = self.c
        if choices.control:
            if choices.control_mean == "steps":
                share = {i: RATE * visits[i].T / all_steps for i in order}
            else:
                share = {i: visits[i].n / WEIGHT for i in order}
            self.c = self.c + sum(share[i] * (visits[i].c_after - visits[i].c_before) for i in order)
        previous, self.previous = self.previous, delta
        if choices.gradient == "difference" and previous is None:
            self.P = average
            return
        self.gradients += 1
        g = previous - delta if choices.gradient == "difference" else delta
        x = start = average if choices.base == "average" else self.P
        v = self.v
        points, velocities = {}, {}
        for i in order:
            if choices.coupling == "independent":
                x, v = start, self.v
            correction = 0.0
            if choices.control and choices.control_timing == "after":
                correction = self.c - visits[i].c_after
            elif choices.control:
                correction = c_before - visits[i].c_before
            in_gradient = choices.momentum_form == "control_in_gradient"
            v = self.beta * v + (1 - self.beta) * (g + correction if in_gradient else g)
            move = v / (1 - self.beta**self.gradients) if choices.debias else v
            if not in_gradient:
                move = move + correction
            if choices.momentum_form == "control_in_velocity":
                v = move
            x = x - self.eta * move
            points[i], velocities[i] = x, v
        self.P = sum(weights[i] * points[i] for i in order)
        self.v = sum(weights[i] * velocities[i] for i in order)


STEP = {"lr": 0.05, "lr_decay": 0.99, "momentum": 0.9}


@pytest.mark.parametrize("control", [True, False])
@pytest.mark.parametrize("timing, mean", [("after", "steps"), ("before", "weights"), ("before", "steps")])
@pytest.mark.parametrize("debias", [False, True])
@pytest.mark.parametrize(
    "gradient, base, coupling, form",
    list(
        product(
            ["difference", "pseudo"],
            ["average", "previous"],
            ["independent", "chained"],
            ["control_in_velocity", "clean", "control_in_gradient"],
        )
    ),
)
def test_fedpeptao_equals_its_slow_twin(gradient, base, coupling, form, debias, timing, mean, control):
    choices = {"gradient": gradient, "base": base, "coupling": coupling, "momentum_form": form, "debias": debias}
    undefined = coupling == "chained" and (debias or form == "control_in_gradient")
    undefined |= debias and form == "control_in_velocity"
    if undefined:
        with pytest.raises(ValueError, match="is not defined with"):
            ServerConfig(kind="fedpeptao", **choices)
        return
    config = ServerConfig(
        kind="fedpeptao", control=control, control_timing=timing, control_mean=mean, **choices, **STEP
    )
    run_against_twin(config)


def test_the_published_kind_is_one_of_these_combinations():
    config = ServerConfig(kind="fedpeptao_published")
    same = ServerConfig(
        kind="fedpeptao",
        gradient="difference",
        base="average",
        coupling="chained",
        momentum_form="control_in_velocity",
        control_form="scaffold",
        control_timing="after",
        control_mean="steps",
        debias=False,
        **STEP,
    )
    assert config.model_dump(exclude={"kind"}) == same.model_dump(exclude={"kind"})
    run_against_twin(config)


def run_against_twin(config):
    method = config.method()
    rng = np.random.default_rng(1)
    P = rng.normal(size=SIZE)
    twin, state = SlowFedPepTAO(P, config), initial_state(method, P)
    controls = [np.zeros(SIZE)] * NUM_CLIENTS
    for round in range(5):
        order = rng.permutation(NUM_CLIENTS)[:4].tolist()
        visits = random_round(rng, order, controls)
        twin.apply(visits, order)
        state = step(method, state, fold(method, visits, order, round=round), RATE, WEIGHT)
        np.testing.assert_allclose(state.vector_F, twin.P, rtol=1e-10, atol=1e-12)
        np.testing.assert_allclose(state.arrays["velocity"], twin.v, rtol=1e-10, atol=1e-12)
        assert state.lr == pytest.approx(twin.eta, rel=1e-12)
        if config.control:
            np.testing.assert_allclose(state.arrays[CONTROL], twin.c, rtol=1e-10, atol=1e-12)
        else:
            assert CONTROL not in state.arrays


def test_the_order_of_a_cohort_matters_to_chained_steps_alone():
    rng = np.random.default_rng(2)
    order = [3, 0, 7, 5]
    visits = random_round(rng, order, [np.zeros(SIZE)] * NUM_CLIENTS)
    for coupling, same in (("independent", True), ("chained", False)):
        method = method_of(kind="fedpeptao", gradient="pseudo", coupling=coupling, momentum_form="clean", debias=False)
        start = initial_state(method, np.zeros(SIZE))
        results = [step(method, start, fold(method, visits, o), RATE).vector_F for o in (order, order[::-1])]
        assert np.array_equal(*results) == same


@pytest.mark.parametrize("form", ["control_in_velocity", "clean"])
def test_couplings_agree_on_a_cohort_of_one(form):
    rng = np.random.default_rng(3)
    visits = random_round(rng, [6], [np.zeros(SIZE)] * NUM_CLIENTS)
    results = []
    for coupling in ("independent", "chained"):
        method = method_of(kind="fedpeptao", gradient="pseudo", coupling=coupling, momentum_form=form, debias=False)
        state = initial_state(method, np.ones(SIZE))
        for _ in range(3):
            state = step(method, state, fold(method, visits, [6]), 1 / 9)
        results.append(state.vector_F)
    np.testing.assert_allclose(*results, rtol=1e-12)


# -- FedAvg and its kin ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["fedavg", "fedprox", "scaffold"])
def test_fedavg_with_one_local_step_is_centralised_gradient_descent_to_the_last_bit(kind):
    """Numbers with few binary digits, so that every sum is exact and none can hide behind a tolerance."""
    method = method_of(kind=kind)
    P = np.array([1.5, -2.25, 0.5])
    lr, sizes = 0.25, [2, 6, 8]
    targets = [np.array([1.0, 0.0, 2.0]), np.array([-1.0, 4.0, 0.25]), np.array([0.5, -0.5, 1.0])]
    gradients = [P - target for target in targets]
    zero = np.zeros(3)
    visits = {i: LocalJob(n, 1, P - lr * g, zero, g) for i, (n, g) in enumerate(zip(sizes, gradients, strict=True))}
    after = step(method, initial_state(method, P), fold(method, visits, [2, 0, 1]), 1.0)
    of_all_data = sum(n * g for n, g in zip(sizes, gradients, strict=True)) / sum(sizes)
    np.testing.assert_array_equal(after.vector_F, P - lr * of_all_data)


def test_a_server_learning_rate_scales_the_step_of_fedavg():
    method = method_of(kind="fedavg", lr=0.5)
    combined = fold(method, {0: LocalJob(1, 1, np.array([4.0, 0.0]), None, None)}, [0])
    after = step(method, initial_state(method, np.array([0.0, 2.0])), combined, 1.0)
    np.testing.assert_array_equal(after.vector_F, [2.0, 1.0])


def test_fedavg_takes_the_average_itself():
    rng = np.random.default_rng(4)
    method = method_of(kind="fedavg")
    combined = fold(method, random_round(rng, [1, 2, 5], [np.zeros(SIZE)] * 9), [1, 2, 5])
    after = step(method, initial_state(method, 1e6 * rng.normal(size=SIZE)), combined, 1.0)
    assert after.vector_F.tobytes() == combined.vector_F.tobytes()


def test_fedavgm_accumulates_velocity():
    method = method_of(kind="fedavgm", lr=0.5, momentum=0.5)
    state = initial_state(method, np.array([8.0]))
    for expected_v, expected_P in ((4.0, 6.0), (4.0, 4.0)):
        combined = fold(method, {0: LocalJob(1, 1, np.array([4.0]), None, None)}, [0])
        state = step(method, state, combined, 1.0)
        assert (state.arrays["velocity"][0], state.vector_F[0]) == (expected_v, expected_P)


@pytest.mark.parametrize("kind", ADAPTIVE)
def test_adaptive_methods_equal_algorithm_2_entry_by_entry(kind):
    beta2 = {} if kind == "fedadagrad" else {"beta2": 0.95}
    method = method_of(kind=kind, lr=0.1, momentum=0.8, tau=0.01, **beta2)
    rng = np.random.default_rng(5)
    x = rng.normal(size=SIZE)
    m, v = np.zeros(SIZE), np.full(SIZE, 0.01**2)
    state = initial_state(method, x)
    for _ in range(6):
        local = x + rng.normal(size=SIZE) * rng.choice([0.001, 1.0], size=SIZE)
        state = step(method, state, fold(method, {0: LocalJob(3, 1, local, None, None)}, [0]), 1.0)
        for j in range(SIZE):
            d = local[j] - x[j]
            m[j] = 0.8 * m[j] + 0.2 * d
            if kind == "fedadagrad":
                v[j] = v[j] + d * d
            elif kind == "fedyogi":
                v[j] = v[j] + 0.05 * d * d if v[j] < d * d else v[j] - 0.05 * d * d
            else:
                v[j] = 0.95 * v[j] + 0.05 * d * d
            x[j] = x[j] + 0.1 * m[j] / (v[j] ** 0.5 + 0.01)
        np.testing.assert_allclose(state.vector_F, x, rtol=1e-12)
        np.testing.assert_allclose(state.arrays["second_moment"], v, rtol=1e-12)


def test_the_control_variate_of_equal_steps_is_that_of_scaffold():
    """c + |S|/N times the plain mean of the changes."""
    changes = np.array([[1.0, 2.0], [3.0, -2.0], [5.0, 3.0]])
    c = control_by_steps(np.array([0.5, 0.5]), (4 * changes).sum(axis=0), 12, 3 / 10)
    np.testing.assert_allclose(c, 0.5 + 3 / 10 * changes.mean(axis=0), rtol=1e-15)


def test_the_control_variate_stays_the_mean_of_the_clients_whoever_takes_part():
    """And the one weighted by local steps does not: what clients add and take away differs from cohort to cohort."""
    rng = np.random.default_rng(7)
    weights_N, steps_N = rng.integers(1, 50, 9).astype(float), rng.integers(1, 9, 9)
    controls_NF = np.zeros((9, SIZE))
    exact, by_steps = np.zeros(SIZE), np.zeros(SIZE)
    for _ in range(40):
        cohort = rng.permutation(9)[:4]
        after = controls_NF.copy()
        after[cohort] = rng.normal(size=(4, SIZE))
        change = after[cohort] - controls_NF[cohort]
        exact = control_by_weights(exact, (weights_N[cohort, None] * change).sum(axis=0), weights_N.sum())
        by_steps = control_by_steps(
            by_steps, (steps_N[cohort, None] * change).sum(axis=0), int(steps_N[cohort].sum()), 4 / 9
        )
        controls_NF = after
    np.testing.assert_allclose(exact, weights_N @ controls_NF / weights_N.sum(), atol=1e-12)
    assert np.abs(by_steps - steps_N @ controls_NF / steps_N.sum()).max() > 0.1


def test_the_control_variate_weighs_by_local_steps():
    c = control_by_steps(np.zeros(1), 1 * np.array([8.0]) + 3 * np.array([4.0]), 4, 0.5)
    np.testing.assert_array_equal(c, [2.5])
    with pytest.raises(ValueError, match="at least one local step"):
        control_by_steps(np.zeros(1), np.zeros(1), 0, 0.5)


# -- convergence -----------------------------------------------------------------------------------------------------


class Quadratics:
    """Clients with losses 1/2 (x - b_i)' A_i (x - b_i) of different curvature and the optimum of their mean."""

    def __init__(self, seed=0, num_clients=6, size=4):
        rng = np.random.default_rng(seed)
        self.A = rng.uniform(0.2, 2.0, (num_clients, size))
        self.b = rng.normal(size=(num_clients, size))
        self.optimum = (self.A * self.b).sum(axis=0) / self.A.sum(axis=0)
        self.ids = list(range(num_clients))

    def run(self, method, rounds, lr, steps, corrected=False):
        state = initial_state(method, np.full(self.b.shape[1], 5.0))
        controls = [np.zeros(self.b.shape[1]) for _ in self.ids]
        for round in range(rounds):
            c = state.arrays.get(CONTROL, np.zeros(self.b.shape[1]))
            visits = {}
            for i in self.ids:
                x = state.vector_F
                for _ in range(steps):
                    x = x - lr * (self.A[i] * (x - self.b[i]) + (c - controls[i] if corrected else 0.0))
                after = controls[i] - c + (state.vector_F - x) / (steps * lr)
                visits[i] = LocalJob(1, steps, x, controls[i], after)
                controls[i] = after
            state = step(method, state, fold(method, visits, self.ids, round=round), 1.0)
        return np.abs(state.vector_F - self.optimum).max()


@pytest.mark.parametrize(
    "kind, keys, rounds",
    [
        ("fedavg", {}, 200),
        ("fedavgm", {"lr": 0.3}, 300),
        ("fedadam", {"lr": 0.1, "lr_decay": 0.99}, 600),
        ("fedyogi", {"lr": 0.1, "lr_decay": 0.99}, 600),
        ("fedadagrad", {"lr": 0.5}, 600),
        ("fedpeptao", {"control": False}, 300),
        ("fedpeptao", {"gradient": "pseudo", "control": False}, 300),
        ("fedpeptao", {"gradient": "pseudo", "base": "previous", "control": False, "lr": 1.0, "lr_decay": 1.0}, 300),
    ],
)
def test_every_method_finds_the_optimum_of_quadratics(kind, keys, rounds):
    problem = Quadratics()
    method = method_of(kind=kind, **keys)
    assert problem.run(method, 0, 0.2, 1) > 4
    assert problem.run(method, rounds, 0.2, 1) < 0.01


def test_scaffold_removes_the_drift_that_fedavg_keeps():
    problem = Quadratics()
    drift = problem.run(method_of(kind="fedavg"), 200, 0.2, 20)
    corrected = problem.run(method_of(kind="scaffold"), 200, 0.2, 20, corrected=True)
    assert drift > 0.05 > 1e-8 > corrected


# -- learning rate, dtypes, state ------------------------------------------------------------------------------------


def learning_rates(method, rounds):
    state = initial_state(method, np.zeros(2))
    for _ in range(rounds):
        combined = fold(method, {0: LocalJob(1, 1, np.ones(2), np.zeros(2), np.zeros(2))}, [0])
        state = step(method, state, combined, 1.0)
        yield state.lr


def test_the_learning_rate_decays_from_the_second_round_on_and_never_rises():
    published = method_of(kind="fedpeptao_published")
    np.testing.assert_allclose(list(learning_rates(published, 4)), 0.05 * 0.99 ** np.arange(4), rtol=1e-12)
    assert list(learning_rates(method_of(kind="fedpeptao", lr=2e-4, lr_decay=0.4), 4)) == [2e-4, 1e-4, 1e-4, 1e-4]
    assert list(learning_rates(method_of(kind="fedadam", lr=1e-5), 3)) == [1e-5] * 3


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("kind", KINDS)
def test_the_state_keeps_its_dtype_and_its_inputs(kind, dtype):
    method = method_of(kind=kind)
    vector_F = np.arange(3, dtype=dtype)
    first = initial_state(method, vector_F)
    state = first
    for _ in range(3):
        combined = fold(method, {0: LocalJob(2, 3, np.ones(3), np.zeros(3), np.ones(3))}, [0])
        state = step(method, state, combined, 0.5)
    arrays = [state.vector_F, *state.arrays.values()]
    assert {array.dtype for array in arrays} == {np.dtype(dtype)}
    np.testing.assert_array_equal(first.vector_F, vector_F)
    assert not first.arrays.get("velocity", np.zeros(1)).any()
    assert not np.shares_memory(first.vector_F, vector_F)


@pytest.mark.parametrize("kind", KINDS)
def test_a_state_restored_from_arrays_goes_on_to_the_same_bits(kind, tmp_path):
    method = method_of(kind=kind)
    rng = np.random.default_rng(6)
    order = [4, 1, 0]
    updates = [fold(method, random_round(rng, order, [np.zeros(SIZE)] * 9), order) for _ in range(4)]
    state = initial_state(method, rng.normal(size=SIZE))
    for combined in updates[:2]:
        state = step(method, state, combined, RATE)
    np.savez(tmp_path / "state.npz", **state_to_arrays(state))
    with np.load(tmp_path / "state.npz") as arrays:
        restored = state_from_arrays(dict(arrays))
    for combined in updates[2:]:
        state, restored = step(method, state, combined, RATE), step(method, restored, combined, RATE)
    ours, theirs = state_to_arrays(state), state_to_arrays(restored)
    assert ours.keys() == theirs.keys()
    assert all(ours[name].tobytes() == theirs[name].tobytes() for name in ours)
    assert type(restored.lr) is float and restored.steps == 4


def test_arrays_that_are_no_server_state():
    server = Server(method_of(kind="fedavgm"), np.zeros(2), (0,), 1.0)
    arrays = server.arrays()
    server.load_arrays(arrays)
    for name in ("lr", "velocity"):
        with pytest.raises(CheckpointError, match=f"lacks {name}"):
            server.load_arrays({k: v for k, v in arrays.items() if k != name})


def test_updates_that_do_not_fit_the_method():
    bare = CombinedUpdate(0, (0,), (), 1.0, 1, np.zeros(3))
    published = method_of(kind="fedpeptao_published")
    with pytest.raises(ValueError, match="does not fit"):
        step(published, initial_state(published, np.zeros(2)), bare, 1.0)
    with pytest.raises(ValueError, match="needs the clients' control variates"):
        step(published, initial_state(published, np.zeros(3)), bare, 1.0)
    chained = method_of(kind="fedpeptao", coupling="chained", momentum_form="clean", debias=False, control=False)
    with pytest.raises(ValueError, match="one by one"):
        step(chained, initial_state(chained, np.zeros(3)), bare, 1.0)
    momentum = method_of(kind="fedavgm")
    with pytest.raises(ValueError, match=r"another server\.kind"):
        step(momentum, replace(initial_state(momentum, np.zeros(3)), arrays={}), bare, 1.0)

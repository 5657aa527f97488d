"""Convergence of every server method on quadratics, against the rate or the floor that theory gives.

Clients have losses 1/2 (x - b_i)' diag(A_i) (x - b_i) and take gradient steps of size lr. Shape suffixes: N clients, F entries.
"""

from dataclasses import dataclass, replace
from itertools import combinations

import numpy as np
import pytest

from fedsim.core.messages import VECTOR, GroupUpdate
from fedsim.methods.control import CHANGE, CONTROL, client_control
from server.aggregation import combine
from server.config import ServerConfig
from server.sampling import cut
from server.step import initial_state, step

RECOMMENDED = {
    "kind": "fedpeptao",
    "gradient": "pseudo",
    "base": "previous",
    "coupling": "independent",
    "momentum_form": "control_in_gradient",
    "control_form": "displacement",
    "control_mean": "weights",
    "control_timing": "before",
    "debias": True,
    "lr": 1.0,
    "lr_decay": 1.0,
}
START = 5.0


@dataclass(frozen=True)
class Quadratics:
    A: np.ndarray
    b: np.ndarray
    lr: float = 0.1
    steps: int = 1
    mu: float = 0.0
    """Strength of FedProx's pull."""
    noise: float = 0.0
    """Standard deviation of what a visit adds by chance to every entry."""

    @classmethod
    def draw(cls, clients=20, alike=False, **keys):
        """Curvatures from 0.3 to 3 by entry; ``alike``: the same for all clients, which then differ in their centres."""
        rng = np.random.default_rng(7)
        factor = 1.0 if alike else rng.uniform(0.3, 1.7, (clients, 4))
        return cls(np.geomspace(0.3, 3.0, 4) * factor * np.ones((clients, 1)), rng.normal(size=(clients, 4)), **keys)

    @property
    def optimum(self):
        return (self.A * self.b).sum(axis=0) / self.A.sum(axis=0)

    @property
    def progress(self):
        """Share h_i of the way to the client's own minimum that a visit covers, [N, F]."""
        return self.A / (self.A + self.mu) * (1.0 - (1.0 - self.lr * (self.A + self.mu)) ** self.steps)

    @property
    def fixed_point(self):
        """Where the mean displacement of all clients is zero: of FedAvg, whose clients drift."""
        return (self.progress * self.b).sum(axis=0) / self.progress.sum(axis=0)

    def job(self, clients, x, drift, rng):
        P = x = np.tile(x, (len(clients), 1))
        for _ in range(self.steps):
            x = x - self.lr * (self.A[clients] * (x - self.b[clients]) + self.mu * (x - P) + drift)
        return x + self.noise * rng.normal(size=x.shape)


def federate(problem, config, rounds, cohort=None, seed=0, weights_N=None):
    """Return P_0, P_1, ... and the server's last state; every client weighs the same unless ``weights_N`` says otherwise."""
    rng = np.random.default_rng(seed)
    number = len(problem.b)
    cohort = cohort or number
    weights_N = np.ones(number) if weights_N is None else weights_N
    method = config.method()
    state, controls = initial_state(method, np.full(problem.b.shape[1], START)), np.zeros_like(problem.b)
    path = [state.vector_F]
    for round in range(rounds):
        order = rng.permutation(number)[:cohort].tolist()
        clients = sorted(order)
        before, after = controls[clients], None
        c = state.arrays.get(CONTROL, np.zeros(problem.b.shape[1]))
        corrected = config.kind == "scaffold"
        local = problem.job(clients, state.vector_F, c - before if corrected else 0.0, rng)
        if CONTROL in method.serves:
            after = client_control(
                before, c, state.vector_F, local, problem.steps, problem.lr,
                form=config.control_form, drift_applied=corrected,
            )  # fmt: skip
            controls[clients] = after
        combined = fold(config, order, problem.steps, local, before, after, round, weights_N[clients])
        state = step(method, state, combined, cohort / number, weights_N.sum())
        path.append(state.vector_F)
    return np.array(path), state


def fold(config, order, steps, local, before, after, round=0, weights_k=None):
    """Return the combined update of a cohort; the arrays are in the order of the clients' ids."""
    clients = sorted(order)
    weights_k = np.ones(len(clients)) if weights_k is None else weights_k
    updates, one_by_one = [], config.method().one_by_one
    for number, group in enumerate(cut(order, 3)):
        rows = [clients.index(client) for client in group]
        w_k1 = weights_k[rows][:, None]
        sums, each = {VECTOR: (w_k1 * local[rows]).sum(axis=0)}, {}
        if after is not None:
            used = before if getattr(config, "control_timing", "after") == "before" else after
            share_k1 = steps if config.control_mean == "steps" else w_k1
            sums[CHANGE] = (share_k1 * (after[rows] - before[rows])).sum(axis=0)
            sums[CONTROL] = (w_k1 * used[rows]).sum(axis=0)
            each = {CONTROL: used[rows]} if one_by_one else {}
        weight, singles = float(weights_k[rows].sum()), weights_k[rows] if one_by_one else None
        updates.append(GroupUpdate(round, number, 0, group, weight, steps * len(rows), sums, each, singles))
    return combine(updates, order)


def radius(*rows):
    return np.abs(np.linalg.eigvals(np.array(rows))).max()


def measured_rate(errors, largest=np.inf):
    """Return the factor a round of a sequence that falls geometrically, perhaps swinging: a line through its logarithm.

    Counted from where it is below ``largest`` to where rounding begins.
    """
    sizes = np.lib.stride_tricks.sliding_window_view(np.abs(errors), 16).max(axis=1)
    used = np.log(sizes[np.argmax(sizes < largest) : np.argmax(sizes < 1e-11) or None])
    used = used[len(used) // 4 :]
    return np.exp(np.polyfit(np.arange(len(used)), used, 1)[0])


# -- all clients take part: linear rates -------------------------------------------------------------------------------


@pytest.mark.parametrize("server_lr", [1.0, 0.5])
@pytest.mark.parametrize("steps", [1, 7])
@pytest.mark.parametrize("mu", [0.0, 2.0])
def test_fedavg_and_fedprox_contract_as_local_gradient_descent_does(server_lr, steps, mu):
    """Every entry by 1 - eta_s h in every round, h = 1 - (1 - lr A)^T; with one step the largest is max |1 - lr A|."""
    problem = Quadratics.draw(alike=True, steps=steps, mu=mu)
    kind = "fedprox" if mu else "fedavg"
    path, _ = federate(problem, ServerConfig(kind=kind, lr=server_lr), 30)
    errors = path - problem.b.mean(axis=0)
    factor = 1.0 - server_lr * problem.progress[0]
    np.testing.assert_allclose(errors[1:], errors[:-1] * factor, rtol=1e-9, atol=1e-14)
    if (server_lr, steps, mu) == (1.0, 1, 0.0):
        np.testing.assert_allclose(np.abs(errors[1:]).max(axis=1)[-5:] / np.abs(errors[:-1]).max(axis=1)[-5:], 0.97)


def test_fedavg_with_one_step_on_unlike_clients_contracts_by_the_mean_curvature():
    problem = Quadratics.draw()
    path, _ = federate(problem, ServerConfig(kind="fedavg"), 30)
    errors = path - problem.optimum
    np.testing.assert_allclose(errors[1:], errors[:-1] * (1.0 - 0.1 * problem.A.mean(axis=0)), rtol=1e-9, atol=1e-14)


@pytest.mark.parametrize("beta", [0.0, 0.5, 0.9])
def test_fedavgm_is_the_heavy_ball(beta):
    """e+ = e - eta_s (beta v + h e): rate = spectral radius of its companion matrix."""
    problem = Quadratics.draw(alike=True)
    path, _ = federate(problem, ServerConfig(kind="fedavgm", lr=0.9, momentum=beta), 200)
    errors = path - problem.optimum
    for entry, h in enumerate(problem.progress[0]):
        theory = radius([1 + beta - 0.9 * h, -beta], [1.0, 0.0])
        assert measured_rate(errors[:, entry]) == pytest.approx(theory, rel=0.02)
        np.testing.assert_allclose(
            errors[2:, entry], (1 + beta - 0.9 * h) * errors[1:-1, entry] - beta * errors[:-2, entry], atol=1e-12
        )


@pytest.mark.parametrize("beta", [0.0, 0.5, 0.9])
def test_our_step_is_an_averaged_heavy_ball_whose_first_rounds_are_not_damped(beta):
    """v = beta v + (1 - beta) delta, e+ = e - eta_s v / (1 - beta^t); in the end the heavy ball with (1 - beta) eta_s."""
    problem = Quadratics.draw(alike=True, steps=3)
    path, _ = federate(problem, ServerConfig(**RECOMMENDED, momentum=beta), 200)
    errors = path - problem.optimum
    h = problem.progress[0]
    e, v = errors[0], 0.0
    for t, seen in enumerate(errors[1:], 1):
        v = beta * v + (1 - beta) * h * e
        e = e - v / (1 - beta**t)
        np.testing.assert_allclose(seen, e, atol=1e-12)
    np.testing.assert_allclose(errors[1], (1 - h) * errors[0], rtol=1e-12)  # the first round is FedAvg's
    theory = radius([1 + beta - (1 - beta) * h[0], -beta], [1.0, 0.0])
    assert measured_rate(errors[:, 0]) == pytest.approx(theory, rel=0.01)


def published_matrix(h, clients, eta, beta):
    """Mean iteration of (e, delta of the last round, v) of the published step where all clients take part: c = mean c_i."""
    k = np.arange(1, clients + 1)
    later, kept = (clients - k + 1) / clients, beta**k
    moved = eta * (later @ (1 - kept)) * np.array([-h, 1, 0]) + eta * (later @ kept) * np.array([0, 0, 1])
    velocity = np.mean(1 - kept) * np.array([-h, 1, 0]) + kept.mean() * np.array([0, 0, 1])
    return np.array([1 - h, 0, 0]) - moved, np.array([h, 0, 0]), velocity


@pytest.mark.parametrize("clients", [1, 6, 20])
def test_the_published_step_contracts_as_its_linear_iteration_where_it_is_stable(clients):
    problem = Quadratics.draw(clients, alike=True, lr=0.04, steps=168)
    # Chained steps weigh the clients by their place in the order; alike in all, they cannot tell.
    problem = replace(problem, b=np.tile(problem.b[0], (clients, 1)))
    path, _ = federate(problem, ServerConfig(kind="fedpeptao_published", lr_decay=1.0), 60)
    errors = path - problem.optimum
    state = np.stack([(1 - problem.progress[0]) * errors[0], problem.progress[0] * errors[0], np.zeros(4)])
    for seen in errors[1:]:
        np.testing.assert_allclose(seen, state[0], atol=1e-11)
        matrices = [np.array(published_matrix(h, clients, 0.05, 0.9)) for h in problem.progress[0]]
        state = np.stack([matrix @ column for matrix, column in zip(matrices, state.T, strict=True)], axis=1)
    theory = radius(*published_matrix(problem.progress[0, 0], clients, 0.05, 0.9))
    assert measured_rate(errors[:, 0]) == pytest.approx(theory, rel=0.03)


# -- adaptive methods --------------------------------------------------------------------------------------------------


def averaged_heavy_ball(beta, gain):
    return radius([1 + beta - (1 - beta) * gain, -beta], [1.0, 0.0])


@pytest.mark.parametrize("kind, lr", [("fedadam", 0.02), ("fedyogi", 0.02), ("fedadagrad", 0.5)])
@pytest.mark.parametrize("beta", [0.0, 0.3])
def test_adaptive_methods_converge_linearly_where_tau_outweighs_the_learning_rate(kind, lr, beta):
    """Their second moment ends at some v (zero for Adam): the heavy ball with eta_s / (sqrt(v) + tau)."""
    problem = Quadratics.draw(alike=True, lr=0.2)
    beta2 = {} if kind == "fedadagrad" else {"beta2": 0.5}
    config = ServerConfig(kind=kind, lr=lr, momentum=beta, tau=0.02, **beta2)
    path, state = federate(problem, config, 1500)
    errors = path - problem.optimum
    for entry, h in enumerate(problem.progress[0]):
        theory = averaged_heavy_ball(beta, lr * h / (np.sqrt(state.arrays["second_moment"][entry]) + 0.02))
        assert measured_rate(errors[:, entry], largest=1e-4) == pytest.approx(theory, rel=0.02)


def test_adam_swings_where_the_learning_rate_outweighs_tau():
    """Between +e and -e with |e| = eta_s / 2 - tau / h: there a step is as long as the way to the other side."""
    problem = replace(Quadratics.draw(alike=True, lr=0.2), A=np.full((20, 4), 2.0))
    path, _ = federate(problem, ServerConfig(kind="fedadam", lr=0.05, momentum=0.0, beta2=0.5, tau=0.007), 800)
    np.testing.assert_allclose(np.abs(path[-2:] - problem.optimum), 0.05 / 2 - 0.007 / 0.4, rtol=1e-6)


GAUSSIAN_YOGI = np.sqrt(2.36597)
"""Yogi's v rests where smaller squares add up to as much as larger ones: at the median of chi-square with 3 degrees."""


def noisy(entries=400):
    """A start at the optimum, h, and sigma: the Gaussian error of every round's mean displacement, 0.1 / sqrt(4)."""
    return Quadratics(np.full((4, entries), 2.0), np.full((4, entries), START), lr=0.1, noise=0.1), 0.2, 0.05


@pytest.mark.parametrize("kind, excess", [("fedadam", 1.0), ("fedyogi", GAUSSIAN_YOGI)])
@pytest.mark.parametrize("lr", [0.02, 0.01])
def test_noise_leaves_adam_and_yogi_at_a_floor_in_proportion_to_their_learning_rate(kind, excess, lr):
    """E e^2 = eta_s sigma / (2 h), since sqrt(v) rests at sigma (Adam) or at 1.54 sigma (Yogi)."""
    problem, h, sigma = noisy()
    path, _ = federate(problem, ServerConfig(kind=kind, lr=lr, momentum=0.5, beta2=0.99, tau=1e-6), 4000)
    assert np.mean((path[-1000:] - START) ** 2) == pytest.approx(lr * sigma / (2 * h * excess), rel=0.1)


@pytest.mark.parametrize("kind, excess", [("fedadam", 1.0), ("fedyogi", GAUSSIAN_YOGI)])
def test_the_floor_falls_with_a_decaying_learning_rate(kind, excess):
    problem, h, sigma = noisy()
    config = ServerConfig(kind=kind, lr=0.1, lr_decay=0.999, lr_min=0.0, momentum=0.5, beta2=0.99, tau=1e-6)
    path, state = federate(problem, config, 4000)
    assert state.lr < 0.002
    assert np.mean((path[-1] - START) ** 2) == pytest.approx(state.lr * sigma / (2 * h * excess), rel=0.2)


def test_noise_leaves_adagrad_no_floor():
    """Its steps shrink as 1 / sqrt(t), so E e^2 falls like eta_s sigma / (2 h sqrt(t))."""
    problem, h, sigma = noisy()
    path, _ = federate(problem, ServerConfig(kind="fedadagrad", lr=0.1, tau=1e-6), 4000)
    for t in (1000, 4000):
        assert np.mean((path[t - 100 : t] - START) ** 2) == pytest.approx(0.1 * sigma / (2 * h * t**0.5), rel=0.15)


# -- some clients take part: noise floors, and methods without one -----------------------------------------------------


def test_fedavg_stalls_at_the_noise_floor_of_its_cohorts():
    """E e^2 = h / (2 - h) times the variance of a cohort's mean, for clients of equal curvature."""
    number, cohort = 20, 5
    problem = Quadratics(np.full((number, 300), 2.0), np.random.default_rng(3).normal(size=(number, 300)), lr=0.1)
    path, _ = federate(problem, ServerConfig(kind="fedavg"), 1500, cohort)
    variance_F = problem.b.var(axis=0) / cohort * (number - cohort) / (number - 1)
    seen_F = ((path[200:] - problem.optimum) ** 2).mean(axis=0)
    assert np.mean(seen_F / variance_F) == pytest.approx(0.2 / (2 - 0.2), rel=0.05)


@pytest.mark.parametrize("kind, beta", [("scaffold", 0.0), ("fedpeptao", 0.0), ("fedpeptao", 0.5), ("fedpeptao", 0.9)])
def test_control_variates_reach_the_optimum_with_few_clients_a_round(kind, beta):
    """In the mean over cohorts the step is that of all clients, so the rate is as if all took part."""
    problem = Quadratics.draw(40, lr=0.05)
    config = ServerConfig(kind="scaffold") if kind == "scaffold" else ServerConfig(**RECOMMENDED, momentum=beta)
    path, _ = federate(problem, config, 1500, cohort=10)
    errors = path - problem.optimum
    assert np.abs(errors[-1]).max() < 1e-9
    # The slowest entry: its progress a round, 0.015, is far below the share 0.25 of clients whose memory is renewed.
    h = problem.progress.mean(axis=0)[0]
    assert measured_rate(errors[:, 0]) == pytest.approx(averaged_heavy_ball(beta, h), abs=5e-4)
    fedavg, _ = federate(problem, ServerConfig(kind="fedavg"), 1500, cohort=10)
    assert np.abs(fedavg[-100:] - problem.optimum).mean() > 1e-2


def test_with_one_local_step_our_step_without_momentum_is_scaffold():
    problem = Quadratics.draw(12)
    ours, _ = federate(problem, ServerConfig(**RECOMMENDED, momentum=0.0), 40, cohort=3)
    theirs, _ = federate(problem, ServerConfig(kind="scaffold"), 40, cohort=3)
    np.testing.assert_allclose(ours, theirs, rtol=1e-10, atol=1e-12)


def test_what_several_local_steps_leave_scaffold_removes_and_control_in_the_server_step_does_not():
    """Ours ends where FedAvg with all clients ends, without the noise of cohorts; client drift is left in it."""
    problem = Quadratics.draw(12, steps=10)
    drifted = problem.fixed_point
    assert np.abs(drifted - problem.optimum).max() > 0.02
    scaffold, _ = federate(problem, ServerConfig(kind="scaffold"), 600, cohort=3)
    assert np.abs(scaffold[-1] - problem.optimum).max() < 1e-9
    ours, _ = federate(problem, ServerConfig(**RECOMMENDED, momentum=0.5), 600, cohort=3)
    everyone, _ = federate(problem, ServerConfig(kind="fedavg"), 600)
    assert np.abs(ours[-1] - drifted).max() < 1e-9 and np.abs(everyone[-1] - drifted).max() < 1e-9


@pytest.mark.parametrize("kind", ["fedpeptao", "scaffold"])
def test_with_unequal_clients_the_exact_mean_finds_the_optimum_and_the_published_one_does_not(kind):
    """Few of many clients a round, of sizes 1 to 50: the weighted optimum, or where a c that has drifted holds the server."""
    problem, rng = Quadratics.draw(30, alike=True, steps=1), np.random.default_rng(3)
    weights_N = rng.integers(1, 50, 30).astype(float)
    optimum = weights_N @ problem.b / weights_N.sum()
    keys = {**RECOMMENDED, "momentum": 0.5} if kind == "fedpeptao" else {"kind": kind}
    errors = {}
    for mean in ("weights", "steps"):
        path, _ = federate(problem, ServerConfig(**{**keys, "control_mean": mean}), 1500, 6, weights_N=weights_N)
        errors[mean] = np.abs(path[-1] - optimum).max()
    assert errors["weights"] < 1e-9 < 0.01 < errors["steps"]


@pytest.mark.parametrize("form", ["displacement", "scaffold"])
@pytest.mark.parametrize("timing", ["before", "after"])
def test_the_mean_over_all_cohorts_of_the_control_variates_correction(form, timing):
    """With c the mean of all c_i: zero for those from before the round, -(1 - rho) E[c_i+ - c_i] for those after it."""
    number, cohort, rng = 7, 3, np.random.default_rng(0)
    problem = Quadratics.draw(number, steps=4)
    keys = {**RECOMMENDED, "control_form": form, "control_timing": timing, "debias": False, "momentum": 0.0}
    config = ServerConfig(**keys)
    controls = rng.normal(size=(number, 4))
    method = config.method()
    state = initial_state(method, rng.normal(size=4)).with_arrays(control=controls.mean(axis=0))
    corrections, changes = [], []
    for order in combinations(range(number), cohort):
        before = controls[list(order)]
        local = problem.job(list(order), state.vector_F, 0.0, rng)
        after = client_control(before, state.arrays[CONTROL], state.vector_F, local, 4, problem.lr, form=form)
        combined = fold(config, list(order), 4, local, before, after)
        moved = state.vector_F - step(method, state, combined, cohort / number).vector_F
        corrections.append(moved - (state.vector_F - local.mean(axis=0)))
        changes.append((after - before).mean(axis=0))
    share = 0.0 if timing == "before" else -(1 - cohort / number)
    np.testing.assert_allclose(np.mean(corrections, axis=0), share * np.mean(changes, axis=0), atol=1e-13)
    assert np.abs(corrections).max() > 0.1


def test_old_displacements_bring_the_chance_of_their_own_visit_with_them():
    """The price of control variates: chance in local training (mini-batches) enters twice, now and from the last visit.

    They pay where clients differ by more than their own visits do: Var = s^2 / m without, (2 - rho) s^2 / m with them.
    """
    number, cohort, entries = 20, 5, 300
    still = Quadratics(np.zeros((number, entries)), np.zeros((number, entries)), noise=1.0)
    walks = {}
    for name, config in (("ours", ServerConfig(**RECOMMENDED, momentum=0.0)), ("fedavg", ServerConfig(kind="fedavg"))):
        path, _ = federate(still, config, 400, cohort)
        walks[name] = np.mean(np.diff(path[100:], axis=0) ** 2)
    assert walks["fedavg"] == pytest.approx(1 / cohort, rel=0.02)
    assert walks["ours"] == pytest.approx((2 - cohort / number) / cohort, rel=0.02)

"""The local corrections on convex problems whose answers are known.

Client i has the loss f_i(x) = 1/2 (x - a_i)' diag(h_i) (x - a_i), with strongly different curvature h_i and centre a_i. The
optimum of the mean is x* = sum w_i h_i a_i / sum w_i h_i. Worker, sums, aggregation and server are the real ones; the quadratic
takes the place of the language model. Shape suffixes: N clients, F entries.
"""

from dataclasses import dataclass, replace
from itertools import combinations

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from support import make_tiny

from clients.backbone.heads import Reading
from clients.optimizer_config import OptimizerConfig
from clients.training.group import GroupTraining
from clients.training.optimizers import Moments, direction, gain
from clients.training.sums import GroupSums
from clients.tuners.prefix_tuner import PrefixTuner
from clients.worker import ClientWorker, WorkerSpec
from fedsim.core.layout import PromptGeometry, VectorLayout
from fedsim.core.messages import ClientReport, ClientState, WorkGroup
from fedsim.core.method import ClientRound
from fedsim.core.shards import Shards
from fedsim.core.tokens import TokenTable
from fedsim.methods.preconditioner import Preconditioner
from fedsim.simulation.preparation import analysis_spec, training_spec
from server.aggregation import combine
from server.core import Server

SIZES = (3, 2, 4)
"""Examples of each client; no part of the clients weighs as much as the rest, so weighted medians are unique."""
GEOMETRY = PromptGeometry(num_layers=1, num_kv_heads=1, prompt_length=1, head_dim=3)
PLAIN_ADAM = {"kind": "adamw", "lr": 0.3, "weight_decay": 0.0, "clip_norm": None}
PLAIN_SGD = {"kind": "sgd", "lr": 0.1, "weight_decay": 0.0, "clip_norm": None}


class Quadratic:
    """A differentiable model of one layer whose prompt is x; an example's class says whose loss it is."""

    device, hidden_size = torch.device("cpu"), 1
    shares_beginnings = False

    def __init__(self, h_NF, a_NF):
        self.h_NF, self.a_NF = torch.from_numpy(h_NF), torch.from_numpy(a_NF)

    def cached_rows(self, lengths_N):
        return lengths_N

    def read(self, tokens, prompt_CLKHPD, layers, head_C, client_of_example_B, cached_ZD=None, mask=None):
        assert mask is None
        of_client_B = torch.from_numpy(tokens.labels_B)
        away_BF = prompt_CLKHPD.flatten(1)[client_of_example_B] - self.a_NF[of_client_B]
        return Reading(0.5 * (self.h_NF[of_client_B] * away_BF**2).sum(dim=1), -away_BF), tokens.lengths_B


class QuadraticWorker(ClientWorker):
    """The real worker around the quadratic."""

    def __init__(self, spec, model):
        self._spec, self._backbone = spec, model
        self._full = VectorLayout.full(GEOMETRY)
        self._training = GroupTraining(spec, model, self._full)


@dataclass(frozen=True)
class Problem:
    h_NF: np.ndarray
    a_NF: np.ndarray
    sizes_N: np.ndarray

    @classmethod
    def draw(cls, sizes=SIZES):
        rng = np.random.default_rng(5)
        shape = (len(sizes), 2 * GEOMETRY.head_dim)
        return cls(np.exp(rng.uniform(np.log(0.3), np.log(5.0), shape)), rng.normal(size=shape), np.array(sizes))

    def weighted_mean(self, strength_NF, weights_N=None):
        """Return sum w_i s_i a_i / sum w_i s_i."""
        s_NF = (self.sizes_N if weights_N is None else weights_N)[:, None] * strength_NF
        return (s_NF * self.a_NF).sum(axis=0) / s_NF.sum(axis=0)

    @property
    def optimum_F(self):
        return self.weighted_mean(self.h_NF)

    @property
    def median_F(self):
        """Where sum w_i sign(gradient_i) changes its sign, entry by entry: the weighted median of the centres."""
        order_NF = np.argsort(self.a_NF, axis=0)
        reached_NF = np.cumsum(self.sizes_N[order_NF], axis=0) > self.sizes_N.sum() / 2
        return np.take_along_axis(self.a_NF, order_NF, axis=0)[reached_NF.argmax(axis=0), np.arange(self.a_NF.shape[1])]

    def spec(self, config):
        number, total = len(self.sizes_N), int(self.sizes_N.sum())
        labels_N = np.repeat(np.arange(number), self.sizes_N)
        table = TokenTable(np.zeros(total, np.int32), np.arange(total + 1), np.zeros(total, np.int32), labels_N, 0)
        stops_C = np.cumsum(self.sizes_N)
        shards = Shards(np.arange(total), np.concatenate([[0], stops_C]), stops_C)
        return WorkerSpec(
            None,
            config.model,
            PrefixTuner(config.prompt),
            number,
            None,
            training_spec(config, total),
            analysis_spec(config),
            table,
            table,
            shards,
        )


def train(problem, rounds, decay=1.0, start=0.0, fuse=3, **keys):
    """Run all clients for some rounds, the local learning rate multiplied by ``decay`` after each; return P_0, P_1, ..."""
    config = make_tiny(
        executor="local", model={"dtype": "float64"}, partition={"clients": len(problem.sizes_N)},
        sampling={"clients_per_round": len(problem.sizes_N)}, **keys,
    )  # fmt: skip
    spec, clients = problem.spec(config), tuple(range(len(problem.sizes_N)))
    server = Server(config.method, np.full(problem.a_NF.shape[1], float(start)), (0,), 1.0)
    states = [ClientState(client) for client in clients]
    path = [server.global_state().vector_F]
    for round in range(rounds):
        optimizer = config.client.optimizer.model_copy(update={"lr": config.client.optimizer.lr * decay**round})
        client = config.client.model_copy(update={"optimizer": optimizer})
        training = replace(spec.training, client=client)
        worker = QuadraticWorker(replace(spec, training=training), Quadratic(problem.h_NF, problem.a_NF))
        reports, update, *states = worker.train(
            WorkGroup(round, 0, clients, fuse=fuse), server.global_state(), *states
        ).pack()
        assert all(report.failure is None for report in reports)
        server.apply(round, clients, update)
        path.append(server.global_state().vector_F)
    return np.array(path)


def local(correction, optimizer=PLAIN_ADAM, **work):
    visit = {} if "steps" in work else {"epochs": 1}
    return {"correction": correction, "optimizer": optimizer, "batch_size": 100, **visit, **work}


FEDAVG = {"kind": "fedavg"}
UNEQUAL_STEPS = {"epochs": 1, "batch_size": 1}
"""T_i = 3, 2, 4."""


@pytest.mark.parametrize(
    "correction, server", [("none", FEDAVG), ("preconditioner", FEDAVG), ("control", {"kind": "scaffold"}),
                           ("proximal", {"kind": "fedprox"})],
)  # fmt: skip
@pytest.mark.parametrize("optimizer", [PLAIN_ADAM, {**PLAIN_SGD, "momentum": 0.9, "clip_norm": 0.5}])
def test_clients_that_share_passes_go_the_way_of_clients_one_by_one(correction, server, optimizer):
    """With unequal numbers of steps, each clipped by its own norm."""
    pull = {"proximal_mu": 1.5} if correction == "proximal" else {}
    problem, client = Problem.draw(), local(correction, optimizer, **UNEQUAL_STEPS, **pull)
    alone, pairs, all_three = (train(problem, 8, fuse=fuse, client=client, server=server) for fuse in (1, 2, 3))
    assert np.abs(alone[-1] - alone[0]).max() > 0.1
    for path in (pairs, all_three):
        np.testing.assert_allclose(path, alone, rtol=1e-12, atol=1e-13)


# -- none ---------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("steps", [1, 4])
def test_plain_adam_ends_at_the_weighted_median_of_the_clients_not_at_the_optimum(steps):
    """A step is nearly the gradient's sign, so every client pulls as hard: sum w_i sign(g_i) = 0."""
    problem = Problem.draw()
    assert np.abs(problem.median_F - problem.optimum_F).max() > 0.4
    path = train(problem, 300, 0.98, client=local("none", steps=steps), server=FEDAVG)
    np.testing.assert_allclose(path[-1], problem.median_F, atol=5e-3)


def test_plain_sgd_with_unequal_steps_weighs_clients_by_them_as_well():
    problem = Problem.draw()
    path = train(problem, 300, 0.98, client=local("none", PLAIN_SGD, **UNEQUAL_STEPS), server=FEDAVG)
    inconsistent_F = problem.weighted_mean(problem.h_NF, problem.sizes_N**2)
    assert np.abs(inconsistent_F - problem.optimum_F).max() > 0.05
    np.testing.assert_allclose(path[-1], inconsistent_F, atol=5e-3)


# -- preconditioner -----------------------------------------------------------------------------------------------------


def test_one_step_in_the_common_metric_is_the_mean_gradient_over_the_mean_metric():
    """P - eta sum w_i g_i / sum w_i |g_i|: Adam's first preconditioner is 1 / |g|."""
    problem = Problem.draw()
    path = train(problem, 1, start=-0.4, client=local("preconditioner", steps=1), server=FEDAVG)
    g_NF, w_N1 = problem.h_NF * (-0.4 - problem.a_NF), problem.sizes_N[:, None]
    np.testing.assert_allclose(path[1], -0.4 - 0.3 * (w_N1 * g_NF).sum(0) / (w_N1 * np.abs(g_NF)).sum(0), rtol=1e-6)


@pytest.mark.parametrize(
    "optimizer, work",
    [
        pytest.param(PLAIN_ADAM, {"steps": 1}, marks=pytest.mark.wide),
        (PLAIN_ADAM, {"steps": 4}),
        pytest.param(PLAIN_ADAM, UNEQUAL_STEPS, marks=pytest.mark.wide),
        pytest.param({**PLAIN_ADAM, "clip_norm": 0.5}, {"steps": 4}, marks=pytest.mark.wide),
        ({**PLAIN_ADAM, "clip_norm": 0.5}, UNEQUAL_STEPS),
        ({**PLAIN_ADAM, "kind": "adamw_published"}, UNEQUAL_STEPS),
        pytest.param(PLAIN_SGD, UNEQUAL_STEPS, marks=pytest.mark.wide),
        ({**PLAIN_SGD, "momentum": 0.9, "lr": 0.04}, UNEQUAL_STEPS),
        ({**PLAIN_SGD, "clip_norm": 0.5, "lr": 0.3}, UNEQUAL_STEPS),
    ],
)
def test_averaged_in_a_common_metric_clients_find_the_optimum(optimizer, work):
    """Whatever their preconditioners, their numbers of steps (as FedNova) and how much each is clipped."""
    problem = Problem.draw()
    path = train(problem, 250, 0.975, client=local("preconditioner", optimizer, **work), server=FEDAVG)
    np.testing.assert_allclose(path[-1], problem.optimum_F, atol=5e-3)


def results(weights_k, stepped_kF, gain_kF, start_F):
    """Return the combined update of clients that took these steps with these gains."""
    clients = tuple(range(len(weights_k)))
    metric = Preconditioner()
    sums = GroupSums(WorkGroup(0, 0, clients), len(start_F), (metric,))
    for client, weight in enumerate(weights_k):
        tallies = {"stepped": stepped_kF[client], "gain": gain_kF[client]}
        one = ClientRound(None, int(weight), 3, start_F, vector_F=start_F - stepped_kF[client], tallies=tallies)
        sums.add((ClientReport(client, 0, int(weight), 3), one))
    return combine([sums.update()], clients, metric.average)


@given(st.data())
def test_the_common_metric_takes_each_entry_to_a_point_among_the_clients(data):
    """Entry by entry a convex combination of the clients' changes, with weights w_i / gain_i."""
    clients, size = data.draw(st.integers(1, 5)), 3

    def draw(low, high):
        values = st.lists(st.floats(low, high), min_size=clients * size, max_size=clients * size)
        return np.array(data.draw(values)).reshape(clients, size)

    weights_k = np.array(data.draw(st.lists(st.integers(1, 1000), min_size=clients, max_size=clients)))
    stepped_kF, gain_kF, start_F = draw(-10.0, 10.0), 10.0 ** draw(-6.0, 6.0), draw(-5.0, 5.0)[0]
    average_F = results(weights_k, stepped_kF, gain_kF, start_F).vector_F
    share_kF = weights_k[:, None] / gain_kF
    np.testing.assert_allclose(average_F, start_F - (share_kF * stepped_kF).sum(0) / share_kF.sum(0), atol=1e-9)
    points_kF = start_F - stepped_kF
    assert (points_kF.min(axis=0) - 1e-9 <= average_F).all() and (average_F <= points_kF.max(axis=0) + 1e-9).all()


def test_the_common_metric_of_a_cohort_is_biased_and_that_of_all_clients_is_not():
    """At x*, sum w g / sum w |g| over cohorts: both sums go together, so their mean is zero only once all take part."""
    problem, number = Problem.draw((1,) * 6), 6
    g_NF = problem.h_NF * (problem.optimum_F - problem.a_NF)
    biases = []
    for cohort in (2, 3, 4, 6):
        steps = [
            results(
                np.ones(cohort), np.sign(g_NF[list(chosen)]), 1.0 / np.abs(g_NF[list(chosen)]), np.zeros(6)
            ).vector_F
            for chosen in combinations(range(number), cohort)
        ]
        biases.append(np.abs(np.mean(steps, axis=0)).max())
    assert biases[0] > biases[1] > biases[2] > 0.02 and biases[3] < 1e-12


def test_with_equal_gains_the_common_metric_is_the_plain_average():
    rng = np.random.default_rng(0)
    weights_k, stepped_kF, start_F = np.array([3, 1, 5]), rng.normal(size=(3, 4)), rng.normal(size=4)
    average_F = results(weights_k, stepped_kF, np.full((3, 4), 0.7), start_F).vector_F
    np.testing.assert_allclose(average_F, start_F - weights_k @ stepped_kF / 9, rtol=1e-12)


@pytest.mark.parametrize(
    "keys",
    [
        {"kind": "adamw"},
        {"kind": "adamw", "eps": 1e-2, "beta1": 0.5, "beta2": 0.9},
        {"kind": "adamw_published", "eps": 1e-2},
        {"kind": "adamw_published", "beta2": 0.9},
        {"kind": "sgd"},
        {"kind": "sgd", "momentum": 0.9},
    ],
)
@given(
    st.lists(st.floats(1e-3, 1e3), min_size=2, max_size=5), st.lists(st.sampled_from([-1.0, 1.0]), min_size=5, max_size=5),
    st.integers(1, 12),
)  # fmt: skip
def test_the_gain_is_what_a_steady_gradient_is_multiplied_by(keys, sizes, signs, steps):
    config = OptimizerConfig.model_validate(keys)
    gradient_A = torch.tensor(sizes, dtype=torch.float64) * torch.tensor(signs[: len(sizes)], dtype=torch.float64)
    gradient_1A = gradient_A.unsqueeze(0)
    moments = Moments.zeros(gradient_1A)
    for _ in range(steps):
        step_1A = direction(config, moments, gradient_1A.clone())
        torch.testing.assert_close(step_1A / gradient_1A, gain(config, moments), rtol=1e-9, atol=0.0)


# -- control ------------------------------------------------------------------------------------------------------------


SCAFFOLD = {"kind": "scaffold", "weighting": "uniform"}


def test_control_takes_away_the_drift_of_several_local_steps():
    """SCAFFOLD with SGD at a constant learning rate: at x*; FedAvg at sum k_i a_i / sum k_i, k = 1 - (1 - eta h)^T."""
    problem, ones_N, sgd = Problem.draw(), np.ones(3), PLAIN_SGD
    drifted_F = problem.weighted_mean(1.0 - (1.0 - 0.1 * problem.h_NF) ** 10, ones_N)
    optimum_F = problem.weighted_mean(problem.h_NF, ones_N)
    assert np.abs(drifted_F - optimum_F).max() > 0.1
    plain = train(problem, 100, client=local("none", sgd, steps=10), server={**FEDAVG, "weighting": "uniform"})
    np.testing.assert_allclose(plain[-1], drifted_F, atol=1e-9)
    corrected = train(problem, 150, client=local("control", sgd, steps=10), server=SCAFFOLD)
    np.testing.assert_allclose(corrected[-1], optimum_F, atol=1e-9)


@pytest.mark.parametrize("form", ["scaffold", "displacement"])
def test_both_forms_of_control_variates_correct_local_steps_alike(form):
    """c_i in displacements is T eta times c_i per step, and is divided by it where it is added to a step."""
    problem = Problem.draw()
    paths = [
        train(problem, 20, client=local("control", PLAIN_SGD, steps=10), server={**SCAFFOLD, "control_form": chosen})
        for chosen in ("scaffold", form)
    ]
    np.testing.assert_allclose(*paths, rtol=1e-9, atol=1e-12)


def test_control_does_not_cure_adams_bias():
    """It makes clients go the same way, but that way is still the mean of their preconditioned gradients."""
    problem = Problem.draw((1, 1, 1))
    path = train(problem, 300, 0.98, client=local("control", steps=4), server=SCAFFOLD)
    assert np.abs(problem.median_F - problem.optimum_F).max() > 0.3
    np.testing.assert_allclose(path[-1], problem.median_F, atol=2e-2)


# -- proximal -----------------------------------------------------------------------------------------------------------


def test_with_many_local_steps_the_proximal_term_gives_the_proximal_point():
    """P+ = sum w_i (h_i a_i + mu P) / (h_i + mu): to its fixed point by the factor sum w_i mu / (h_i + mu) a round."""
    problem, mu = Problem.draw(), 1.5
    client = local("proximal", {**PLAIN_SGD, "lr": 0.15}, steps=80, proximal_mu=mu)
    path = train(problem, 4, start=2.0, client=client, server={"kind": "fedprox"})
    w_N1 = problem.sizes_N[:, None] / problem.sizes_N.sum()
    points_NF = (problem.h_NF * problem.a_NF + mu * 2.0) / (problem.h_NF + mu)
    np.testing.assert_allclose(path[1], (w_N1 * points_NF).sum(axis=0), rtol=1e-9)
    fixed_F = problem.weighted_mean(problem.h_NF * mu / (problem.h_NF + mu))
    factor_F = (w_N1 * mu / (problem.h_NF + mu)).sum(axis=0)
    np.testing.assert_allclose(path[1:] - fixed_F, (path[:-1] - fixed_F) * factor_F, rtol=1e-7, atol=1e-9)


def test_a_stronger_pull_brings_the_fixed_point_nearer_to_the_optimum():
    """With T steps a client covers the share k = h / (h + mu) (1 - (1 - eta (h + mu))^T) of the way to its centre."""
    problem, gaps = Problem.draw(), []
    w_N1 = problem.sizes_N[:, None] / problem.sizes_N.sum()
    for mu in (0.1, 1.0, 10.0):
        client = local("proximal", {**PLAIN_SGD, "lr": 0.05}, steps=20, proximal_mu=mu)
        path = train(problem, 5, start=2.0, client=client, server={"kind": "fedprox"})
        share_NF = problem.h_NF / (problem.h_NF + mu) * (1.0 - (1.0 - 0.05 * (problem.h_NF + mu)) ** 20)
        fixed_F = problem.weighted_mean(share_NF)
        np.testing.assert_allclose(
            path[1:] - fixed_F, (path[:-1] - fixed_F) * (1 - (w_N1 * share_NF).sum(0)), atol=1e-9
        )
        gaps.append(np.abs(fixed_F - problem.optimum_F).max())
    assert gaps[0] > gaps[1] > gaps[2]

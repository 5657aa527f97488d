"""FedDyn on the convex problems of ``test_corrections``, with the real worker, sums and server."""

import numpy as np
import pytest
from support import make_tiny
from test_corrections import PLAIN_SGD, UNEQUAL_STEPS, Problem, local, train

from fedsim.configuration.schema import build_config
from fedsim.core.errors import ConfigError
from fedsim.core.messages import VECTOR, CombinedUpdate
from fedsim.core.method import ClientRound
from fedsim.methods.feddyn import DynamicRegularizer, FedDyn
from server.config import ServerConfig
from server.step import initial_state, step

FEDDYN = {"kind": "feddyn", "alpha": 1.0}


@pytest.mark.parametrize("work", [{"steps": 8}, UNEQUAL_STEPS], ids=["many steps", "unequal steps"])
def test_it_finds_the_optimum_of_the_sum_where_fedavg_does_not(work):
    problem, client = Problem.draw(), local("none", PLAIN_SGD, **work)
    fedavg = train(problem, 60, client=client, server={"kind": "fedavg"})
    feddyn = train(problem, 150, client=client, server=FEDDYN)
    assert np.abs(fedavg[-1] - problem.optimum_F).max() > 0.03
    np.testing.assert_allclose(feddyn[-1], problem.optimum_F, atol=1e-4)


def test_where_devices_train_to_the_end_what_they_keep_is_the_gradient_at_their_vector():
    """So h_i - alpha (p - P_t) = grad f_i(p) at P_i: the first round from h_i = 0, on one entry."""
    alpha, h, a, start_F = 0.5, 2.0, 3.0, np.array([1.0])
    trained_F = (h * a + alpha * start_F) / (h + alpha)  # where h (p - a) + alpha (p - P_t) = 0
    client = ClientRound(None, 1, 1, start_F, vector_F=trained_F)
    np.testing.assert_allclose(DynamicRegularizer(alpha).finish(client)["feddyn"], h * (trained_F - a), rtol=1e-12)


def test_the_server_keeps_the_mean_of_what_all_clients_keep_whoever_takes_part():
    rng = np.random.default_rng(0)
    method, alpha, weights_N = FedDyn(FedDyn.Config(alpha=0.3)), 0.3, np.array([1.0, 4.0, 2.0, 3.0, 5.0])
    device, kept_NF = method.corrections[0], np.zeros((5, 4))
    state = initial_state(method, rng.normal(size=4))
    for _ in range(6):
        cohort = rng.permutation(5)[:2].tolist()
        vector_kF, start_F = rng.normal(size=(2, 4)), state.vector_F
        for client, vector_F in zip(cohort, vector_kF, strict=True):
            one = ClientRound(None, 1, 1, start_F, old={"feddyn": kept_NF[client]}, vector_F=vector_F)
            kept_NF[client] = device.finish(one)["feddyn"]
        weights_k = weights_N[cohort]
        sums = {VECTOR: weights_k @ vector_kF}
        update = CombinedUpdate(0, tuple(cohort), (), weights_k.sum(), 2, sums[VECTOR] / weights_k.sum(), sums)
        state = step(method, state, update, 2 / 5, weights_N.sum())
        mean_F = weights_N @ kept_NF / weights_N.sum()
        np.testing.assert_allclose(state.arrays["feddyn_mean"], mean_F, atol=1e-12)
        np.testing.assert_allclose(state.vector_F, update.vector_F - mean_F / alpha, atol=1e-12)


def test_with_few_clients_a_round_it_still_finds_the_optimum():
    """Clients that solve their bent problem in closed form, three of ten a round."""
    rng = np.random.default_rng(1)
    h_NF, a_NF, alpha = np.exp(rng.uniform(-1.0, 1.0, (10, 3))), rng.normal(size=(10, 3)), 1.0
    method = FedDyn(FedDyn.Config(alpha=alpha))
    device, kept_NF, state = method.corrections[0], np.zeros((10, 3)), initial_state(method, np.full(3, 4.0))
    for _ in range(800):
        cohort = rng.permutation(10)[:3]
        start_F, own_kF = state.vector_F, kept_NF[cohort]
        vector_kF = (h_NF[cohort] * a_NF[cohort] + alpha * start_F + own_kF) / (h_NF[cohort] + alpha)
        for client, vector_F in zip(cohort, vector_kF, strict=True):
            one = ClientRound(None, 1, 1, start_F, old={"feddyn": kept_NF[client]}, vector_F=vector_F)
            kept_NF[client] = device.finish(one)["feddyn"]
        update = CombinedUpdate(0, tuple(cohort.tolist()), (), 3.0, 3, vector_kF.mean(0), {VECTOR: vector_kF.sum(0)})
        state = step(method, state, update, 0.3, 10.0)
    np.testing.assert_allclose(state.vector_F, (h_NF * a_NF).sum(0) / h_NF.sum(0), atol=1e-8)


def test_a_learning_rate_goes_a_part_of_the_way():
    full, half = (FedDyn(FedDyn.Config(lr=lr)) for lr in (1.0, 0.5))
    start_F, update = np.ones(2), CombinedUpdate(0, (0,), (), 1.0, 1, np.array([3.0, 0.0]))
    to_F, at_F = (step(one, initial_state(one, start_F), update, 1.0).vector_F for one in (full, half))
    np.testing.assert_allclose(at_F, (start_F + to_F) / 2, rtol=1e-12)


def test_it_needs_nothing_from_outside_but_its_file():
    config = make_tiny(server=FEDDYN)
    assert config.traffic.down == config.traffic.up == ("prompt",)
    assert config.method.corrections[0].kept == ("feddyn",)
    assert set(type(config.server).model_fields) == {*ServerConfig.model_fields, "lr", "lr_decay", "lr_min", "alpha"}
    with pytest.raises(
        ConfigError, match=r"server.kind=feddyn needs client.correction=none \(or auto\), not proximal; its"
    ):
        build_config({"server": FEDDYN, "client": {"correction": "proximal"}})

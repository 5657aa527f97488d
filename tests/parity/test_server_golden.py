"""Server rounds and layer ranking against traces of the published code."""

import numpy as np
import pytest

from fedsim.core.messages import VECTOR, GroupUpdate
from fedsim.methods.control import CHANGE, CONTROL
from server.aggregation import combine
from server.config import LayersConfig, ServerConfig
from server.sampling import cut
from server.selection import choose_layers, combine_scores, rank
from server.step import initial_state, step

TRACES = [
    "01_server_all",
    "01_server_layers134",
    "01_server_layers134_nopers",
    "01_server_all_unaliased",
    "01_server_layers134_unaliased",
]


def server_config(name, lr):
    """Return the server of a trace: as published, or with the aliasing of the published code switched off."""
    if not name.endswith("_unaliased"):
        return ServerConfig(kind="fedpeptao_published", lr=lr)
    return ServerConfig(
        kind="fedpeptao",
        lr=lr,
        gradient="difference",
        base="average",
        coupling="independent",
        momentum_form="control_in_velocity",
        control_form="scaffold",
        control_timing="after",
        control_mean="steps",
        debias=False,
        lr_decay=0.99,
        momentum=0.9,
    )


def group_updates(method, groups, round, clients):
    """Return what devices send; ``clients`` maps an id to (n_i, T_i, P_i, c_i before, c_i after)."""
    for number, group in enumerate(groups):
        sums = [np.zeros(1), np.zeros(1), np.zeros(1)]
        for client in group:
            n, steps, local_F, before_F, after_F = clients[client]
            terms = (n * local_F.astype(float), steps * (after_F.astype(float) - before_F), n * after_F.astype(float))
            sums = [total + term for total, term in zip(sums, terms, strict=True)]
        yield GroupUpdate(
            round=round,
            group=number,
            part=0,
            clients=group,
            weight_sum=float(sum(clients[client][0] for client in group)),
            steps_sum=sum(clients[client][1] for client in group),
            sums=dict(zip((VECTOR, CHANGE, CONTROL), sums, strict=True)),
            each={CONTROL: np.stack([clients[c][4] for c in group])} if method.one_by_one else {},
            weights_k=np.array([float(clients[c][0]) for c in group]) if method.one_by_one else None,
        )


@pytest.mark.parametrize("name", TRACES)
@pytest.mark.parametrize("group_size", [1, 2, 5])
@pytest.mark.parametrize(
    "devices, server, tolerance",
    [("float64", "float64", 1e-6), ("float32", "float64", 1e-4), ("float32", "float32", 1e-4)],
)
def test_server_rounds(load_golden, name, group_size, devices, server, tolerance):
    arrays, description = load_golden(name)
    about = description["config"]
    layers = description["prompt_layer_list"]

    def exchanged(weight):
        """Return the entries of the exchanged layers of weights [..., P, 2LH]."""
        view = weight.reshape(*weight.shape[:-1], about["layers"], 2, about["hidden"])
        return view[..., layers, :, :].reshape(*weight.shape[:-2], -1)

    def assert_close(ours, theirs, what):
        theirs = exchanged(theirs).astype(float)
        error = np.abs(ours - theirs) / (0.1 + np.abs(theirs))
        assert error.max() <= tolerance, f"{what} of round {round}: {error.max():.2e}"

    config = server_config(name, about["server_lr_start"])
    assert config.momentum == about["server_momentum"]
    method = config.method()
    state = initial_state(method, exchanged(arrays["initial_prefix"]).astype(server))
    controls = np.zeros((about["num_clients"], state.vector_F.size), dtype=devices)
    for round, order in enumerate(arrays["selected"].tolist()):
        sent_F, control_F = state.vector_F.astype(devices), state.arrays[CONTROL].astype(devices)
        clients, after_kF = {}, controls.copy()
        for k, client in enumerate(order):
            local_F = exchanged(arrays["local_params"][round, k]).astype(devices)
            steps = int(arrays["steps"][round, k])
            drift_F = (sent_F - local_F) / (steps * about["learning_rate"])
            after_kF[client] = controls[client] - control_F + drift_F
            clients[client] = (int(arrays["n_samples"][round, k]), steps, local_F, controls[client], after_kF[client])
        updates = list(group_updates(method, cut(order, group_size), round, clients))
        combined = combine(updates[::-1], order)
        controls = after_kF
        before_F = state.vector_F
        state = step(method, state, combined, about["sample_rate"])
        assert {array.dtype for array in (state.vector_F, *state.arrays.values())} == {np.dtype(server)}
        assert_close(before_F, arrays["global_before"][round], "vector before")
        assert_close(combined.vector_F, arrays["aggregated"][round], "average")
        assert_close(state.arrays["previous_delta"], arrays["delta"][round], "delta")
        assert_close(controls, arrays["clients_c"][round], "clients' control variates")
        assert_close(state.arrays[CONTROL], arrays["global_c"][round], "control variate")
        assert_close(state.vector_F, arrays["global_after"][round], "vector")
        np.testing.assert_allclose(state.lr, arrays["server_lr"][round], rtol=1e-12)
        if round > 0:
            assert_close(state.arrays["velocity"], arrays["global_v"][round], "velocity")
    assert round == len(arrays["selected"]) - 1 >= 2


def test_consensus_and_ranking_of_layers(load_golden):
    arrays, _ = load_golden("02_layer_score")
    scores_kL = np.stack([arrays[f"consensus.client_score{i}"] for i in range(len(arrays["consensus.n_samples"]))])
    combined_L = combine_scores(scores_kL, arrays["consensus.n_samples"])
    np.testing.assert_allclose(combined_L, arrays["consensus.score"], rtol=1e-12)
    np.testing.assert_array_equal(rank(combined_L), arrays["consensus.rank"])
    num_layers = len(arrays["consensus.rank"])
    for count in range(1, num_layers + 1):
        chosen = choose_layers(LayersConfig(share=count / num_layers), num_layers, combined_L, 0)
        assert chosen == tuple(sorted(arrays["consensus.rank"][:count].tolist()))


def test_ranking_of_every_case(load_golden):
    arrays, description = load_golden("02_layer_score")
    for case in description["cases"]:
        scores_L = arrays[f"{case}.score"]
        ours = rank(scores_L)
        # Where scores are equal the published order is that of an unstable sort, so compare the scores in order.
        np.testing.assert_array_equal(scores_L[ours], scores_L[arrays[f"{case}.rank"]])

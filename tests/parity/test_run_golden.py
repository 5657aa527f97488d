"""Whole federated runs against traces of the published code: real workers, real server, every client step."""

from __future__ import annotations

import functools

import numpy as np
import pytest
import torch
from run_trace import Round, Trace, rounds
from support import sweep

from clients.backbone.model import Backbone
from clients.training.optimizers import learning_rate
from clients.worker import ClientWorker
from fedsim.core.messages import ClientState, GroupUpdate, WorkGroup

TRACES = ["06_run_all", "06_run_layer1", "06_run_layer1_nopers", "06_run_layer1_unaliased"]
"""All layers or one of them exchanged; personal prompts in the others or none; chained server steps or independent ones."""
TOLERANCES = {"float64": 1e-5, "float32": 5e-3}
"""Largest difference in parts of (0.1 + |x|). float64: as the description states. float32: what its rounding grows to over
a run, since AdamW divides it by the root of second moments that may be tiny."""

WHOLE = 1000
"""More than a cohort: a group of all its clients, or passes that all clients of a group share."""


@pytest.fixture
def make_trace(load_golden, backbone_folder):
    def make(name: str, dtype: str, **changes: dict) -> Trace:
        arrays, description = load_golden(name)
        model = load_golden("05_forward")[1]["config"]
        return Trace(name, arrays, description["config"], model, backbone_folder, dtype, changes)

    return make


class Comparison:
    """Compares arrays with one tolerance."""

    def __init__(self, dtype: str) -> None:
        self.dtype, self.tolerance, self.worst = dtype, TOLERANCES[dtype], {}

    def close(self, what: str, ours: np.ndarray, theirs: np.ndarray) -> None:
        ours, theirs = np.asarray(ours, dtype=float), np.asarray(theirs, dtype=float)
        assert ours.shape == theirs.shape, what
        error = float((np.abs(ours - theirs) / (0.1 + np.abs(theirs))).max(initial=0.0))
        self.worst[what] = max(error, self.worst.get(what, 0.0))
        assert error <= self.tolerance, f"{what}: {error:.2e}"


@pytest.mark.parametrize("name", TRACES)
@pytest.mark.parametrize(
    "dtype, group_size, fuse",
    sweep(
        [
            *(("float64", *way) for way in [(1, 1), (2, 1), (WHOLE, 2), (WHOLE, WHOLE)]),
            *(("float32", *way) for way in [(1, 1), (WHOLE, WHOLE)]),
        ],
        [("float64", 1, 1), ("float64", WHOLE, 2), ("float32", WHOLE, WHOLE)],
    ),
    ids=lambda value: "whole" if value == WHOLE else value,
)
def test_rounds(make_trace, name, dtype, group_size, fuse):
    """Averages, control variates, velocity, local prefixes and evaluated scores of every round."""
    trace, comparison = make_trace(name, dtype), Comparison(dtype)
    spec = trace.spec()
    backbone = Backbone.build(spec.weights, spec.model, spec.tuner, spec.num_classes, spec.label_word_ids_C, "cpu")
    for round in rounds(trace, group_size, fuse):
        compare_server(comparison, trace, round)
        compare_clients(comparison, trace, round)
        scores = evaluated_scores(trace, backbone, round)
        comparison.close("scores", scores, trace.arrays["verbalizer_logits"][round.number])
    assert round.number + 1 == len(trace.arrays["selected"]) > 2


def compare_server(comparison: Comparison, trace: Trace, round: Round) -> None:
    def theirs(name: str) -> np.ndarray:
        return trace.exchanged_F(trace.arrays[name][round.number])

    assert round.end.vector_F.dtype == round.end.arrays["control"].dtype == trace.dtype
    comparison.close("average", round.average_F, theirs("aggregated"))
    comparison.close("global", round.end.vector_F, theirs("global_after"))
    comparison.close("c", round.server["control"], theirs("global_c"))
    comparison.close("v", round.server["velocity"], theirs("global_v"))
    np.testing.assert_allclose(round.server["lr"], trace.arrays["server_lr"][round.number], rtol=1e-12)


def compare_clients(comparison: Comparison, trace: Trace, round: Round) -> None:
    """Compare what every client keeps, and the result of those that were alone in their group."""
    control_CF = trace.exchanged_F(trace.arrays["clients_c"][round.number])
    local = trace.arrays["local"][round.number]
    for client, state in round.states.items():
        control_F = state.arrays.get("control", np.zeros_like(control_CF[0]))
        comparison.close("c_i", control_F, control_CF[client])
        if "personal" in state.arrays:
            comparison.close("personal prompts", state.arrays["personal"], trace.personal_M(local[client]))
    for update in round.updates:
        if len(update.clients) == 1:
            comparison.close("local result", result_F(update), trace.exchanged_F(local[update.clients[0]]))


def result_F(update: GroupUpdate) -> np.ndarray:
    """Return the exchanged vector that the only client of a group came to."""
    assert len(update.clients) == 1
    return update.sums["vector"] / update.weight_sum


def evaluated_scores(trace: Trace, backbone: Backbone, round: Round) -> np.ndarray:
    """Return the scores of the label words on every text, client by client, with each client's own prompts."""
    table, shards = trace.examples
    words, trained = np.unique(table.labels_N), trace.parts.trained
    scores = []
    for client, state in round.states.items():
        vector_A = trace.parts.assemble(round.end.vector_F, trace.state_M(state))
        prompt, _ = trained.split(torch.from_numpy(vector_A))
        with torch.no_grad():
            reading = backbone.forward(table.batch(shards.train(client)), prompt.unsqueeze(0), trained.layers, {})
        scores.append(reading.logits_BC[:, words].numpy())
    return np.concatenate(scores)


@pytest.mark.parametrize("name", sweep(TRACES, ["06_run_layer1", "06_run_layer1_nopers"]))
def test_every_client_step(make_trace, name):
    """Learning rate, clipped gradient norm and prefix of each step: local training cut short after 1, 2, 3, ... steps."""
    trace = make_trace(name, "float64")
    comparison, row = Comparison("float64"), 0
    worker_of = functools.cache(lambda steps: ClientWorker(trace.spec(steps)))
    for round in rounds(trace):
        for client in round.order:
            old = round.states_before[client]
            state = old
            for k in range(1, round.states[client].steps - old.steps + 1):
                before = state
                _, update, state = worker_of(k).train(WorkGroup(round.number, 0, (client,)), round.start, old).pack()
                assert trace.arrays["step_round_client"][row].tolist() == [round.number, client]
                compare_step(comparison, trace, row, before, state)
                if row < len(trace.arrays["step_prefix"]):
                    prefix = trace.arrays["step_prefix"][row]
                    comparison.close("exchanged prompts", result_F(update), trace.exchanged_F(prefix))
                    comparison.close("personal prompts", trace.state_M(state), trace.personal_M(prefix))
                row += 1
    assert row == len(trace.arrays["step_lr"])


def compare_step(comparison: Comparison, trace: Trace, row: int, before: ClientState, after: ClientState) -> None:
    """Compare learning rate and gradient norm of the step between two states of a client."""
    client = trace.config.client
    # a+ = beta a + (1 - beta) g gives the gradient of the step.
    beta, first_A = client.optimizer.beta1, after.arrays["first_moment"]
    moment_A = before.arrays.get("first_moment", np.zeros_like(first_A))
    norm = np.linalg.norm((first_A - beta * moment_A) / (1.0 - beta))
    comparison.close("gradient norm", norm, trace.arrays["step_grad_norm_after_clip"][row])
    lr = learning_rate(client.schedule, client.optimizer.lr, after.steps - 1, after.steps)
    np.testing.assert_allclose(lr, trace.arrays["step_lr"][row], rtol=1e-12)


INDEPENDENT = {"kind": "fedpeptao", "coupling": "independent"}
CHANGES = {
    "moments": {"client": {"optimizer": {"moments": "restart"}}},
    "adamw": {"client": {"optimizer": {"kind": "adamw"}}},
    "schedule": {"client": {"schedule": {"kind": "constant", "total_steps": None}}},
    "positions": {"prompt": {"position_offset": "none"}},
    "personal prompts": {"layers": {"unselected": "none"}},
    "coupling": {"server": INDEPENDENT},
    "velocity": {"server": INDEPENDENT | {"momentum_form": "clean"}},
    "gradient": {"server": INDEPENDENT | {"gradient": "pseudo"}},
    "base": {"server": INDEPENDENT | {"base": "previous"}},
}


@pytest.mark.parametrize("change", CHANGES)
def test_each_published_choice_matters(make_trace, change):
    """With any one of the published code's choices made otherwise, the run is another one."""
    trace = make_trace("06_run_layer1", "float64", **CHANGES[change])
    ends = np.stack([round.end.vector_F for round in rounds(trace)])
    expected = trace.exchanged_F(trace.arrays["global_after"])
    assert np.abs(ends - expected).max() > 10 * TOLERANCES["float64"]

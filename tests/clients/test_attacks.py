"""Simulated attackers: what they train on, what they send and keep, and that they can be borne."""

from __future__ import annotations

import dataclasses
import json

import numpy as np
import pytest
from cohorts import CLIENTS, changed, specification
from test_fused_groups import TRUNK, assert_close, first_state
from tiny_models import save, tiny_model

import fedsim
from clients.attacks import attackers, falsified, with_false_labels
from clients.config import AttackConfig
from clients.training.local_job import LocalJob, Parts, TrainingResult
from clients.worker import ClientWorker
from fedsim.configuration.schema import build_config
from fedsim.core.attack import Attack
from fedsim.core.correction import Correction
from fedsim.core.errors import ConfigError
from fedsim.core.messages import ClientState, WorkGroup

ATTACKS = {
    "label_flip": {"kind": "label_flip"},
    "sign_flip": {"kind": "sign_flip", "scale": 3.0},
    "noise": {"kind": "noise", "std": 0.5},
}
FALSE = 2, 4
"""The attackers in these tests."""


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> str:
    return save(tiny_model("roberta"), tmp_path_factory.mktemp("model") / "roberta")


@pytest.fixture(scope="module")
def spec(folder):
    return specification(folder, dtype="float64", server={"aggregation": "median"}, client={"correction": "none"})


def attacked(spec, attack, clients=FALSE):
    return changed(spec, attack=AttackConfig(clients=clients, **ATTACKS[attack]).attack(), attackers=clients)


def job(spec, fuse=1, round=0):
    """Return the update, and the clients' states, after a visit of all."""
    state = first_state(worker := ClientWorker(spec), TRUNK, round)
    made = worker.train(WorkGroup(round, 0, CLIENTS, fuse=fuse), state, *map(ClientState, CLIENTS))
    assert all(report.failure is None for report in made.reports)
    return state.vector_F, made.update, made.states


# -- who ---------------------------------------------------------------------------------------------------------------


def test_a_number_of_attackers_is_drawn_with_the_seed():
    config = AttackConfig(kind="noise", clients=20)
    drawn = attackers(config, 100, 0)
    assert drawn == attackers(config, 100, 0) == tuple(sorted(set(drawn))) and len(drawn) == 20
    assert drawn != attackers(config, 100, 1) and drawn[0] >= 0 and drawn[-1] < 100
    assert attackers(AttackConfig(kind="noise", clients=(7, 3)), 100, 0) == (3, 7)
    assert attackers(AttackConfig(), 100, 0) == ()


@pytest.mark.parametrize(
    "keys, sentence",
    [
        ({}, "attack: kind=noise needs clients, the number of attackers or a list of their ids"),
        ({"clients": 101}, "attack.clients names 101 clients, but partition.clients=100; give at most"),
        ({"clients": [3, 100]}, "attack.clients names client 100, but partition.clients=100"),
        ({"clients": [3, 3]}, r"clients=\[3, 3\] must name each attacker once"),
    ],
)
def test_attackers_that_there_are_not(keys, sentence):
    with pytest.raises(ConfigError, match=sentence):
        build_config({"attack": {"kind": "noise", **keys}})


def test_an_attack_is_part_of_the_identity_of_a_run():
    attack = {"kind": "noise", "clients": 3}
    runs = [{}, {"attack": attack}, {"attack": {**attack, "std": 2.0}}, {"attack": {**attack, "clients": 4}}]
    assert len({build_config(run).identity for run in runs}) == 4


# -- what --------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("attack", ATTACKS)
def test_attackers_send_and_keep_what_is_false_and_the_others_what_they_trained(spec, attack):
    start_F, honest, honest_states = job(spec)
    _, update, states = job(attacked(spec, attack))
    for row, client in enumerate(CLIENTS):
        own_F, sent_F = honest.each["vector"][row], update.each["vector"][row]
        np.testing.assert_array_equal(
            states[row].arrays["control"], start_F - sent_F
        )  # the variate is the displacement
        if client not in FALSE:
            assert_close(states[row], honest_states[row], 0.0)
            assert sent_F.tobytes() == own_F.tobytes()
        elif attack == "sign_flip":
            np.testing.assert_allclose(sent_F, start_F - 3.0 * (own_F - start_F), rtol=1e-12)
        elif attack == "noise":
            assert 0.4 < (sent_F - own_F).std() < 0.6
        else:
            assert np.abs(sent_F - own_F).max() > 1e-3
    assert update.sums["vector"].tobytes() != honest.sums["vector"].tobytes()


@pytest.mark.parametrize("attack", ATTACKS)
def test_attackers_are_the_same_alone_and_in_shared_passes(spec, attack):
    spec = attacked(spec, attack)
    (_, alone, alone_states), (_, together, states) = job(spec, fuse=1), job(spec, fuse=5)
    assert_close(together, alone, 1e-10)
    for ours, theirs in zip(states, alone_states, strict=True):
        assert_close(ours, theirs, 1e-10)


def test_labels_are_flipped_where_attackers_train_and_nowhere_else(spec):
    spec = dataclasses.replace(spec, num_classes=3)
    table = with_false_labels(attacked(spec, "label_flip")).train
    trained = np.concatenate([spec.shards.train(client) for client in FALSE])
    expected_N = spec.train.labels_N.copy()
    expected_N[trained] = 2 - expected_N[trained]
    np.testing.assert_array_equal(table.labels_N, expected_N)
    assert (table.labels_N != spec.train.labels_N).any() and table.ids_Z is spec.train.ids_Z


def test_noise_is_drawn_anew_for_every_round_and_client(spec):
    spec = attacked(spec, "noise")
    _, first, _ = job(spec)
    assert job(spec)[1].each["vector"].tobytes() == first.each["vector"].tobytes()
    honest = changed(spec, attackers=())
    noise = [job(spec, round=round)[1].each["vector"] - job(honest, round=round)[1].each["vector"] for round in (0, 1)]
    drawn = [noise[round][client] for round in (0, 1) for client in FALSE]
    assert max(abs(np.corrcoef(drawn)[np.triu_indices(4, 1)])) < 0.5


def test_in_a_common_metric_the_steps_are_false_as_well(folder):
    """P + S, the start without weight decay, moves as P and S do; the metric itself is that of the gradients."""
    spec = specification(folder, dtype="float64", client={"optimizer": {"weight_decay": 0.0}})
    start_F, honest, _ = job(spec)
    _, flipped, _ = job(attacked(spec, "sign_flip", CLIENTS))
    _, noisy, _ = job(attacked(spec, "noise", CLIENTS))
    for update in (honest, flipped, noisy):  # without decay P_i + S_i = P_t, whatever the client did
        np.testing.assert_allclose(update.sums["vector"], update.weight_sum * start_F, rtol=1e-9, atol=1e-9)
        np.testing.assert_array_equal(update.sums["metric"], honest.sums["metric"])
    np.testing.assert_allclose(flipped.sums["metric_step"], -3.0 * honest.sums["metric_step"], rtol=1e-9)
    assert np.abs(noisy.sums["metric_step"] - honest.sums["metric_step"]).max() > 0.0


def test_without_an_attack_nothing_is_touched(spec):
    assert AttackConfig().attack() is None and with_false_labels(spec) is spec
    parts = Parts.of(ClientWorker(spec).info().full, TRUNK, keep_local=False)
    result = TrainingResult(np.ones(parts.trained.size), np.ones(1), np.ones(1), 1, 0.0, 0.0)
    job = LocalJob(0, spec.shards.train(0), np.zeros(parts.trained.size))
    assert falsified(Attack(), (), parts, np.random.default_rng(0), job, result) is result
    label_flip = changed(spec, attack=AttackConfig(kind="label_flip", clients=1).attack(), attackers=())
    assert with_false_labels(label_flip) is label_flip


# -- a run -------------------------------------------------------------------------------------------------------------


def test_attackers_wreck_the_mean_and_a_robust_rule_bears_them(tiny_config, tmp_path):
    metrics = {}
    for rule in ("mean", "multi_krum"):
        summary = fedsim.run(
            tiny_config(
                rounds=6,
                executor="local",
                output=str(tmp_path / rule),
                group_size=7,
                data={"train_examples": 480, "validation_examples": 200},
                partition={"kind": "iid", "clients": 14},
                sampling={"clients_per_round": 7},
                layers={"choose": "all"},
                client={"correction": "none", "epochs": 2},
                server={"aggregation": rule},
                attack={"kind": "sign_flip", "scale": 10.0, "clients": 3},
                evaluation={"every": 100},
                checkpoint={"every": 100},
                tracking={"plots": False},
            ),
            progress=False,
        )
        metrics[rule] = summary["global_metric"]
        events = map(json.loads, (tmp_path / rule / "metrics.jsonl").read_text().splitlines())
        (attack,) = (event for event in events if event["event"] == "attack")
        assert attack["kind"] == "sign_flip" and len(attack["clients"]) == 3
    assert metrics["mean"] < 0.65 and metrics["multi_krum"] > 0.75, metrics


def test_two_corrections_that_begin_with_one_name_are_refused(spec):
    class Begins(Correction):
        def begin(self, client):
            return {"anchor": client.start_F}

    worker = ClientWorker(changed(spec, corrections=(Begins(), Begins())))
    made = worker.train(WorkGroup(0, 0, CLIENTS[:1]), first_state(worker, TRUNK, 0), ClientState(CLIENTS[0]))
    assert "two active corrections both begin with anchor" in made.reports[0].failure.message

"""FedBPT: a search of searches on quadratics, what a server needs of its devices, and the files and bytes of a run."""

from __future__ import annotations

import re

import numpy as np
import pytest
from method_rounds import Rounds
from method_rounds import shipped as small
from safetensors.numpy import load_file

import fedsim
from clients.training.sums import GroupSums
from fedsim.core import seeds
from fedsim.core.cma import SeparableCma
from fedsim.core.errors import ConfigError
from fedsim.core.messages import DEVIATION, VECTOR, WALKED, ClientReport, WorkGroup
from fedsim.core.method import ClientRound
from fedsim.methods.fedbpt import OF_MEAN, SQUARES, VARIANCE
from fedsim.planning.memory import estimate_memory
from fedsim.planning.model_shape import model_shape
from fedsim.simulation.preparation import prepare
from server.core import Server

TUNER = ("tuner.length=3", "tuner.projection=9", "client.steps=2", "client.optimizer.population=6")


def shipped(*overrides):
    return small("fedbpt", "client.epochs=", *overrides)


def test_a_search_of_searches_finds_the_minimum_of_the_mean_of_quadratics():
    """Ill-conditioned ones, whose own minima lie elsewhere; clients have unequal weights."""
    size, rng = 12, np.random.default_rng(5)
    curvature_F, weights = 10.0 ** np.linspace(0, 3, size), np.array([2, 5, 1, 4, 3, 3])
    minima = 1.0 + 0.3 * rng.normal(size=(len(weights), size))
    best_F = weights @ minima / weights.sum()
    config = shipped()
    server = Server(config.method, np.zeros(size), (0,), 0.5)
    first = curvature_F @ best_F**2
    for round in range(120):
        state = server.global_state()
        deviation_F = state.arrays[DEVIATION]
        sums = GroupSums(WorkGroup(round, 0, tuple(range(len(weights)))), size, config.method.corrections)
        for client, minimum_F in enumerate(minima):
            own = SeparableCma(state.vector_F, deviation_F, 10, seeds.stream(0, round, client, "candidates"))
            for _ in range(5):
                own.tell((curvature_F * np.square(own.ask() - minimum_F)).sum(1))
            done = ClientRound(
                config.client, int(weights[client]), 5, state.vector_F, state.arrays,
                vector_F=own.mean_F, tallies={WALKED: np.full(size, own.walked)},
            )  # fmt: skip
            sums.add((ClientReport(client, round, int(weights[client]), 5), done))
        server.apply(round, tuple(range(len(weights))), sums.update())
    gap = curvature_F @ np.square(server.global_state().vector_F - best_F)
    assert gap < 0.02 * first
    assert server.global_state().arrays[DEVIATION].max() < 1


def test_the_servers_sums_follow_from_each_devices_vector_and_one_number(monkeypatch):
    rounds = Rounds(shipped("model.dtype=float64", *TUNER))
    for round in range(3):
        deviation_F, seen = rounds.server.arrays()[DEVIATION], []
        monkeypatch.setattr(
            rounds.server._method,
            "apply",
            lambda state, combined, seen=seen: seen.append(combined) or type(rounds.server._method).apply(
                rounds.server._method, state, combined
            ),
        )  # fmt: skip
        before, vectors, weights, after = rounds.play(round)
        (combined,) = seen
        np.testing.assert_allclose(after, weights @ vectors, rtol=0, atol=1e-12)
        assert np.abs(after - before).max() > 1e-3
        total = combined.weight_sum
        np.testing.assert_allclose(combined.sums[VECTOR], total * after, rtol=1e-12)
        np.testing.assert_allclose(combined.sums[SQUARES], total * weights @ np.square(vectors - before), rtol=1e-9)
        # Of the variances only one number a device is not known: how far it walked.
        for name in (VARIANCE, OF_MEAN):
            number_F = combined.sums[name] / np.square(deviation_F)
            assert np.ptp(number_F) < 1e-9 * number_F.max()
        assert (rounds.server.arrays()[DEVIATION] != deviation_F).all()


def finished(folder, *overrides):
    return fedsim.run(shipped(*TUNER, "client.fuse=2", f"output={folder}", *overrides), progress=False)


def test_a_file_holds_the_prompt_and_a_device_sends_the_numbers_that_it_is_projected_from(tmp_path):
    config = shipped(*TUNER)
    summary = finished(tmp_path / "run")
    assert summary["trained"] == "soft prompt of 3 tokens, projected from 9 numbers"
    assert summary["transferred_parameters"] == 9
    memory = estimate_memory(config, model_shape(config.model), 240, 2)
    assert memory.exchanged == 9 * 4
    assert (config.traffic.down, config.traffic.up) == (("soft prompt", "deviations"), ("soft prompt",))
    assert summary["bytes_up"] == 3 * 5 * 9 * 4 and summary["bytes_down"] == 2 * summary["bytes_up"]
    assert load_file(tmp_path / "run/prompt/global.safetensors")["soft_prompt.0.prompt"].shape == (3, 64)
    examples, model = prepare(config).data.dataset.validation, fedsim.load_adapter(tmp_path / "run")
    predicted = [model.task.labels.index(label) for label in model.predict(examples.texts)]
    assert (np.array(predicted) == examples.labels_N).mean() == pytest.approx(summary["global_metric"])
    tuner = ("tuner.kind=prompt_mixture", "tuner.length=3", f"tuner.sources=[{tmp_path / 'run'}]")
    fresh = ("tuner=", "client=", "client.steps=1", "server.kind=fedavg", "rounds=1", f"output={tmp_path / 'mixture'}")
    assert fedsim.run(shipped(*fresh, *tuner), progress=False)["rounds"] == 1


def test_a_resumed_run_ends_as_one_that_was_not_stopped(tmp_path):
    for name, parts in {"whole": (4,), "stopped": (2, 4)}.items():
        for rounds in parts:
            resume = {"resume": True} if (tmp_path / name).exists() else {}
            config = shipped(*TUNER, "client.fuse=2", f"rounds={rounds}", f"output={tmp_path / name}")
            fedsim.run(config, progress=False, **resume)
    whole, stopped = ((tmp_path / name / "prompt/global.safetensors").read_bytes() for name in ("whole", "stopped"))
    assert whole == stopped


@pytest.mark.parametrize(
    ("overrides", "sentence"),
    [
        (("server.kind=scaffold",), "server.kind=scaffold corrects gradients, which client.optimizer.kind=cma_es"),
        (("server.kind=fedavg", "client.correction=preconditioner"), "fedavg with client.correction=preconditioner"),
        (("client.correction=proximal",), "server.kind=fedbpt needs client.correction=none"),
        (("server.aggregation=median",), "set server.aggregation=mean, or server.kind=fedavg"),
        (("model.head.kind=classifier",), "client.optimizer.kind=cma_es cannot train a classifier"),
        (("tuner.projection=",), "it needs tuner.kind=soft_prompt and tuner.projection"),
        (("client.optimizer.kind=adamw", "client.optimizer.population="), "server.kind=fedbpt combines searches"),
        (("client.optimizer.lr=0.1",), "client.optimizer.lr has no use with"),
    ],
)  # fmt: skip
def test_what_needs_gradients_is_refused(overrides, sentence):
    with pytest.raises(ConfigError, match=re.escape(sentence)):
        shipped(*overrides)

"""The federated kin of LoRA, as shipped in configs/methods: each has the property that defines it, on real rounds."""

from __future__ import annotations

import numpy as np
import pytest
from method_rounds import Rounds, shipped
from safetensors import safe_open
from support import make_tiny

import fedsim
from fedsim.core.errors import FedsimError, ModelError
from fedsim.core.messages import GlobalState
from fedsim.planning.memory import estimate_memory
from fedsim.planning.model_shape import model_shape
from fedsim.prompts.peft_adapter import export_peft
from fedsim.prompts.peft_export import has_personal, tuned_layers
from fedsim.prompts.prompt_file import read_prompt
from fedsim.simulation.preparation import prepare

LORA = {"kind": "lora", "rank": 2, "targets": ["query", "intermediate.dense"]}
"""Maps of which the second is wider than deep, so that A and B differ in size."""


@pytest.mark.parametrize(
    ("name", "exact"), [("fedit", False), ("ffa_lora", True), ("rolora", True), ("fedex_lora", True)]
)
def test_the_mean_of_the_changes_is_the_change_of_the_means(name, exact):
    rounds = Rounds(shipped(name, "model.dtype=float64", "client.optimizer.lr=0.1", "data.train_examples=120"))
    for round in range(3):
        _, vectors, weights, after = rounds.play(round)
        clients, now = [rounds.changes(vector_F) for vector_F in vectors], rounds.changes(after)
        means = {name: np.tensordot(weights, [own[name] for own in clients], 1) for name in now}
        gap = max(np.abs(means[name] - now[name]).max() for name in now)
        assert max(np.abs(mean).max() for mean in means.values()) > 0.01
        assert gap < 1e-10 if exact else gap > 1e-4


def test_residuals_of_fedex_lora_have_a_rank_of_clients_times_rank_and_reach_every_client():
    rounds = Rounds(shipped("fedex_lora", "model.dtype=float64", "tuner.rank=4", "client.optimizer.lr=0.1"))
    residuals = [change.residual for change in rounds.spec.tuner.low_rank(rounds.layout)]
    before, _, _, after = rounds.play(0)
    for where in residuals:
        assert not before[where].any()
        assert 0 < np.linalg.matrix_rank(after[where].reshape(64, 64), tol=1e-9) <= 3 * 4
    own = np.setdiff1d(np.arange(rounds.layout.size), rounds.turns[0])
    np.testing.assert_array_equal(own, np.concatenate([np.arange(where.start, where.stop) for where in residuals]))
    # What the next round's clients start from is the mean model: without the residuals they would see another loss.
    without = after.copy()
    without[own] = 0
    states = [GlobalState(1, rounds.worker.info().full.layers, vector_F) for vector_F in (after, without)]
    (whole, _), (less, _) = (rounds.worker.evaluate(state, 0, 60) for state in states)
    assert abs(whole.loss_sum - less.loss_sum) > 1e-3


def test_residuals_are_in_tuned_layers_alone_so_cached_layers_stay(tmp_path):
    """A run whose lower layers are cached ends as one that runs them, and its file predicts what the run did."""
    ends = []
    for dtype in ("off", "float32"):
        folder = tmp_path / f"{dtype}-{len(ends)}"
        overrides = ("rounds=2", "layers.choose=top", "layers.share=0.5", f"model.trunk_cache.dtype={dtype}")
        config = shipped("fedex_lora", *overrides, f"output={folder}")
        summary = fedsim.run(config, progress=False)
        ends.append(read_prompt(folder).tuned_LX)
    np.testing.assert_allclose(ends[0], ends[1], rtol=0, atol=1e-4)
    examples, model = prepare(config).data.dataset.validation, fedsim.load_adapter(folder)
    predicted = [model.task.labels.index(label) for label in model.predict(examples.texts)]
    assert (np.array(predicted) == examples.labels_N).mean() == pytest.approx(summary["global_metric"])
    with pytest.raises(ModelError, match=r"tuner.exact=true, which changed the model's maps"):
        export_peft(folder, tmp_path / "adapter")


@pytest.mark.parametrize(
    ("method", "array"),
    [(("server.kind=fedavgm", "server.momentum=0.9"), "velocity"), (("server.kind=scaffold",), "control")],
    ids=["fedavgm", "scaffold"],
)
def test_what_a_round_of_rolora_does_not_train_does_not_move(method, array):
    """To the bit, with weight decay on the device; and neither do the server's array and what clients keep."""
    rounds = Rounds(shipped("rolora", *method, "client.optimizer.weight_decay=0.1"))
    odd, even = rounds.turns
    np.testing.assert_array_equal(np.sort(np.concatenate([odd, even])), np.arange(rounds.layout.size))

    def kept() -> list[np.ndarray]:
        nothing = np.zeros(rounds.layout.size)
        arrays = [state.arrays.get(array, nothing) for state in rounds.states.values()]
        return [rounds.server.arrays()[array], *(arrays if array == "control" else ())]

    for round in range(4):
        trained, still = (odd, even) if round % 2 == 0 else (even, odd)
        old = kept()
        before, _, _, after = rounds.play(round)
        for past, now in zip((before, *old), (after, *kept()), strict=True):
            np.testing.assert_array_equal(now[still], past[still])
            assert (now[trained] != past[trained]).mean() > 0.9


def test_a_part_of_the_vector_has_the_server_of_its_own_rounds():
    """Momentum of B runs from one odd round to the next as if there were no even ones."""
    rounds = Rounds(shipped("rolora", "server.kind=fedavgm", "server.momentum=0.9"))
    odd, _ = rounds.turns
    velocity_T = np.zeros(len(odd))
    for round in range(3):
        before, vectors, weights, after = rounds.play(round)
        if round % 2 == 0:
            velocity_T = 0.9 * velocity_T + (before - weights @ vectors.astype(float))[odd]
            np.testing.assert_allclose((before - after)[odd], velocity_T, rtol=0, atol=1e-6)


def finished(folder, **changes) -> tuple[dict, dict]:
    """Run a tiny config; return the summary and the arrays of the global file."""
    config = make_tiny(executor="local", output=str(folder), **changes)
    summary = fedsim.run(config, progress=False)
    memory = estimate_memory(config, model_shape(config.model), 300, 2)
    received, sent = config.traffic.bytes_down, config.traffic.bytes_up
    vectors = memory.in_turn or (memory.exchanged,)
    in_turn = [vectors[round % len(vectors)] for round in range(config.rounds)]
    assert summary["bytes_up"] == 5 * sum(sent(num_bytes) for num_bytes in in_turn)
    assert summary["bytes_down"] == 5 * sum(received(num_bytes, memory.exchanged) for num_bytes in in_turn)
    with safe_open(folder / "prompt/global.safetensors", framework="numpy") as file:
        return summary, {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118


A, B = 2 * (64 + 64), 2 * (64 + 128)
"""Numbers of a layer."""


@pytest.mark.parametrize(
    ("tuner", "sent"),
    [
        ({"train": "b"}, (B, B, B)),
        ({"train": "alternate"}, (B, A, B)),
        ({"exchange": "a"}, (A, A, A)),
        ({"exact": True}, (A + B, A + B, A + B)),
    ],
)
def test_bytes_are_those_of_the_half_that_travels(tmp_path, tuner, sent):
    """As planned, recorded and summed up; and the file has A and B all the same."""
    summary, arrays = finished(
        tmp_path / "run", tuner={**LORA, **tuner}, layers={"choose": "all"}, server={"kind": "fedavg"}
    )
    layers = len(summary["layers"])
    assert summary["bytes_up"] == 5 * 4 * layers * sum(sent)
    half = (A + B) / 2 if "alternate" in tuner.values() else sent[0]
    assert summary["transferred_parameters"] == layers * half
    residuals = 64 * (64 + 128) if "exact" in tuner else 0
    assert sum(array.size for array in arrays.values()) == layers * (A + B + residuals)
    model = fedsim.load_adapter(tmp_path / "run")
    assert np.isfinite(model.scores(["the soup was cold and bland"])).all()


def test_a_file_with_a_frozen_half_predicts_what_the_run_did(tmp_path):
    folder = tmp_path / "run"
    tuner = {**LORA, "train": "b"}
    summary, _ = finished(folder, tuner=tuner, client={"optimizer": {"lr": 0.02}}, server={"kind": "fedavg"})
    config = make_tiny(executor="local", tuner=tuner, server={"kind": "fedavg"})
    examples = prepare(config).data.dataset.validation
    model = fedsim.load_adapter(folder)
    predicted = [model.task.labels.index(label) for label in model.predict(examples.texts)]
    assert (np.array(predicted) == examples.labels_N).mean() == pytest.approx(summary["global_metric"])


def test_the_b_of_fedsa_lora_never_leaves_its_device(tmp_path):
    config = shipped("fedsa_lora", f"output={tmp_path / 'run'}")
    summary = fedsim.run(config, progress=False)
    assert summary["bytes_up"] == summary["client_updates"] * 4 * summary["exchanged_parameters"]
    file = read_prompt(tmp_path / "run")
    shape = file.layout.geometry
    assert summary["exchanged_parameters"] == 4 * sum(
        np.prod(dims) for name, dims in shape.arrays if name.endswith("A")
    )
    # The server has no B: its model is the frozen one.
    assert all(not array.any() for name, array in shape.split(file.tuned_LX).items() if name.endswith("lora_B"))
    assert summary["global_metric"] == summary["first_global_metric"]
    assert has_personal(file)
    with safe_open(tmp_path / "run/prompt/personal.safetensors", framework="numpy") as kept:
        clients = kept.get_tensor("clients").tolist()
    first, second = (tuned_layers(file, client) for client in clients[:2])
    for layer, tuned_X in zip(file.layout.layers, file.tuned_LX, strict=True):
        exchanged, own, other = (shape.split(numbers) for numbers in (tuned_X, first[layer], second[layer]))
        for name in own:
            if name.endswith("lora_A"):
                np.testing.assert_array_equal(own[name], exchanged[name])
            else:
                assert own[name].any() and not np.array_equal(own[name], other[name])


@pytest.mark.parametrize("name", ["rolora", "fedsa_lora", "fedex_lora"])
def test_a_resumed_run_ends_with_the_bytes_of_one_that_never_stopped(tmp_path, name):
    straight, resumed = tmp_path / "straight", tmp_path / "resumed"
    small = "partition.clients=6", "sampling.clients_per_round=2", "data.train_examples=60"
    fedsim.run(shipped(name, *small, f"output={straight}"), progress=False)
    config = shipped(name, *small, f"output={resumed}", "rounds=2")
    with fedsim.Run(config, progress=False) as run:
        assert [done.round for done in run] == [1, 2]
    fedsim.run(config.replace(rounds=3), resume=True, progress=False)
    for path in (straight / "prompt").iterdir():
        assert path.read_bytes() == (resumed / "prompt" / path.name).read_bytes()


@pytest.fixture(scope="module")
def stopped(tmp_path_factory):
    folder = tmp_path_factory.mktemp("stopped") / "run"
    config = make_tiny(executor="local", output=str(folder), rounds=1, tuner=LORA, server={"kind": "fedavg"})
    fedsim.run(config, progress=False)
    return config


@pytest.mark.parametrize(
    "change",
    [{"rank": 3}, {"targets": ["query"]}, {"train": "b"}, {"train": "alternate"}, {"exchange": "a"}, {"exact": True}],
)
def test_another_tuner_does_not_continue_a_run(stopped, change):
    with pytest.raises(FedsimError, match=rf"tuner\.{next(iter(change))}"):
        fedsim.run(stopped.replace(rounds=2, tuner=change), resume=True, progress=False)


@pytest.mark.parametrize(
    ("tuner", "rule", "attack"),
    [
        ({}, "multi_krum", "sign_flip"),
        ({"train": "b"}, "median", "noise"),
        ({"train": "alternate"}, "norm_clipping", "sign_flip"),
        ({"exchange": "a"}, "trimmed_mean", "label_flip"),
    ],
)
def test_attacks_and_robust_rules_see_what_travels(tmp_path, tuner, rule, attack):
    keys = {"noise": {"std": 0.5}, "sign_flip": {"scale": 3.0}, "label_flip": {}}[attack]
    config = make_tiny(
        executor="local", rounds=2, output=str(tmp_path / "run"), tuner={**LORA, **tuner}, layers={"choose": "all"},
        server={"kind": "fedavg", "aggregation": rule}, attack={"kind": attack, "clients": 3, **keys},
    )  # fmt: skip
    summary = fedsim.run(config, progress=False)
    assert summary["rounds"] == 2 and not summary["clients_failed"]
    trained = {"a": "lora_A", "b": "lora_B"}.get(tuner.get("exchange", "b"))
    file = read_prompt(tmp_path / "run")
    assert all(
        array.any() for name, array in file.layout.geometry.split(file.tuned_LX).items() if name.endswith(trained)
    )


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        (
            {"tuner": {"train": "alternate"}, "layers": {"unselected": "local"}},
            "tuner.train=alternate does not go with perso",
        ),
        (
            {"tuner": {"exchange": "a"}, "layers": {"unselected": "local"}},
            "tuner.exchange=a does not go with personal layers",
        ),
        (
            {"tuner": {"exchange": "b"}, "layers": {"share_rule": "density"}},
            "set layers.share_rule=fixed and layers.share",
        ),
        ({"tuner": {"train": "alternate"}, "client": {"optimizer": {"moments": "keep"}}}, "optimizer.moments=restart"),
        (
            {"tuner": {"exact": True}, "server": {"kind": "fedavgm"}},
            "tuner.exact has no use with server.kind=fedavgm",
        ),
        ({"tuner": {"exact": True}, "server": {"kind": "fedavg", "aggregation": "median"}}, "server.aggregation=mean"),
        ({"tuner": {"exact": True, "train": "b"}}, "tuner.exact has no use with (tuner.)?train=b"),
        ({"tuner": {"train": "b", "exchange": "a"}}, "tuner.exchange has no use with (tuner.)?train=b"),
    ],
)
def test_what_has_no_meaning_is_refused(changes, words):
    changes = {"server": {"kind": "fedavg"}, **changes}
    with pytest.raises(FedsimError, match=words):
        make_tiny(**{**changes, "tuner": {**LORA, **changes["tuner"]}})

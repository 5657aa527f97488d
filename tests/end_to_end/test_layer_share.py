"""The number of layers from the clients' Hessian spectra: the same bits everywhere, recorded, paid for, and resumable."""

import dataclasses
import hashlib
import json
import sys

import numpy as np
import pytest
import yaml
from safetensors.numpy import load_file
from support import TINY, make_tiny, merged

import fedsim
from fedsim import cli
from fedsim.core.errors import ClientError
from fedsim.executors.local import LocalExecutor
from fedsim.simulation.layer_choice import choose
from fedsim.simulation.preparation import prepare

SPECTRUM = {"warmup_rounds": 2, "batch_size": 4, "lanczos_steps": 10}
RULES = {
    "density": {"share_rule": "density", "spectrum": SPECTRUM},
    "eigengap": {"share_rule": "eigengap", "spectrum": {**SPECTRUM, "directions": 1}},
}


def run(make, path, **changes):
    # fuse is given: a trial could settle it differently in two runs, and so change last bits.
    changes = merged({"rounds": 2, "client": {"fuse": 2}, "tracking": {"plots": False}}, changes)
    summary = fedsim.run(make(output=str(path), **changes), resume=path.exists(), progress=False)
    prompt = (path / "prompt" / "global.safetensors").read_bytes()
    return summary, hashlib.sha256(prompt).hexdigest()


def events(path, kind):
    lines = (path / "metrics.jsonl").read_text().splitlines()
    found = [event for event in map(json.loads, lines) if event["event"] == kind]
    return [
        {key: value for key, value in event.items() if key not in ("time", "seconds", "seconds_client")}
        for event in found
    ]


def is_picture(path):
    return path.read_bytes().startswith(b"\x89PNG")


def without_seconds(cost):
    return {key: value for key, value in cost.items() if not key.startswith("seconds")}


@pytest.fixture(scope="module")
def local(tmp_path_factory):
    """Return the folder, the summary and the prompt's hash of a local run of each rule."""
    results = {}
    for rule, layers in RULES.items():
        folder = tmp_path_factory.mktemp(rule) / "run"
        pictures = {"plots": rule == "density"}  # of the other rule's run: as it is resumed
        results[rule] = folder, *run(make_tiny, folder, executor="local", layers=layers, tracking=pictures)
    return results


def test_actors_give_the_same_bits(session_ray, tiny_config, local, tmp_path):
    """The other rule, and an actor for each client: test_per_client_gpus.py."""
    folder, expected, expected_prompt = local["density"]
    ray_config = {"address": "auto", "actors": 1}
    summary, prompt = run(tiny_config, tmp_path / "run", executor="ray", ray=ray_config, layers=RULES["density"])
    assert prompt == expected_prompt
    assert events(tmp_path / "run", "spectrum") == events(folder, "spectrum")
    for key in ("share", "share_rule", "layers", "config_hash"):
        assert summary[key] == expected[key], key
    assert without_seconds(summary["share_cost"]) == without_seconds(expected["share_cost"])


@pytest.mark.parametrize("rule", RULES)
def test_share_layers_and_cost_are_recorded(local, rule):
    folder, summary, _ = local[rule]
    (layers,) = events(folder, "layers")
    spectra = events(folder, "spectrum")
    assert summary["share_rule"] == layers["share_rule"] == rule
    assert (
        summary["share"]
        == layers["share"]
        == pytest.approx(np.average([s["share"] for s in spectra], weights=[s["num_examples"] for s in spectra]))
    )
    assert layers["num_layers"] == 4
    assert summary["layers"] == layers["layers"] and len(layers["layers"]) == max(1, np.ceil(4 * summary["share"]))
    assert len(spectra) == 5 and [s["client"] for s in spectra] == sorted(s["client"] for s in spectra)
    assert all(np.shape(s["values_RK"]) == np.shape(s["weights_RK"]) == (1, 10) for s in spectra)
    assert all((s["lipschitz"] is not None) == (rule == "eigengap") for s in spectra)

    cost = summary["share_cost"]
    assert cost == layers["share_cost"]
    size = 4 * summary["exchanged_parameters"] // len(summary["layers"]) * 4  # float32, all layers; no head is trained
    assert (cost["warmup_rounds"], cost["client_visits"], cost["spectra"]) == (2, 10, 5)
    assert cost["bytes_up"] == 10 * 3 * size and cost["bytes_down"] == 15 * size  # up: prompts, gains, steps
    assert cost["hessian_vector_products"] == 5 * (10 if rule == "density" else 10 + 2 * 8)
    assert cost["client_steps"] > 0 and cost["seconds_warmup"] > 0 and cost["seconds_spectra"] > 0
    # What the run itself costs is counted apart.
    assert summary["client_updates"] == 10
    assert rule != "density" or is_picture(folder / "plots" / "spectrum.png")


def test_the_warm_up_leaves_nothing_behind(tiny_config, local, tmp_path):
    _, summary, prompt = local["density"]
    layers = {"choose": "fixed", "fixed": summary["layers"]}
    assert run(tiny_config, tmp_path / "run", executor="local", layers=layers)[1] == prompt


@pytest.fixture(scope="module")
def fedavg_F(tmp_path_factory):
    """Return what FedAvg over all layers comes to in as many rounds as the warm-up has."""
    folder = tmp_path_factory.mktemp("fedavg") / "run"
    plain = {"server": {"kind": "fedavg"}, "layers": {"choose": "all"}, "client": {"fuse": "off"}}
    run(make_tiny, folder, executor="local", **plain)
    prompts = load_file(folder / "prompt" / "global.safetensors")
    return np.concatenate([prompts[f"prompt.{i}"].ravel() for i in range(4)])


@pytest.mark.parametrize("server", [{"kind": "fedavg"}, {"kind": "fedpeptao_published"}, {"kind": "scaffold"}])
def test_the_warm_up_is_fedavg_over_all_layers(tiny_config, fedavg_F, server):
    seen = {}

    class Watched(LocalExecutor):
        def spectrum(self, state, groups):
            seen["vector_F"] = state.vector_F
            return super().spectrum(state, groups)

    config = tiny_config(executor="local", server=server, layers=RULES["density"])
    prepared, executor = prepare(config), Watched(lambda: None)
    try:
        (worker,) = executor.start(prepared.spec)
        choose(config, executor, worker.full, prepared.spec.shards.train_sizes, prepared.spec.initial_vector)
    finally:
        executor.close()
    np.testing.assert_array_equal(seen["vector_F"], fedavg_F)


def test_a_resumed_run_keeps_its_layers_and_their_cost(tiny_config, local, tmp_path):
    _, expected, prompt = local["eigengap"]
    path = tmp_path / "run"
    first, _ = run(tiny_config, path, rounds=1, executor="local", layers=RULES["eigengap"])
    resumed, ours = run(tiny_config, path, executor="local", layers=RULES["eigengap"], tracking={"plots": True})
    assert ours == prompt
    assert resumed["layers"] == expected["layers"] and resumed["share"] == expected["share"]
    assert resumed["share_cost"] == first["share_cost"]
    assert len(events(path, "layers")) == 1 and len(events(path, "spectrum")) == 5
    assert is_picture(path / "plots" / "spectrum.png")


def test_a_run_that_begins_anew_forgets_the_spectra_of_before(tiny_config, tmp_path):
    path = tmp_path / "run"
    run(tiny_config, path, rounds=1, executor="local", layers=RULES["density"])
    for file in (path / "checkpoints").iterdir():
        file.unlink()
    run(tiny_config, path, executor="local", layers=RULES["density"])
    assert len(events(path, "spectrum")) == 5


def test_the_number_of_clients_probes_and_the_weighting_count(tiny_config):
    reports = {}
    for name, keys in {
        "all": {"clients": 12},
        "few": {"clients": 3, "probes": 2},
        "uniform": {"weighting": "uniform"},
    }.items():
        config = tiny_config(executor="local", layers={"share_rule": "density", "spectrum": {**SPECTRUM, **keys}})
        prepared, executor = prepare(config), LocalExecutor(lambda: None)
        try:
            (worker,) = executor.start(prepared.spec)
            choice = choose(
                config, executor, worker.full, prepared.spec.shards.train_sizes, prepared.spec.initial_vector
            )
        finally:
            executor.close()
        reports[name] = choice.estimate
    assert [report.client for report in reports["all"].reports] == list(range(12))
    assert len(reports["few"].reports) == 3
    assert all(report.values_RK.shape == (2, 10) and report.products == 20 for report in reports["few"].reports)
    uniform = reports["uniform"]
    assert uniform.share == pytest.approx(np.mean([report.share for report in uniform.reports]))
    # A client's spectrum does not depend on which others are asked.
    shares = {report.client: report.share for report in reports["all"].reports}
    assert all(report.share == shares[report.client] for report in uniform.reports)


def poisoned(prepared, client):
    """Return ``prepared`` with a token that the backbone does not know in every example of one client."""
    table = prepared.spec.train
    ids = table.ids_Z.copy()
    for example in prepared.spec.shards.train(client):
        ids[table.offsets_N1[example]] = 10**6
    return dataclasses.replace(prepared.spec, train=dataclasses.replace(table, ids_Z=ids))


def test_a_client_that_fails_stops_the_run_and_is_named(tiny_config):
    config = tiny_config(executor="local", layers={"share_rule": "density", "spectrum": {**SPECTRUM, "clients": 12}})
    prepared = prepare(config)

    def share_with(client):
        executor = LocalExecutor(lambda: None)
        try:
            (worker,) = executor.start(poisoned(prepared, client))
            choose(config, executor, worker.full, prepared.spec.shards.train_sizes, prepared.spec.initial_vector)
        finally:
            executor.close()

    from server.sampling import cohort

    cohorts = [cohort(config.sampling, 0, round, prepared.spec.shards.train_sizes).tolist() for round in range(2)]
    with pytest.raises(ClientError, match=rf"^client {cohorts[0][0]} failed in warm-up round 1: IndexError") as caught:
        share_with(cohorts[0][0])
    assert "clients/training/local_training.py" in str(caught.value)
    (spared, *_) = sorted(set(range(12)) - set(cohorts[0]) - set(cohorts[1]))
    with pytest.raises(
        ClientError, match=rf"^client {spared} failed to estimate its share of the layers: IndexError"
    ) as caught:
        share_with(spared)
    assert "clients/analysis/hessian.py" in str(caught.value)


def test_the_command_prints_share_cost_and_choice_and_saves_pictures(monkeypatch, capsys, tmp_path):
    config = merged(TINY, {"executor": "local", "layers": RULES["density"]})
    (tmp_path / "tiny.yaml").write_text(yaml.safe_dump(config))
    monkeypatch.chdir(tmp_path)

    def fedsim(*arguments):
        monkeypatch.setattr(sys, "argv", ["fedsim", *arguments])
        with pytest.raises(SystemExit) as ended:
            cli.main()
        assert not ended.value.code
        return capsys.readouterr().out

    out = fedsim("layers", "tiny.yaml", "layers.share_rule=density", "--output", "scores.png")
    assert "warm-up round 2 of 2" in out and "Hessian spectra of 5 clients" in out
    assert "2 rounds, 10 client updates" in out and "Hessian-vector products" in out and "of 4 layers" in out
    assert "yes" in out
    assert {path.name for path in tmp_path.glob("*.png")} == {"scores.png", "scores-spectrum.png"}
    out = fedsim("layers", "tiny.yaml", "layers.share_rule=eigengap", "layers.choose=top", "layers.score_batch_size=")
    assert "eigengap" in out and "(layers.choose=top)" in out

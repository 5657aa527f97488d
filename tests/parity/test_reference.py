"""The re-computation behind our own fixtures against the numbers in every folder: first of all those of the published code."""

from __future__ import annotations

import ast
import re
from pathlib import Path

import numpy as np
import pytest
import torch
from make_fixtures import make
from reference import deals, scores, spectrum
from reference.model import Batch, Roberta
from reference.rounds import Federation, Method
from reference.runs import Training, run
from support import sweep
from test_partition_golden import SETTINGS, distance, figures
from test_run_golden import TRACES as RUNS
from test_scoring_golden import DELICATE
from test_server_golden import TRACES as SERVERS

HERE = Path(__file__).parent


def assert_close(ours: np.ndarray, theirs: np.ndarray, tolerance: float, what: str = "") -> None:
    ours, theirs = np.asarray(ours, dtype=float), np.asarray(theirs, dtype=float)
    np.testing.assert_array_equal(np.isnan(ours), np.isnan(theirs))
    error = np.nanmax(np.abs(ours - theirs) / (0.1 + np.abs(theirs)), initial=0.0)
    assert error < tolerance, f"{what}: {error:.1e}"


@pytest.mark.parametrize("name", SERVERS)
def test_server_rounds(load_golden, name):
    arrays, description = load_golden(name)
    about = description["config"]

    def view(weights: np.ndarray) -> np.ndarray:
        return weights.astype(float).reshape(*weights.shape[:-1], about["layers"], 2, about["hidden"])

    layers, aliased = description["prompt_layer_list"], not name.endswith("_unaliased")
    method = Method(
        layers,
        description["personalization"],
        aliased,
        about["sample_rate"],
        about["learning_rate"],
        about["server_lr_start"],
    )
    federation = Federation.start(method, view(arrays["initial_prefix"]), about["num_clients"])
    for round, order in enumerate(arrays["selected"].tolist()):
        for k, client in enumerate(order):
            assert_close(
                federation.start_of(client)[:, layers], view(arrays["start_params"][round, k])[:, layers], 1e-6
            )
        federation.round(
            order, list(view(arrays["local_params"][round])), arrays["n_samples"][round], arrays["steps"][round]
        )
    for key, values in federation.record.items():
        ours, theirs = np.stack(values), arrays[key]
        if ours.ndim > 1:
            # Layers that are not exchanged blow up and never reach a client: no target.
            ours, theirs = ours[..., layers, :, :], view(theirs)[..., layers, :, :]
        assert_close(ours, theirs, 1e-6, key)
    evaluated = np.stack([federation.start_of(client) for client in range(about["num_clients"])])
    assert_close(evaluated, view(arrays["eval_params"]), 1e-6, "eval_params")


def test_layer_scores(load_golden):
    arrays, description = load_golden("02_layer_score")
    for case, about in description["cases"].items():
        ours = scores.layer_scores(arrays[f"{case}.hidden"].astype(about["cast_to"]))
        rough = about["kind"] in DELICATE and about["cast_to"] == "float32"
        np.testing.assert_allclose(ours, arrays[f"{case}.score"], rtol=3e-2 if rough else 1e-4, err_msg=case)


def test_spectral_density_and_search(load_golden):
    arrays, _ = load_golden("03_ratio")
    for name in ("one_run", "two_runs", "wide", "narrow"):
        grid, values = spectrum.density(arrays[f"{name}.eigenvalues"], arrays[f"{name}.weights"])
        assert_close(grid[[0, -1]], arrays[f"{name}.grid_ends"], 1e-9)
        assert_close(values[::10], arrays[f"{name}.density_every_10th"], 1e-6)
        ratios = [spectrum.ratio(grid, values, threshold) for threshold in arrays["ratio.t"]]
        assert_close(ratios, arrays[f"{name}.ratio"], 1e-9)
    for name in [key.removesuffix(".trace") for key in arrays if key.startswith("search_") and key.endswith(".trace")]:
        found, looked = spectrum.search(arrays[f"{name}.eigenvalues"], arrays[f"{name}.weights"])
        assert_close(found, arrays[f"{name}.ratio"], 1e-9, name)
        assert_close(looked, arrays[f"{name}.trace"], 1e-9, name)


def test_lanczos(load_golden):
    arrays, description = load_golden("03_ratio")
    for case, about in description["cases"].items():
        if about["lanczos_steps"] > about["n"]:
            continue  # beyond the dimension it runs on rounding errors
        matrix = arrays[f"{case}.H"].astype(float)
        for run_number, probe in enumerate(arrays[f"{case}.probe"]):
            values, weights = spectrum.lanczos(lambda vector: matrix @ vector, probe, about["lanczos_steps"])  # noqa: B023
            theirs = arrays[f"{case}.ritz_values"][run_number], arrays[f"{case}.ritz_weights"][run_number]
            for power in range(5):
                assert_close(weights @ values**power, theirs[1] @ theirs[0] ** power, 1e-3, f"{case}, moment {power}")


@pytest.mark.parametrize("num_classes", sweep([2, 6], [2]))
@pytest.mark.parametrize("kind, alpha", SETTINGS)
def test_deals(load_golden, kind, alpha, num_classes):
    arrays, description = load_golden("04_partition")
    about = description["config"]
    sizes = np.round(np.array(about["class_shares"][str(num_classes)]) * about["train"]).astype(int)
    labels, rng = np.repeat(np.arange(num_classes), sizes), np.random.default_rng(5)
    results = [deals.METHODS[kind](labels, num_classes, about["num_clients"], alpha, rng) for _ in about["seeds"]]
    ours = figures(np.stack([result[0] for result in results if result is not None]))
    published = arrays[f"{kind}.k{num_classes}.a{alpha:g}.train"].astype(int)
    published = published[(published >= 0).all(axis=(1, 2))]
    for name, theirs in figures(published).items():
        assert distance(ours[name], theirs) < 2.4 * np.sqrt(1 / len(ours[name]) + 1 / len(theirs)), name
    summary = description["summary"][f"{kind}.k{num_classes}.a{alpha:g}"]
    for name, value in deals.summary(list(published)).items():
        np.testing.assert_allclose(value, summary[name], rtol=1e-9, atol=1e-12, err_msg=name)


def model_of(load_golden) -> tuple[Roberta, torch.Tensor]:
    arrays, description = load_golden("05_forward")
    weights = {
        name.removeprefix("weights/"): torch.from_numpy(array).double()
        for name, array in arrays.items()
        if name.startswith("weights/")
    }
    model = Roberta(description["config"], weights)
    prefix = weights["prefix_encoder.embedding.weight"]
    return model, prefix.reshape(len(prefix), model.layers, 2, -1)


def batch_of(arrays: dict[str, np.ndarray], name: str) -> Batch:
    keys = ("input_ids", "attention_mask", "mask_pos", "labels")
    return Batch(*(torch.from_numpy(arrays[f"{name}/{key}"].astype(np.int64)) for key in keys))


@pytest.mark.parametrize("case", ["layers_all.pers_on", "layers_all.pers_off", "layers_1.pers_on", "layers_1.pers_off"])
def test_forward(load_golden, case):
    arrays, _ = load_golden("05_forward")
    model, prefix = model_of(load_golden)
    prefix = prefix.clone().requires_grad_()
    batch = batch_of(arrays, "batch")
    loss, logits, states = model(batch, prefix, [1] if case == "layers_1.pers_off" else list(range(model.layers)))
    (gradient,) = torch.autograd.grad(loss, prefix)
    assert_close(loss.item(), arrays[f"{case}.f64.loss"], 1e-10)
    assert_close(logits.detach(), arrays[f"{case}.f64.logits"], 1e-10)
    assert_close(gradient.reshape(len(prefix), -1), arrays[f"{case}.f64.prefix_grad"], 1e-10)
    token = batch.mask_BT.bool()
    assert_close(torch.stack(states).detach()[:, token], arrays[f"{case}.hidden_states"][:, token.numpy()], 3e-5)


def test_hessian(load_golden):
    arrays, _ = load_golden("05b_forward_hessian")
    model, prefix = model_of(load_golden)
    batch = batch_of(load_golden("05_forward")[0], "batch")
    probe = torch.from_numpy(arrays["probe"]).double()
    layers = list(range(model.layers))
    _, product = torch.autograd.functional.hvp(
        lambda vector: model(batch, vector.reshape(prefix.shape), layers)[0], prefix.reshape(-1), probe
    )
    assert_close(product, arrays["H_times_probe"], 1e-9)


@pytest.mark.parametrize("name", RUNS)
def test_runs(load_golden, name):
    arrays, description = load_golden(name)
    about = description["config"]
    model, prefix = model_of(load_golden)
    data = [batch_of(arrays, f"data/{client}") for client in range(len(about["client_samples"]))]
    layers = about["prompt_layer_list"]
    aliased = about["aliasing"] == "as published"
    method = Method(
        layers,
        about["personalization"],
        aliased,
        about["sample_rate"],
        about["learning_rate"],
        about["server_lr_start"],
    )
    total_steps = int(re.search(r"over (\d+) steps", about["schedule"])[1])
    training = Training(about["local_eps"], about["batch_size"], about["learning_rate"], total_steps)
    initial = arrays["initial_prefix"].astype(float).reshape(prefix.shape)
    federation, steps, evaluations = run(model, data, arrays["selected"], initial, training, method)

    def exchanged(prefixes: np.ndarray) -> np.ndarray:
        return prefixes.reshape(*prefixes.shape[:-2], *prefix.shape)[..., layers, :, :]

    for key in ("aggregated", "global_after", "global_v", "global_c", "clients_c"):
        assert_close(np.stack(federation.record[key])[..., layers, :, :], exchanged(arrays[key]), 1e-5, key)
    assert_close(federation.record["server_lr"], arrays["server_lr"], 1e-12)
    assert_close(np.stack(evaluations["local"])[..., layers, :, :], exchanged(arrays["local"]), 1e-5, "local")
    words = np.unique(torch.cat([batch.labels_B for batch in data]))
    assert_close(np.stack(evaluations["logits"])[..., words], arrays["verbalizer_logits"], 1e-5, "scores")
    assert [(step.round, step.client) for step in steps] == [tuple(row) for row in arrays["step_round_client"].tolist()]
    assert_close([step.lr for step in steps], arrays["step_lr"], 1e-12)
    assert_close([step.norm for step in steps], arrays["step_grad_norm_after_clip"], 1e-9)
    kept = arrays["step_prefix"]
    prefixes = np.stack([step.prefix for step in steps[: len(kept)]])[..., layers, :, :]
    assert_close(prefixes, exchanged(kept), 1e-5, "steps")


def test_it_uses_nothing_of_the_simulator():
    files = [*HERE.glob("reference/*.py"), *HERE.glob("recipes/*.py"), HERE / "make_fixtures.py"]
    assert len(files) > 10
    for file in files:
        imported: set[str] = set()
        for node in ast.walk(ast.parse(file.read_text())):
            if isinstance(node, ast.Import):
                imported |= {alias.name.partition(".")[0] for alias in node.names}
            if isinstance(node, ast.ImportFrom) and node.level == 0:
                imported.add((node.module or "").partition(".")[0])
        assert not imported & {"fedsim", "clients", "server", "partitions", "transformers"}, file


def test_the_committed_fixtures_are_of_the_form_that_the_command_makes(tmp_path):
    """Whatever the seed: same files, same arrays, same number formats."""
    make(tmp_path / "made", seed=7)
    names = {path.name for path in (HERE / "fixtures").iterdir()}
    assert {path.name for path in (tmp_path / "made").iterdir()} == names
    for name in sorted(names):
        if name.endswith(".npz"):
            with np.load(tmp_path / "made" / name) as made, np.load(HERE / "fixtures" / name) as committed:
                assert {key: made[key].dtype for key in made} == {key: committed[key].dtype for key in committed}, name
    assert sum(path.stat().st_size for path in (HERE / "fixtures").iterdir()) < 400_000

"""Searches with Ray Tune: trials report, are pruned, go on from their checkpoints, and say what is mistaken."""

import runpy

import numpy as np
import pytest
from safetensors.numpy import load_file
from support import ROOT, make_tiny, sweep

import fedsim
from fedsim.core import plugins
from fedsim.core.errors import ConfigError
from fedsim.executors.tune.trainable import trial_config
from fedsim.prompts.prompt_file import GLOBAL_PROMPT

tune = pytest.importorskip("ray.tune", reason='needs: pip install "fedsim[tune]"')

DIES_ONCE = """
import os
from pathlib import Path
import fedsim

@fedsim.register("callback", "dies_once")
class DiesOnce(fedsim.Callback):
    def on_round(self, run, done):
        mark = Path({mark!r})
        if done.round == 2 and not mark.exists():
            mark.touch()
            os._exit(1)
"""


@pytest.fixture
def dies_once(tmp_path):
    """The name of a callback, a plug-in, that kills its process once, in round 2."""
    file = tmp_path / "dies_once.py"
    file.write_text(DIES_ONCE.format(mark=str(tmp_path / "died")))
    plugins.load_plugin(file)
    yield "dies_once"
    plugins.unload(file.name)


def fitted(tmp_path, config, space, samples=1, **settings):
    kept = tune.RunConfig(
        name="search", storage_path=str(tmp_path), verbose=0, failure_config=tune.FailureConfig(max_failures=1)
    )
    settings = tune.TuneConfig(num_samples=samples, metric="global_metric", mode="max", **settings)
    return tune.Tuner(fedsim.tune.trainable(config), param_space=space, tune_config=settings, run_config=kept).fit()


def prompt(folder):
    return load_file(f"{folder}/prompt/{GLOBAL_PROMPT}")


PLACES = {"own process": {"executor": "local"}, "two actors": {"ray": {"actors": 2, "num_cpus_per_actor": 0.5}}}


@pytest.mark.parametrize("place", sweep(PLACES, ["own process"]))
def test_a_trial_that_died_goes_on_to_the_same_bytes(session_ray, tmp_path, dies_once, place):
    """And the one beside it, whose values are mistaken, ends with the sentence."""
    config = make_tiny(rounds=3, client={"fuse": 2}, callbacks=[dies_once], **PLACES[place])
    results = fitted(tmp_path, config, {"server.lr": tune.grid_search([0.7, -1.0])})
    good, bad = sorted(results, key=lambda result: -result.config["server.lr"])
    assert "param_space: server.lr" in str(bad.error)
    assert (tmp_path / "died").exists() and good.error is None
    undisturbed = make_tiny(
        rounds=3, client={"fuse": 2}, server={"lr": 0.7}, executor="local", output=str(tmp_path / "whole")
    )
    summary = fedsim.run(undisturbed, progress=False)
    rounds = list(good.metrics_dataframe["round"])
    assert rounds in ([1, 2, 3], [2, 3])  # see docs/clusters.md: Tune takes its older copy of the log back
    assert good.metrics["global_metric"] == summary["global_metric"]
    total = summary["bytes_up"] + summary["bytes_down"]
    assert good.metrics_dataframe["bytes"].sum() == total * len(rounds) / 3
    ours, theirs = prompt(good.checkpoint.path), prompt(summary["folder"])
    assert ours.keys() == theirs.keys()
    assert all(np.array_equal(ours[name], theirs[name]) for name in ours)


def test_what_tune_draws_is_a_config(tmp_path):
    base = make_tiny(executor="local").model_dump(mode="json", exclude_unset=True)
    config = trial_config(base, {"server.lr": np.float64(0.25), "client": {"optimizer": {"lr": 0.5}}, "seed": 3})
    assert (config.server.lr, config.client.optimizer.lr, config.seed) == (0.25, 0.5, 3)
    with pytest.raises(ConfigError, match=r"^param_space: there is no key 'server\.lrr'"):
        trial_config(base, {"server.lrr": 1})
    with pytest.raises(
        ConfigError, match=r"^param_space: ray\.actors is the same for all trials; give it in the config"
    ):
        trial_config(base, {"ray.actors": 1})


@pytest.mark.parametrize(
    ("values", "bundles"),
    [
        ({"executor": "local", "client": {"threads": 2}}, [{"CPU": 2.0}]),
        ({"ray": {"num_gpus_per_actor": 0.25}}, [{"CPU": 1.0, "GPU": 0.25}]),
        ({"ray": {"actors": 3, "num_cpus_per_actor": 0.5}}, [{"CPU": 0.5}] * 3),
    ],
)
def test_a_trial_reserves_what_its_config_needs(values, bundles):
    needs = fedsim.tune.resources(make_tiny(**values))
    assert needs.bundles == bundles
    assert needs.head_bundle_is_empty == (len(bundles) > 1)


@pytest.mark.wide(alone="9 s, and 60 for the whole search; the trial that died is tested always")
@pytest.mark.parametrize(("trials", "rounds"), [(2, 2), (8, 8)])
def test_the_example_searches_and_asha_ends_what_falls_behind(session_ray, tmp_path, trials, rounds):
    example = runpy.run_path(str(ROOT / "examples" / "tune_search.py"))
    results = example["search"](trials, rounds, str(tmp_path))
    lengths = [result.metrics["round"] for result in results]
    assert len(lengths) == trials and not results.errors
    assert max(lengths) == rounds
    assert (min(lengths) < rounds) == (trials > 2)
    best = results.get_best_result()
    assert fedsim.load_run(best.checkpoint.path).rounds["round"][-1].as_py() == best.metrics["round"]

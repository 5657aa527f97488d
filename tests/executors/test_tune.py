"""Searches with Ray Tune: trials report, are pruned, go on from their checkpoints, and say what is mistaken."""

import os
import runpy
import tempfile
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pyarrow.fs
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
        if done.round == 3 and not mark.exists():
            mark.touch()
            os._exit(1)
"""


@pytest.fixture
def dies_once(tmp_path):
    """The name of a callback, a plug-in, that kills its process once, in round 3."""
    file = tmp_path / "dies_once.py"
    file.write_text(DIES_ONCE.format(mark=str(tmp_path / "died")))
    plugins.load_plugin(file)
    yield "dies_once"
    plugins.unload(file.name)


class OldCopy(tune.Callback):
    """Copies a trial's log to storage before its second row is in it, as Tune does every ten seconds: here once."""

    def on_trial_result(self, iteration, trials, trial, result, **info):
        if result["training_iteration"] == 2:
            there = Path(trial.path, "result.json")
            assert not there.exists()
            there.write_bytes(Path(trial.local_path, "result.json").read_bytes())


@pytest.fixture
def no_other_copy(monkeypatch):
    """Let Tune copy logs at a search's start and end alone."""
    monkeypatch.setenv("TUNE_GLOBAL_CHECKPOINT_S", "1000000")


def kept_in(tmp_path, callbacks):
    once_more = tune.FailureConfig(max_failures=1)
    return tune.RunConfig(
        name="search", storage_path=str(tmp_path), verbose=0, failure_config=once_more, callbacks=callbacks
    )


def fitted(tmp_path, config, space, samples=1, **settings):
    kept = kept_in(tmp_path, [OldCopy(), *fedsim.tune.callbacks()])
    settings = tune.TuneConfig(num_samples=samples, metric="global_metric", mode="max", **settings)
    return tune.Tuner(fedsim.tune.trainable(config), param_space=space, tune_config=settings, run_config=kept).fit()


def prompt(folder):
    return load_file(f"{folder}/prompt/{GLOBAL_PROMPT}")


PLACES = {"own process": {"executor": "local"}, "two actors": {"ray": {"actors": 2, "num_cpus_per_actor": 0.5}}}


@pytest.mark.parametrize("place", sweep(PLACES, ["own process"]))
def test_a_trial_that_died_goes_on_to_the_same_bytes(session_ray, tmp_path, dies_once, no_other_copy, place):
    """All rows are there. And the one beside it, whose values are mistaken, ends with the sentence."""
    config = make_tiny(rounds=3, client={"fuse": 2}, callbacks=[dies_once], **PLACES[place])
    results = fitted(tmp_path, config, {"server.lr": tune.grid_search([0.7, -1.0])})
    good, bad = sorted(results, key=lambda result: -result.config["server.lr"])
    assert "param_space: server.lr" in str(bad.error)
    assert (tmp_path / "died").exists() and good.error is None
    undisturbed = make_tiny(
        rounds=3, client={"fuse": 2}, server={"lr": 0.7}, executor="local", output=str(tmp_path / "whole")
    )
    summary = fedsim.run(undisturbed, progress=False)
    assert list(good.metrics_dataframe["round"]) == [1, 2, 3]
    assert good.metrics["global_metric"] == summary["global_metric"]
    assert good.metrics_dataframe["bytes"].sum() == summary["bytes_up"] + summary["bytes_down"]
    ours, theirs = prompt(good.checkpoint.path), prompt(summary["folder"])
    assert ours.keys() == theirs.keys()
    assert all(np.array_equal(ours[name], theirs[name]) for name in ours)


@pytest.mark.wide(alone="5 s; that rows are kept is tested always, this is why that needs something")
def test_tune_alone_loses_rows(session_ray, tmp_path, no_other_copy):
    """Should this change, ``fedsim.tune.callbacks`` is needed no more."""
    mark = tmp_path / "died"

    def counts(params):
        checkpoint = tune.get_checkpoint()
        done = int(Path(checkpoint.path, "done").read_text()) if checkpoint else 0
        while done < 3:
            if done == 2 and not mark.exists():
                mark.touch()
                os._exit(1)
            done += 1
            with tempfile.TemporaryDirectory() as folder:
                Path(folder, "done").write_text(str(done))
                tune.report({"round": done}, checkpoint=tune.Checkpoint.from_directory(folder))

    (result,) = tune.Tuner(counts, run_config=kept_in(tmp_path / "storage", [OldCopy()])).fit()
    assert result.error is None and mark.exists() and result.metrics["round"] == 3
    assert list(result.metrics_dataframe["round"]) == [1, 3]


def test_storage_that_cannot_be_written_ends_no_search(tmp_path, caplog):
    """On what the callback reads of a trial."""
    (callback,) = fedsim.tune.callbacks()
    (tmp_path / "here").mkdir()
    (tmp_path / "here" / "result.json").write_text("{}\n")
    (tmp_path / "a file").touch()
    storage = SimpleNamespace(storage_filesystem=pyarrow.fs.LocalFileSystem())
    trial = SimpleNamespace(storage=storage, local_path=str(tmp_path / "here"), path=str(tmp_path / "a file" / "trial"))
    callback.on_trial_start(1, [trial], trial)
    assert "rows of" in caplog.text and "a file" in caplog.text
    trial.path = str(tmp_path / "there")
    callback.on_trial_recover(1, [trial], trial)
    assert (tmp_path / "there" / "result.json").read_text() == "{}\n"
    (tmp_path / "here" / "result.json").write_text("")  # of a search that was restored on another machine
    callback.on_trial_start(1, [trial], trial)
    assert (tmp_path / "there" / "result.json").read_text() == "{}\n"


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
        ({"ray": {"num_gpus_per_actor": 2}}, [{"CPU": 1.0, "GPU": 2.0}]),
        ({"ray": {"actors": 2, "num_gpus_per_actor": 2}}, [{"CPU": 1.0, "GPU": 2.0}] * 2),
        ({"ray": {"actors": 3, "num_cpus_per_actor": 0.5}}, [{"CPU": 0.5}] * 3),
    ],
)
def test_a_trial_reserves_what_its_config_needs(values, bundles):
    needs = fedsim.tune.resources(make_tiny(**values))
    assert needs.bundles == bundles
    assert needs.head_bundle_is_empty == (len(bundles) > 1)


@pytest.mark.parametrize("actors", ["pool", 2])
def test_a_trial_is_on_nodes_with_the_labels(session_ray, actors):
    placed = {}
    for zone, seconds in ("here", 30), ("there", 1):
        config = make_tiny(
            ray={"address": "auto", "actors": actors, "num_cpus_per_actor": 0.5, "labels": {"zone": zone}}
        )
        group = fedsim.tune.resources(config)()
        placed[zone] = group.wait(seconds)
        session_ray.util.remove_placement_group(group)
    assert placed == {"here": True, "there": False}


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

"""Runs of a plug-in's partitioner, task, metric and model family: the same bytes wherever they run, and what is recorded."""

import hashlib
import json
import os
import subprocess
import sys

import pytest
import yaml
from house_run import HOUSE, house_values
from support import ROOT, make_tiny, tiny_values

import fedsim
from fedsim.core import plugins
from fedsim.core.errors import CheckpointError, PluginError
from fedsim.prompts.prompt_file import GLOBAL_PROMPT
from fedsim.scaling.process import run_process


@pytest.fixture(scope="module")
def values(tmp_path_factory):
    return house_values(tmp_path_factory.mktemp("house"))


@pytest.fixture
def loaded():
    yield plugins.load_plugin(HOUSE)
    plugins.unload(HOUSE.name)


def prompt(folder):
    return hashlib.sha256((folder / "prompt" / GLOBAL_PROMPT).read_bytes()).hexdigest()


@pytest.fixture(scope="module")
def own_ray(values, tmp_path_factory):
    """Return the folder of a run on a Ray of its own, by the command line."""
    folder = tmp_path_factory.mktemp("own")
    config = folder / "config.yaml"
    config.write_text(yaml.safe_dump(tiny_values({**values, "ray": {"actors": 1, "num_cpus": 1}})))
    command = [sys.executable, "-m", "fedsim", "run", str(config), "--load", str(HOUSE), f"output={folder / 'run'}"]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    done = subprocess.run(command, env=environment, cwd=folder, capture_output=True, text=True, timeout=200)
    assert done.returncode == 0, done.stderr
    return folder / "run"


def test_the_same_bytes_in_this_process_on_a_joined_ray_and_on_one_of_its_own(
    session_ray, loaded, values, own_ray, tmp_path
):
    places = {"local": {"executor": "local"}, "joined": {"ray": {"address": "auto", "actors": 1}}}
    summaries = {
        name: fedsim.run(make_tiny(output=str(tmp_path / name), **values, **place), progress=False)
        for name, place in places.items()
    }
    assert prompt(tmp_path / "local") == prompt(tmp_path / "joined") == prompt(own_ray)
    summaries["own"] = json.loads((own_ray / "summary.json").read_text())
    assert [each["plugins"] for each in summaries.values()] == 3 * [{"house.py": loaded.sha256}]
    assert len({each["config_hash"] for each in summaries.values()}) == 1
    assert len({each["global_metric"] for each in summaries.values()}) == 1
    recorded = yaml.safe_load((own_ray / "config.yaml").read_text())
    assert (
        recorded["params"] == {"stripes": {"width": 3}, "grid": {"step": 1e-4}}
        and recorded["partition"]["kind"] == "stripes"
    )
    assert recorded["data"]["task"] == "moods"


def test_an_actor_whose_constructor_needs_a_plug_in_starts(session_ray, loaded, values):
    """As one does that takes the place of a lost one: Ray reads its arguments before anything of ours runs."""
    from clients.actor import ClientActor
    from clients.backbone.families import FAMILIES
    from fedsim.executors.ray.shipping import shipped
    from fedsim.simulation.preparation import prepare

    spec = prepare(make_tiny(**values)).spec
    assert spec.weights.family is FAMILIES["house-roberta"]
    actor = ClientActor.options(num_cpus=1).remote((), session_ray.put(shipped(spec)), "cpu")
    try:
        assert session_ray.get(actor.info.remote(), timeout=100).full.size > 0
    finally:
        session_ray.kill(actor)


def test_a_plug_in_that_does_not_load_in_an_actor_is_one_sentence(session_ray, values, tmp_path):
    text = (
        HOUSE.read_text() + "\nimport ray\nif ray.get_runtime_context().get_actor_id():\n    import not_on_this_node\n"
    )
    path = tmp_path / "elsewhere.py"
    path.write_text(text)
    plugins.load_plugin(path)
    try:
        sentence = (
            r"^on \S+: the plug-in .*elsewhere\.py cannot be loaded, line \d+: ModuleNotFoundError: No module named"
        )
        with pytest.raises(PluginError, match=sentence) as caught:
            config = make_tiny(output=str(tmp_path / "run"), **values, ray={"address": "auto", "actors": 1})
            fedsim.run(config, progress=False)
        assert "\n" not in str(caught.value)
    finally:
        plugins.unload(path.name)


def test_a_run_is_resumed_with_the_plug_ins_that_it_was_made_with_alone(loaded, values, tmp_path):
    def config(rounds):
        of_the_house = ("partition", "params", "data", "model", "compression")
        kinds = {key: value for key, value in values.items() if key not in of_the_house}
        return make_tiny(output=str(tmp_path / "run"), executor="local", **{**kinds, "rounds": rounds})

    path = tmp_path / "house.py"
    fedsim.run(config(1), progress=False)
    plugins.unload("house.py")
    with pytest.raises(
        CheckpointError, match=r"was made with the plug-in house\.py, which is not loaded; load that file with --load"
    ):
        fedsim.run(config(2), resume=True, progress=False)
    path.write_text(HOUSE.read_text() + "\n# changed\n")
    plugins.load_plugin(path)
    with pytest.raises(
        CheckpointError, match=r"was made with other contents of the plug-in house\.py \(SHA-256 \w{12}"
    ):
        fedsim.run(config(2), resume=True, progress=False)
    path.write_text(HOUSE.read_text())  # wherever it lies
    plugins.load_plugin(path)
    other = tmp_path / "other.py"
    other.write_text("import fedsim\nfedsim.register('metric', 'other')(lambda confusion_CC: 1.0)\n")
    plugins.load_plugin(other)
    with pytest.raises(CheckpointError, match=r"was made without the plug-in other\.py; leave it out"):
        fedsim.run(config(2), resume=True, progress=False)
    plugins.unload("other.py")
    assert fedsim.run(config(2), resume=True, progress=False)["rounds"] == 2


def test_a_run_of_a_study_is_given_the_plug_ins(loaded, values, tmp_path):
    kinds = {key: values[key] for key in ("partition", "params", "client", "compression")}
    config = make_tiny(
        **kinds, rounds=1, layers={"choose": "all"}, executor="local", name="study", model={"products": "float32"}
    )
    run_process(config, tmp_path / "point" / "run-1", lambda: None, lambda line: None)
    summary = json.loads((tmp_path / "point" / "run-1" / "summary.json").read_text())
    assert summary["plugins"] == {"house.py": loaded.sha256} and summary["config_hash"] == config.identity

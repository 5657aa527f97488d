"""The example of a tracker that is a plug-in, ClearML offline: a run that is left and resumed is one task."""

import importlib.util
import json
import os
import subprocess
import sys
import zipfile

import pytest
import yaml
from support import ROOT, tiny_values

import fedsim
from fedsim import Config
from fedsim.core import plugins
from fedsim.core.errors import ConfigError

EXAMPLE = ROOT / "examples" / "clearml_tracker.py"
INSTALLED = importlib.util.find_spec("clearml") is not None
LEFT_AND_RESUMED = """
import sys, fedsim
fedsim.load_plugin({example!r})
config = fedsim.Config.read("tiny.yaml")
with fedsim.Run(config, progress=False) as run:
    next(run), next(run)
fedsim.run(config, resume=True, progress=False)
"""


def values(folder):
    tracking = {"plots": False, "trackers": ["clearml"]}
    own = {"params": {"clearml": {"offline": True}}, "output": str(folder / "run")}
    return tiny_values({"name": "tracked", "executor": "local", "tracking": tracking, **own})


@pytest.mark.skipif(not INSTALLED, reason="pip install clearml")
def test_a_run_that_is_left_and_resumed_is_one_task_with_each_round_once(tmp_path):
    """In a process of its own, since offline mode is the whole process's."""
    (tmp_path / "tiny.yaml").write_text(yaml.safe_dump(values(tmp_path)))
    places = {
        "HOME": str(tmp_path),
        "CLEARML_CACHE_DIR": str(tmp_path / "cache"),
        "PYTHONPATH": os.pathsep.join(sys.path),
    }
    code = LEFT_AND_RESUMED.format(example=str(EXAMPLE))
    subprocess.run([sys.executable, "-c", code], cwd=tmp_path, env={**os.environ, **places}, check=True)
    run = fedsim.load_run(tmp_path / "run")
    assert not run.events("tracker_failed")
    (session,) = (tmp_path / "cache" / "offline").glob("*.zip")
    assert session.stem == json.loads((tmp_path / "run" / "trackers.json").read_text())["clearml"]["id"]
    with zipfile.ZipFile(session) as held:
        points = [point for line in held.read("metrics.jsonl").splitlines() for point in json.loads(line)]
        names = {name.rpartition("/")[2] for name in held.namelist()}
    sent = [(point["iter"], point["value"]) for point in points if point["variant"] == "global_metric"]
    assert sent == [(row["round"], row["global_metric"]) for row in run.rounds.to_pylist()] and len(sent) == 4
    assert "global.safetensors" in names


@pytest.mark.skipif(INSTALLED, reason="clearml is installed")
def test_without_the_package_it_is_refused_before_the_run(tmp_path):
    plugins.load_plugin(EXAMPLE)
    try:
        with pytest.raises(ConfigError, match="needs the package clearml: pip install clearml"):
            fedsim.run(Config(**values(tmp_path)), progress=False)
    finally:
        plugins.unload(EXAMPLE.name)
    assert not (tmp_path / "run").exists()

"""Ray starts while the driver prepares: however preparation ends, nothing of Ray is left."""

import os
import shutil
import signal
import subprocess
import sys
import tempfile
import uuid
from pathlib import Path

import pytest
import yaml
from ray_heads import MARK, left
from support import ROOT, TINY, sweep

from clients.backbone.location import locate
from clients.config import ModelConfig


def start(tmp_path, mark: str, *overrides: str) -> subprocess.Popen:
    """Start a run on a local cluster; its processes, and Ray's, carry a mark in their environment."""
    path = tmp_path / "run.yaml"
    path.write_text(yaml.safe_dump(TINY))
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "PYTHONUNBUFFERED": "1", MARK: mark}
    for name in ("RAY_AUTH_MODE", "RAY_AUTH_TOKEN", "RAY_ADDRESS"):
        environment.pop(name, None)
    overrides = (f"output={tmp_path / 'run'}", "ray.actors=1", *overrides)
    command = [sys.executable, "-m", "fedsim", "run", str(path), *overrides]
    return subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment, start_new_session=True
    )


def no_folder_left(process: subprocess.Popen) -> bool:
    """Whether the folder of the run's Ray, whose name holds the run's process id, is gone."""
    return not list(Path(tempfile.gettempdir()).glob(f"fedsim-*-{process.pid}-*"))


def test_a_damaged_model_is_one_sentence_and_leaves_no_process(tmp_path):
    model = tmp_path / "model"
    shutil.copytree(locate(ModelConfig()), model)
    (model / "tokenizer.json").write_text("{}")
    mark = uuid.uuid4().hex
    process = start(tmp_path, mark, f"model.path={model}")
    _, errors = process.communicate(timeout=120)
    assert process.returncode == 2
    assert errors.startswith(f"error: the tokenizer of model {model} cannot be read")
    assert errors.count("\n") == 1
    assert not (tmp_path / "run").exists()
    assert left(mark) == [] and no_folder_left(process)


@pytest.mark.parametrize(
    ("phase", "number"),
    sweep(
        [("loading the backbone", signal.SIGINT), ("starting Ray and its actors", signal.SIGTERM)],
        [("starting Ray and its actors", signal.SIGTERM)],
    ),
)
def test_an_interrupt_during_the_start_ends_it_and_leaves_no_process(tmp_path, phase, number):
    mark = uuid.uuid4().hex
    process = start(tmp_path, mark)
    assert any(phase in line for line in process.stdout), process.stderr.read()
    # Ctrl-C in a terminal reaches every process of the group, SIGTERM of a scheduler the one it knows.
    if number == signal.SIGINT:
        os.killpg(process.pid, number)
    else:
        process.send_signal(number)
    _, errors = process.communicate(timeout=120)
    assert process.returncode == 128 + number, errors
    assert "Traceback" not in errors
    assert left(mark) == [] and no_folder_left(process)

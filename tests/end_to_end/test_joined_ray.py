"""Runs in a process that is connected to Ray already: a notebook, a Ray task."""

from pathlib import Path

import pytest
from support import make_tiny

import fedsim
from fedsim.core.errors import ResourceError

CONFIG = {"rounds": 2, "client": {"fuse": 2}}
"""fuse is given: a trial could settle it differently in two runs, and so change last bits."""


def prompt(path) -> bytes:
    return (Path(path) / "prompt" / "global.safetensors").read_bytes()


@pytest.fixture(scope="module")
def local(tmp_path_factory):
    path = tmp_path_factory.mktemp("local") / "run"
    fedsim.run(make_tiny(**CONFIG, executor="local", output=str(path)), progress=False)
    return prompt(path)


def test_a_connected_process_is_told_in_one_sentence_how_to_run_there(session_ray, tmp_path):
    with pytest.raises(ResourceError, match=r"set ray.address=auto to run there, or executor=local to do without$"):
        fedsim.run(make_tiny(**CONFIG, output=str(tmp_path / "run")), progress=False)
    assert session_ray.is_initialized()


@pytest.mark.parametrize("keys", [{"ray": {"address": "auto", "actors": 1}}, {"executor": "local"}])
def test_a_ray_task_can_run_on_the_ray_that_it_is_part_of_and_in_itself(session_ray, local, tmp_path, keys):
    task = session_ray.remote(num_cpus=0)(fedsim.run)
    path = tmp_path / "run"
    summary = session_ray.get(task.remote(make_tiny(**CONFIG, **keys, output=str(path)), progress=False))
    assert prompt(path) == local and summary["rounds"] == 2
    assert session_ray.is_initialized()

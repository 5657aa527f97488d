"""A client actor is killed in the middle of a group: its successor gets the same group, and the result is the same."""

import contextlib
import os
import signal
import threading
from pathlib import Path

import psutil
import pytest

from fedsim.core.errors import ResourceError
from fedsim.runner import run_config


class ActorKiller(threading.Thread):
    """Sends SIGKILL to the first client actors that are seen training, ``times`` in all."""

    def __init__(self, times: int) -> None:
        super().__init__(daemon=True)
        self.times = times
        self.killed: list[int] = []
        self.stop = threading.Event()

    def run(self) -> None:
        while len(self.killed) < self.times and not self.stop.wait(0.005):
            for pid in training_actors():
                if pid not in self.killed and len(self.killed) < self.times:
                    os.kill(pid, signal.SIGKILL)
                    self.killed.append(pid)


def training_actors() -> list[int]:
    """Return the pids of this session's actors that are in a ``train`` call: Ray shows it in the process title."""
    pids = []
    for process in psutil.Process().children(recursive=True):
        with contextlib.suppress(psutil.NoSuchProcess):
            if process.cmdline()[:1] == ["ray::ClientActor.train"]:
                pids.append(process.pid)
    return pids


def test_the_result_is_the_same_after_kills(session_ray, tiny_config, tmp_path, capsys):
    ray_config = {"address": "auto", "actors": 2}
    killer = ActorKiller(2)
    killer.start()
    run_config(tiny_config(output=str(tmp_path / "killed"), ray=ray_config), quiet=True)
    killer.stop.set()
    killer.join()
    assert len(killer.killed) == 2
    assert capsys.readouterr().out.count("was lost in") == 2
    run_config(tiny_config(output=str(tmp_path / "local"), executor="local"), quiet=True)
    prompt = Path("prompt") / "global.safetensors"
    assert (tmp_path / "killed" / prompt).read_bytes() == (tmp_path / "local" / prompt).read_bytes()


def test_replacements_are_bounded(session_ray, tiny_config, tmp_path):
    ray_config = {"address": "auto", "actors": 1, "max_replacements": 0}
    killer = ActorKiller(1)
    killer.start()
    with pytest.raises(ResourceError, match=r"round 1, group 0: an actor was lost .* see ray.max_replacements"):
        run_config(tiny_config(output=str(tmp_path / "run"), ray=ray_config), quiet=True)
    killer.stop.set()
    killer.join()

"""macOS and Windows: all but what starts Ray is imported, and a local run goes through, without what only POSIX has."""

import subprocess
import sys

import pytest
import yaml
from support import ROOT, tiny_values

WITHOUT = """
import builtins, importlib, io, os, pkgutil, signal, sys, types

OURS = ("fedsim", "clients", "server", "partitions")
REMOVED = {"fcntl", "resource", "pwd", "grp", "termios", "tty", "pty", "posix", "syslog"}
LACKING = {
    "os": "statvfs sched_getaffinity killpg fork getuid geteuid uname mkfifo setsid getloadavg sysconf O_NOFOLLOW",
    "signal": "SIGHUP SIGUSR1 SIGUSR2 SIGKILL SIGQUIT SIGALRM SIGCHLD setitimer pthread_sigmask",
}
ordinary_import, ordinary_open = builtins.__import__, io.open

class Poorer(types.ModuleType):
    def __getattr__(self, name):
        if name in LACKING[self.__name__].split():
            raise AttributeError(f"module {self.__name__!r} has no attribute {name!r}", name=name, obj=self)
        return getattr(sys.modules[self.__name__], name)

POORER = {name: Poorer(name) for name in LACKING}

def ours():
    # The nearest caller outside pathlib. Other packages have branches of their own for these systems, not taken here.
    frame = sys._getframe(2)
    while frame.f_globals.get("__name__", "").startswith("pathlib"):
        frame = frame.f_back
    return frame.f_globals.get("__name__", "").partition(".")[0] in OURS

def import_(name, *arguments, **options):
    if name in REMOVED and ours():
        raise ModuleNotFoundError(f"No module named {name!r}", name=name)
    return POORER[name] if name in POORER and ours() else ordinary_import(name, *arguments, **options)

def open_(file, *arguments, **options):
    if str(file).startswith(("/proc/", "/sys/", "/dev/shm")) and ours():
        raise FileNotFoundError(2, "No such file or directory", str(file))
    return ordinary_open(file, *arguments, **options)

builtins.__import__ = import_
builtins.open = io.open = open_
"""
IMPORTS = """
RAY = ("fedsim.executors.ray", "clients.actor", "server.aggregator", "fedsim.doctor.cluster")
wanted, number = tuple(sys.argv[1:]), 0
for package in OURS:
    for found in pkgutil.walk_packages(importlib.import_module(package).__path__, f"{package}."):
        if found.name.startswith(wanted) and not found.name.startswith(RAY) and not found.name.endswith("__main__"):
            importlib.import_module(found.name)
            number += 1
print(number)
"""
RUN = """
from fedsim.cli import main
sys.argv = ["fedsim", *sys.argv[1:]]
main()
"""


def python(code, folder, *arguments):
    command = [sys.executable, "-c", WITHOUT + code, *map(str, arguments)]
    return subprocess.run(command, cwd=folder, capture_output=True, text=True)


LIGHT = ("fedsim.configuration", "fedsim.doctor", "fedsim.planning", "fedsim.records", "fedsim.world", "partitions")


@pytest.mark.parametrize("packages", [LIGHT, pytest.param(("",), marks=pytest.mark.wide)], ids=["light", "all"])
def test_everything_but_the_executors_on_ray_is_imported(tmp_path, packages):
    done = python(IMPORTS, tmp_path, *packages)
    assert done.returncode == 0, done.stderr
    assert int(done.stdout) > (50 if packages is LIGHT else 350)


def test_a_local_run_needs_nothing_that_only_linux_has(tmp_path):
    (tmp_path / "tiny.yaml").write_text(yaml.safe_dump(tiny_values({"executor": "local", "rounds": 1})))
    done = python(RUN, tmp_path, "run", "tiny.yaml")
    assert done.returncode == 0, done.stderr
    assert "Run finished" in done.stdout and (tmp_path / "runs/tiny/summary.json").is_file()


def test_what_is_taken_away_is_missed():
    asked = "exec('import os; print(os.cpu_count() > 0); {}', {{'__name__': 'fedsim.core'}})"
    for code, said in (("import fcntl", "No module named 'fcntl'"), ("os.getuid()", "has no attribute 'getuid'")):
        done = python(asked.format(code), ROOT)
        assert done.stdout == "True\n" and said in done.stderr

"""The batch script for Slurm, run as Slurm runs it, with two nodes on this machine.

Slurm itself is not here: programs on PATH do what its own would do with the options that the script gives them.
The nodes, the run and the signal are real.
"""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import uuid
from pathlib import Path

import pytest
from ray_heads import clean_environment, end_marked, left, marked
from support import ROOT

from fedsim.records.checkpoint import load_latest

SCRIPT = ROOT / "configs" / "cluster" / "slurm.sbatch"
TINY = [
    "rounds=2000",
    "data.train_examples=240",
    "data.validation_examples=60",
    "partition.clients=12",
    "sampling.clients_per_round=4",
    "client.epochs=1",
    "tracking.plots=false",
]
SRUN = """
import os, pathlib, signal, subprocess, sys
arguments, options = sys.argv[1:], {}
while arguments[0].startswith("--"):
    name, _, value = arguments.pop(0)[2:].partition("=")
    options[name] = value
hosts = {"one", "two"} - {options.get("exclude")}
hosts &= {options.get("nodelist", "one"), "two"} if "nodelist" not in options else {options["nodelist"]}
assert len(hosts) == int(options["nodes"]) == int(options["ntasks"]), (hosts, options)
assert options["cpus-per-task"] == "1", options
tasks = [
    subprocess.Popen(arguments, env={**os.environ, "SLURM_PROCID": str(number), "SLURMD_NODENAME": host})
    for number, host in enumerate(sorted(hosts))
]
# Of Slurm, only scancel ends a step gently: a signal to srun forces it to end.
signal.signal(signal.SIGUSR1, lambda number, frame: [task.terminate() for task in tasks])
signal.signal(signal.SIGTERM, lambda number, frame: [task.kill() for task in tasks])
(pathlib.Path(__file__).parent / f"step-{os.getpid()}").touch()
sys.exit(max(task.wait() for task in tasks))
"""
SCONTROL = """
import sys
assert sys.argv[1:] == ["show", "hostnames", "one,two"], sys.argv
print("one\\ntwo")
"""
SCANCEL = """
import os, pathlib, signal, sys
assert sys.argv[1:] == ["--signal=TERM", os.environ["SLURM_JOB_ID"]], sys.argv
for step in pathlib.Path(__file__).parent.glob("step-*"):
    os.kill(int(step.name.removeprefix("step-")), signal.SIGUSR1)
"""


@pytest.fixture
def slurm(tmp_path):
    """Return the environment of a job on two nodes, with one CPU each; end whatever it leaves behind."""
    mark = uuid.uuid4().hex
    programs = tmp_path / "bin"
    programs.mkdir()
    for name, code in (("srun", SRUN), ("scontrol", SCONTROL), ("scancel", SCANCEL)):
        (programs / name).write_text(f"#!{sys.executable}\n{code}")
        (programs / name).chmod(0o755)
    environment = clean_environment(mark)
    environment["PATH"] = f"{programs}{os.pathsep}{environment['PATH']}"
    environment["SLURM_JOB_ID"] = str(os.getpid())
    environment |= {"SLURM_JOB_NODELIST": "one,two", "SLURM_JOB_NUM_NODES": "2", "SLURM_CPUS_PER_TASK": "1"}
    yield environment, mark
    end_marked(mark)


@pytest.mark.wide(alone="25 s: two nodes of Ray")
def test_a_job_runs_on_all_nodes_and_saves_at_the_time_limit(slurm, tmp_path):
    environment, mark = slurm
    output = (
        tmp_path / "runs" / f"slurm-{os.getpid()}"
    )  # without output it is the job's own: what it was requeued with stays in it
    # Slurm runs a copy of the script, in the folder that it was submitted from.
    command = ["bash", str(SCRIPT), str(ROOT / "configs/cluster/quickstart.yaml"), *TINY]
    environment["PYTHONPATH"] = str(ROOT)
    job = subprocess.Popen(
        command, cwd=tmp_path, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    )
    lines = []
    for line in job.stdout:
        lines.append(line)
        if re.match(r"round +2/", line):
            break
    # Each node, a raylet, has one of the two actors: one CPU is not enough for both.
    raylets = [process.ppid() for process in marked(mark) if "ClientActor" in " ".join(process.cmdline())]
    assert len(raylets) == len(set(raylets)) == 2, "".join(lines)
    job.send_signal(signal.SIGTERM)  # to the batch script alone, as --signal=B:TERM asks for
    rest, _ = job.communicate(timeout=120)
    log = "".join(lines) + rest
    assert job.returncode == 128 + signal.SIGTERM, log
    assert "Ray: 2 of 2 nodes\n" in log
    assert re.search(r"interrupted by SIGTERM: the state after round \d+ is saved; continue with --resume\n", log)
    assert "Traceback" not in log

    checkpoint, skipped = load_latest(output / "checkpoints")
    assert checkpoint.round >= 2 and not skipped
    assert left(mark, 20) == []
    assert not Path(f"/tmp/fs-{os.getpid()}").exists()


def test_without_a_config_it_says_how_to_use_it(slurm, tmp_path):
    done = subprocess.run(["bash", str(SCRIPT)], cwd=tmp_path, env=slurm[0], capture_output=True, text=True)
    assert done.returncode != 0
    assert "usage: sbatch slurm.sbatch CONFIG [KEY=VALUE]..." in done.stderr

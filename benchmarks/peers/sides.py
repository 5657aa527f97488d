"""One run of one side: its command in separate processes, monitored to the end, and the outcome."""

from __future__ import annotations

import json
import os
import socket
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import psutil

from benchmarks.peers.cases import Carrying, Case
from benchmarks.peers.files import Events
from benchmarks.peers.venvs import ROOT
from fedsim.core.errors import FedsimError
from fedsim.records.checkpoint import load_latest

POLL_SECONDS = 0.5
LONGEST_SECONDS = 3600.0
_PATIENCE_SECONDS = 10.0
"""Time limit for the processes of a finished run to exit."""
_ENVIRONMENT = {
    "OMP_NUM_THREADS": "1",
    "TOKENIZERS_PARALLELISM": "false",
    "HF_HUB_OFFLINE": "1",
    "FLWR_TELEMETRY_ENABLED": "0",
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",
    # Ray gives its workers niceness 15; Flower's are given the same chance as all others.
    "RAY_worker_niceness": "0",
}


class SideError(FedsimError):
    """A side cannot run, or its run failed."""


@dataclass(frozen=True)
class Outcome:
    """Outcome of one run of a side."""

    first_round_seconds: float
    """From the start of the command to the end of the first round."""
    round_seconds: float
    """Median over the rounds after the first."""
    vector_F: np.ndarray
    """Global vector after the last round."""
    loss: float
    """Loss on the validation examples after the last round; NaN where nothing is trained."""
    peak_memory_bytes: int
    """Largest memory of all processes of the run; what several of them share counts once (PSS), where the system tells it."""


def fedsim_tuning(case: Case, overrides: Sequence[str], rounds: int) -> Callable[[Path], Outcome]:
    """Return a function that runs fedsim on a case, in a new folder that it is given."""

    def run(out: Path) -> Outcome:
        words = [*case.words(tuple(overrides)), f"rounds={rounds}", f"output={out / 'run'}"]
        started = time.time()
        memory = watch("fedsim", [[sys.executable, "-m", "fedsim", "run", *words]], out)
        lines = (out / "run" / "metrics.jsonl").read_text(encoding="utf-8").splitlines()
        events = [event for event in map(json.loads, lines) if event["event"] == "round"]
        for event in events:
            event["time"] = datetime.fromisoformat(event["time"]).timestamp()
            event["loss"] = event["global_loss"]
        checkpoint, _ = load_latest(out / "run" / "checkpoints")
        if checkpoint is None:
            raise SideError(f"fedsim left no checkpoint in {out}")
        return _outcome("fedsim", started, events, checkpoint.server["vector"], memory, rounds)

    return run


def peer_tuning(peer: str, python: Path, work: Path, rounds: int) -> Callable[[Path], Outcome]:
    """Return a function that runs a peer on the work in a folder."""
    return lambda out: _peer(peer, python, ["--work", str(work)], rounds, out)


def carrying(name: str, python: Path, case: Carrying, rounds: int) -> Callable[[Path], Outcome]:
    """Return a function that runs W3 on a side; ``pfl-bare`` is pfl's side with the option ``--bare``."""
    words = ["--clients", str(case.clients), "--elements", str(case.elements)]
    return lambda out: _peer(name, python, words, rounds, out)


def _peer(peer: str, python: Path, words: Sequence[str], rounds: int, out: Path) -> Outcome:
    name, _, variant = peer.partition("-")
    # Imported rather than run as a script: what Flower sends to its workers travels as a name then, not as code.
    code = f"from benchmarks.peers.{name}_side import main; main()"
    command = [str(python), "-c", code, "--out", str(out), "--rounds", str(rounds), *words]
    command += [f"--{variant}"] if variant else []
    started = time.time()
    if name == "pfl":
        first = f"127.0.0.1:{_free_port()}"
        # pfl's own way to share a simulation among processes that it did not start; the second address only counts.
        ranks = [{"PFL_WORKER_ADDRESSES": f"{first},{first}", "PFL_WORKER_RANK": str(rank)} for rank in range(2)]
        memory = watch(peer, [command, command], out, ranks)
    else:
        memory = watch(peer, [command], out)
    events, vector_F = Events(out).read()
    return _outcome(peer, started, events, vector_F, memory, rounds)


def watch(
    side: str, commands: Sequence[list[str]], out: Path, environments: Sequence[Mapping[str, str]] = ({},)
) -> int:
    """Run commands side by side to their end; return the peak memory of all processes that belong to them, in bytes.

    Raises
    ------
    SideError
        If a command fails, or none has ended after an hour; whatever they started is ended then.
    """
    base = {key: value for key, value in os.environ.items() if not key.startswith(("RAY_", "PFL_", "FLWR_"))}
    base |= _ENVIRONMENT | {"PYTHONPATH": str(ROOT)}
    running: list[subprocess.Popen[bytes]] = []
    family: set[psutil.Process] = set()
    peak, deadline = 0, time.monotonic() + LONGEST_SECONDS
    try:
        for number, command in enumerate(commands):
            with (out / f"log-{number}.txt").open("wb") as log:
                environment = base | dict(environments[number])
                running.append(subprocess.Popen(command, cwd=ROOT, env=environment, stdout=log, stderr=log))
        while (codes := [process.poll() for process in running]) and None in codes and not any(codes):
            if time.monotonic() > deadline:
                raise SideError(f"{side} has not ended after {LONGEST_SECONDS / 60:.0f} minutes")
            present = _descendants(running)
            family |= present
            peak = max(peak, sum(map(_bytes_held, present)))
            time.sleep(POLL_SECONDS)
        for number, code in enumerate(codes):
            if code:
                raise SideError(f"{side} stopped with exit status {code}: {_last_line(out / f'log-{number}.txt')}")
    except BaseException:
        _end(family | _descendants(running), patience_seconds=0.0)
        raise
    _end(family, _PATIENCE_SECONDS)
    return peak


def _descendants(processes: Sequence[subprocess.Popen[bytes]]) -> set[psutil.Process]:
    found: set[psutil.Process] = set()
    for process in processes:
        try:
            parent = psutil.Process(process.pid)
            found |= {parent, *parent.children(recursive=True)}
        except psutil.NoSuchProcess:
            continue
    return found


def _bytes_held(process: psutil.Process) -> int:
    """Return a process's proportional set size, or its resident memory where there is none; 0 if it has ended."""
    try:
        lines = Path(f"/proc/{process.pid}/smaps_rollup").read_text(encoding="ascii").splitlines()
        return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("Pss:"))
    except (OSError, StopIteration):
        pass
    try:
        return int(process.memory_info().rss)
    except psutil.Error:
        return 0


def _end(processes: set[psutil.Process], patience_seconds: float) -> None:
    """Stop what is left of a failed run, so that the next side finds an idle machine."""
    _, left = psutil.wait_procs(processes, timeout=patience_seconds)
    for process in left:
        try:
            process.kill()
        except psutil.NoSuchProcess:
            continue
    psutil.wait_procs(left, timeout=_PATIENCE_SECONDS)


def _last_line(log: Path) -> str:
    """Return the most informative line of a failed run's log."""
    lines = [line.strip() for line in log.read_text(encoding="utf-8", errors="replace").splitlines() if line.strip()]
    errors = [line for line in lines if "Error" in line.split(":")[0] or line.startswith("error:")]
    return (errors or lines or ["nothing was printed"])[-1][:300]


def _outcome(
    side: str, started: float, events: Sequence[dict[str, Any]], vector_F: np.ndarray, memory: int, rounds: int
) -> Outcome:
    if len(events) != rounds or rounds < 2:
        raise SideError(f"{side} ended after {len(events)} of {rounds} rounds")
    times = [event["time"] for event in events]
    return Outcome(
        first_round_seconds=times[0] - started,
        round_seconds=statistics.median(after - before for before, after in pairwise(times)),
        vector_F=vector_F,
        loss=events[-1].get("loss", float("nan")),
        peak_memory_bytes=memory,
    )


def _free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        port: int = listener.getsockname()[1]
        return port

"""One run of a point in a separate process, as ``fedsim run`` does it, with its own start-up and memory."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

from fedsim.core.plugins import loaded
from fedsim.records.events import open_locked, write_atomically
from fedsim.records.run_folder import RunFolder

if TYPE_CHECKING:
    from fedsim.configuration.schema import Config

_POLL_SECONDS = 0.25
_END_SECONDS = 60.0
"""Time an interrupted run may take to save its state and stop Ray."""


class RunFailed(Exception):  # noqa: N818 - it is a result of the study
    """A run failed; the message explains why."""


def run_process(config: Config, run: Path, check: Callable[[], None], show: Callable[[str], None]) -> None:
    """Run a config in a separate process.

    Parameters
    ----------
    run
        The run's folder. Beside it go its output (``.log``) and, once it has succeeded, ``.json`` with the seconds
        since the epoch when its process was ``started`` and had ``ended``.
    check
        Called repeatedly; if it raises, the run is asked to stop first.
    show
        Called with the last line that the run printed.

    Raises
    ------
    RunFailed
        If the run fails.
    ConfigError
        If ``run`` is in use, or is not a fedsim run.
    """
    from fedsim.configuration.text import config_text

    _remove_unfinished(run)
    run.parent.mkdir(parents=True, exist_ok=True)
    config_file, log_file = run.parent / "config.yaml", run.with_suffix(".log")
    write_atomically(config_file, config_text(config, meanings=False))
    command = [sys.executable, "-m", "fedsim", "run", str(config_file), f"output={run}"]
    command += [word for plugin in loaded() for word in ("--load", plugin.path)]
    started = time.time()
    with log_file.open("w", encoding="utf-8") as log:
        # A new session: Ctrl-C reaches only this process, which then asks the run to stop, once.
        process = subprocess.Popen(
            command, stdin=subprocess.DEVNULL, stdout=log, stderr=log, env=_environment(), start_new_session=True
        )
        try:
            while not _ended(process):
                show(_last_line(log_file))
                check()
        finally:
            _end(process)
    ended = time.time()
    if process.returncode != 0:
        raise RunFailed(_why(process.returncode, log_file))
    write_atomically(mark_of(run), json.dumps({"started": started, "ended": ended}) + "\n")


def mark_of(run: Path) -> Path:
    """Return the file that marks a run as finished."""
    return run.with_suffix(".json")


def _remove_unfinished(run: Path) -> None:
    """Remove what an interrupted or failed run left: figures of a resumed run would not be comparable."""
    if RunFolder.check(run, overwrite=True) == "run":
        open_locked(run / "metrics.jsonl").close()  # refuses a run that is still running
        shutil.rmtree(run)


def _environment() -> dict[str, str]:
    """Return an environment in which the run finds this fedsim, installed or cloned, and does not buffer its output."""
    root = str(Path(__file__).resolve().parents[2])
    paths = [root, *os.environ.get("PYTHONPATH", "").split(os.pathsep)]
    return {**os.environ, "PYTHONPATH": os.pathsep.join(dict.fromkeys(filter(None, paths))), "PYTHONUNBUFFERED": "1"}


def _ended(process: subprocess.Popen[bytes]) -> bool:
    try:
        process.wait(_POLL_SECONDS)
    except subprocess.TimeoutExpired:
        return False
    return True


def _end(process: subprocess.Popen[bytes]) -> None:
    """Stop a running run: it saves its state and stops Ray, or is killed if that takes too long."""
    if process.poll() is not None:
        return
    process.send_signal(signal.SIGINT)
    try:
        process.wait(_END_SECONDS)
    except (subprocess.TimeoutExpired, KeyboardInterrupt):
        os.killpg(process.pid, signal.SIGKILL)  # with Ray, whose processes are in the same group
        process.wait()


def _why(status: int, log: Path) -> str:
    if status < 0:
        return f"its process was ended by {signal.Signals(-status).name} (see {log})"
    lines = log.read_text(encoding="utf-8", errors="replace").splitlines()
    sentences = [line.removeprefix("error: ") for line in lines if line.startswith("error: ")]
    return sentences[-1] if sentences else f"its process ended with status {status}: {_last_line(log)} (see {log})"


def _last_line(log: Path) -> str:
    with log.open("rb") as file:
        file.seek(max(file.seek(0, os.SEEK_END) - 500, 0))
        lines = file.read().decode("utf-8", errors="replace").split("\n")
    return next((line for line in reversed(lines) if line.strip()), "")

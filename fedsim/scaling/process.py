"""One run of a point, as ``fedsim run`` does it, in a process of its own: start-up and memory are its own, too."""

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
"""How long an interrupted run may take to save its state and end its Ray."""


class RunFailed(Exception):  # noqa: N818 - it is a result of the study
    """A run did not end well; the message is the sentence that says why."""


def run_process(config: Config, run: Path, check: Callable[[], None], show: Callable[[str], None]) -> None:
    """Run a config in a process of its own.

    Parameters
    ----------
    run
        The run's folder. Beside it go what it prints (``.log``) and, once it has ended well, ``.json`` with the seconds
        since the epoch when its process was ``started`` and had ``ended``.
    check
        Called again and again; if it raises, the run is asked to end first.
    show
        Told the last line that the run has printed.

    Raises
    ------
    RunFailed
        If the run does not end well.
    ConfigError
        If ``run`` is in use, or is no folder of ours.
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
        # A session of its own: Ctrl-C reaches this process alone, which then asks the run to end, once.
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
    """Return the file that says that a run is finished."""
    return run.with_suffix(".json")


def _remove_unfinished(run: Path) -> None:
    """Remove what an interrupted or failed run has left: figures of a run that was taken up again would not compare."""
    if RunFolder.check(run, overwrite=True) == "run":
        open_locked(run / "metrics.jsonl").close()  # refuses a run that is still going on
        shutil.rmtree(run)


def _environment() -> dict[str, str]:
    """Let the run find this fedsim, whether it is installed or a plain clone, and print each line at once."""
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
    """End a run that is still going on: it saves its state and ends its Ray, or is killed if that takes too long."""
    if process.poll() is not None:
        return
    process.send_signal(signal.SIGINT)
    try:
        process.wait(_END_SECONDS)
    except (subprocess.TimeoutExpired, KeyboardInterrupt):
        os.killpg(process.pid, signal.SIGKILL)  # with its Ray, whose processes are of the same group
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

"""The fault matrix: real faults of clients, actors, nodes and the driver.

    python -m benchmarks.faults                       # all rows
    python -m benchmarks.faults --only aggregator     # rows whose name has the word
    python -m benchmarks.faults --markdown            # the table of docs/reliability.md

Every row is a run of 12 clients in three groups a round on two actors, in which something is killed by SIGKILL, hangs, raises,
takes memory until it is stopped, or returns a useless result. It reports the outcome, the time until the user was
informed, and whether the final prompt has the bytes of the undisturbed run. Exit status 1 if a row does not end as guaranteed.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import psutil
import typer

os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
os.environ.setdefault("RAY_worker_niceness", "0")
_ROOT = Path(__file__).resolve().parents[1]
os.environ["PYTHONPATH"] = os.pathsep.join([str(_ROOT), os.environ.get("PYTHONPATH", "")])

ROUNDS, CLIENTS, GROUP = 3, 12, 4
DEADLINE_SECONDS = 5.0
HEADROOM_BYTES = 6 * 2**30
"""Memory that driver, Ray, actors and a client may take before the node counts as full, in rows about memory."""
MEMORY_SECONDS = 400.0
SAME, DROPPED, STOPPED = "same bytes", "client left out", "run stopped"


@dataclass(frozen=True)
class Row:
    """Outcome of one fault."""

    fault: str
    policy: str
    result: str
    promised: str
    seconds_to_detect: float | None
    """Seconds from the fault to its first message; None if only a resume can show it."""
    replaced: int
    message: str


@dataclass(frozen=True)
class Case:
    """A fault and its guaranteed outcome."""

    name: str
    promised: str
    kind: str = ""
    times: int = 1
    place: int = 1
    """Group of the client at fault: 0 the first, 1 the middle one, 2 the last."""
    policy: str = "raise"
    round: int = 1
    ray: tuple[tuple[str, Any], ...] = ()
    work: Any = "train"
    """See :class:`benchmarks.faulty.Fault`."""


_DEADLINE = (("group_timeout_seconds", DEADLINE_SECONDS),)
CASES = (
    Case("actor killed in the first group", SAME, "kill", place=0),
    Case("actor killed in a middle group", SAME, "kill", place=1),
    Case("actor killed in the last group", SAME, "kill", place=2),
    Case("actor killed twice in a row", SAME, "kill", times=2),
    Case("client kills its actor every time", STOPPED, "kill", times=99),
    Case("client kills its actor every time", STOPPED, "kill", times=99, policy="retry:2"),
    Case("client kills its actor every time in a round", DROPPED, "kill", times=3, policy="drop"),
    Case("client kills its actor every time it scores layers", SAME, "kill", 99, policy="drop", round=0, work="score"),
    Case("client kills its actor every time it is evaluated", SAME, "kill", times=99, policy="drop", work="evaluate"),
    Case("client raises", STOPPED, "raise", times=99),
    Case("client raises", STOPPED, "raise", times=99, policy="retry:2"),
    Case("client raises", DROPPED, "raise", times=2, policy="drop"),
    Case("client hangs", STOPPED, "hang", times=99, ray=_DEADLINE),
    Case("client hangs once", SAME, "hang", policy="retry:1", ray=_DEADLINE),
    Case("client hangs", DROPPED, "hang", times=2, policy="drop", ray=_DEADLINE),
    Case("client returns NaN", DROPPED, "nan"),
    Case("client returns a vector of the wrong shape", STOPPED, "shape", times=99),
    Case("client returns a vector of the wrong shape", DROPPED, "shape", times=2, policy="drop"),
    Case("aggregator killed", SAME, "aggregator"),
    Case("client takes all memory once", SAME, "memory"),
    Case("client takes all memory every time", DROPPED, "memory", times=99, policy="drop"),
    Case("node of three lost in a round", SAME, "node"),
    Case("driver killed in training, then resumed", SAME, "driver in training"),
    Case("driver killed in a half-written checkpoint, then resumed", SAME, "driver in checkpoint"),
    Case("driver killed between checkpoint and checksum, then resumed", SAME, "driver before checksum"),
)


def main(
    only: Annotated[str, typer.Option(help="Rows whose name has these words.")] = "",
    markdown: Annotated[bool, typer.Option("--markdown", help="Print the table as Markdown.")] = False,
    child: Annotated[str, typer.Option(hidden=True)] = "",
    folder: Annotated[Path | None, typer.Option(hidden=True)] = None,
) -> None:
    """Run the fault matrix."""
    if child:
        _child(child, folder or Path())
        return
    cases = [case for case in CASES if only in case.name]
    if not cases:
        raise typer.BadParameter(f"no row has {only!r} in its name")
    with tempfile.TemporaryDirectory() as temporary:
        rows = Matrix(Path(temporary)).rows(cases)
    _print(rows, markdown)
    raise typer.Exit(0 if all(row.result == row.promised for row in rows) else 1)


def config(folder: Path | None = None, **changes: Any) -> Any:
    """Return the config of all rows with changes."""
    from fedsim.configuration.schema import build_config

    return build_config(
        {
            "rounds": ROUNDS,
            "group_size": GROUP,
            "output": None if folder is None else str(folder),
            "data": {"train_examples": 240, "validation_examples": 60},
            "partition": {"clients": CLIENTS, "holdout_fraction": 0.2},
            "sampling": {"clients_per_round": CLIENTS},
            "prompt": {"length": 4},
            "layers": {"score_batch_size": 8},
            "client": {"epochs": 1, **changes.pop("client", {})},
            "tracking": {"plots": False},
            **changes,
        }
    )


class Matrix:
    """Runs the rows, beside an undisturbed run."""

    def __init__(self, folder: Path) -> None:
        from benchmarks.disturbed import run
        from clients.training.local_job import num_trained
        from fedsim.simulation.preparation import prepare
        from server.sampling import cut

        self._folder = folder
        self._started = time.monotonic()
        local = config(executor="local")
        self._prepared = prepare(local)
        self._whole = run(local, self._prepared, folder / "whole").vector_F
        work_N = [num_trained(local.client, int(size)) for size in self._prepared.spec.train_sizes]
        self._groups = cut(range(CLIENTS), GROUP, work_N)  # type: ignore[arg-type]  # a list works too
        self._done = 0

    def rows(self, cases: list[Case]) -> list[Row]:
        """Return a row for each case; those that need their own Ray come last."""
        import ray

        shared = [case for case in cases if case.kind not in ("memory", "node") and "driver" not in case.kind]
        made: dict[Case, Row] = {}
        if shared:
            # This process's Ray, which the runs join: its start is not measured.
            ray.init(address="local", num_cpus=3, include_dashboard=False, log_to_driver=False, logging_level="ERROR")
            for case in shared:
                made[case] = self._told(self._on_actors(case))
            ray.shutdown()
        for case in cases:
            if case not in made:
                made[case] = self._told(self._apart(case))
        return [made[case] for case in cases]

    def _told(self, row: Row) -> Row:
        self._done += 1
        passed = time.monotonic() - self._started
        print(f"{passed:4.0f} s  {row.fault} ({row.policy}): {row.result}; {row.message}", file=sys.stderr, flush=True)
        return row

    def _on_actors(self, case: Case, own_ray: bool = False) -> Row:
        from benchmarks.disturbed import run
        from benchmarks.faulty import Fault

        folder = self._folder / f"run-{self._done}-{case.kind}"
        killer = _AggregatorKiller(case.round) if case.kind == "aggregator" else None
        client = -1 if killer else self._groups[case.place][0]
        kind: Any = "nan" if killer else case.kind
        name = f"client {client} failed in round"
        fault = Fault(kind, client, folder.with_suffix(".strikes"), case.times, case.round, case.work)
        address = {} if own_ray else {"address": "auto"}
        outcome = run(
            config(ray={"actors": 2, **address, **dict(case.ray)}, client={"on_failure": case.policy}),
            self._prepared,
            folder,
            fault,
            meanwhile=killer,
        )
        struck = killer.struck if killer else min(fault.struck(), default=outcome.ended)
        if outcome.error is not None:
            result, message = STOPPED, str(outcome.error).splitlines()[0]
        else:
            assert outcome.vector_F is not None and self._whole is not None
            same = outcome.vector_F.tobytes() == self._whole.tobytes()
            left_out = outcome.said("left out")
            alone = outcome.failed > 0 and len(left_out) == outcome.failed and all(name in text for text in left_out)
            result = SAME if same else DROPPED if alone else f"other bytes, {outcome.failed} left out"
            message = next((text for at, text in outcome.notes if at >= struck), "")
        return Row(
            case.name, case.policy, result, case.promised, outcome.noticed_after(struck), outcome.replaced, message
        )

    def _apart(self, case: Case) -> Row:
        """Run a row in separate processes."""
        if case.kind == "memory":
            # Ray reads at start the share of the machine's memory at which it kills processes.
            memory = psutil.virtual_memory()
            share = (memory.total - memory.available + HEADROOM_BYTES) / memory.total
            limits = {"RAY_memory_usage_threshold": f"{share:.4f}", "RAY_memory_monitor_refresh_ms": "100"}
            arguments = ("benchmarks.faults", "--child", f"memory {CASES.index(case)}")
            try:
                printed = _python(*arguments, environment=limits, timeout_seconds=MEMORY_SECONDS)
            except subprocess.TimeoutExpired:
                return Row(case.name, case.policy, f"no end in {MEMORY_SECONDS:g} s", case.promised, None, 0, "")
            return Row(**json.loads(printed.stdout.splitlines()[-1]))
        if case.kind == "node":
            printed = _python("benchmarks.cluster", "--clients=200", "--rounds=3", "--join=0", "--json")
            found = json.loads(printed.stdout.splitlines()[-1])
            result = SAME if found["same bytes"] else "other bytes"
            detected, note = found["node lost, noticed after"], found["notes"][0]
            return Row(case.name, case.policy, result, case.promised, detected, found["actors replaced"], note)
        return self._killed_driver(case)

    def _killed_driver(self, case: Case) -> Row:
        folder = self._folder / case.kind.replace(" ", "-")
        killed = _python("benchmarks.faults", "--child", case.kind, "--folder", str(folder))
        if killed.returncode != -signal.SIGKILL:
            sys.exit(f"error: {case.name}: it ended with {killed.returncode}: {killed.stderr}")
        resumed = _python("benchmarks.faults", "--child", "resume", "--folder", str(folder))
        if resumed.returncode != 0:
            return Row(case.name, case.policy, "not resumed", case.promised, None, 0, resumed.stderr[-300:])
        from safetensors.numpy import load_file

        arrays = load_file(folder / "prompt" / "global.safetensors")
        names = sorted(arrays, key=lambda name: int(name.removeprefix("prompt.")))
        vector_F = np.concatenate([arrays[name].ravel() for name in names])
        assert self._whole is not None
        result = SAME if vector_F.tobytes() == self._whole.tobytes() else "other bytes"
        note = next((line for line in resumed.stdout.splitlines() if "resuming" in line or "skipped" in line), "")
        return Row(case.name, case.policy, result, case.promised, None, 0, note.replace(str(folder), "FOLDER"))


class _AggregatorKiller:
    """Kills the aggregator in a round, counted from 0."""

    def __init__(self, round: int) -> None:
        self._round = round
        self.struck = float("inf")

    def __call__(self, underway: Any, over: threading.Event) -> None:
        while not over.wait(0.005):
            if underway.round < self._round or not underway.training:
                continue
            for process in psutil.Process().children(recursive=True):
                if "ray::AggregatorActor" in " ".join(process.cmdline()):
                    self.struck = time.time()
                    process.kill()
                    return


def _python(
    module: str, *arguments: str, environment: dict[str, str] | None = None, timeout_seconds: float = 600.0
) -> Any:
    inherited = {key: value for key, value in os.environ.items() if key != "RAY_ADDRESS"}
    return subprocess.run(
        [sys.executable, "-m", module, *arguments],
        cwd=_ROOT,
        env={**inherited, **(environment or {})},
        capture_output=True,
        text=True,
        timeout=timeout_seconds,
    )


# -- in a separate process ---------------------------------------------------------------------------------------------


def _child(what: str, folder: Path) -> None:
    import fedsim

    if what.startswith("memory"):
        case = CASES[int(what.split()[1])]
        with tempfile.TemporaryDirectory() as temporary:
            print(json.dumps(asdict(Matrix(Path(temporary))._on_actors(case, own_ray=True))))
        return
    if what == "driver in training":
        from benchmarks.faulty import Fault, install

        install((Fault("kill", 5, folder.with_suffix(".strikes"), round=1),))  # the worker's process is the driver's
    elif what.startswith("driver"):
        # A checkpoint and then its checksum are written with one fsync each; the third is the second checkpoint's.
        _die_in_fsync(3 if what == "driver in checkpoint" else 4)
    fedsim.run(config(folder, executor="local"), resume=what == "resume", progress=False)


def _die_in_fsync(number: int) -> None:
    """Kill this process in its n-th fsync of a checkpoint file, when half of it is written."""
    sync: Callable[[int], None] = os.fsync
    calls = 0

    def deadly(descriptor: int) -> None:
        nonlocal calls
        if "checkpoints" in os.readlink(f"/proc/self/fd/{descriptor}"):  # noqa: PTH115
            calls += 1
            if calls == number:
                os.ftruncate(descriptor, os.fstat(descriptor).st_size // 2)
                sync(descriptor)
                os.kill(os.getpid(), signal.SIGKILL)
        sync(descriptor)

    os.fsync = deadly


def _print(rows: list[Row], markdown: bool) -> None:
    from rich.console import Console
    from rich.table import Table

    heads = ("fault", "on_failure", "outcome", "reported after", "actors replaced", "first message")
    cells = []
    for row in rows:
        told = "-" if row.seconds_to_detect is None else f"{row.seconds_to_detect:.1f} s"
        result = row.result if row.result == row.promised else f"{row.result} (PROMISED: {row.promised})"
        cells.append((row.fault, row.policy, result, told, str(row.replaced), row.message))
    if markdown:
        for line in (heads, ("---",) * len(heads), *cells):
            print("| " + " | ".join(cell.replace("|", "/") for cell in line) + " |")
        return
    table = Table(*heads)
    for line in cells:
        table.add_row(*line)
    Console(highlight=False, width=200).print(table)


if __name__ == "__main__":
    typer.run(main)

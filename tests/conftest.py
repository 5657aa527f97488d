"""Shared by all tests: their order, one Ray for the whole session, tiny data, and where real data lies if it is there."""

from __future__ import annotations

import os
import sys
import time
from functools import cache
from pathlib import Path

# Before anything imports ray or a tokenizer: workers take these over, and find the top-level packages by the last one.
os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
os.environ.setdefault("RAY_worker_niceness", "0")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
os.environ.setdefault("HF_HUB_OFFLINE", "1")
# Before torch is imported, too: where several test processes share the cores, threads that wait for each other's turn at tiny
# matrices take several times as long as one thread. What a run computes with, ``client.threads`` says.
os.environ.setdefault("OMP_NUM_THREADS", "1")
# What an earlier run has kept would hide a fault in what computes it; tests of the cache name a folder of their own.
os.environ["FEDSIM_CACHE"] = "off"
os.environ["PYTHONPATH"] = os.pathsep.join(filter(None, [str(Path(__file__).parents[1]), os.environ.get("PYTHONPATH")]))

import pytest
from hypothesis import HealthCheck, settings
from support import FINAL, ROOT, UPPER, make_tiny

# How long an example takes says something of the machine, nothing of the code. The same examples every time, so that a change
# is blamed for what it did; `make test-wide` draws new ones.
QUIET = {"deadline": None, "suppress_health_check": [HealthCheck.too_slow]}
settings.register_profile("fedsim", max_examples=50, derandomize=True, **QUIET)
settings.register_profile("fedsim-wide", max_examples=200, **QUIET)
settings.load_profile(os.environ.get("FEDSIM_EXAMPLES", "fedsim"))

BEFORE_RAY = ("test_cli.py", "doctor/test_doctor.py", "planning/test_planning.py")
"""Files with a test that a process which has joined a Ray cannot do."""
LONG = (
    "faults/test_resume.py",
    "end_to_end/test_job_submit.py",
    "faults/test_lost_node.py",
    "test_byte_guard.py",
    "records/test_remote.py",
    "parity/test_run_golden.py",
    "faults/test_start.py",
    "clusters/test_slurm.py",
    "end_to_end/test_own_data_and_models.py",
    "configuration/test_uses.py",
    "clients/test_packing.py",
    "simulation/test_run.py",
    "simulation/test_recovery.py",
    "server/test_convergence.py",
    "test_cli.py",
)
"""Files that take more than ten seconds, the longest first: begun late, they would keep one process busy at the end."""


def group(node: str) -> str:
    """Return what is given to one process as a whole: a file, or all files with a test on the session's Ray."""
    return group_of_file(node.partition("::")[0].removeprefix("tests/"))


@cache
def group_of_file(file: str) -> str:
    """Return the group of a file under ``tests/``."""
    return "ray" if "session_ray" in (ROOT / "tests" / file).read_text() else file


def _is_kept(item):
    """Whether ``make test`` runs a test, or its mark says why that cannot be: a system as a whole that takes long."""
    mark = item.get_closest_marker("wide")
    return mark is None or bool(mark.kwargs.get("alone"))


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(config, items):
    """Put the groups into the order in which they are to begin; refuse a test that only ``make test-wide`` would run."""
    if not any("::" in argument for argument in config.args):
        functions = {(item.path, item.originalname) for item in items if isinstance(item, pytest.Function)}
        kept = {(item.path, item.originalname) for item in items if _is_kept(item)}
        if lost := sorted(f"{path.name}::{name}" for path, name in functions - kept):
            raise pytest.UsageError(
                f"all cases of {', '.join(lost)} are marked wide; leave the essential ones unmarked, or say in alone= why not"
            )
    places = {name: place for place, name in enumerate((*BEFORE_RAY, "ray", *LONG))}
    groups = {item.path: group(item.path.relative_to(ROOT).as_posix()) for item in items}
    items.sort(key=lambda item: places.get(groups[item.path], len(places)))


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config, log):
    """With ``--dist loadfile``: a Ray in each process would cost more than its start, as their actors share the cores."""
    from xdist.scheduler import LoadScopeScheduling

    class GroupScheduling(LoadScopeScheduling):
        def _split_scope(self, nodeid):
            return group(nodeid)

    return GroupScheduling(config, log) if config.getvalue("dist") == "loadfile" else None


@pytest.fixture
def tiny_config():
    """Return a function that makes a tiny config with changes."""
    return make_tiny


@pytest.fixture(scope="session")
def session_ray():
    """Start one Ray for all tests that need it; runs join it with ``ray.address=auto``.

    Without the processes that no run asks, as a run's own: they would work beside all tests. A whole one: test_job_submit.py.
    """
    import ray

    from fedsim.executors.cluster.lean import lean

    with lean():
        ray.init(
            address="local",
            num_cpus=4,
            num_gpus=2,
            labels={"zone": "here"},
            object_store_memory=300 * 2**20,
            include_dashboard=False,
            log_to_driver=False,
            logging_level="ERROR",
        )
    yield ray
    left = ray.available_resources
    deadline = time.monotonic() + 20
    while left().get("CPU") != 4 and time.monotonic() < deadline:
        time.sleep(0.2)
    resources = {name: left().get(name) for name in ("CPU", "GPU")}
    ray.shutdown()
    assert resources == {"CPU": 4, "GPU": 2}, "some run, one of many in a row, has left an actor behind"


@pytest.fixture(scope="session")
def session_ray_run(session_ray, tmp_path_factory):
    """Return folder, summary, start and end of one run on two actors that several files look at, each for its own matter.

    Passes are shared and frozen states cached; an evaluation is three calls beside the next round's training; what can be
    evaluated at the end is.
    """
    import fedsim

    folder = tmp_path_factory.mktemp("two-actors") / "run"
    started = time.time()
    ray_config = {"address": "auto", "actors": 2}
    summary = fedsim.run(make_tiny(output=str(folder), ray=ray_config, **UPPER, **FINAL), progress=False)
    return folder, summary, started, time.time()


@pytest.fixture(scope="session")
def data_folder() -> Path:
    """Return the folder of real data, or skip."""
    folder = Path(os.environ.get("FEDSIM_DATA", ROOT.parent / "shared" / "data"))
    if not folder.is_dir():
        pytest.skip("no real data: set FEDSIM_DATA to a folder with sst2/, rte/, mrpc/")
    return folder


@pytest.fixture
def fedsim(monkeypatch, capsys, tmp_path):
    """Return a function that runs ``fedsim ARGUMENTS`` in an empty folder and returns (status, out, err)."""
    from fedsim import cli

    monkeypatch.chdir(tmp_path)

    def call(*arguments):
        monkeypatch.setattr(sys, "argv", ["fedsim", *map(str, arguments)])
        try:
            cli.main()
            status = 0
        except SystemExit as ended:
            status = ended.code or 0
        out, err = capsys.readouterr()
        return status, out, err

    return call

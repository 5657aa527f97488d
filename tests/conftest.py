"""Shared by all tests: one Ray for the whole session, tiny data, and where real data lies if it is there."""

from __future__ import annotations

import os
from pathlib import Path

# Before anything imports ray or a tokenizer: workers take these over, and find the top-level packages by the last one.
os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
os.environ.setdefault("RAY_worker_niceness", "0")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ["PYTHONPATH"] = os.pathsep.join(filter(None, [str(Path(__file__).parents[1]), os.environ.get("PYTHONPATH")]))

import pytest
from hypothesis import HealthCheck, settings
from support import ROOT, make_tiny

# How long an example takes says something of the machine, nothing of the code.
settings.register_profile("fedsim", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("fedsim")


@pytest.fixture
def tiny_config():
    """Return a function that makes a tiny config with changes."""
    return make_tiny


@pytest.fixture(scope="session")
def session_ray():
    """Start one Ray for all tests that need it; runs join it with ``ray.address=auto``."""
    import ray

    ray.init(
        address="local",
        num_cpus=4,
        num_gpus=1,
        object_store_memory=300 * 2**20,
        include_dashboard=False,
        log_to_driver=False,
        logging_level="ERROR",
    )
    yield ray
    ray.shutdown()


@pytest.fixture(scope="session")
def data_folder() -> Path:
    """Return the folder of real data, or skip."""
    folder = Path(os.environ.get("FEDSIM_DATA", ROOT.parent / "shared" / "data"))
    if not folder.is_dir():
        pytest.skip("no real data: set FEDSIM_DATA to a folder with sst2/, rte/, mrpc/")
    return folder

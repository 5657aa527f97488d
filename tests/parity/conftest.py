"""Golden numbers of the published code. They are not part of the repository; without them these tests are skipped."""

import json
import os
from pathlib import Path

import numpy as np
import pytest

DEFAULT = Path(__file__).resolve().parents[3] / "shared" / "golden"


@pytest.fixture(scope="session")
def golden_folder() -> Path:
    folder = Path(os.environ.get("FEDSIM_GOLDEN", DEFAULT))
    if not (folder / "README.md").is_file():
        pytest.skip("no golden numbers here; set FEDSIM_GOLDEN to the folder that holds them")
    return folder


@pytest.fixture(scope="session")
def load_golden(golden_folder):
    """Return a function from a trace's name to its arrays and its description."""

    def load(name: str) -> tuple[dict[str, np.ndarray], dict]:
        description = json.loads((golden_folder / f"{name}.json").read_text())
        with np.load(golden_folder / f"{name}.npz") as arrays:
            return dict(arrays), description

    return load

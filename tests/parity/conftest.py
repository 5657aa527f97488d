"""Where the numbers to agree with lie; every parity test runs on each folder that is here.

``golden``: traces of the published code, not part of the repository, skipped where they are not at hand.
``own``: small fixtures of the same form (see ``make_fixtures.py``), always there.
"""

import json
import os
from pathlib import Path

import numpy as np
import pytest

HERE = Path(__file__).resolve().parent
FOLDERS = {
    "golden": Path(os.environ.get("FEDSIM_GOLDEN", HERE.parents[2] / "shared" / "golden")),
    "own": HERE / "fixtures",
}


@pytest.fixture(scope="session", params=FOLDERS)
def golden_folder(request) -> Path:
    folder = FOLDERS[request.param]
    if not (folder / "README.md").is_file():
        pytest.skip("no traces of the published code here; set FEDSIM_GOLDEN to the folder that holds them")
    return folder


@pytest.fixture(scope="session")
def load_golden(golden_folder):
    """Return a function from a trace's name to its arrays and its description."""

    def load(name: str) -> tuple[dict[str, np.ndarray], dict]:
        description = json.loads((golden_folder / f"{name}.json").read_text())
        with np.load(golden_folder / f"{name}.npz") as arrays:
            return dict(arrays), description

    return load


@pytest.fixture(scope="session")
def backbone_folder(load_golden, tmp_path_factory) -> str:
    """The model of 05_forward without its prefix, saved and found again as any user's model is."""
    import torch
    from transformers import RobertaConfig, RobertaForMaskedLM

    arrays, description = load_golden("05_forward")
    known = {key: value for key, value in description["config"].items() if key in RobertaConfig().to_dict()}
    model = RobertaForMaskedLM(RobertaConfig(**known, tie_word_embeddings=True))
    state = {
        name.removeprefix("weights/"): torch.from_numpy(array)
        for name, array in arrays.items()
        if name.startswith("weights/") and "prefix_encoder" not in name
    }
    missing, unexpected = model.load_state_dict(state, strict=False)
    assert not unexpected and set(missing) == {"lm_head.decoder.weight", "lm_head.decoder.bias"}
    path = tmp_path_factory.mktemp("backbone") / "model"
    model.save_pretrained(path)
    return str(path)

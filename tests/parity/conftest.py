"""Every parity test runs on each folder of traces that is here (see ``trace_folders.py``)."""

import json
import os
from pathlib import Path

import numpy as np
import pytest
from trace_folders import NAMES, folder_of


@pytest.fixture(scope="session", params=NAMES)
def golden_folder(request) -> Path:
    return folder_of(request.param, os.environ)


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

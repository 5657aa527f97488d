"""A backbone over several devices computes what it computes on one.

The devices are pretended (pretended_devices.py): real numbers, and an error wherever tensors of two devices meet. Cases are in
placed_cases.py, which a process of its own runs.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from functools import cache
from itertools import combinations, pairwise
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from support import ROOT, sweep
from test_tuners import TUNERS
from tiny_models import CONFIGS, ENCODERS_ALONE, TINY, WITHOUT_PREFIX, shared, tiny_model

from clients.backbone.placement import Placement
from clients.backbone.splitting import split
from fedsim.core.errors import ModelError

HERE = Path(__file__).parent
PREFIXES = ("prefix", "projected prefix")
NO_PREFIX = WITHOUT_PREFIX | ENCODERS_ALONE
SECTIONS = ("prefix", *TUNERS)
PASSES = [
    f"{family} {tuner}" for family in TINY for tuner in SECTIONS if family not in NO_PREFIX or tuner not in PREFIXES
]
OTHERS = [
    *(f"cached {tuner}" for tuner in ("prefix", "lora", "late prompt", "generated prompt")),
    *("alike prefix", "alike lora"),
    *(f"written {tuner}" for tuner in ("prefix", "lora", "soft prompt", "late prompt")),
    *(f"trained {tuner}" for tuner in ("prefix", "lora", "soft prompt")),
    *(f"checkpointed {tuner}" for tuner in ("prefix", "lora", "late prompt")),
    *(f"offloaded {family} {tuner}" for family in TINY for tuner in ("lora", "adapter", "soft prompt")),
    *(f"offloaded {family} prefix" for family in TINY if family not in NO_PREFIX),
    *("offloaded checkpointed", "offloaded int8", "offloaded int4 checkpointed", "written_offloaded"),
    *("classifier", "dropped_prompts", "hidden_states", "second_derivatives", "quantised", "masks_cross_once"),
]
ESSENTIAL = (
    *("llama prefix", "gemma3_text late prompt", "deberta-v2 lora", "cached prefix", "written prefix"),
    *(
        "alike lora",
        "checkpointed lora",
        "masks_cross_once",
        "offloaded llama prefix",
        "offloaded int4 checkpointed",
        "trained lora",
    ),
)

pretending = pytest.mark.skipif(
    not hasattr(torch.utils.backend_registration, "_setup_privateuseone_for_python_backend"),
    reason="this torch has no devices of one's own in Python",
)


@cache
def outcomes(essential: bool) -> dict[str, str | None]:
    """Return what came of all essential cases, or of all others."""
    cases = [case for case in (*PASSES, *OTHERS) if (case in ESSENTIAL) == essential]
    paths = os.pathsep.join(map(str, (ROOT, ROOT / "tests", HERE)))
    environment = {**os.environ, "PYTHONPATH": paths, "OMP_NUM_THREADS": "1"}
    command = [sys.executable, str(HERE / "placed_cases.py"), *cases]
    done = subprocess.run(command, capture_output=True, text=True, env=environment, check=False)
    lines = [line for line in done.stdout.splitlines() if line.startswith("RESULT ")]
    assert lines, done.stderr[-2000:]
    found: dict[str, str | None] = json.loads(lines[-1].removeprefix("RESULT "))
    return found


@pretending
@pytest.mark.parametrize("case", sweep((*PASSES, *OTHERS), ESSENTIAL))
def test_placed_and_offloaded_layers_have_the_bits_of_one_device(case):
    assert (wrong := outcomes(case in ESSENTIAL)[case]) is None, wrong


def test_a_model_is_cut_by_bytes_with_what_is_in_no_layer_on_the_first_device():
    assert split(0, [10] * 6, 1) == (6,)
    assert split(0, [10] * 6, 3) == (2, 2, 2)
    assert split(20, [10] * 6, 2) == (2, 4)
    assert split(200, [10] * 6, 2) == (0, 6)
    assert split(0, [10] * 4, 3) in [(2, 1, 1), (1, 2, 1), (1, 1, 2)], "even, where the largest is the same"
    with pytest.raises(ModelError, match=r"of 2 layers cannot be over 3 GPUs.*set ray\.num_gpus_per_actor=2$"):
        split(0, [1, 1], 3)


@given(st.integers(0, 60), st.lists(st.integers(1, 30), min_size=1, max_size=7), st.integers(1, 4))
def test_no_other_cut_has_a_smaller_largest_device(outside, sizes, devices):
    if len(sizes) < devices:
        return
    counts = split(outside, sizes, devices)

    assert sum(counts) == len(sizes) and all(count > 0 for count in counts[1:])
    held = [sum(counts[:device]) for device in range(devices + 1)]
    of_each = [sum(sizes[start:stop]) for start, stop in pairwise(held)]
    of_each[0] += outside
    others = []
    for cuts in combinations(range(len(sizes)), devices - 1):
        edges = (0, *cuts, len(sizes))
        found = [sum(sizes[start:stop]) for start, stop in pairwise(edges)]
        found[0] += outside
        others.append(max(found))
    assert max(of_each) == min(others)


@pytest.mark.parametrize("family", sweep(TINY, ("llama", "bert", "gpt2")))
@pytest.mark.parametrize("kind", ["base", None])
def test_every_array_is_of_the_layer_whose_name_it_has(tmp_path, family, kind):
    """With an LM head and without one, whose names begin otherwise."""
    model = tiny_model(family, kind)
    head = {"head": {"kind": "classifier"}} if kind == "base" else {}
    weights = shared(model, tmp_path / family, **head)
    layers = weights.layer_bytes()
    assert len(layers) == 3 and len(set(layers)) == (
        1 if family in CONFIGS and family != "modernbert" else len(set(layers))
    )
    inside = sum(weights.layer_of(name) is not None for name in weights.arrays)
    assert 0 < inside < len(weights.arrays) and 0 < sum(layers) < weights.nbytes
    placed = Placement.over([torch.device("cuda", number) for number in range(3)], weights)
    assert len(placed.of_layers) == 3 and placed.devices == tuple(torch.device("cuda", number) for number in range(3))

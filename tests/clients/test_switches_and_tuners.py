"""Switches of a config.json that are followed, with tuners other than the prefix, which test_attention_switches.py has."""

from __future__ import annotations

import pytest
from test_attention_switches import CHANGING, POOLED, SHORT, folder_of, loaded
from test_family_table import agree, sections
from tiny_models import backbone

TUNERS = ("lora", "soft_prompt", "adapter")
FAST = (("gpt_oss", "window by layer, eager", "soft_prompt"), ("qwen3_moe", "layers without experts", "adapter"))


def cases() -> list:
    found = [(family, name, tuner) for name, row in CHANGING.items() for family in row.families for tuner in TUNERS]
    return [pytest.param(*case, marks=() if case in FAST else pytest.mark.wide) for case in found]


@pytest.mark.parametrize(("family", "name", "tuner"), cases())
def test_a_switch_that_is_followed_is_right_with_a_tuner(tmp_path, family, name, tuner):
    """Packed = padded = cached = alone, for several clients."""
    switch = CHANGING[name]
    weights = loaded(folder_of(tmp_path, family, switch.values, **switch.shapes), family)
    section = sections(tuner, family)[0]
    if tuner == "soft_prompt" and "embedding_size" in switch.shapes:
        pytest.skip("virtual tokens among smaller word embeddings are refused")
    agree(backbone(weights, POOLED, dtype="float64", tuner=section), name, SHORT - section.length)

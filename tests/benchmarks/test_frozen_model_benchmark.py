"""The benchmark of the frozen model: what it counts as a peak, and that its sides differ as they say."""

from __future__ import annotations

import sys

import numpy as np
import pytest
from transformers import BertConfig, BertForMaskedLM

from benchmarks.frozen_model import PLAIN, SIDES, measure, peak_above

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="it reads Linux's peak of resident memory")


def test_the_peak_is_that_of_the_work_and_not_of_before():
    np.ones(60_000_000, np.uint8).sum()
    assert peak_above(lambda: None) < 10_000_000
    assert 29_000_000 < peak_above(lambda: np.ones(30_000_000, np.uint8).sum()) < 45_000_000


@pytest.mark.wide(alone="10 s: what it measures is tested always, in test_checkpointing.py and test_quantized.py")
def test_a_side_is_measured_against_the_model_as_it_is(tmp_path):
    both = "int8, layers run twice"
    # Deep enough that what the layers keep is most of the peak, on any machine.
    config = BertConfig(
        vocab_size=60,
        hidden_size=64,
        num_hidden_layers=16,
        num_attention_heads=2,
        intermediate_size=128,
        pad_token_id=0,
    )
    BertForMaskedLM(config).save_pretrained(tmp_path)
    rows = {row.case: row for row in measure(str(tmp_path), "lora", 64, 24, 1, (PLAIN, both))}
    assert len(rows) == 6 and {row.ratio_to.partition(": ")[2] for row in rows.values()} == {PLAIN}
    assert both in SIDES and rows[f"peak of a pass: {both}"].ratio < 0.8
    assert 0.25 < rows[f"weights: {both}"].ratio < 1.0 == rows[f"weights: {PLAIN}"].ratio

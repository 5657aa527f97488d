from __future__ import annotations

import io
import math

import numpy as np
import pytest
from rich.console import Console
from rich.table import Table

from fedsim.display.report import (
    final_table,
    format_bytes,
    format_clock,
    format_layers,
    format_metric,
    format_seconds,
    layers_table,
    partition_table,
)


def printed(table: Table, width: int = 100) -> str:
    file = io.StringIO()
    Console(file=file, width=width).print(table)
    assert max(map(len, file.getvalue().splitlines())) <= width
    return file.getvalue()


def row(text: str, name: str) -> list[str]:
    (found,) = [line for line in text.splitlines() if line.strip().startswith(name + "  ")]
    return found.strip().removeprefix(name).split()


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (0, "0 B"), (999, "999 B"), (1000, "1 kB"), (1_250_000, "1.25 MB"), (999_600_000, "1 GB"), (7.2e16, "72 PB"),
        (None, "-"), (math.nan, "-"),
    ],
)  # fmt: skip
def test_format_bytes(value, text):
    assert format_bytes(value) == text


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (0.004, "4 ms"), (0.84, "0.8 s"), (9.97, "10 s"), (59.4, "59 s"), (59.6, "1 min 00 s"), (125, "2 min 05 s"),
        (3599.7, "1 h 00 min"), (4020, "1 h 07 min"), (90_000, "25 h 00 min"), (None, "-"),
    ],
)  # fmt: skip
def test_format_seconds(value, text):
    assert format_seconds(value) == text


def test_small_formats():
    assert [format_clock(value) for value in (0, 59.6, 3725, -3, None)] == [
        "0:00:00",
        "0:01:00",
        "1:02:05",
        "0:00:00",
        "-",
    ]
    assert [format_metric(value) for value in (0.91234, None, math.inf)] == ["0.9123", "-", "-"]
    assert format_layers([5, 3, 0, 4], 12) == "0, 3-5 (4 of 12)"
    assert format_layers([]) == ""


SUMMARY = {
    "metric_name": "accuracy", "method": "fedpeptao", "trained": "prefix of 8 tokens in 2 of 4 layers", "task": "reviews",
    "model": "embedded", "clients": 1000,
    "executor": "ray", "workers": [{}, {}], "layers": [1, 2], "num_layers": 4, "rounds": 20,
    "first_global_metric": 0.5, "global_metric": 0.90125, "best_global_metric": 0.91, "best_global_round": 17,
    "personalised_metric": math.nan, "best_personalised_metric": math.nan, "best_personalised_round": None,
    "client_updates": 2000, "clients_failed": 3, "client_steps": 16000, "bytes_down": 2_000_000, "bytes_up": 1_500_000,
    "seconds_total": 75.0, "seconds_per_round_median": 3.14, "seconds_published": 42.0, "folder": "runs/[a]",
}  # fmt: skip


@pytest.mark.parametrize("width", [40, 100])
def test_final_table_shows_what_is_known(width):
    text = " ".join(printed(final_table(SUMMARY), width).split())
    for piece in (
        "Run finished", "method fedpeptao", "trained prefix of 8 tokens in 2 of 4 layers", "clients 1,000",
        "executor ray, 2 workers", "1-2 (2 of 4)",
        "accuracy 0.5000 -> 0.9012", "best accuracy 0.9100 (round 17)", "2,000 ok, 3 failed", "local steps 16,000",
        "published time 42 s", "folder runs/[a]",
    ):  # fmt: skip
        assert piece in text
    assert "personalised" not in text and "nan" not in text


def test_final_table_shows_the_best_personalised_metric_beside_the_last():
    figures = {"personalised_metric": 0.75, "best_personalised_metric": 0.8, "best_personalised_round": 4}
    text = " ".join(printed(final_table({**SUMMARY, **figures}), 100).split())
    assert "personalised accuracy 0.7500 best personalised accuracy 0.8000 (round 4)" in text


def test_final_table_of_little_is_small():
    text = printed(final_table({"rounds": 3, "interrupted": True, "personalised_metric": 0.5}))
    assert "Run interrupted" in text and "personalised metric" in text and "traffic" not in text and "None" not in text


def test_layers_table_ranks_by_score():
    text = printed(layers_table([3.0, math.nan, 1234.5, 7.25], 0.5, (2, 3)))
    assert "Exchanged layers: 2-3 (2 of 4), share 0.5" in text
    rows = [line.split() for line in text.splitlines() if line.strip()[:1].isdigit()]
    assert rows == [["0", "3.0000", "3"], ["1", "-", "4"], ["2", "1,234.5000", "1", "yes"], ["3", "7.2500", "2", "yes"]]


def test_partition_table_against_figures_worked_by_hand():
    counts_NC = np.array([[10, 0], [5, 5], [0, 40], [0, 0]])
    text = printed(partition_table(counts_NC, ["bad", "[good]"]))
    assert "4 clients, 60 examples, 2 classes" in text
    assert row(text, "examples") == ["0", "10", "15", "40"]
    assert row(text, "classes held") == ["0", "1", "1", "2"]
    assert row(text, "share of the largest class") == ["0.000", "0.750", "0.625", "1.000"]
    assert row(text, "label entropy / log C") == ["0.000", "0.000", "0.250", "1.000"]
    assert row(text, "share of [good]") == ["0.000", "0.250", "0.375", "1.000"]

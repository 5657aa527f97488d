"""The progress of a run on real terminals, narrow, wide and dumb."""

import pytest
from rich.cells import cell_len
from terminals import on_a_terminal, plain_lines

CODE = """
from fedsim.display.progress import Progress, RoundLine
from fedsim.display.screen import RunConsole

with Progress(120, "accuracy", RunConsole()) as shown:
    shown.start_phase("tokenising " + "a great many examples and " * 9)
    shown.start(0.5, 0.69)
    for number in range(1, 13):
        shown.clients_done(number, 5, 10)
        if number == 3:
            shown.note("warning: client 17 failed in round 3: " + "out of memory, " * 20)
        shown.round(RoundLine(number, 0.5 + number / 50, 0.7, 10, 1, 123.456, 12345678, 1234567890, 2, 86400.0, epsilon=1.5))
"""
SEEN = {40: {"accuracy"}, 80: {"epsilon", "clock", "failed"}, 200: {"epsilon", "clock", "failed", "down", "up"}}


@pytest.mark.parametrize(
    "columns", [pytest.param(40, marks=pytest.mark.wide), 80, pytest.param(200, marks=pytest.mark.wide)]
)
def test_a_picture_fits_and_has_the_columns_that_fit(columns):
    status, output = on_a_terminal(columns, "-c", CODE)
    lines = plain_lines(output)
    assert status == 0 and "\x1b[" in output and max(map(cell_len, lines)) <= columns
    heads = [set(line.split()) for line in lines if line.split()[:1] == ["round"] and "accuracy" in line]
    assert heads and heads[-1] >= SEEN[columns] | {"round"}
    assert any("round 13/120" in line for line in lines)


def test_a_terminal_that_cannot_redraw_gets_lines():
    status, output = on_a_terminal(80, "-c", CODE, term="dumb")
    assert status == 0 and "\x1b" not in output
    assert sum(line.startswith("round ") for line in plain_lines(output)) == 12

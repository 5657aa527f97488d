from __future__ import annotations

import io
import math
import os
import re

import pytest
from rich.console import Console

from fedsim.display.progress import Progress, sparkline
from fedsim.display.round_line import RoundLine, main_metric, plain_line
from fedsim.display.screen import RunConsole


def screen(text: str) -> str:
    """Return what a terminal shows after ``text``: the last frame of the live display and what stands above it."""
    rows, y, x = [""], 0, 0
    for token in re.findall(r"\x1b\[[0-9;?]*[A-Za-z]|\r|\n|[^\x1b\r\n]+", text):
        if token == "\n":
            y, x = y + 1, 0
            rows += [""] * (y + 1 - len(rows))
        elif token == "\r":
            x = 0
        elif token.startswith("\x1b["):
            if token.endswith("A"):
                y -= int(token[2:-1])
            elif token.endswith("K"):
                rows[y] = ""
            else:
                assert token[-1] in "mhl", f"unknown control sequence {token!r}"
        else:
            rows[y] = rows[y][:x].ljust(x) + token + rows[y][x + len(token) :]
            x += len(token)
    return "\n".join(row.rstrip() for row in rows)


def terminal(width: int, encoding: str = "utf-8") -> tuple[Console, io.TextIOWrapper]:
    file = io.TextIOWrapper(io.BytesIO(), encoding=encoding, newline="")
    console = Console(file=file, force_terminal=True, force_interactive=True, width=width, height=40, highlight=False)
    return console, file


def shown(file: io.TextIOWrapper) -> str:
    file.flush()
    buffer = file.buffer
    assert isinstance(buffer, io.BytesIO)
    return buffer.getvalue().decode(file.encoding)


def line(number: int, failed: int = 0, **changes) -> RoundLine:
    values = {
        "round": number, "metric": 0.5 + number / 100, "loss": 0.7 - number / 100, "clients_ok": 10 - failed,
        "clients_failed": failed, "seconds": 0.8, "bytes_up": 1_234_567, "bytes_down": 2_000_000,
    }  # fmt: skip
    return RoundLine(**{**values, **changes})


def run(progress: Progress, rounds: int, total: int = 20) -> None:
    with progress:
        progress.start_phase("starting Ray")
        progress.note("warning: 3 rows of train.jsonl skipped [not markup]")
        progress.start_phase("scoring layers")
        progress.start(0.5, 0.693)
        for number in range(1, rounds + 1):
            progress.clients_done(number, 4, 10)
            progress.round(line(number, failed=int(number == 2)))


def test_plain_lines_when_not_a_terminal():
    file = io.StringIO()
    run(Progress(20, "accuracy", Console(file=file, width=40)), rounds=3)
    text = file.getvalue()
    assert "\x1b" not in text and "\r" not in text
    assert text.splitlines()[:4] == [
        "phase  starting Ray",
        "warning: 3 rows of train.jsonl skipped [not markup]",
        "phase  scoring layers",
        "start  accuracy 0.5000  validation_loss 0.6930",
    ]
    assert text.splitlines()[5] == (
        "round  2/20  accuracy  0.5200  train_loss  0.6800  ok   9  failed 1  retried 0  seconds   0.80  MB_down    2.000"
        "  MB_up    1.235  eta 0:00:14"
    )
    assert len(text.splitlines()) == 4 + 3


def test_a_line_shows_the_main_text_metric_of_a_round_in_which_the_model_wrote():
    event = {"round": 4, "global_metric": 0.5, "train_loss_last": 1.5, "generated_f1": 0.25, "generated_chrf": 0.125}
    assert main_metric(event, ("chrf", "f1")) == ("chrf", 0.125) and main_metric(event, ()) is None
    assert main_metric({**event, "generated_f1": None}, ("f1",)) is None
    wrote = RoundLine.of(event, main_metric(event, ("f1", "chrf")))
    assert "round 4/9  accuracy  0.5000  f1 0.2500  train_loss  1.5000" in plain_line(wrote, 9, "accuracy")
    assert " f1 " not in plain_line(RoundLine.of(event), 9, "accuracy")


def test_plain_lines_are_pairs_in_columns_that_stand_under_each_other():
    lines = [
        plain_line(line(1), 300, "matthews"),
        plain_line(
            line(42, metric=None, loss=math.nan, clients_ok=100, seconds=123.4, bytes_up=10**9), 300, "matthews"
        ),
        plain_line(line(300, metric=-0.25, failed=3, eta_seconds=4000.0), 300, "matthews"),
    ]
    parsed = [dict(zip(*[iter(text.split())] * 2, strict=True)) for text in lines]
    assert parsed[0]["round"] == "1/300" and parsed[0]["matthews"] == "0.5100"
    assert parsed[1]["matthews"] == parsed[1]["train_loss"] == "-" and parsed[1]["MB_up"] == "1000.000"
    assert parsed[2]["matthews"] == "-0.2500" and parsed[2]["failed"] == "3" and parsed[2]["eta"] == "1:06:40"
    for name in ("train_loss", "ok", "seconds", "MB_down"):
        assert len({text.index(f" {name} ") for text in lines}) == 1, name


def test_each_plain_line_is_out_at_once():
    class Unflushed(io.StringIO):
        def __init__(self):
            super().__init__()
            self.out = ""

        def flush(self):
            self.out = self.getvalue()

    file = Unflushed()
    with Progress(20, "accuracy", Console(file=file)) as progress:
        progress.start_phase("tokenising")
        assert file.out == "phase  tokenising\n"
        progress.round(line(1))
        assert file.out.count("\n") == 2


@pytest.mark.parametrize("width", [1, 8, 20, 39, 40, 60, 80, 200])
@pytest.mark.parametrize("rounds", [0, 1, 7, 20])
def test_live_display_fits_every_width(width, rounds):
    console, file = terminal(width)
    run(Progress(20, "accuracy", console), rounds)
    text = screen(shown(file))
    assert max(map(len, text.splitlines()), default=0) <= width
    if width >= 20 and rounds:
        assert re.search(rf"round {min(rounds + 1, 20)}/20", text)


def test_live_display_at_60_columns_shows_the_last_rounds_and_drops_what_has_no_room():
    console, file = terminal(60)
    run(Progress(20, "accuracy", console), rounds=7)
    text = screen(shown(file))
    rows = [row.split()[:3] for row in text.splitlines() if re.match(r" +\d+ +0\.", row)]
    assert rows == [[str(n), f"{0.5 + n / 100:.4f}", f"{0.7 - n / 100:.4f}"] for n in range(3, 8)]
    assert "failed" in text and " up" not in text
    assert "first 0.5000  best 0.5700" in text
    assert re.search(r"scoring layers, \d+ ms", text)
    assert "warning: 3 rows of train.jsonl skipped [not markup]" in " ".join(text.split())


def test_live_display_at_200_columns_shows_everything():
    console, file = terminal(200)
    run(Progress(20, "accuracy", console), rounds=7)
    text = screen(shown(file))
    assert "2.00 MB   1.23 MB" in text or re.search(r"2 MB +1\.23 MB", text)
    assert re.search(r"━+.* round 8/20 0:00:\d\d left", text)
    assert "▁" in text and "█" in text


def test_live_display_counts_the_clients_of_the_round_under_way():
    console, file = terminal(100)
    with Progress(20, "accuracy", console) as progress:
        progress.start(0.5, 0.7)
        progress.clients_done(1, 4, 10)
    assert "round 1/20 4/10 clients" in screen(shown(file))


def test_round_with_failures_is_red_and_colours_obey_no_color(monkeypatch):
    console, file = terminal(100)
    run(Progress(20, "accuracy", console), rounds=3)
    assert re.search(r"\x1b\[31m *2 ", shown(file))
    monkeypatch.setenv("NO_COLOR", "1")
    console, file = terminal(100)
    run(Progress(20, "accuracy", console), rounds=3)
    assert not re.search(r"\x1b\[[0-9;]*3[0-7]m", shown(file))


def test_terminal_that_knows_ascii_only():
    console, file = terminal(100, encoding="ascii")
    run(Progress(20, "accuracy", console), rounds=3)
    assert "round 4/20" in screen(shown(file))


def test_dumb_terminal_gets_plain_lines(monkeypatch):
    monkeypatch.setenv("TERM", "dumb")
    file = io.StringIO()
    run(Progress(20, "accuracy", Console(file=file, force_terminal=True)), rounds=1)
    assert "round  1/20" in file.getvalue() and "\x1b[2K" not in file.getvalue()


@pytest.mark.parametrize("live", [True, False])
def test_quiet_shows_notes_only(live):
    console, file = terminal(100) if live else (Console(file=io.StringIO()), None)
    run(Progress(20, "accuracy", console, quiet=True), rounds=2)
    text = shown(file) if file else console.file.getvalue()
    assert re.sub(r"\x1b\[[0-9;]*m", "", text) == "warning: 3 rows of train.jsonl skipped [not markup]\n"


def test_error_inside_leaves_the_terminal_usable():
    console, file = terminal(80)
    with pytest.raises(RuntimeError), Progress(20, "accuracy", console) as progress:
        progress.start_phase("starting Ray")
        raise RuntimeError
    text = shown(file)
    assert text.rindex("\x1b[?25h") > text.rindex("\x1b[?25l")  # the cursor is back
    assert not re.search(r"starting Ray, \d", screen(text))  # not shown as done


def test_a_reader_that_goes_away_does_not_end_the_run(capfd):
    """As in ``fedsim run CONFIG | head -3``."""
    reader, writer = os.pipe()
    os.close(reader)
    with os.fdopen(writer, "w") as file, Progress(3, "accuracy", RunConsole(file=file)) as progress:
        progress.start_phase("loading")
        for _ in range(3):
            progress.note("a sentence")
    assert capfd.readouterr().err.count("the output was closed; the run goes on") == 1


def test_time_left_is_estimated_from_the_last_rounds_or_taken_as_given():
    file = io.StringIO()
    with Progress(20, "accuracy", Console(file=file)) as progress:
        for number in range(1, 12):
            progress.round(line(number, seconds=100.0 if number == 1 else 2.0))
        progress.round(line(12, eta_seconds=61.0))
    etas = [text.split()[-1] for text in file.getvalue().splitlines()]
    assert etas[0] == "0:31:40"  # 19 rounds of 100 s
    assert etas[10] == "0:00:18"  # 9 rounds of 2 s: the slow first round is forgotten
    assert etas[11] == "0:01:01"


def test_sparkline():
    assert sparkline([0, 1, 2, 3, 4, 5, 6, 7], 8) == "▁▂▃▄▅▆▇█"
    assert sparkline([0.0, 0.0, 1.0, 1.0], 2) == "▁█"
    assert sparkline([0.3] * 5, 3) == "▁▁▁"
    assert len(sparkline(list(range(1000)), 40)) == 40

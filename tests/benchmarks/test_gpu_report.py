"""The report on a GPU: it goes on where it was killed, its table's arithmetic, and on a CPU its cells in small."""

import json
import signal
import subprocess
import sys

import numpy as np
import pytest
import torch
import typer
from support import ROOT

from benchmarks.gpu_report.__main__ import main, report
from benchmarks.gpu_report.commands import CommandError, counts_of, round_figure
from benchmarks.gpu_report.figures import Figure, Ledger
from benchmarks.gpu_report.parity import differences
from benchmarks.gpu_report.parts import TINY
from benchmarks.gpu_report.peaks import PRODUCT, SHEET, data_sheet, peak_of
from benchmarks.gpu_report.running import Budget, Cell, run_cells
from benchmarks.gpu_report.shapes import SMALL, Models
from benchmarks.gpu_report.speed import Bench, over_peft, shared_passes
from benchmarks.gpu_report.table import aims, lines
from benchmarks.gpu_report.training import LONGEST, MEAN, SHORTEST, Work, different_work, texts
from clients.config import ClientConfig
from fedsim.core.errors import ConfigError

CPU = torch.device("cpu")


def measured(value: float) -> list[Figure]:
    return [Figure("side", "s", (value,))]


def run(cells, ledger, folder, budget=None):
    said: list[str] = []
    left_out = run_cells(cells, ledger, budget or Budget(60, {"part": 1}), said.append, folder / "failures.txt")
    return said, left_out


KILLED = """
import os, signal, sys
from pathlib import Path
from benchmarks.gpu_report.figures import Figure, Ledger
from benchmarks.gpu_report.running import Budget, Cell, run_cells
folder = Path(sys.argv[1])
def killed(left):
    with (folder / "figures.jsonl").open("a") as file:  # as if it were cut off while it wrote
        file.write('{"setting": "here", "par')
    os.kill(os.getpid(), signal.SIGKILL)
cells = [Cell("part", "one", lambda left: [Figure("side", "s", (1.0,))]), Cell("part", "two", killed)]
run_cells(cells, Ledger(folder / "figures.jsonl", "here"), Budget(60, {"part": 1}), print, folder / "failures.txt")
"""


def test_a_report_that_was_killed_goes_on_behind_its_last_whole_cell(tmp_path):
    ended = subprocess.run([sys.executable, "-c", KILLED, str(tmp_path)], cwd=ROOT, capture_output=True)
    assert ended.returncode == -signal.SIGKILL
    ledger = Ledger(tmp_path / "figures.jsonl", "here")
    again = [Cell("part", "one", lambda left: measured(9.0)), Cell("part", "two", lambda left: measured(2.0))]
    said, left_out = run(again, ledger, tmp_path)
    assert said[0] == "part: one: on file" and said[1].startswith("part: two: ") and not left_out
    held = Ledger(tmp_path / "figures.jsonl", "here").cells()
    assert {cell: figures[0].values for (_, cell), figures in held.items()} == {"one": (1.0,), "two": (2.0,)}
    assert len((tmp_path / "figures.jsonl").read_text().splitlines()) == 2


def test_a_cell_that_raises_says_why_and_is_measured_the_next_time(tmp_path):
    def broken(left):
        raise RuntimeError("no such kernel\nmore of it")

    ledger = Ledger(tmp_path / "figures.jsonl", "here")
    said, _ = run([Cell("part", "one", broken), Cell("part", "two", lambda left: measured(2.0))], ledger, tmp_path)
    assert said[0].endswith("FAILED: RuntimeError: no such kernel") and "FAILED" not in said[1]
    assert "Traceback" in (tmp_path / "failures.txt").read_text()
    ledger = Ledger(tmp_path / "figures.jsonl", "here")
    assert not ledger.has("part", "one") and ledger.has("part", "two")
    run([Cell("part", "one", lambda left: measured(1.0))], ledger, tmp_path)
    assert Ledger(tmp_path / "figures.jsonl", "here").has("part", "one")


def test_what_does_not_fit_into_the_time_is_named_and_a_part_uses_what_is_left_over(tmp_path):
    ledger = Ledger(tmp_path / "figures.jsonl", "here")
    cells = [Cell(part, "one", lambda left: measured(1.0)) for part in ("early", "late")]
    assert run(cells, ledger, tmp_path, Budget(-1, {"early": 1, "late": 1}))[1] == ["early: one", "late: one"]
    half_gone = Budget(60, {"early": 0.0, "late": 1.0})  # nothing for the first part, all for the second
    assert run(cells, ledger, tmp_path, half_gone)[1] == ["early: one"]
    assert 0 < half_gone.left() <= 60


@pytest.mark.parametrize(
    ("line", "why"),
    [
        (
            '{"setting": "there", "part": "part", "cell": "one", "figures": []}',
            "holds figures of there, and this is here",
        ),
        ('{"setting": "here", "part": "part", "cell": "one", "figures": [{"side": 1}]}', "line 1 of .* is no figure"),
        ("[1]", "line 1 of .* is no figure"),
    ],
)
def test_a_file_of_something_else_is_refused(tmp_path, line, why):
    (tmp_path / "figures.jsonl").write_text(line + "\n")
    with pytest.raises(ConfigError, match=f"{why}.*give another --out"):
        Ledger(tmp_path / "figures.jsonl", "here")


def test_rates_ratios_and_shares_by_hand():
    """100 tokens in 4 s alone; 1,000 tokens in 2 s together: 25 and 500 tokens a second, 20 times as fast."""
    alone = Figure("alone", "s", (4.0, 4.0, 8.0), tokens=100, flops=8e3)
    together = Figure("together", "s", (1.0, 2.0, 2.0), 1000, 8e4, base="alone", aims={"ratio": 20, "share": 0.5})
    cells = {
        ("peak", "products"): (Figure(PRODUCT, "FLOP/s", (7e4, 8e4)),),
        ("shared", "tiny"): (alone, together),
    }
    _, first, second = lines(cells)
    assert (first.value, first.unit, first.ratio, first.share) == (25.0, "tokens/s", None, 8e3 / 4 / 8e4)
    # Run for run: 1,000 and 25; 500 and 25; 500 and 12.5.
    assert (second.value, second.ratio, second.share) == (500.0, 40.0, 0.5)
    assert [(aim.what, aim.got, aim.met) for aim in aims([first, second])] == [
        ("ratio", 40.0, True),
        ("share", 0.5, True),
    ]


def test_an_aim_is_missed_by_a_hair_and_by_what_was_not_measured():
    cells = {
        ("parity", "one"): (Figure("distance", "of the way", (0.0011,), aims={"value": 0.001}),),
        ("parity", "two"): (Figure("distance", "of the way", (0.001,), aims={"value": 0.001}),),
        ("shared", "tiny"): (Figure("together", "s", (), base="alone", aims={"ratio": 8.0}, note="it broke"),),
    }
    assert [aim.met for aim in aims(lines(cells))] == [False, True, False]
    assert [aim.words for aim in aims(lines(cells))][1:] == ["at most 0.001 of the way", "at least 8 times as fast"]


@pytest.mark.parametrize(
    ("name", "tera"),
    [
        ("NVIDIA H200", 989),
        ("NVIDIA H100 80GB HBM3", 989),
        ("NVIDIA H100 PCIe", 756),
        ("NVIDIA A100-SXM4-80GB", 312),
        ("NVIDIA L40S", 362),
        ("NVIDIA L4", 121),
        ("NVIDIA H100 80GB HBM3 MIG 1g.10gb", None),
        ("NVIDIA GeForce GTX 1080", None),
    ],
)
def test_the_peak_of_a_gpu_by_its_name(name, tera):
    peak = data_sheet(name)
    assert peak == (None if tera is None else pytest.approx(tera * 1e12))
    product = Figure(PRODUCT, "FLOP/s", (3e12, 4e12))
    assert peak_of((product,)) == 4e12 and peak_of(()) is None
    assert peak_of((product, Figure(SHEET, "FLOP/s", (9e12,)))) == 9e12


def test_counts_of_a_run_of_pytest(tmp_path):
    (tmp_path / "test_some.py").write_text(
        "import pytest\ndef test_good(): pass\ndef test_bad(): assert False\n"
        "@pytest.mark.skip\ndef test_left(): pass\n"
        "@pytest.fixture\ndef broken(): raise ValueError\ndef test_broken(broken): pass\n"
    )
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "--junitxml=tests.xml", "test_some.py"]
    subprocess.run(command, cwd=tmp_path, capture_output=True)
    passed, failed, skipped = counts_of((tmp_path / "tests.xml").read_text())
    assert (passed.values, failed.values, skipped.values) == ((1.0,), (2.0,), (1.0,))
    assert failed.note == "test_bad, test_broken" and failed.aims == {"value": 0.0}


def test_rounds_of_a_run_are_read_from_its_events(tmp_path):
    def events(*seconds, failed=0):
        rounds = [
            {"event": "round", "seconds": 5.0, "seconds_train": value, "clients_ok": 32, "clients_failed": failed}
            for value in seconds
        ]
        lines = [json.dumps(event) for event in ({"event": "start"}, *rounds)]
        (tmp_path / "metrics.jsonl").write_text("\n".join(lines))
        return tmp_path / "metrics.jsonl"

    figure = round_figure("4 actors", events(9.0, 0.5, 0.25, 1.0), "1 actor")
    assert figure.values == (0.5, 0.25, 1.0) and figure.note == "64.0 clients/s; first round after 5.0 s"
    with pytest.raises(CommandError, match="ended after 1 of"):
        round_figure("4 actors", events(9.0), "")
    with pytest.raises(CommandError, match="2 clients of a run of 4 actors failed"):
        round_figure("4 actors", events(9.0, 1.0, failed=1), "")


def test_how_far_apart_two_devices_end():
    """Two clients go 3 and 4 along one axis, a way of 5; the other device is 0.003 and 0.004 away."""
    start_A = np.ones(2)
    expected_CA, apart_CA = np.array([[4.0, 1.0], [5.0, 1.0]]), np.array([[0.0, 0.003], [0.004, 0.0]])
    largest, distance = differences("sgd", expected_CA, expected_CA + apart_CA, start_A)
    assert largest.values == pytest.approx((0.004,)) and distance.values == pytest.approx((0.001,))


@pytest.mark.wide(alone="11 s: a benchmark")
def test_without_a_gpu_it_says_so_and_small_goes_on_where_it_ended(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(SystemExit, match="torch sees no GPU here, so nothing is measured"):
        main(out=tmp_path)
    with pytest.raises(typer.BadParameter, match=r"--parts knows peak, .*, not 'speed'"):
        main(out=tmp_path, parts="speed")
    for _ in range(2):
        assert report(tmp_path, ["peak", "parity"], 2.0, 1, small=True)
        said = capsys.readouterr()
    assert said.err.splitlines().count("parity: tiny LLaMA, lora: on file") == 1
    assert "tiny RoBERTa, prefix" in (tmp_path / "report.txt").read_text()
    cells = Ledger(tmp_path / "figures.jsonl", f"the CPU, small size, torch {torch.__version__}").cells()
    assert len(cells) == len((tmp_path / "figures.jsonl").read_text().splitlines()) == 5
    for (part, _), figures in cells.items():
        if part == "parity":  # one by one and in shared passes
            distance = {figure.name: figure.values[0] for figure in figures}["sgd: distance"]
            assert 0 <= distance < 1e-5


@pytest.fixture
def bench(tmp_path):
    return Bench(CPU, Models(CPU, tmp_path), TINY.counts, runs=2)


def test_sides_of_a_cell_are_measured_in_turn_and_do_the_same_work(bench):
    size = SMALL[1]
    for figures in (shared_passes(bench, size, "lora"), over_peft(bench, size, "prefix")):
        base, *others = figures
        assert base.base == "" and all(other.base == base.name for other in others)
        assert all(len(figure.values) == 2 and figure.memory_bytes is None for figure in figures)
        assert all(
            figure.flops / figure.tokens == pytest.approx(base.flops / base.tokens, rel=0.1) for figure in others
        )
        (aimed,) = (figure for figure in figures if figure.aims)
        assert aimed.name == "4 in shared passes"


@pytest.mark.parametrize(
    ("size", "kind", "lr"), [(0, "prefix", 0.5), (1, "prefix", 0.5), (0, "lora", 0.05), (1, "lora", 0.05)]
)
def test_the_peft_loop_trains_what_fedsim_trains(bench, size, kind, lr):
    """Each client's losses fall alike, but for the rounding of half precision; and no client's training reaches the next."""
    steps = ClientConfig(epochs=6, batch_size=4, optimizer={"lr": lr})
    backbone = bench.models.backbone(SMALL[size], kind)
    work = Work(SMALL[size], kind, backbone.geometry, 2, steps)
    loop = work.peft_loop(bench.models.plain(SMALL[size]))
    ours, theirs = work.train(backbone, 2, together=True), work.train_with_peft(loop, 2)
    assert different_work({"ours": ours, "theirs": theirs}) == ""
    for mine, other in zip(ours, theirs, strict=True):
        fall = mine.loss_first - mine.loss_last
        assert fall > 0.01 and abs(other.loss_last - mine.loss_last) < 0.2 * fall
        assert other.loss_first == pytest.approx(mine.loss_first, rel=0.01) and other.num_tokens == mine.num_tokens
    assert work.train_with_peft(loop, 2) == theirs
    assert "NOT THE SAME WORK" in different_work({"ours": ours, "theirs": list(reversed(theirs))})


def test_texts_are_as_long_as_those_of_sst2_and_always_the_same():
    table = texts(2000, 500)
    assert (table.lengths_N.min(), table.lengths_N.max()) == (SHORTEST, LONGEST)
    assert abs(table.lengths_N.mean() - MEAN) < 1
    np.testing.assert_array_equal(table.ids_Z, texts(2000, 500).ids_Z)

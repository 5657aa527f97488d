"""The GPU benchmark: the same code at small scale, and one sentence if there is no GPU."""

import json

import numpy as np
import pytest
import torch
import typer

from benchmarks.flops import Shape, needed_flops
from benchmarks.gpu import LONGEST, MEAN, SHORTEST, SMALL, Work, build_models, main, texts
from benchmarks.peft_loop import MAKERS
from clients.config import ClientConfig
from clients.tuners.config import TunerConfig


@pytest.fixture
def run(tmp_path, monkeypatch, capsys):
    """Return a function that runs the benchmark as on a machine without a GPU, and gives what it printed and its rows."""

    def run(**options):
        monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
        file = tmp_path / "rows.jsonl"
        main(json=file, **options)
        return capsys.readouterr().out, [json.loads(line) for line in file.read_text().splitlines()]

    return run


def test_without_a_gpu_it_says_so_and_is_no_failure(run):
    said, rows = run()
    assert said.startswith("torch sees no GPU here, so nothing was measured; run this on a machine that has one")
    assert len(said.splitlines()) == 1
    assert [row["value"] for row in rows] == [None]


@pytest.mark.parametrize("tuner", MAKERS)
def test_in_small_it_measures_all_sides_after_it_has_compared_their_losses(run, tuner):
    said, rows = run(tuner=tuner, small=True, runs=2, clients="2")
    by_case = {row["case"]: row for row in rows}
    assert by_case["2 clients: sequential"]["ratio"] == 1
    for side in ("fused", "fused, autocast", "PEFT loop"):
        row = by_case[f"2 clients: {side}"]
        assert row["value"] > 0 and row["ratio"] > 0 and row["ratio_to"] == "2 clients: sequential"
        assert 0 < by_case[f"2 clients: {side}, of the peak"]["value"] < 1
    assert by_case["2 clients: fused, over the PEFT loop"]["value"] > 0
    assert all({*row} == {"benchmark", "case", "value", "unit", "ratio", "ratio_to", "runs"} for row in rows)
    assert all(row["benchmark"] == "gpu" and row["runs"] == 2 for row in rows)
    assert f"gpu, {tuner}" in said and "the CPU, 2 layers of 64" in said


def test_a_kind_without_a_loop_of_peft_is_refused():
    with pytest.raises(typer.BadParameter, match="--tuner loira is not one of prefix, lora"):
        main(tuner="loira")


@pytest.mark.parametrize(("kind", "lr"), [("prefix", 0.5), ("lora", 0.05)])
def test_the_peft_loop_trains_what_fedsim_trains(kind, lr):
    """Each client's losses fall alike, but for the rounding of half precision; and no client's training reaches the next."""
    tuner, steps = TunerConfig(kind=kind), ClientConfig(epochs=6, batch_size=4, optimizer={"lr": lr})
    work = Work(SMALL, models := build_models(SMALL, "cpu", tuner), tuner, 2, torch.device("cpu"), steps)
    ours, theirs = work.train(models.half, together=True), work.with_peft()
    for mine, other in zip(ours, theirs, strict=True):
        fall = mine.loss_first - mine.loss_last
        assert fall > 0.01 and abs(other.loss_last - mine.loss_last) < 0.2 * fall
        assert other.loss_first == pytest.approx(mine.loss_first, rel=0.01) and other.num_tokens == mine.num_tokens
    assert work.with_peft() == theirs


def test_texts_are_as_long_as_those_of_sst2_and_always_the_same():
    table = texts(2000, 500)
    assert (table.lengths_N.min(), table.lengths_N.max()) == (SHORTEST, LONGEST)
    assert abs(table.lengths_N.mean() - MEAN) < 1
    np.testing.assert_array_equal(table.ids_Z, texts(2000, 500).ids_Z)


def test_needed_work_by_hand():
    """One layer, one example of 3 tokens behind a prompt of 2; multiplications and additions count one each."""
    hidden, inner = 8, 16
    projection, feed, attention = 2 * 3 * hidden * hidden, 2 * 3 * hidden * inner, 2 * 3 * (3 + 2) * hidden
    forward = 4 * projection + 2 * feed + 2 * attention
    # Back: the feed-forward net, the output projection, and two products for each of attention's; no query, key or value.
    backward = 2 * feed + projection + 4 * attention
    lengths_N = np.array([3])
    assert needed_flops(Shape(hidden, inner, 1), lengths_N, 2) == forward + backward
    two = Shape(hidden, inner, 2)
    whole = 4 * projection + 2 * feed + 4 * attention
    assert needed_flops(two, lengths_N, 2) == 2 * forward + backward + whole
    assert needed_flops(two, lengths_N, 2, lowest=1) == 2 * forward + backward
    assert needed_flops(two, lengths_N, 2, lowest=1, cached=True) == forward + backward
    # Where one token is read, the other two have keys and values in the top layer, and nothing else.
    forward_one = 2 * projection + (2 * projection + 2 * feed + 2 * attention) / 3
    backward_one = (projection + 2 * feed + 4 * attention) / 3
    one = needed_flops(Shape(hidden, inner, 1), lengths_N, 2, one_read=True)
    assert one == pytest.approx(forward_one + backward_one)
    # Below it, a layer is run for all; back from the top come the gradients of queries, keys and values as well.
    back = backward_one + 2 * projection + projection / 3
    assert needed_flops(two, lengths_N, 2, one_read=True) == pytest.approx(forward + forward_one + back + backward)


@pytest.mark.parametrize("examples", [1, 7])
def test_needed_work_adds_up_over_examples(examples):
    lengths_N = np.arange(5, 5 + examples)
    shape = Shape(32, 64, 3)
    each = sum(needed_flops(shape, lengths_N[i : i + 1], 4) for i in range(examples))
    assert needed_flops(shape, lengths_N, 4) == pytest.approx(each)

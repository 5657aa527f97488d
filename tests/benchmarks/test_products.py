"""Which side computes in which number format, and how far sides of different formats may end from each other."""

from dataclasses import replace
from datetime import date

import numpy as np
import pytest
from rich.console import Console

from benchmarks.local_sides import Side, sides
from benchmarks.local_training import check_same
from benchmarks.peers.__main__ import setting_of
from benchmarks.peers.comparison import Comparison
from benchmarks.peers.sides import Outcome
from benchmarks.peers.work import PlainClients, Work
from benchmarks.products import AUTOCAST, BFLOAT16, FLOAT32, named, of_fedsim, override
from fedsim.configuration.schema import read_config


@pytest.mark.parametrize("tuner", ["prefix", "soft_prompt", "late_prompt"])
def test_only_the_bare_loop_runs_under_autocast_and_every_name_says_its_format(tuner):
    plain, all_sides = sides(tuner), sides(tuner, also_autocast=True)
    names = [side.name for side in all_sides]
    assert len(set(names)) == len(names) and set(plain) <= set(all_sides)
    autocast = [side for side in all_sides if side.products == AUTOCAST]
    assert [side.name for side in autocast] == [
        f"{side.name}, autocast bfloat16" for side in plain if side.kind == "bare" and side.threads == 1
    ]
    for side in all_sides:
        assert side.kind == "bare" or side.products in of_fedsim()
        assert side.name == named(side.name.partition(", autocast")[0].removesuffix(named("", BFLOAT16)), side.products)
    assert all(len(override(products)) == (len(of_fedsim()) > 1) for products in of_fedsim())


def test_ends_of_one_format_are_held_together_and_rounded_ones_are_only_told():
    first = Side("bare", "bare")
    other, rounded = replace(first, name="fedsim"), first.computing_in(AUTOCAST)
    start = {False: np.array([0.0, 9.0])}
    results = {"bare": np.array([1.0, 9.0]), "fedsim": np.array([1.0005, 9.0]), rounded.name: np.array([1.1, 9.0])}
    apart = check_same(results, [first, other, rounded], start)
    assert apart == pytest.approx({FLOAT32: 0.0005, AUTOCAST: 0.1})
    with pytest.raises(RuntimeError, match=r"fedsim ends 1\.1e-02 from bare"):
        check_same(results | {"fedsim": np.array([1.1, 9.0])}, [first, other, rounded], start)
    with pytest.raises(RuntimeError, match=r"bare, autocast bfloat16 ends .* they do not do the same work"):
        check_same(results | {rounded.name: np.array([1.0, -9.0])}, [first, other, rounded], start)


def test_the_peers_loop_under_autocast_is_near_and_the_folder_keeps_it(tmp_path):
    keys = [
        "server.kind=fedavg",
        "model.head.kind=classifier",
        "data.train_examples=240",
        "data.validation_examples=40",
    ]
    work, plan = Work.of(read_config("configs/quickstart.yaml", [*keys, *override(FLOAT32)]), 1)
    (client, *_) = plan.cohorts_Rk[0].tolist()
    ends = []
    for autocast in (False, True):
        replace(work, autocast=autocast).save(tmp_path)
        loaded = Work.load(tmp_path)
        assert loaded.autocast is autocast
        loop = PlainClients(loaded)
        ends.append((loop.train(0, client, plan.start_F)[0], loop.evaluate(plan.start_F, 0, 1).loss_sum))
    (plain_F, plain_loss), (rounded_F, rounded_loss) = ends
    assert plain_F.dtype == rounded_F.dtype == np.float32
    way = np.linalg.norm(plain_F - plan.start_F)
    assert 0 < np.linalg.norm(rounded_F - plain_F) < way
    assert rounded_loss != plain_loss and rounded_loss == pytest.approx(plain_loss, rel=0.02)


def test_a_looser_bound_is_for_the_sides_that_it_is_given_for():
    outcomes = {"fedsim": 1.0, "flower": 1.1, "flower, autocast bfloat16": 1.1}
    comparison = Comparison("case")
    ends = {name: lambda _, value=value: Outcome(1, 1, np.full(3, value), value, 1) for name, value in outcomes.items()}
    comparison.run(ends, 1, Console(quiet=True))
    comparison.difference_rows(["flower, autocast bfloat16"], "fedsim", 0.5)
    assert not comparison.failures
    comparison.difference_rows(["flower"], "fedsim")
    assert list(comparison.failures) == ["flower"]


def test_a_table_of_peers_names_its_date_and_versions():
    words = setting_of(["flower", "blazefl"])
    assert words.startswith(date.today().isoformat()) and "fedsim " in words and "torch " in words
    assert "; flwr 1" in words and "; blazefl 2" in words and "pfl" not in words

"""What a study is said to show: sentences, families, what is left out, the best arm, expected bands."""

import json
import math
from dataclasses import fields

import pytest
from study_cells import study_of, summary_of

from fedsim.core.errors import ConfigError
from fedsim.data.text_metrics import TEXT_METRICS
from fedsim.study.figures import CellFigures, FailedCell
from fedsim.study.measures import MEASURES
from fedsim.study.outcome import McNemar
from fedsim.study.summary import summarise

NAN = math.nan
BASE = [0.80, 0.81, 0.82, 0.79, 0.80, 0.83, 0.80, 0.81]
GAINS = [0.010, 0.030, 0.020, 0.024, 0.030, 0.028, 0.015, 0.022]
GAINED = [round(a + b, 3) for a, b in zip(BASE, GAINS, strict=True)]
MIXED = [a + b for a, b in zip(BASE, [0.01, -0.02, 0.01, -0.01, 0.02, 0.01, -0.01, 0.01], strict=True)]


def two_arms(n: int, datasets: int = 1, reference=BASE, arm=GAINED) -> dict:
    return {f"data{k}": {"fedavg": reference[:n], "fedpeptao": arm[:n]} for k in range(datasets)}


def sentence(lasts, **more) -> str:
    return summary_of(lasts, **more).pairs[0].sentence


def test_a_difference_in_all_of_six_seeds_is_shown():
    summary = summary_of(two_arms(6))
    pair = summary.pair("data0", "fedpeptao")
    assert (pair.verdict, pair.significant, pair.p_holm) == ("better", True, 2 / 2**6)
    low, high = f"{pair.difference.low:.3f}", f"{pair.difference.high:.3f}"
    assert pair.sentence == (
        f"fedpeptao is 0.024 better than fedavg (95 % interval {low} to {high}, 6 of 6 seeds, p = 0.031)"
    )
    assert 0.01 < float(low) < 0.024 < float(high) < 0.03


def test_a_worse_arm_is_called_worse_by_positive_numbers():
    better = summary_of(two_arms(6)).pairs[0]
    worse = summary_of(two_arms(6, reference=GAINED, arm=BASE)).pairs[0]
    assert (worse.verdict, worse.p_holm) == ("worse", better.p_holm)
    assert worse.sentence == better.sentence.replace("better", "worse")


@pytest.mark.parametrize(
    ("n", "starts"),
    [
        (
            1,
            "1 seed cannot show a difference between fedpeptao and fedavg: the least p is 1, 6 seeds could (difference 0.010",
        ),
        (
            3,
            "3 seeds cannot show a difference between fedpeptao and fedavg: the least p is 0.25, 6 seeds could (difference",
        ),
        (
            5,
            "5 seeds cannot show a difference between fedpeptao and fedavg: the least p is 0.062, 6 seeds could (difference",
        ),
    ],
)
def test_few_seeds_cannot_show_anything_however_clear_it_looks(n, starts):
    summary = summary_of(two_arms(n))
    pair = summary.pairs[0]
    assert (pair.verdict, pair.significant) == ("cannot show", False)
    assert pair.sentence.startswith(starts) and pair.sentence.endswith(f"better in {n} of {n})")
    assert any(note.startswith(f"{n} pair") and "cannot show a difference" in note for note in summary.notes)


def test_six_seeds_are_too_few_over_three_data_sets_and_seven_are_not():
    assert sentence(two_arms(6, datasets=3)).startswith(
        "6 seeds on 3 data sets cannot show a difference between fedpeptao and fedavg on data0: the least p adjusted over 3 "
        "data sets is 0.094, 7 seeds could"
    )
    assert "7 of 7 seeds, p = 0.047 over 3 data sets, 0.016 alone)" in sentence(two_arms(7, datasets=3))


def test_holm_is_over_the_data_sets_of_one_arm_and_one_metric():
    lasts = two_arms(8, datasets=2)
    lasts["data0"]["other"], lasts["data1"]["other"] = MIXED, GAINED
    summary = summary_of(lasts)
    ps = {(pair.dataset, pair.arm): (pair.difference.p, pair.p_holm) for pair in summary.pairs}
    assert ps["data0", "fedpeptao"] == ps["data1", "fedpeptao"] == (2 / 2**8, 4 / 2**8)
    assert ps["data1", "other"] == (2 / 2**8, 4 / 2**8)
    raw, adjusted = ps["data0", "other"]
    assert raw == adjusted > 0.05  # the largest of its family
    assert {pair.family for pair in summary.pairs} == {2}
    assert any("over the 2 data sets of each arm and metric, not over arms: 2 arms" in note for note in summary.notes)


def test_a_data_set_with_more_seeds_lets_one_with_fewer_show_its_difference():
    lasts = {"many": {"a": BASE, "b": GAINED}, "few": {"a": [*BASE[:6], None, None], "b": [*GAINED[:6], None, None]}}
    few = summary_of(lasts).pair("few", "b")
    assert (few.verdict, few.p_holm, few.least_p_holm) == ("better", 2 / 2**6, 2 / 2**6)


def test_enough_seeds_without_a_clear_difference_show_none():
    pair = summary_of(two_arms(8, arm=MIXED)).pairs[0]
    assert pair.verdict == "not shown"
    assert pair.sentence.startswith(
        "no difference between fedpeptao and fedavg is shown (difference 0.003, 95 % interval -0.0"
    )
    assert "better in 5 of 8 seeds, p = 0." in pair.sentence


@pytest.mark.parametrize(("n", "where"), [(1, "the one seed"), (8, "each of 8 seeds")])
def test_equal_values_are_called_equal(n, where):
    summary = summary_of(two_arms(n, arm=BASE))
    assert summary.pairs[0].verdict == "equal"
    assert summary.pairs[0].sentence == f"fedpeptao and fedavg are equal in {where}"
    best = summary.best_arm("data0")
    assert (best.arms, best.supported) == (("fedavg", "fedpeptao"), False)
    assert best.sentence == "fedavg and fedpeptao have the same highest mean"


def test_a_failed_seed_and_one_that_diverged_are_left_out_by_name_and_stand_in_the_counts():
    lasts = {"d": {"a": [*BASE[:7], "out of memory"], "b": [NAN, *GAINED[1:]]}}
    summary = summary_of(lasts)
    pair = summary.pairs[0]
    assert tuple(pair.difference.values) == (1, 2, 3, 4, 5, 6)
    assert pair.missing == {"a": (0, 7), "b": (0, 7)}
    assert pair.sentence.endswith(
        "; seed 7 of a without a value, which can favour it; seed 0 of b without a value, which can favour it"
    )
    a, b = summary.rows
    assert (a.seeds, a.finished, a.failed) == (
        tuple(range(8)),
        tuple(range(7)),
        (FailedCell("d", "a", 7, "out of memory"),),
    )
    assert (b.figures["last"].n, b.figures["last"].without) == (7, (0,))
    assert any("1 of 16 cells have no figures" in note for note in summary.notes)
    assert any("last metric of b is not a number in seed 0" in note for note in summary.notes)


def test_a_cell_that_nobody_knows_of_has_not_run():
    summary = summary_of({"d": {"a": BASE, "b": [None] * 8}})
    assert {cell.sentence for cell in summary.failed} == {"it has not run"} and len(summary.failed) == 8
    pair = summary.pairs[0]
    assert pair.verdict == "no pairs"
    assert pair.sentence == "b and a cannot be compared: no seed has both; seeds 0-7 of b without a value"
    assert summary.best_arm("d").sentence.endswith("(no seed in common with b)")


def test_seeds_that_only_one_arm_has_are_named_as_such():
    lasts = {"d": {"a": BASE, "b": GAINED[:3]}}
    pair = summary_of(lasts, arm_seeds={"a": 8, "b": [0, 1, 9]}).pairs[0]
    assert tuple(pair.difference.values) == (0, 1)
    assert pair.sentence.endswith("; seeds 2-7 of a without a partner; seed 9 of b without a partner")


def test_pairs_that_are_not_exact_are_named_with_what_differs():
    figures = {
        ("data0", "fedavg", seed): {"contents": {"partition": "p", "weights": "w"}, "cohorts": "c"} for seed in range(6)
    }
    figures |= {
        ("data0", "fedpeptao", seed): {
            "contents": {"partition": "p" if seed else "q", "weights": "v"},
            "cohorts": "c" if seed else "x",
        }
        for seed in range(6)
    }
    pair = summary_of(two_arms(6), figures).pairs[0]
    assert pair.sentence.endswith(
        "; not paired exactly: partition, weights and cohorts differ in seed 0; not paired exactly: weights differ in seeds 1-5"
    )
    assert [found.differs for found in pair.mismatches] == [("partition", "weights", "cohorts"), *[("weights",)] * 5]
    figures = {
        ("data0", arm, seed): {"contents": {"partition": arm}} for arm in ("fedavg", "fedpeptao") for seed in (0, 1)
    }
    assert "partition differs in seeds 0-1" in summary_of(two_arms(6), figures).pairs[0].sentence


def test_metrics_are_compared_where_they_were_measured():
    lasts = two_arms(6)
    figures = {
        ("data0", arm, seed): {"personalised": value + 0.01, "best": NAN}
        for arm, values in lasts["data0"].items()
        for seed, value in enumerate(values)
    }
    summary = summary_of(lasts, figures)
    assert [pair.measure for pair in summary.pairs] == ["last", "personalised"]
    assert "better than fedavg in last personalised accuracy (" in summary.pairs[1].sentence


def test_the_best_arm_is_bold_only_if_it_beats_each_other_one():
    lasts = two_arms(6)
    lasts["data0"]["third"] = BASE[:6]
    summary = summary_of(lasts)
    best = summary.best_arm("data0")
    assert (best.arms, best.supported, best.p_holm) == (("fedpeptao",), True, 2 / 2**6)
    assert summary.is_bold("data0", "fedpeptao") and not summary.is_bold("data0", "fedavg")
    lasts["data0"]["third"] = [*GAINED[:5], GAINED[5] - 0.001]
    best = summary_of(lasts).best_arm("data0")
    assert not best.supported
    assert best.sentence.endswith("is not shown to be better than every other arm (p = 1 against third)")


def test_an_arm_that_lost_a_seed_is_not_bold():
    lasts = {"d": {"a": BASE, "b": [*GAINED[:7], "diverged"]}}
    summary = summary_of(lasts)
    assert summary.pairs[0].verdict == "better"
    assert not summary.best_arm("d").supported
    assert summary.best_arm("d").sentence.endswith("(some of its own seeds have no value)")


def test_the_best_arm_of_different_seeds_is_judged_on_those_in_common():
    lasts = {"d": {"a": [0.5] * 6, "b": [0.4] * 6 + [0.99] * 6}}
    best = summary_of(lasts).best_arm("d")
    assert (best.arms, best.supported, best.p_holm) == (("a",), True, 2 / 2**6)  # b leads by its easier seeds alone
    assert best.shared == tuple(range(6)) and "on the 6 seeds that all arms have" in best.sentence


def test_one_arm_and_one_seed_have_a_summary():
    summary = summary_of({"base": {"fedavg": [0.8]}})
    assert summary.pairs == () and summary.row("base", "fedavg").figures["last"].mean == 0.8
    assert "only arm" in summary.best_arm("base").sentence
    json.dumps(summary.record(), allow_nan=False)


def test_costs_to_the_target_are_ratios_over_the_seeds_that_both_reach():
    lasts = {"d": {"a": BASE[:3], "b": GAINED[:3]}}
    rounds = {"a": (10, 20, None), "b": (5, 40, 3)}
    figures = {
        ("d", arm, seed): {"target": 0.8, "target_round": value}
        for arm, row in rounds.items()
        for seed, value in enumerate(row)
    }
    summary = summary_of(lasts, figures)
    (ratio,) = summary.ratios
    assert (ratio.measure, ratio.n, ratio.ratio) == ("target_round", 2, pytest.approx(1.0))  # a half and twice as many
    assert summary.row("d", "a").reached == (0, 1)
    assert summary.row("d", "a").figures["target_round"].mean == 15


def test_mcnemar_compares_predictions_by_seed_where_both_were_kept():
    right = {"a": [True] * 10 + [False] * 10, "b": [True] * 20}
    lasts = {"d": {"a": BASE[:2], "b": GAINED[:2]}}
    summary = summary_of(lasts, correct=lambda cell: None if cell.seed else right[cell.arm])
    assert summary.pairs[0].mcnemar == {0: McNemar(10, 0, 10, 0, pytest.approx(2 / 2**10))}
    other = {("d", "b", 0): {"contents": {"validation_data": "another"}}}
    assert summary_of(lasts, other, lambda cell: right[cell.arm]).pairs[0].mcnemar.keys() == {1}


def test_every_number_of_a_cell_is_averaged():
    numbers = {f.name for f in fields(CellFigures) if f.type in ("int", "float", "int | None")}
    written = {
        f"{part}.{name}" for part in ("first_generated", "generated", "personal_generated") for name in TEXT_METRICS
    }
    assert set(MEASURES) == numbers - {"seed", "num_classes", "target"} | written


def test_the_reference_is_the_first_arm_or_the_one_that_is_named():
    assert summary_of(two_arms(6)).pairs[0].reference == "fedavg"
    summary = summary_of(two_arms(6), reference="fedpeptao")
    assert (summary.pairs[0].arm, summary.pairs[0].verdict) == ("fedavg", "worse")
    with pytest.raises(ConfigError, match="reference is nobody, but the arms are"):
        summary_of(two_arms(6), reference="nobody")


def test_what_does_not_belong_to_the_study_is_not_dropped():
    study, cell = study_of(two_arms(2)), CellFigures("data0", "fedavg", 0, "folder", last=0.5)
    with pytest.raises(ValueError, match="data0 / fedavg / 0 is there twice"):
        summarise(study, [cell], [FailedCell("data0", "fedavg", 0, "why")])
    with pytest.raises(ValueError, match="data0 / fedavg / 7 is no cell"):
        summarise(study, [CellFigures("data0", "fedavg", 7, "folder")], [])
    with pytest.raises(ConfigError, match="fedavg reports accuracy, fedpeptao reports matthews"):
        summarise(study, [cell, CellFigures("data0", "fedpeptao", 0, "folder", metric_name="matthews")], [])


def test_the_record_is_plain_json_and_the_order_of_cells_does_not_matter():
    lasts = {"d": {"a": BASE, "b": [NAN, *GAINED[1:7], "failed"]}, "e": {"a": [0.5] * 8, "b": [None] * 8}}
    summary = summary_of(lasts)
    record = json.loads(json.dumps(summary.record(), allow_nan=False))
    assert record["rows"][1]["figures"]["last"]["values"]["3"] == GAINED[3]
    assert record["pairs"][0]["difference"]["p"] == summary.pairs[0].difference.p
    assert record["pairs"][-1]["p_holm"] is None and "cells" not in record
    again = summarise(study_of(lasts), summary.cells[::-1], summary.failed[::-1])
    assert again.record() == summary.record()


@pytest.mark.parametrize("n", [1, 3])
def test_what_few_seeds_cannot_show_is_noted_once(n):
    """Though one metric was measured on fewer data sets than another, so that its p is adjusted over fewer."""
    values = {f"data{k}": {"fedavg": BASE[:n], "fedpeptao": GAINED[:n]} for k in range(3)}
    more = {
        (f"data{k}", arm, s): {"personalised": 0.1 * s + (arm == "fedavg")}
        for k in (0, 1)
        for arm in values["data0"]
        for s in range(n)
    }
    summary = summary_of(values, more)
    assert {pair.family for pair in summary.pairs} == {2, 3}
    (note,) = [note for note in summary.notes if "cannot show a difference" in note]
    assert note.startswith(f"{n} pair")
    assert ("over 3 data sets" in note) == (n > 1)

"""Expected bands: where the means of a study should lie."""

import math

import pytest
from study_cells import summary_of

from fedsim.study.config import ArmBand, Band
from fedsim.study.expect import check
from fedsim.study.sheets import sheets

NAN = math.nan


@pytest.mark.parametrize(
    ("band", "ok", "says"),
    [
        (ArmBand(at_least=0.8), True, "accuracy 0.8 over 2 seeds, expected at least 0.8"),
        (ArmBand(at_most=0.8), True, "expected at most 0.8"),
        (ArmBand(at_least=0.81, at_most=0.9), False, "accuracy 0.8 over 2 seeds, expected 0.81 to 0.9"),
        (ArmBand(at_most=0.79), False, "expected at most 0.79"),
        (ArmBand(), False, "neither at_least nor at_most"),
    ],
)
def test_means_are_compared_with_bands_that_include_their_ends(band, ok, says):
    (found,) = check(summary_of({"d": {"a": [0.7, 0.9]}}), {"d": {"a": band}})
    assert (found.dataset, found.arm, found.band) == ("d", "a", band)
    assert found.ok is ok and says in found.sentence and found.sentence.startswith("a on d: ")


def test_text_metrics_have_bands_columns_and_differences_of_their_own():
    texts = {
        ("d", arm, seed): {"generated": {"exact_match": value}}
        for arm, value in (("a", 0.2), ("b", 0.6))
        for seed in (0, 1)
    }
    summary = summary_of({"d": {"a": [0.7, 0.9], "b": [0.7, 0.9]}}, texts)
    wanted = {"exact_match": Band(at_least=0.5), "f1": Band(at_least=0.1)}
    low, high, none = check(
        summary, {"d": {"a": ArmBand(generated={"exact_match": wanted["exact_match"]}), "b": ArmBand(generated=wanted)}}
    )
    assert (
        not low.ok
        and low.sentence == "a on d: exact match of written responses 0.2 over 2 seeds, expected at least 0.5"
    )
    assert high.ok and high.measure == "generated.exact_match" and high.value == pytest.approx(0.6)
    assert not none.ok and "no value of f1 in seeds 0-1, mean of the others none" in none.sentence
    results, written = sheets(summary)[:2]
    (column,) = [each for each in results.columns if each.head == "exact match"]
    assert [cell.text for cell in column.cells] == ["0.200 ± 0.000", "0.600 ± 0.000"]
    assert written.title == "Written responses" and "exact match against a" in [each.head for each in written.columns]
    pair = summary.pair("d", "b", "generated.exact_match")
    assert pair.difference.mean == pytest.approx(0.4) and "in exact match of written responses" in pair.sentence
    assert "generated.f1" not in summary.row("d", "a").figures


@pytest.mark.parametrize("lost", [None, NAN, "it failed"])
def test_a_band_fails_if_a_seed_has_no_value_or_the_study_no_such_arm(lost):
    summary = summary_of({"d": {"a": [0.9, lost]}})
    band = ArmBand(at_least=0.8)
    missing, unknown, nowhere = check(summary, {"d": {"a": band, "z": band}, "y": {"a": band}})
    assert not (missing.ok or unknown.ok or nowhere.ok)
    assert missing.sentence == "a on d: no value in seed 1, mean of the others 0.900, expected at least 0.8"
    assert unknown.sentence == "z on d: expect names it, but the study does not have it"

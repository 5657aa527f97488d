"""Expected bands: where the means of a study should lie."""

import math

import pytest
from study_cells import summary_of

from fedsim.study.config import ArmBand
from fedsim.study.expect import check

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


@pytest.mark.parametrize("lost", [None, NAN, "it failed"])
def test_a_band_fails_if_a_seed_has_no_value_or_the_study_no_such_arm(lost):
    summary = summary_of({"d": {"a": [0.9, lost]}})
    band = ArmBand(at_least=0.8)
    missing, unknown, nowhere = check(summary, {"d": {"a": band, "z": band}, "y": {"a": band}})
    assert not (missing.ok or unknown.ok or nowhere.ok)
    assert missing.sentence == "a on d: no value in seed 1, mean of the others 0.900, expected at least 0.8"
    assert unknown.sentence == "z on d: expect names it, but the study does not have it"

"""Whether a study's figures lie where they are expected: ``fedsim compare --check``."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

from fedsim.study import words
from fedsim.study.config import ArmBand, Band
from fedsim.study.measures import MEASURES
from fedsim.study.outcome import StudySummary

_ROUNDING = 1e-9


@dataclass(frozen=True)
class Expectation:
    """A band, and the mean that should lie in it."""

    dataset: str
    arm: str
    value: float
    """Mean of the figure over seeds; NaN if there is none."""
    band: Band
    ok: bool
    sentence: str
    measure: str = "last"
    """The figure: ``last``, the last global metric, or one of ``measures.GENERATED``."""


def check(summary: StudySummary, expect: Mapping[str, Mapping[str, ArmBand]]) -> tuple[Expectation, ...]:
    """Compare means of the last global metric, and of text metrics of written responses, with the bands in which they are
    expected.

    A band fails as well if a seed of the arm has no value, since the mean would leave it out; if the study has no such data
    set or arm; and if it has no end.

    Parameters
    ----------
    expect
        Key ``expect`` of the study: bands by data set and arm.
    """
    return tuple(
        _check(summary, dataset, arm, measure, band)
        for dataset, arms in expect.items()
        for arm, bands in arms.items()
        for measure, band in _bands(bands).items()
    )


def _bands(bands: ArmBand) -> dict[str, Band]:
    """Return the bands of an arm by figure: that of the last metric, unless only others are given."""
    written = {f"generated.{name}": band for name, band in bands.generated.items()}
    return written if written and not bands.has_end else {"last": bands, **written}


def _check(summary: StudySummary, dataset: str, arm: str, measure: str, band: Band) -> Expectation:
    def answer(ok: bool, sentence: str, value: float = math.nan) -> Expectation:
        return Expectation(dataset, arm, value, band, ok, f"{arm} on {dataset}: {sentence}", measure)

    if dataset not in summary.datasets or arm not in summary.arms:
        return answer(False, "expect names it, but the study does not have it")
    if not band.has_end:
        return answer(False, "its band in expect has neither at_least nor at_most")
    row = summary.row(dataset, arm)
    name = row.metric_name if measure == "last" else f"{MEASURES[measure].label} of written responses"
    found = row.figures.get(measure)
    expected = f"expected {_band(band)}"
    lost = [seed for seed in row.seeds if found is None or seed not in found.values]
    if found is None or lost:
        others = words.number(found.mean) if found is not None and found.n else "none"
        of = "" if measure == "last" else f" of {MEASURES[measure].label}"
        return answer(
            False,
            f"no value{of} in {words.seeds_text(lost)}, mean of the others {others}, {expected}",
            math.nan if found is None else found.mean,
        )
    above = band.at_least is None or found.mean >= band.at_least - _ROUNDING
    below = band.at_most is None or found.mean <= band.at_most + _ROUNDING
    return answer(
        above and below, f"{name} {found.mean:.4g} over {words.count(found.n, 'seed')}, {expected}", found.mean
    )


def _band(band: Band) -> str:
    if band.at_most is None:
        return f"at least {band.at_least:g}"
    return f"at most {band.at_most:g}" if band.at_least is None else f"{band.at_least:g} to {band.at_most:g}"

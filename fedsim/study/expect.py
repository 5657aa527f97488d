"""Whether a study's metrics lie where they are expected: ``fedsim compare --check``."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

from fedsim.study import words
from fedsim.study.config import Band
from fedsim.study.outcome import StudySummary

_ROUNDING = 1e-9


@dataclass(frozen=True)
class Expectation:
    """A band, and the mean that should lie in it."""

    dataset: str
    arm: str
    value: float
    """Mean of the last global metric over seeds; NaN if there is none."""
    band: Band
    ok: bool
    sentence: str


def check(summary: StudySummary, expect: Mapping[str, Mapping[str, Band]]) -> tuple[Expectation, ...]:
    """Compare means of the last global metric with the bands in which they are expected.

    A band fails as well if a seed of the arm has no value, since the mean would leave it out; if the study has no such data
    set or arm; and if it has no end.

    Parameters
    ----------
    expect
        Key ``expect`` of the study: bands by data set and arm.
    """
    return tuple(_check(summary, d, arm, band) for d, bands in expect.items() for arm, band in bands.items())


def _check(summary: StudySummary, dataset: str, arm: str, band: Band) -> Expectation:
    def answer(ok: bool, sentence: str, value: float = math.nan) -> Expectation:
        return Expectation(dataset, arm, value, band, ok, f"{arm} on {dataset}: {sentence}")

    if dataset not in summary.datasets or arm not in summary.arms:
        return answer(False, "expect names it, but the study does not have it")
    if band.at_least is None and band.at_most is None:
        return answer(False, "its band in expect has neither at_least nor at_most")
    row = summary.row(dataset, arm)
    last = row.figures["last"]
    expected = f"expected {_band(band)}"
    lost = [seed for seed in row.seeds if seed not in last.values]
    if lost:
        found = words.number(last.mean) if last.n else "none"
        return answer(False, f"no value in {words.seeds_text(lost)}, mean of the others {found}, {expected}", last.mean)
    above = band.at_least is None or last.mean >= band.at_least - _ROUNDING
    below = band.at_most is None or last.mean <= band.at_most + _ROUNDING
    over = f" over {words.count(last.n, 'seed')}"
    sentence = f"{row.metric_name} {last.mean:.4g}{over}, {expected}"
    return answer(above and below, sentence, last.mean)


def _band(band: Band) -> str:
    if band.at_most is None:
        return f"at least {band.at_least:g}"
    return f"at most {band.at_most:g}" if band.at_least is None else f"{band.at_least:g} to {band.at_most:g}"

"""The best arm on each data set, and whether it is shown to be better than every other arm."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import replace

import numpy as np

from fedsim.study import statistics, words
from fedsim.study.grid import Grid
from fedsim.study.measures import COMPARED
from fedsim.study.outcome import BestArm


def best_arms(grid: Grid) -> tuple[BestArm, ...]:
    """Find the best arm on every data set, by every metric that was measured.

    It may stand in bold if it is better than *each* other arm on the seeds that both have: p is the largest of these
    comparisons, adjusted by Holm over data sets. The largest needs no adjustment over arms, since all must be small; and of
    several arms that are truly equal none is bold more often than alpha says. An arm with failed seeds is never bold: its
    mean leaves its failures out.
    """
    found: dict[tuple[str, str], BestArm] = {}
    for measure in COMPARED:
        leading = [_leading(grid, d, measure) for d in grid.datasets if grid.measured(d, measure)]
        ps = statistics.holm([best.p_holm for best in leading])
        for best, p in zip(leading, ps, strict=True):
            found[best.dataset, measure] = _judged(grid, replace(best, p_holm=p))
    return tuple(found[d, m] for d in grid.datasets for m in COMPARED if (d, m) in found)


def _leading(grid: Grid, dataset: str, measure: str) -> BestArm:
    """Return the best arm with the largest p of its comparisons, not adjusted yet."""
    values = {arm: grid.values(dataset, arm, measure) for arm in grid.arms}
    shared = _shared(values)
    means = {
        arm: statistics.estimate({seed: found[seed] for seed in shared or found}).mean
        for arm, found in values.items()
        if found
    }
    highest = max(means.values())
    best = tuple(arm for arm, mean in means.items() if math.isclose(mean, highest, rel_tol=1e-12))
    ps: dict[str, float] = {}
    for arm in grid.arms if len(best) == 1 else ():
        if arm != best[0]:
            x = np.array(list(statistics.paired_differences(values[arm], values[best[0]]).values()))
            # on the seeds that both have it may not be the better one; without such seeds nothing can be said
            ps[arm] = math.inf if not len(x) else statistics.sign_flip(x)[0] if x.mean() > 0 else 1.0
    rival = max(ps, key=lambda arm: ps[arm], default="")
    p = ps.get(rival, math.nan)
    return BestArm(dataset, measure, best, False, p if math.isfinite(p) else math.nan, rival, "", shared)


def _shared(values: Mapping[str, Mapping[int, float]]) -> tuple[int, ...]:
    """Return the seeds of all arms that have any, if some arm has others: an arm must not lead by its easier seeds."""
    seeds = [set(found) for found in values.values() if found]
    common = set.intersection(*seeds)
    return () if all(each == common for each in seeds) else tuple(sorted(common))


def _judged(grid: Grid, best: BestArm) -> BestArm:
    where = words.in_measure(best.measure, grid.metric_name(best.dataset))
    where += words.on_dataset(best.dataset, grid.datasets)
    if best.shared:
        where += f" on the {len(best.shared)} seeds that all arms have"
    who = words.and_list(best.arms)
    if len(grid.arms) == 1:
        return replace(best, sentence=f"{who} is the only arm: there is nothing to compare it with")
    if len(best.arms) > 1:
        return replace(best, sentence=f"{who} have the same highest mean{where}")
    whole = len(grid.values(best.dataset, who, best.measure)) == len(grid.seeds[who])
    if whole and best.p_holm <= statistics.ALPHA:
        sentence = f"{who} is better than every other arm{where} (p {words.p_value(best.p_holm)} against {best.rival})"
        return replace(best, supported=True, sentence=sentence)
    why = f"p {words.p_value(best.p_holm)} against {best.rival}"
    if not whole:
        why = "some of its own seeds have no value"
    elif math.isnan(best.p_holm):
        why = f"no seed in common with {best.rival}"
    sentence = f"{who} has the highest mean{where}, but is not shown to be better than every other arm ({why})"
    return replace(best, sentence=sentence)

"""Whether simulated dropouts leave enough clients for the server's rule."""

from __future__ import annotations

import math

from fedsim.configuration.schema import Config

_LIKELY = 0.05
"""Chance, over all rounds, from which on a warning is worth its line."""


def availability_warning(config: Config) -> str | None:
    """Say so if ``sampling.dropout`` is likely to leave a round with fewer clients than ``server.aggregation`` needs."""
    drawn, dropout = config.sampling.clients_per_round, config.sampling.dropout
    rule = config.rule
    if dropout == 0 or rule is None:
        return None
    problems = {many: rule.problem(many) for many in range(1, drawn + 1)}
    chances = {many: _chance(many, drawn, dropout) for many, problem in problems.items() if problem is not None}
    if 1 - (1 - min(1.0, sum(chances.values()))) ** config.rounds < _LIKELY:
        return None
    return (
        f"warning: with sampling.dropout={dropout:g} about {drawn * (1 - dropout):.1f} of a round's {drawn} clients are in "
        f"reach, and a round with too few of them ends the run: {problems[max(chances, key=chances.__getitem__)]}"
    )


def _chance(many: int, drawn: int, dropout: float) -> float:
    """Return the chance that ``many`` of a cohort take part; where it would be none of them, one does."""

    def binomial(k: int) -> float:
        ways = math.lgamma(drawn + 1) - math.lgamma(k + 1) - math.lgamma(drawn - k + 1)
        return math.exp(ways + k * math.log1p(-dropout) + (drawn - k) * math.log(dropout))

    return binomial(many) + (binomial(0) if many == 1 else 0.0)

"""Studies of made-up figures, for the tests of statistics, tables and exports."""

from collections.abc import Mapping, Sequence
from typing import Any

from fedsim.study.config import StudyConfig
from fedsim.study.figures import CellFigures, FailedCell
from fedsim.study.outcome import StudySummary
from fedsim.study.predictions import right_examples
from fedsim.study.summary import summarise

Lasts = Mapping[str, Mapping[str, Sequence[float | str | None]]]


def study_of(lasts: Lasts, **keys: Any) -> StudyConfig:
    """The study of ``lasts``: its data sets and arms, and as many seeds as an arm has values."""
    arms = {arm: len(values) for row in lasts.values() for arm, values in row.items()}
    content = {"name": "made-up", "base": "base.yaml", "arms": dict.fromkeys(arms), "datasets": dict.fromkeys(lasts)}
    return StudyConfig.model_validate({**content, "seeds": 1, "arm_seeds": arms, **keys})


def summary_of(
    lasts: Lasts,
    figures: Mapping[tuple[str, str, int], Mapping[str, Any]] | None = None,
    correct: Any = right_examples,
    **keys: Any,
) -> StudySummary:
    """Summarise a study by its last metrics, ``{DATASET: {ARM: [VALUE OF SEED 0, ...]}}``.

    A text is the sentence of a failed cell; None is a cell that nobody knows of. ``figures`` are more figures of single cells,
    ``keys`` keys of the study.
    """
    study = study_of(lasts, **keys)
    cells, failed = [], []
    for dataset, row in lasts.items():
        for arm, values in row.items():
            for seed, value in zip(study.arm_seeds[arm], values, strict=True):
                if isinstance(value, str):
                    failed.append(FailedCell(dataset, arm, seed, value))
                elif value is not None:
                    more = (figures or {}).get((dataset, arm, seed), {})
                    cells.append(CellFigures(dataset, arm, seed, f"{dataset}/{arm}/{seed}", **{"last": value, **more}))
    return summarise(study, cells, failed, correct)

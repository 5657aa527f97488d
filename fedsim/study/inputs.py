"""What the runs of a study read: whether it is there, and whether a search stays clear of what is reported."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from clients.backbone.location import locate
from fedsim.configuration.schema import Config
from fedsim.core.errors import ConfigError, FedsimError
from fedsim.data.sources import find_source
from fedsim.study.cells import Cell, Study
from fedsim.study.checks import refuse_reported_examples
from fedsim.study.folder import StudyFolder
from fedsim.study.search import trials
from fedsim.world.traces.read import read_recorded
from server.privacy.accounting import require_accounting


def check_inputs(study: Study, folder: StudyFolder) -> None:
    """Refuse a study of which a run would find no data, no model, no starting point or no devices; of these, devices are read.

    Runs that have ended need nothing any more.

    Raises
    ------
    ConfigError
        Naming the arm, the data set and the key. If a search would train on examples that are reported.
    """
    reported = study.cells()
    seeds = {cell.seed for cell in reported} | set(study.config.search.seeds if study.config.search else ())
    checked: set[str] = set()
    for cell in (*trials(study), *reported):
        inputs = cell.config.model_dump_json(
            include={"data", "model", "prompt", "tuner", "partition", "world", "privacy"}
        )
        if inputs in checked:
            continue
        held_out = cell.config.data.holdout
        if not (folder.run(cell) / "summary.json").exists():
            held_out = _found(study, cell)
            checked.add(inputs)
        if study.config.search is not None and cell.trial is None:
            refuse_reported_examples(study.path, cell.arm, cell.dataset, cell.config.data, held_out, seeds)


def _found(study: Study, cell: Cell) -> float | None:
    """Find what a run reads; return the share of the training examples that will validate."""
    config = cell.config
    try:
        held_out = find_source(config.data, config.partition.column)
        locate(config.model)
        if config.privacy is not None:
            require_accounting()
        read_recorded(config.world)  # small files, of which runs would find a mistake only one after another
        for key, place in _starts(config):
            if not Path(place).expanduser().exists():
                raise ConfigError(f"{key} {place} does not exist")
    except FedsimError as error:
        raise ConfigError(f"{study.path}: arm {cell.arm} on data set {cell.dataset}: {error}") from None
    return held_out


def _starts(config: Config) -> Iterator[tuple[str, str]]:
    """Yield the key and the place of each earlier run, adapter or prompt file that a run starts from."""
    for key, place in (("prompt.start_from", config.prompt.start_from), ("tuner.start_from", config.tuner.start_from)):
        if place is not None:
            yield key, place
    for place in config.tuner.sources or ():
        yield "tuner.sources", place

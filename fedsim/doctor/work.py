"""Checks of a config's model, data and run location."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable, Sequence
from pathlib import Path

from clients.backbone.model_files import check_sentencepiece, weight_files
from fedsim.configuration.schema import Config
from fedsim.core.errors import FedsimError
from fedsim.display.report import format_bytes
from fedsim.doctor.findings import Finding, ok, problem, warning
from fedsim.planning.machine import why_not_writable
from fedsim.planning.model_notes import model_notes
from fedsim.planning.model_shape import model_folder, model_shape

_CHUNK_BYTES = 2**22
_DIGITS = 16
"""Hexadecimal digits shown of a fingerprint."""


def work_findings(config: Config) -> list[Finding]:
    """Return the findings about model, data and results. Only the driver reads them; other nodes get them through Ray."""
    return [_tried("model", _model, config), _tried("data", _data, config), _tried("results", _results, config)]


def _tried(what: str, look: Callable[[str, Config], Finding], config: Config) -> Finding:
    try:
        return look(what, config)
    except FedsimError as error:
        return problem(what, str(error))
    except OSError as error:
        return problem(what, f"{error.filename or what} cannot be read: {error.strerror or error}")


def _model(what: str, config: Config) -> Finding:
    folder, name = model_folder(config.model), config.model.location
    if folder is None:
        if os.environ.get("HF_HUB_OFFLINE") in ("1", "true", "TRUE", "True"):
            return problem(
                what, f"{name} is not in the hub's cache here, and HF_HUB_OFFLINE keeps it from being fetched"
            )
        return warning(what, f"{name} is not on this machine; the driver will fetch it from the Hugging Face hub")
    shape = model_shape(config.model)
    check_sentencepiece(folder, name)
    if shape is None:
        return problem(what, f"{folder} has no weights in safetensors files, or its config.json cannot be read")
    files = weight_files(folder)
    size = sum(file.stat().st_size for file in files)
    described = f"{shape.num_layers} layers, {shape.num_parameters:,} numbers, {format_bytes(size)}"
    text = f"{name}: {described}, sha256 of its weight files {_digest(files)}"
    notes = model_notes(config)
    return warning(what, "; ".join((text, *notes))) if notes else ok(what, text)


def _digest(files: Sequence[Path]) -> str:
    digest = hashlib.sha256()
    for file in files:
        with file.open("rb") as opened:
            while chunk := opened.read(_CHUNK_BYTES):
                digest.update(chunk)
    return digest.hexdigest()[:_DIGITS]


def _data(what: str, config: Config) -> Finding:
    from fedsim.simulation.preparation import partition_data, settled

    config, read = settled(config)  # a number of clients that contradicts the rest of the config is a problem too
    data = read or partition_data(config)
    digest = hashlib.sha256()
    for examples in (data.dataset.train, data.dataset.validation):
        for example in examples.texts:
            digest.update(repr(example).encode())
        digest.update(examples.labels_N.tobytes())
    skipped = data.dataset.train.skipped + data.dataset.validation.skipped
    text = (
        f"{data.task.name}: {len(data.dataset.train):,} training and {len(data.dataset.validation):,} validation examples for "
        f"{data.shards.num_clients:,} clients, sha256 {digest.hexdigest()[:_DIGITS]}"
    )
    rows = "1 row cannot be used and is skipped" if skipped == 1 else f"{skipped:,} rows cannot be used and are skipped"
    return warning(what, f"{text}; {rows}") if skipped else ok(what, text)


def _results(what: str, config: Config) -> Finding:
    """Check the run location as a run does before it starts, including whether it is writable."""
    from fedsim.records.folder_check import check_usable
    from fedsim.records.location import is_thrown_away, thrown_away
    from fedsim.records.remote import Remote, is_url
    from fedsim.records.run_folder import RunFolder

    if config.output is not None and is_url(config.output):
        destination = Remote(config.output)
        check_usable(destination.holds(), destination.url)
        destination.check_writable()
        return ok(what, f"{config.output} can be written to")
    folder = Path(config.output or "runs")
    if config.output is not None:
        RunFolder.check(folder)
    above = next(path for path in (folder.absolute(), *folder.absolute().parents) if path.exists())
    if (reason := why_not_writable(above)) is not None:
        return problem(what, f"{above} cannot be written to ({reason}); give another folder with output=FOLDER")
    if is_thrown_away(folder):
        return warning(what, f"{thrown_away(folder)}; give output=FOLDER with a path elsewhere, or a URL")
    if config.output is not None:
        return ok(what, f"{folder} can be written to")
    note = "" if config.ray.address is None else "; a job's own folder goes with the job: give output=FOLDER or a URL"
    return (warning if note else ok)(what, f"go to a new folder {folder / (config.name or 'run')}{note}")

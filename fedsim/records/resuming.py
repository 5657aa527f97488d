"""Resume checks: the configuration, key by key, and the contents of data and weights must match the recorded run.

The location of data and weights does not matter: a folder may have moved.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open

from clients.config import ModelConfig
from fedsim.configuration.schema import WITHOUT_EFFECT, Config, read_config
from fedsim.core.errors import CheckpointError, FedsimError, listed
from fedsim.prompts.prompt_file import BEST_PROMPT, GLOBAL_PROMPT
from fedsim.records.checkpoint import Checkpoint, load_latest, newest_round
from fedsim.records.resumed_responses import lacks_responses

_LONGEST_VALUE = 60
_CONTENTS = {
    "weights": ("other weights", ("model.path", "model.package")),
    "model_config": ("another config.json of the model", ("model.path", "model.package")),
    "training_data": ("other training data", ("data.path", "data.train_file", "data.hub_name")),
    "validation_data": ("other validation data", ("data.path", "data.validation_file", "data.hub_name")),
    "label_words": ("other tokens for the label words", ("model.path", "model.package")),
    "empty_text": ("other tokens for the empty text", ("data.task", "model.path", "model.package")),
    "partition": ("another partition", ()),
    "constants": ("other frozen arrays of the tuner", ("tuner.sources", "model.path", "model.package")),
    "start": ("another starting point", ("prompt.start_from", "tuner.start_from")),
    "devices": ("other devices", ("world.devices.file",)),
    "traces": ("other traces of availability", ("world.devices.availability.file",)),
}
"""For each kind of contents: the phrase for messages, and the keys that set its source."""


def as_recorded(config: Config, path: Path) -> Config:
    """Return the config with what the run in ``path`` settled at its start, where the config leaves it open.

    That is ``model.products``, which is float32 in records of versions without the key, and ``model.shared_beginnings``, which
    is off there.
    """
    config = _with_recorded_beginnings(config, path)
    model = config.model
    if model.products != "auto" or not model.has_products:
        return config
    products = _recorded_products(path) or next(
        (each for each in ("float32", "bfloat16") if _with_products(config, each).identity == _recorded_hash(path)),
        None,
    )
    return config if products is None else _with_products(config, products)


def _with_recorded_beginnings(config: Config, path: Path) -> Config:
    if config.model.shared_beginnings == "off":
        return config
    try:
        before = read_config(path / "config.yaml").model
    except FedsimError:
        checkpoint, _ = load_latest(path / "checkpoints")
        recorded = checkpoint is None or "shared_beginnings" in checkpoint.config["model"]
    else:
        recorded = "shared_beginnings" in before.model_fields_set
    return config if recorded else config.model_copy(update={"model": _model_with(config, shared_beginnings="off")})


def _model_with(config: Config, **keys: str) -> ModelConfig:
    return config.model.model_copy(update=keys)


def _with_products(config: Config, products: str) -> Config:
    return config.model_copy(update={"model": _model_with(config, products=products)})


def _recorded_products(path: Path) -> str | None:
    """Return ``model.products`` of the run in a folder: from its config, or else its newest checkpoint."""
    try:
        before = read_config(path / "config.yaml").model
    except FedsimError:
        checkpoint, _ = load_latest(path / "checkpoints")
        return None if checkpoint is None else checkpoint.config["model"].get("products", "float32")
    return before.products if "products" in before.model_fields_set else "float32"


def _recorded_hash(path: Path) -> str | None:
    summary = _summary(path)
    return None if summary is None else summary.get("config_hash")


def _summary(path: Path) -> dict[str, Any] | None:
    """Return the summary of the run in a folder; None if there is none, or it is damaged."""
    try:
        summary = json.loads((path / "summary.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    return summary if isinstance(summary, dict) else None


def is_of_another_config(config: Config, path: Path) -> bool:
    """Whether the run in a folder has ended with another config, which no checkpoint tells any more."""
    recorded = _recorded_hash(path)
    gone = newest_round(path / "checkpoints") is None
    return gone and recorded is not None and recorded != as_recorded(config, path).identity


def check_config(checkpoint: Checkpoint, config: Config, folder: str) -> None:
    """Refuse to resume with a different configuration, or with fewer rounds than are done.

    Raises
    ------
    CheckpointError
        With the keys that differ, or the smallest valid number of rounds.
    """
    _check_plugins(checkpoint.config.get("plugins", {}), config.plugins, folder)
    default = Config().identity_values
    default["model"]["products"] = "float32"  # that of versions without the key
    now = config.identity_values
    for values in (default, now):
        values["model"].setdefault("quantize", "none")
    default["model"]["shared_beginnings"] = "off"  # which records leave out
    now["model"].setdefault("shared_beginnings", "off")
    for key, without in WITHOUT_EFFECT.items():
        for values in (default, now):
            values.setdefault(key, None if without is None else without.model_dump(mode="json"))
    differences = list(_differences(checkpoint.config, now, default))
    if differences:
        raise CheckpointError(
            f"the checkpoint in {folder} belongs to another configuration: {listed(differences, 5, 200)}; resume with the same "
            "one, or set another output"
        )
    if checkpoint.round > config.rounds:
        raise CheckpointError(
            f"{folder} has already done {checkpoint.round} rounds, more than rounds={config.rounds}; set "
            f"rounds={checkpoint.round} or more, or another output"
        )


def _check_plugins(before: Mapping[str, str], now: Mapping[str, str], folder: str) -> None:
    for file in {**before, **now}:
        if file not in now:
            raise CheckpointError(
                f"the run in {folder} was made with the plug-in {file}, which is not loaded; load that file with --load"
            )
        if file not in before:
            raise CheckpointError(
                f"the run in {folder} was made without the plug-in {file}; leave it out, or set another output"
            )
        if before[file] != now[file]:
            raise CheckpointError(
                f"the run in {folder} was made with other contents of the plug-in {file} (SHA-256 {before[file][:12]}..., now "
                f"{now[file][:12]}...); load the file as it was, or set another output"
            )


def _differences(old: Any, new: Any, default: Any, key: str = "") -> Iterator[str]:
    """Yield each key that differs; a key unknown to an older version counts as having its current default.

    A key present in only one of the two and without a default is unused in the other; the key that selects it differs, too.
    """
    if isinstance(old, Mapping) and isinstance(new, Mapping):
        for name in {**new, **old}:
            if name not in new or (name not in old and not (isinstance(default, Mapping) and name in default)):
                continue
            inner = default.get(name) if isinstance(default, Mapping) else None
            yield from _differences(old.get(name, inner), new.get(name), inner, f"{key}.{name}" if key else name)
    elif old != new:
        yield f"{key} was {_shown(old)} and is {_shown(new)}"


def _shown(value: Any) -> str:
    text = json.dumps(value, ensure_ascii=False)
    return text if len(text) <= _LONGEST_VALUE else f"{text[: _LONGEST_VALUE - 3]}..."


def check_contents(
    made_with: Mapping[str, str],
    contents: Mapping[str, str],
    config: Config,
    folder: str,
    before: Mapping[str, Any] | None = None,
) -> None:
    """Refuse to resume with other data or another model than the run was made with.

    Parameters
    ----------
    made_with, contents
        Hashes by name, as in :attr:`fedsim.simulation.preparation.Prepared.contents`.
    before
        :attr:`Config.sources` of the run, if known.

    Raises
    ------
    CheckpointError
        With what differs, and the keys that changed or the present sources.
    """
    differing = [name for name in {**made_with, **contents} if made_with.get(name) != contents.get(name)]
    if not differing:
        return
    what = [_CONTENTS[name][0] if name in _CONTENTS else name for name in differing]
    given = config.sources
    keys = dict.fromkeys(key for name in differing if name in _CONTENTS for key in _origin(_CONTENTS[name][1], given))
    named = [f"{key}={'null' if given[key] is None else given[key]}" for key in keys]
    places = ", ".join(_changed(before or {}, given) or named)
    raise CheckpointError(
        f"{folder} was made with {' and '.join(what)} than this run would have{f' ({places})' if places else ''}; use what it "
        "was made with (it may have moved), or set another output"
    )


def _changed(before: Mapping[str, Any], given: Mapping[str, Any]) -> list[str]:
    """Return the changed keys that affect how data are read; their location may have changed for good reasons."""
    places = {key for _, keys in _CONTENTS.values() for key in keys}
    return [
        f"{key} was {_shown(before[key])} and is {_shown(given[key])}"
        for key in before
        if key not in places and before[key] != given[key]
    ]


def _origin(keys: tuple[str, ...], given: Mapping[str, Any]) -> tuple[str, ...]:
    """Return the keys that are set, or else the first."""
    return tuple(key for key in keys if given[key] is not None) or keys[:1]


def finished(config: Config, path: Path) -> dict[str, Any] | None:
    """Return the summary of a run that has done all the config requests, or None; does not check data or weights.

    A run ended by a stop rule of the config counts as finished; one stopped by a program, or one of which :func:`lost` names a
    file, does not: going on from its newest checkpoint, or else starting over, makes what is missing.
    """
    summary = _summary(path)
    if summary is None:
        return None
    same = summary.get("config_hash") == config.identity and isinstance(summary.get("contents"), dict)
    done = summary.get("rounds") == config.rounds or _ended_by_a_rule(summary, config, path)
    whole = same and done and _has_what_is_asked(summary, config, path) and lost(path) is None
    return summary if whole else None


def lost(path: Path) -> str | None:
    """Return the first file that a finished run in a folder should have and that is gone or torn; None without a summary.

    A file of arrays is torn if it is shorter or longer than its head says, a config if its end or its rounds are missing.
    Checkpoints may be deleted.
    """
    summary = _summary(path)
    if summary is None:
        return None
    if not _is_config(path / "config.yaml"):
        return "config.yaml"
    has_best = summary.get("best_global_round") is not None
    prompts = path / "prompt"
    wanted = {
        GLOBAL_PROMPT,
        *([BEST_PROMPT] if has_best else []),
        *(each.name for each in prompts.glob("*.safetensors")),
    }
    return next((f"prompt/{name}" for name in sorted(wanted) if not _is_whole(prompts / name)), None)


def _is_config(file: Path) -> bool:
    """Whether a file looks like a run's config; to read it would take longer than all else of a look at a finished run."""
    try:
        text = file.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError):
        return False
    return text.endswith("\n") and "\0" not in text and "\nrounds:" in text


def _is_whole(file: Path) -> bool:
    try:
        with safe_open(file, framework="numpy"):
            return True
    except (OSError, SafetensorError):
        return False


def _has_what_is_asked(summary: Mapping[str, Any], config: Config, path: Path) -> bool:
    """Whether a run has the evaluations at its end that the config asks for; they can still be made from its last state."""
    asked = config.evaluation
    # Without held-out examples there is neither of the two metrics.
    no_start = summary.get("start_personalised_metric") is None and summary.get("personalised_metric") is not None
    no_predictions = not (path / "predictions.parquet").exists()
    lacks = (asked.personalised_start and no_start, asked.keep_predictions and no_predictions)
    return not any(lacks) and not lacks_responses(config, summary, path)


def _ended_by_a_rule(summary: Mapping[str, Any], config: Config, path: Path) -> bool:
    stopped, rounds = summary.get("stopped"), summary.get("rounds")
    by_a_rule = isinstance(stopped, dict) and stopped.get("rule") != "call"
    if not by_a_rule or not isinstance(rounds, int) or rounds > config.rounds:
        return False
    try:
        return read_config(path / "config.yaml").stop == config.stop
    except FedsimError:
        return False


def from_same_place(config: Config, path: Path) -> bool:
    """Whether data and weights have the same sources as those of the run in ``path``, so that they need no check."""
    before = sources_of(path)
    if before is None:
        return False
    # A relative path may now point to another folder.
    relative = (value for value in before.values() if isinstance(value, str) and not Path(value).is_absolute())
    return before == config.sources and not any(Path(value).exists() for value in relative)


def sources_of(path: Path) -> dict[str, Any] | None:
    """Return the sources of data and weights of the run in a folder; None if its config cannot be read."""
    try:
        return read_config(path / "config.yaml").sources
    except FedsimError:
        return None

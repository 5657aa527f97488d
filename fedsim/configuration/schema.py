"""The whole run's schema, composed of the schemas that live beside their owners, and how a file becomes a config."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import yaml
from pydantic import Field, NonNegativeInt, PositiveInt, SerializeAsAny, ValidationError, model_validator

from clients.config import AttackConfig, ClientConfig, ModelConfig, PromptConfig
from fedsim.configuration.errors import Key, Where, sentence
from fedsim.configuration.overrides import parse_override
from fedsim.configuration.text import config_text
from fedsim.configuration.values import as_override, leaves, merged, plain
from fedsim.configuration.yaml_text import line_of, load
from fedsim.core.errors import ConfigError, shown, suggestion
from fedsim.core.method import CORRECTIONS, METHODS, Method, check_names
from fedsim.core.schema import PathText, Schema
from fedsim.core.traffic import Traffic, round_traffic
from fedsim.data.config import DataConfig
from fedsim.executors.config import RayConfig
from fedsim.records.run_folder import TrackingConfig
from fedsim.simulation.config import CheckpointConfig, EvaluationConfig, StopConfig
from partitions.config import PartitionConfig
from server.config import LayersConfig, SamplingConfig, ServerConfig


class Config(Schema):
    """A run: made from keywords, or by :meth:`read` from a file; it does not change, :meth:`replace` makes another one.

    Raises
    ------
    ConfigError
        One sentence with the key and what would be right.

    Examples
    --------
    >>> Config(rounds=5, client={"optimizer": {"lr": 0.01}})
    Config(rounds=5, client={'optimizer': {'lr': 0.01}})
    """

    name: str | None = Field(default=None, pattern=r"^[\w.-]+$", max_length=200)
    """Name of the run; if not given, the name of the config file."""
    output: PathText | None = None
    """Folder for results, a path or a URL such as s3://bucket/folder; if not given, a new folder runs/NAME."""
    rounds: PositiveInt = 20
    """Rounds of training."""
    seed: NonNegativeInt = 0
    """Root of all random draws."""
    executor: Literal["ray", "local"] = "ray"
    """ray (actors), or local (this process; the same results, breakpoints work)."""
    group_size: PositiveInt = 5
    """Clients in a work group, the unit that one actor call executes. Part of a result's identity: sums are cut by it."""
    model: ModelConfig = ModelConfig()
    """The frozen backbone."""
    prompt: PromptConfig = PromptConfig()
    """The trainable prefix."""
    layers: LayersConfig = LayersConfig()
    """Which layers' prompts are exchanged."""
    data: DataConfig = DataConfig()
    """Task and examples."""
    partition: PartitionConfig = PartitionConfig()
    """How examples are dealt out to clients."""
    sampling: SamplingConfig = SamplingConfig()
    """Which clients train in a round."""
    client: ClientConfig = ClientConfig()
    """Training on a device."""
    server: SerializeAsAny[ServerConfig] = ServerConfig()
    """The server's optimizer."""
    attack: AttackConfig = AttackConfig()
    """Simulated attackers."""
    evaluation: EvaluationConfig = EvaluationConfig()
    """When and how prompts are evaluated."""
    stop: StopConfig = StopConfig()
    """When the run ends early."""
    checkpoint: CheckpointConfig = CheckpointConfig()
    """When the state is saved."""
    ray: RayConfig = RayConfig()
    """Actors and the cluster."""
    tracking: TrackingConfig = TrackingConfig()
    """What is recorded."""

    def __init__(self, **values: Any) -> None:
        _validate(self, values, lambda key: "Config")

    @classmethod
    def read(cls, path: str | Path, overrides: Sequence[str] = (), **changes: Any) -> Config:
        """Read a YAML file, with dotted overrides (``"client.optimizer.lr=0.01"``) and then nested ``changes`` in place.

        See :func:`read_config`.
        """
        return read_config(path, overrides, changes)

    @classmethod
    def from_yaml(cls, text: str) -> Config:
        """Return the config that a YAML text holds; see :meth:`to_yaml`."""
        return build_config(_parse_yaml(text, "the YAML text"))

    def to_yaml(self, *, meanings: bool = False) -> str:
        """Return all keys as YAML that reads back to this config, if asked with the meaning of each above it."""
        return config_text(self, meanings=meanings)

    def replace(self, **changes: Any) -> Config:
        """Return a config with other values for some keys; groups of keys are merged, as in ``client={"epochs": 2}``."""
        given = self.model_dump(mode="json", exclude_unset=True)
        return build_config(merged(given, _plain_or_refused(changes)), lambda key: "Config.replace")

    def __repr__(self) -> str:
        given = self.model_dump(mode="json", exclude_unset=True)
        return f"Config({', '.join(f'{key}={value!r}' for key, value in given.items())})"

    __str__ = __repr__

    @model_validator(mode="after")
    def _possible(self) -> Config:
        _check_combinations(self)
        return self

    @property
    def correction(self) -> str:
        """Name of the local correction in force: that of the method, where none is chosen."""
        chosen = self.client.correction
        return METHODS[self.server.kind].correction if chosen == "auto" else chosen

    @property
    def method(self) -> Method:
        """The method: the server's half, with the device's halves in force."""
        return self.server.method(CORRECTIONS[self.correction].of(self.client))

    @property
    def traffic(self) -> Traffic:
        """What a real device would receive and send in a round."""
        return round_traffic(self.method.corrections, self.client)

    @property
    def identity(self) -> str:
        """SHA-256 of :attr:`identity_values`. Data and weights have hashes of their own (``contents`` of a summary)."""
        return hashlib.sha256(json.dumps(self.identity_values, sort_keys=True).encode()).hexdigest()

    @property
    def identity_values(self) -> dict[str, Any]:
        """All keys that a result depends on: not where it runs, where it goes, when it ends, where data and weights lie."""
        values = self.model_dump(mode="json")
        for key in ("name", "output", "executor", "ray", "tracking", "checkpoint", "stop"):
            values.pop(key)
        if self.client.schedule.total_steps != "all_data":
            values.pop("rounds")
        values["model"].pop("device")
        values["evaluation"].pop("overlap")
        values["model"]["trunk_cache"].pop("memory_mb")
        # A number that a trial found is part of a checkpoint, which a resumed run goes by.
        values["client"].pop("fuse")
        for key in self.sources:
            section, _, name = key.partition(".")
            values[section].pop(name)
        return values

    @property
    def sources(self) -> dict[str, Any]:
        """All keys, dotted, that say where data and weights lie and how they are read: these are known by their contents."""
        reading = [name for name in DataConfig.model_fields if name not in _DATA_ITSELF]
        keys = ["model.path", "model.package", "prompt.start_from", *(f"data.{name}" for name in reading)]
        values = self.model_dump(mode="json")
        return {key: values[key.partition(".")[0]][key.partition(".")[2]] for key in keys}


_DATA_ITSELF = ("task", "train_examples", "validation_examples", "max_length")
"""Keys of ``data`` that say what is learned, and not where it lies."""


def _check_combinations(config: Config) -> None:
    """Refuse combinations of keys of several sections that make no sense together."""
    client, partition = config.client, config.partition
    if partition.clients is not None and config.sampling.clients_per_round > partition.clients:
        raise ValueError(
            f"sampling.clients_per_round={config.sampling.clients_per_round} is more than "
            f"partition.clients={partition.clients}; set "
            f"sampling.clients_per_round={partition.clients} or less"
        )
    _check_method(config)
    _check_attackers(config)
    if config.executor == "ray" and config.model.device == "cuda" and not config.ray.num_gpus_per_actor:
        raise ValueError(
            "model.device=cuda needs a share of a GPU for each actor, but ray.num_gpus_per_actor is 0; set "
            "ray.num_gpus_per_actor=1, or a fraction such as 1/4, or model.device=auto"
        )
    if partition.kind == "by_column" and partition.column is None:
        raise ValueError("partition.kind=by_column needs partition.column, the column whose values are the clients")
    if (
        client.optimizer.moments == "keep"
        and client.schedule.kind != "constant"
        and client.schedule.total_steps is None
    ):
        raise ValueError(
            f"client.schedule.kind={client.schedule.kind} with client.optimizer.moments=keep needs "
            "client.schedule.total_steps, because the schedule goes on over all of a client's visits"
        )
    if config.evaluation.select_on == "holdout" and not partition.holdout_fraction:
        raise ValueError(
            "evaluation.select_on=holdout needs examples that clients hold out, but partition.holdout_fraction=0; set "
            "partition.holdout_fraction=0.1, or evaluation.select_on=validation"
        )
    if config.data.source == "files" and config.data.path is None:
        raise ValueError("data.source=files needs data.path, a folder with train.* and validation.*")
    if config.data.source == "embedded" and config.data.path is not None:
        raise ValueError("data.path has no use with data.source=embedded; remove one of them")
    if config.layers.fixed is not None and config.layers.choose != "fixed":
        raise ValueError(f"layers.fixed is given, but layers.choose={config.layers.choose}; set layers.choose=fixed")


def _check_method(config: Config) -> None:
    """Refuse what the method, its corrections and the robust rule say that they cannot do together."""
    server, chosen = config.server, config.client.correction
    kind = METHODS[server.kind]
    if kind.allowed is not None and config.correction not in kind.allowed:
        raise ValueError(
            f"server.kind={server.kind} needs client.correction={' or '.join(kind.allowed)} (or auto), not {chosen}"
            + (f"; {kind.instead}" if kind.instead else "")
        )
    method = config.method
    check_names(method.corrections)
    for part in method.corrections:
        if not set(part.reads) <= set(method.serves):
            raise ValueError(
                f"client.correction={config.correction} needs {part.needs}, which server.kind={server.kind} does not keep; "
                f"use {part.kept_by}"
            )
    rule = server.rule()
    if rule is None:
        return
    if method.combining is not None:
        auto = f" (auto with server.kind={server.kind})" if chosen == "auto" else ""
        raise ValueError(
            f"server.aggregation={server.aggregation} compares the clients' vectors, but client.correction="
            f"{config.correction}{auto} {method.combining.combines}; set client.correction=none, or control"
        )
    if (problem := rule.problem(config.sampling.clients_per_round)) is not None:
        raise ValueError(f"sampling.clients_per_round={config.sampling.clients_per_round}, but {problem}")


def _check_attackers(config: Config) -> None:
    named, population = config.attack.clients or (), config.partition.clients
    if population is None:  # not before the data are read
        return
    many, largest = (named, named - 1) if isinstance(named, int) else (len(named), max(named, default=0))
    if many > population or largest >= population:
        given = f"names {many} clients" if isinstance(named, int) else f"names client {largest}"
        raise ValueError(
            f"attack.clients {given}, but partition.clients={population}; give at most that many, with ids from 0 to "
            f"{population - 1}"
        )


# -- reading -----------------------------------------------------------------------------------------------------------


def read_config(path: str | Path, overrides: Sequence[str] = (), changes: Mapping[str, Any] | None = None) -> Config:
    """Read a YAML file, apply dotted overrides and validate.

    Parameters
    ----------
    overrides
        Words such as ``client.optimizer.lr=0.01``. A value is YAML, but where its key takes a text (a path, a name) all
        that stands behind ``=`` is the text, to the character. ``KEY=`` and ``KEY=null`` give none.
    changes
        Nested values in place of those of the file and the overrides.

    Raises
    ------
    ConfigError
        One sentence with file (or override), key, and what would be right.
    """
    path = Path(path)
    text, values = _read_yaml(path)
    sources: dict[tuple[str, ...], str] = {}
    for override in overrides:
        keys, value = parse_override(override, Config)
        _set(values, keys, value, override)
        sources[keys] = override
    nested = _plain_or_refused(changes or {})
    values = merged(values, nested)
    sources.update((keys, as_override(keys, value)) for keys, value in leaves(nested))
    if values.get("name") is None:
        values["name"] = re.sub(r"[^\w.-]", "_", path.stem)[:200]
    return build_config(values, lambda key: _where(path, text, sources, key))


def build_config(values: Mapping[str, Any], where: Where = lambda key: "config") -> Config:
    """Validate a nested dictionary.

    Parameters
    ----------
    where
        Function from a key's path to the words that say where it was given.
    """
    config = Config.__new__(Config)
    _validate(config, values, where)
    return config


def _validate(config: Config, values: Mapping[str, Any], where: Where) -> None:
    try:
        text = json.dumps(plain(values))
        config.__pydantic_validator__.validate_json(text, strict=True, self_instance=config)
    except ValidationError as error:
        raise ConfigError(sentence(error, Config, where)) from None
    except (ValueError, RecursionError) as error:  # values that hold themselves, or numbers without end
        raise ConfigError(f"{where(())}: a config cannot hold these values: {error}") from None


def _plain_or_refused(changes: Mapping[str, Any]) -> dict[str, Any]:
    try:
        return plain(changes)
    except (ValueError, RecursionError) as error:
        raise ConfigError(f"a config cannot hold these values: {error}") from None


def _read_yaml(path: Path) -> tuple[str, dict[str, Any]]:
    try:
        text = path.read_text(encoding="utf-8")
    except FileNotFoundError:
        siblings = [str(p) for p in path.parent.glob("*.yaml")] if path.parent.is_dir() else []
        raise ConfigError(f"there is no config file {path}{suggestion(str(path), siblings)}") from None
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"cannot read the config file {path}: {getattr(error, 'strerror', None) or error}") from None
    return text, _parse_yaml(text, str(path))


def _parse_yaml(text: str, named: str) -> dict[str, Any]:
    try:
        values = load(text)
    except yaml.MarkedYAMLError as error:
        place = f", line {error.problem_mark.line + 1}" if error.problem_mark is not None else ""
        raise ConfigError(f"{named}{place} is not valid YAML: {error.problem}") from None
    if values is None:
        return {}
    if not isinstance(values, dict):
        raise ConfigError(f"{named} must hold keys and values such as 'rounds: 20', not a {type(values).__name__}")
    return values


def _set(values: dict[str, Any], keys: tuple[str, ...], value: Any, override: str) -> None:
    for depth, key in enumerate(keys[:-1]):
        inner = values.get(key)
        if inner is None:
            inner = values[key] = {}
        if not isinstance(inner, dict):
            raise ConfigError(
                f"the override {shown(override)} sets a key inside {'.'.join(keys[: depth + 1])}, which is the value "
                f"{shown(inner)}"
            )
        values = inner
    values[keys[-1]] = value


def _where(path: Path, text: str, sources: dict[tuple[str, ...], str], key: Key) -> str:
    for length in range(len(key), 0, -1):
        words = tuple(str(part) for part in key[:length])
        if words in sources:
            return f"override {shown(sources[words])}"
    for keys, override in sources.items():
        if key and keys[: len(key)] == tuple(str(part) for part in key):
            return f"override {shown(override)}"
    line = line_of(text, key) if text.strip() else None
    return f"{path}, line {line}" if line else str(path)

"""The run's schema, composed of the schemas that live beside their owners, and reading a config from a file."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal

from pydantic import Field, NonNegativeInt, PositiveInt, PrivateAttr, SerializeAsAny, ValidationError, model_validator

from clients.config import AttackConfig, ClientConfig, ModelConfig, PromptConfig
from clients.tuners.config import ONE_PLACE, TunerConfig
from clients.tuners.words import vector_word
from fedsim.configuration.combinations import check_combinations
from fedsim.configuration.errors import Where, refused
from fedsim.configuration.given import parse_yaml, place_of, read_yaml, set_key, without_nulls
from fedsim.configuration.overrides import parse_override
from fedsim.configuration.params import checked_params
from fedsim.configuration.presets import located
from fedsim.configuration.text import config_text
from fedsim.configuration.values import as_override, leaves, merged, plain
from fedsim.core import plugins
from fedsim.core.attack import Attack
from fedsim.core.compression.config import CompressionConfig
from fedsim.core.compression.links import Link, downlink, uplink
from fedsim.core.errors import ConfigError
from fedsim.core.method import CORRECTIONS, METHODS, Method
from fedsim.core.registry import known_name
from fedsim.core.robust import RobustRule
from fedsim.core.schema import PathText, Schema
from fedsim.core.traffic import Traffic, round_traffic
from fedsim.core.uses import EVERY_KEY, Use, Uses
from fedsim.data.config import DataConfig
from fedsim.executors.config import RayConfig
from fedsim.kept.config import CacheConfig
from fedsim.records.trackers.config import TrackingConfig
from fedsim.simulation.config import CheckpointConfig, EvaluationConfig, StopConfig
from fedsim.world.buffer_config import BufferConfig
from fedsim.world.config import WorldConfig
from partitions.config import PartitionConfig
from server.config import LayersConfig, SamplingConfig, ServerConfig
from server.privacy.config import PrivacyConfig


class Config(Schema):
    """Immutable config of a run, built from keywords or, by :meth:`read`, from a file; :meth:`replace` returns a changed copy.

    Raises
    ------
    ConfigError
        Naming the key and what would be right.

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
    """Clients in a work group, the unit that one actor call executes. It affects results, because sums are formed per group."""
    model: ModelConfig = ModelConfig()
    """The frozen backbone."""
    prompt: PromptConfig = PromptConfig()
    """The trainable prefix."""
    tuner: TunerConfig = TunerConfig()
    """What is trained in each layer."""
    layers: LayersConfig = LayersConfig()
    """Which layers are exchanged."""
    data: DataConfig = DataConfig()
    """Task and examples."""
    partition: PartitionConfig = PartitionConfig()
    """How examples are partitioned over clients."""
    sampling: SamplingConfig = SamplingConfig()
    """Which clients train in a round."""
    world: WorldConfig = WorldConfig()
    """Simulated devices and their clock."""
    buffer: BufferConfig | None = None
    """Buffered asynchronous rounds; null for synchronous ones."""
    client: ClientConfig = ClientConfig()
    """Training on a device."""
    server: SerializeAsAny[ServerConfig] = ServerConfig()
    """The server's optimizer."""
    compression: CompressionConfig = CompressionConfig()
    """How what travels is compressed."""
    attack: AttackConfig = AttackConfig()
    """Simulated attackers."""
    privacy: PrivacyConfig | None = None
    """Client-level differential privacy; null for none."""
    evaluation: EvaluationConfig = EvaluationConfig()
    """When and how prompts are evaluated."""
    stop: StopConfig = StopConfig()
    """When the run ends early."""
    checkpoint: CheckpointConfig = CheckpointConfig()
    """When the state is saved."""
    ray: RayConfig = RayConfig()
    """Actors and the cluster."""
    cache: CacheConfig = CacheConfig()
    """What is kept for later runs."""
    tracking: TrackingConfig = TrackingConfig()
    """What is recorded."""
    callbacks: tuple[Annotated[str, known_name("fedsim.simulation.callbacks:CALLBACKS")], ...] = ()
    """Plug-ins called during the run (docs/extending.md), in this order."""
    params: dict[str, Any] = Field(default={})
    """Keys of plug-ins, by the name under which a plug-in is registered: ``{NAME: {KEY: VALUE}}``."""
    _plugins: dict[str, str] = PrivateAttr(default_factory=plugins.hashes)

    uses: ClassVar[Uses] = {
        "prompt": (Use("tuner.kind", ("prefix",)),),
        "layers": (
            Use(
                "tuner.kind",
                test=lambda kind: kind not in ONE_PLACE,
                words="it trains numbers at one place of the model, so there are no layers to choose",
            ),
        ),
        "tuner.exact": (
            Use("server.kind", ("fedavg",), words="it makes the mean of the clients' models exact, for fedavg"),
        ),
        **dict.fromkeys(
            ("sampling.draw", "stop.epsilon"),
            (
                Use(
                    "privacy", test=lambda privacy: privacy is not None, words="it is for runs with the section privacy"
                ),
            ),
        ),
        "sampling.clients_per_round": (
            Use("buffer_size", (None,), by="buffer.size", words="it is the cohort of synchronous rounds"),
        ),
        "client.proximal_mu": (Use("correction", ("proximal",), by="client.correction"),),
        "stop.metric": (
            Use("model.head.kind", ("generation",), words="it is for what a model writes (model.head.kind=generation)"),
            Use(
                "stop.aim",
                test=lambda aim: aim is not None,
                by="stop.target",
                words="it is the metric of stop.target and stop.patience, so give one of them",
            ),
        ),
        "evaluation.generate": (
            Use("model.head.kind", ("generation",), words="it is for tasks of responses (model.head.kind=generation)"),
        ),
        "evaluation.generate.client_examples": (
            Use(
                "keeps_own",
                test=lambda kept: kept != "none",
                by="layers.unselected",
                words="all clients have the global model; see layers.unselected=local and tuner.exchange",
            ),
            Use(
                "partition.holdout_fraction",
                test=lambda fraction: fraction > 0,
                words="it is for examples that clients hold out",
            ),
        ),
        "model.trunk_cache": (
            Use("client.dropout", (False,), words="with dropout the hidden states differ in every pass"),
            Use("layers.unselected", ("none",), words="all layers are trained"),
        ),
    }

    def __init__(self, **values: Any) -> None:
        _validate(self, values, lambda key: "Config")

    @classmethod
    def read(cls, path: str | Path, overrides: Sequence[str] = (), **changes: Any) -> Config:
        """Read a YAML file, then apply dotted overrides (``"client.optimizer.lr=0.01"``) and nested ``changes``.

        See :func:`read_config`.
        """
        return read_config(path, overrides, changes)

    @classmethod
    def from_yaml(cls, text: str) -> Config:
        """Build a config from YAML text; see :meth:`to_yaml`."""
        return build_config(parse_yaml(text, "the YAML text"))

    def to_yaml(self, *, meanings: bool = False) -> str:
        """Return all keys as YAML that reads back to this config, optionally with each key's meaning above it."""
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
        self.__dict__["params"] = checked_params(self)
        check_combinations(self)
        return self

    @property
    def correction(self) -> str:
        """Name of the active local correction: the chosen one, or with ``auto`` the method's."""
        chosen = self.client.correction
        return METHODS[self.server.kind].correction if chosen == "auto" else chosen

    @property
    def keeps_own(self) -> str:
        """What of the model clients keep as their own: none, local (layers), or the half of LoRA that travels: a or b."""
        return "local" if self.layers.unselected == "local" else self.tuner.exchange.replace("both", "none")

    @property
    def buffer_size(self) -> int | None:
        """Arrivals that a step of buffered rounds takes in; None with synchronous rounds."""
        return None if self.buffer is None else self.buffer.size

    @property
    def clients_per_step(self) -> int:
        """Clients that a server step takes in: a round's cohort, or what the buffer holds."""
        return self.buffer_size or self.sampling.clients_per_round

    @property
    def clients_at_once(self) -> int:
        """Clients that may train in one call to the executor, and whose results may be held."""
        return self.sampling.clients_per_round if self.buffer is None else self.buffer.concurrency

    @property
    def method(self) -> Method:
        """The method: the server's half, with the active corrections."""
        return self.server.method(CORRECTIONS[self.correction].of(self.client, self.params.get(self.correction)))

    @property
    def rule(self) -> RobustRule | None:
        """The robust rule that combines clients, or None for their mean."""
        return self.server.rule(self.params.get(self.server.aggregation))

    @property
    def sums_are_enough(self) -> bool:
        """Whether the server could be shown the sums over a round's clients alone: secure aggregation."""
        return self.method.sums_are_enough(robust=self.rule is not None) and not self.tuner.exact

    @property
    def attacker(self) -> Attack | None:
        """The attack, or None if there are no attackers."""
        return self.attack.attack(self.params.get(self.attack.kind))

    @property
    def uplink(self) -> Link | None:
        """How what devices send is compressed, or None."""
        return uplink(self.compression, self.params.get(self.compression.up.kind))

    @property
    def downlink(self) -> Link | None:
        """How what the server sends is compressed, or None."""
        return downlink(self.compression, self.params.get(self.compression.down.kind))

    @property
    def specified_by_an_actor(self) -> bool:
        """Whether an actor may read model and data: it is on this machine, and knows all that the driver does."""
        local_ray = self.executor == "ray" and self.ray.address is None
        return local_ray and not self.plugins and not self.model.trust_remote_code

    @property
    def traffic(self) -> Traffic:
        """Vectors that a real device would receive and send in a round."""
        return round_traffic(self.method.corrections, self.client, vector=vector_word(self.tuner.kind))

    @property
    def identity(self) -> str:
        """SHA-256 of :attr:`identity_values`. Data and weights have hashes of their own (``contents`` of a summary)."""
        return hashlib.sha256(json.dumps(self.identity_values, sort_keys=True).encode()).hexdigest()

    @property
    def identity_values(self) -> dict[str, Any]:
        """All keys that a result depends on, without where it runs, where output goes, when it ends, or where inputs are."""
        values = self.model_dump(mode="json")
        for name in self.tracking.trackers:
            values["params"].pop(name, None)
        for key in ("name", "output", "executor", "ray", "cache", "tracking", "checkpoint", "stop", "callbacks"):
            values.pop(key)
        # Where a later section has no effect, a run is the one that it was before there was such a section.
        for key, without in WITHOUT_EFFECT.items():
            if getattr(self, key) == without:
                values.pop(key)
        if self.client.schedule.total_steps != "all_data" and (self.privacy is None or self.privacy.noise_multiplier):
            values.pop("rounds")
        values["model"].pop("device")
        for key in ("gradient_checkpointing", "offload"):  # the same bits in less memory
            values["model"].pop(key, None)
        for key, off in (("quantize", "none"), ("shared_beginnings", "off")):
            if getattr(self.model, key) == off:
                values["model"].pop(key)
        for key in ("overlap", "personalised_start", "keep_predictions", "generate"):
            values["evaluation"].pop(key, None)
        values["model"].get("trunk_cache", {}).pop("memory_mb", None)
        if (
            devices := values.get("world", {}).get("devices")
        ) is not None:  # the contents of files have hashes of their own
            devices["file"] = devices["file"] is not None
            devices["availability"].pop("file", None)
        # A number found by a fuse trial is saved in the checkpoint, and a resumed run uses that.
        values["client"].pop("fuse")
        for key in self.sources:
            section, _, name = key.partition(".")
            values.get(section, {}).pop(name, None)
        return {**values, "plugins": self.plugins} if self.plugins else values

    @property
    def plugins(self) -> dict[str, str]:
        """SHA-256 of each plug-in file loaded when the config was built, by file name."""
        return dict(self._plugins)

    @property
    def sources(self) -> dict[str, Any]:
        """Dotted keys that locate data and weights or set how they are read; the contents have hashes of their own."""
        reading = [name for name in DataConfig.model_fields if name not in _DATA_ITSELF]
        keys = [
            "model.path",
            "model.package",
            "prompt.start_from",
            "tuner.start_from",
            *(f"data.{name}" for name in reading),
        ]
        values = self.model_dump(mode="json", context=EVERY_KEY)
        devices = self.world.devices
        return {
            **{key: values[key.partition(".")[0]][key.partition(".")[2]] for key in keys},
            "world.devices.file": None if devices is None else devices.file,
            "world.devices.availability.file": None if devices is None else devices.availability.file,
        }


WITHOUT_EFFECT: dict[str, Schema | None] = {
    "privacy": None,
    "buffer": None,
    "world": WorldConfig(),
    "compression": CompressionConfig(),
}
"""Sections of later versions as they are where they have no effect, and which identities then leave out."""

_DATA_ITSELF = ("task", "train_examples", "validation_examples", "validation_from_train", "max_length")
"""Keys of ``data`` that define what is learned rather than where the data are."""


# -- reading -----------------------------------------------------------------------------------------------------------


def read_config(path: str | Path, overrides: Sequence[str] = (), changes: Mapping[str, Any] | None = None) -> Config:
    """Read a YAML file, apply dotted overrides and validate.

    Parameters
    ----------
    path
        The file, or the name of a preset, such as ``quickstart`` (:mod:`fedsim.configuration.presets`).
    overrides
        Words such as ``client.optimizer.lr=0.01``. A value is YAML, but if its key takes text (a path, a name), everything
        after ``=`` is the text, unchanged. ``KEY=`` and ``KEY=null`` give None.
    changes
        Nested values that replace those of the file and the overrides.

    Raises
    ------
    ConfigError
        Naming the file (or override), the key, and what would be right.
    """
    path = located(path)
    text, values = read_yaml(path)
    sources: dict[tuple[str, ...], str] = {}
    for override in overrides:
        keys, value = parse_override(override, Config)
        set_key(values, keys, value, override)
        sources[keys] = override
    nested = _plain_or_refused(changes or {})
    values = merged(values, nested)
    sources.update((keys, as_override(keys, value)) for keys, value in leaves(nested))
    if values.get("name") is None:
        values["name"] = re.sub(r"[^\w.-]", "_", path.stem)[:200]
    return build_config(values, lambda key: place_of(path, text, sources, key))


def build_config(values: Mapping[str, Any], where: Where = lambda key: "config") -> Config:
    """Validate a nested dictionary.

    Parameters
    ----------
    where
        Maps a key's path to a description of where it was given.
    """
    config = Config.__new__(Config)
    _validate(config, values, where)
    return config


def _validate(config: Config, values: Mapping[str, Any], where: Where) -> None:
    plugins.load_installed()
    try:
        given = without_nulls(Config, plain(values))
        text = json.dumps(given)
        config.__pydantic_validator__.validate_json(text, strict=True, self_instance=config)
    except ValidationError as error:
        raise refused(error, Config, where, given) from None
    except (ValueError, RecursionError) as error:  # values that contain themselves, or huge numbers
        raise ConfigError(f"{where(())}: a config cannot hold these values: {error}") from None


def _plain_or_refused(changes: Mapping[str, Any]) -> dict[str, Any]:
    try:
        return plain(changes)
    except (ValueError, RecursionError) as error:
        raise ConfigError(f"a config cannot hold these values: {error}") from None

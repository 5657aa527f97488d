"""The whole run's schema, composed of the schemas that live beside their owners, and how a file becomes a config."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any, ClassVar, Literal

from pydantic import Field, NonNegativeInt, PositiveInt, PrivateAttr, ValidationError, model_validator

from clients.config import AttackConfig, ClientConfig, ModelConfig, PromptConfig
from fedsim.configuration.errors import Where, sentence
from fedsim.configuration.given import place_of, read_yaml, set_key, without_nulls
from fedsim.configuration.overrides import parse_override
from fedsim.configuration.params import checked_params
from fedsim.core import plugins
from fedsim.core.errors import ConfigError
from fedsim.core.schema import PathText, Schema
from fedsim.core.traffic import Traffic, round_traffic
from fedsim.core.uses import EVERY_KEY, Use, Uses
from fedsim.data.config import DataConfig
from fedsim.executors.config import RayConfig
from fedsim.records.run_folder import TrackingConfig
from partitions.config import PartitionConfig
from server.config import LayersConfig, SamplingConfig, ServerConfig
from server.robust import robust_problem


class EvaluationConfig(Schema):
    """When and how prompts are evaluated."""

    every: PositiveInt = 1
    """Rounds between evaluations of the global prompt on the validation examples; the last round is always evaluated."""
    personalised_every: PositiveInt | None = None
    """Rounds between personalised evaluations (every client's own prompts on its held-out examples); if not given, once at
    the end."""
    batch_size: PositiveInt = 64
    """Examples in a forward pass."""
    shard_size: PositiveInt = 256
    """Validation examples in one actor call."""
    overlap: bool = True
    """Do the evaluation after a round beside the training of the next one, so that no actor waits for another; the round is
    recorded and saved when it is done. Not where personalised evaluation is due. The same numbers, and less time."""


class CheckpointConfig(Schema):
    """When the whole state of the run is saved."""

    every: PositiveInt = 1
    """Rounds between checkpoints; an interrupt and the end save as well."""
    keep: PositiveInt = 2
    """Checkpoints to keep; an older one serves if the newest is damaged."""


class Config(Schema):
    """A run."""

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
    server: ServerConfig = ServerConfig()
    """The server's optimizer."""
    attack: AttackConfig = AttackConfig()
    """Simulated attackers."""
    evaluation: EvaluationConfig = EvaluationConfig()
    """When and how prompts are evaluated."""
    checkpoint: CheckpointConfig = CheckpointConfig()
    """When the state is saved."""
    ray: RayConfig = RayConfig()
    """Actors and the cluster."""
    tracking: TrackingConfig = TrackingConfig()
    """What is recorded."""
    params: dict[str, Any] = Field(default={})
    """Own keys of plug-ins, by the name that a plug-in is registered with: ``{NAME: {KEY: VALUE}}``."""
    _plugins: dict[str, str] = PrivateAttr(default_factory=plugins.hashes)

    uses: ClassVar[Uses] = {
        "client.proximal_mu": (Use("correction", ("proximal",), by="client.correction"),),
        "model.trunk_cache": (
            Use("client.dropout", (False,), words="what is kept would be other hidden states every time"),
            Use("layers.unselected", ("none",), words="all layers have a prompt"),
        ),
    }

    @model_validator(mode="after")
    def _possible(self) -> Config:
        self.__dict__["params"] = checked_params(self)
        _check_combinations(self)
        return self

    @property
    def correction(self) -> str:
        """The local correction in force: none, control, preconditioner or proximal."""
        if self.client.correction != "auto":
            return self.client.correction
        of_kind = {"scaffold": "control", "fedprox": "proximal", "fedpeptao": "preconditioner"}
        return of_kind.get(self.server.kind, "none")

    @property
    def traffic(self) -> Traffic:
        """What a real device would receive and send at a visit."""
        optimizer = self.client.optimizer
        return round_traffic(self.correction, optimizer.kind, optimizer.weight_decay)

    @property
    def identity(self) -> str:
        """SHA-256 of :attr:`identity_values`. Data and weights have hashes of their own (``contents`` of a summary)."""
        return hashlib.sha256(json.dumps(self.identity_values, sort_keys=True).encode()).hexdigest()

    @property
    def identity_values(self) -> dict[str, Any]:
        """All keys that a result depends on: not where it runs, where it goes, how many rounds, where data and weights lie."""
        values = self.model_dump(mode="json")
        for key in ("name", "output", "executor", "ray", "tracking", "checkpoint"):
            values.pop(key)
        if self.client.schedule.total_steps != "all_data":
            values.pop("rounds")
        values["model"].pop("device")
        values["evaluation"].pop("overlap")
        values["model"].get("trunk_cache", {}).pop("memory_mb", None)
        # A number that a trial found is part of a checkpoint, which a resumed run goes by.
        values["client"].pop("fuse")
        for key in self.sources:
            section, _, name = key.partition(".")
            values[section].pop(name, None)
        return {**values, "plugins": self.plugins} if self.plugins else values

    @property
    def plugins(self) -> dict[str, str]:
        """SHA-256 of each plug-in's file that was loaded when the config was made, by the file's name."""
        return dict(self._plugins)

    @property
    def sources(self) -> dict[str, Any]:
        """All keys, dotted, that say where data and weights lie and how they are read: these are known by their contents."""
        reading = [name for name in DataConfig.model_fields if name not in _DATA_ITSELF]
        keys = ["model.path", "model.package", "prompt.start_from", *(f"data.{name}" for name in reading)]
        values = self.model_dump(mode="json", context=EVERY_KEY)
        return {key: values[key.partition(".")[0]][key.partition(".")[2]] for key in keys}


_DATA_ITSELF = ("task", "train_examples", "validation_examples", "max_length")
"""Keys of ``data`` that say what is learned, and not where it lies."""


def _check_combinations(config: Config) -> None:
    """Refuse combinations of keys of several sections that make no sense together."""
    client, server, partition = config.client, config.server, config.partition
    if partition.clients is not None and config.sampling.clients_per_round > partition.clients:
        raise ValueError(
            f"sampling.clients_per_round={config.sampling.clients_per_round} is more than "
            f"partition.clients={partition.clients}; set "
            f"sampling.clients_per_round={partition.clients} or less"
        )
    if server.kind == "scaffold" and config.correction != "control":
        raise ValueError(
            f"server.kind=scaffold needs client.correction=control (or auto), not {client.correction}; "
            "for no correction use server.kind=fedavg"
        )
    if server.kind == "fedprox" and config.correction != "proximal":
        raise ValueError(f"server.kind=fedprox needs client.correction=proximal (or auto), not {client.correction}")
    if config.correction == "control" and not server.uses_control:
        raise ValueError(
            f"client.correction=control needs control variates, which server.kind={server.kind} does not keep; "
            "use server.kind=scaffold or fedpeptao with server.control=true"
        )
    if server.needs_each_vector and config.correction == "preconditioner":
        auto = f" (auto with server.kind={server.kind})" if client.correction == "auto" else ""
        raise ValueError(
            f"server.aggregation={server.aggregation} compares the clients' vectors, but "
            f"client.correction=preconditioner{auto} averages them in a common metric; set client.correction=none, or control"
        )
    if (problem := robust_problem(server, config.sampling.clients_per_round)) is not None:
        raise ValueError(f"sampling.clients_per_round={config.sampling.clients_per_round}, but {problem}")
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
    if config.data.source == "files" and config.data.path is None:
        raise ValueError("data.source=files needs data.path, a folder with train.* and validation.*")


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


def read_config(path: str | Path, overrides: Sequence[str] = ()) -> Config:
    """Read a YAML file, apply dotted overrides and validate.

    Parameters
    ----------
    overrides
        Words such as ``client.optimizer.lr=0.01``. A value is YAML, but where its key takes a text (a path, a name) all
        that stands behind ``=`` is the text, to the character. ``KEY=`` and ``KEY=null`` give none.

    Raises
    ------
    ConfigError
        One sentence with file (or override), key, and what would be right.
    """
    plugins.load_installed()
    path = Path(path)
    text, values = read_yaml(path)
    sources: dict[tuple[str, ...], str] = {}
    for override in overrides:
        keys, value = parse_override(override, Config)
        set_key(values, keys, value, override)
        sources[keys] = override
    if values.get("name") is None:
        values["name"] = re.sub(r"[^\w.-]", "_", path.stem)[:200]
    return build_config(values, lambda key: place_of(path, text, sources, key))


def build_config(values: dict[str, Any], where: Where = lambda key: "config") -> Config:
    """Validate a nested dictionary.

    Parameters
    ----------
    where
        Function from a key's path to the words that say where it was given.
    """
    try:
        return Config.model_validate_json(json.dumps(without_nulls(Config, values), default=str), strict=True)
    except ValidationError as error:
        raise ConfigError(sentence(error, Config, where, values)) from None
    except (ValueError, RecursionError) as error:  # values that hold themselves, or numbers without end
        raise ConfigError(f"{where(())}: the values are none that a config can hold: {error}") from None

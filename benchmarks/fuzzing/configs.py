"""Configs: damaged text, keys with other values, overrides; and every key of the schema with every value."""

from __future__ import annotations

import functools
import json
import os
from collections.abc import Iterable
from pathlib import Path
from random import Random
from typing import Any, Literal

import numpy as np
import yaml
from pydantic.fields import FieldInfo

from benchmarks.fuzzing.damage import damage
from benchmarks.fuzzing.values import NUMBERS, ODD, WORDS, any_value, group_at, words_of
from clients.backbone.location import locate
from fedsim.configuration.errors import dotted_keys
from fedsim.configuration.schema import Config, build_config, read_config
from fedsim.configuration.text import config_text
from fedsim.core.attack import ATTACKS
from fedsim.core.method import CORRECTIONS, METHODS
from fedsim.core.robust import ROBUST_RULES
from fedsim.data.sources import load_dataset
from fedsim.executors.cluster.sizing import NodeResources, plan_actors
from fedsim.records.location import open_location
from partitions import partition
from server.config import ServerConfig
from server.sampling import cohort, cut
from server.selection import choose_layers

CONFIGS = Path(__file__).parents[2] / "configs"


def _one_of(kinds: Iterable[str], field: FieldInfo) -> FieldInfo:
    """Return a key whose values are the names of an open registry as if they were the only ones."""
    return FieldInfo(annotation=Literal[(field.default, *kinds)], default=field.default)  # type: ignore[arg-type]


SHIPPED = [path.read_bytes() for path in sorted(CONFIGS.rglob("*.yaml")) if path.stem != "rayjob"]
KINDS = {
    "server.kind": METHODS,
    "server.aggregation": ROBUST_RULES,
    "client.correction": CORRECTIONS,
    "attack.kind": ATTACKS,
}
KEYS = (
    *((name, _one_of(KINDS[name], field) if name in KINDS else field) for name, field in dotted_keys(Config)),
    *((f"server.{key}", field) for key, field in ServerConfig.keys_of_kinds().items()),
)
UNKNOWN_KEYS = (
    "", "x", "lr", "rnds", "client.lr", "a\nb", "\u2028", "k" * 5000, "rounds ", "ROUNDS", "<<", "class", "__class__",
)  # fmt: skip


def config_case(number: int, folder: Path) -> None:
    """Damage a shipped config, or set keys of an empty or a shipped one, or give overrides; then check and prepare it."""
    rng = Random(number)
    config = _config(rng, folder)
    _reads_back(config, folder)
    _go_on(config, folder)


@functools.cache
def one_key_cases() -> list[tuple[str, Any]]:
    """Return every key of the schema with every value that is tried for it."""
    return [(name, value) for name, field in KEYS for value in (*NUMBERS, *WORDS, *ODD, *words_of(field))]


def key_case(number: int, folder: Path) -> None:
    """Set one key alone to one value; check and prepare the config."""
    name, value = one_key_cases()[number]
    values: dict[str, Any] = {"name": "one"}
    *parents, last = name.split(".")
    group_at(values, parents)[last] = value
    config = build_config(values)
    if config.name is not None:
        _reads_back(config, folder)
    _go_on(config, folder)


def _config(rng: Random, folder: Path) -> Config:
    path, words = folder / "run.yaml", []
    match rng.choice(("bytes", "bytes", "keys", "keys", "keys", "words")):
        case "bytes":
            path.write_bytes(damage(rng.choice(SHIPPED), rng))
        case "keys":
            start = yaml.safe_load(rng.choice(SHIPPED)) if rng.random() < 0.3 else {}
            values = change_keys(start, rng)
            path.write_text(yaml.safe_dump(values, allow_unicode=True), encoding="utf-8", errors="surrogateescape")
        case _:
            path.write_bytes(rng.choice(SHIPPED) if rng.random() < 0.5 else b"rounds: 2\n")
            words = overrides(rng)
    return read_config(path, words)


def change_keys(values: dict[str, Any], rng: Random) -> dict[str, Any]:
    """Return config values with one to four keys set to something else, or added."""
    for _ in range(rng.choice((1, 1, 2, 4))):
        name, field = rng.choice(KEYS)
        keys = name.split(".")
        if rng.random() < 0.08:
            keys[rng.randrange(len(keys))] = rng.choice(UNKNOWN_KEYS)
        group_at(values, keys[:-1])[keys[-1]] = any_value(rng, field)
    return values


def overrides(rng: Random) -> list[str]:
    """Return words such as stand on the command line."""
    words = []
    for _ in range(rng.choice((1, 2, 3))):
        name, field = rng.choice(KEYS)
        value = any_value(rng, field)
        word = f"{name}={json.dumps(value) if rng.random() < 0.7 else value}"
        if rng.random() < 0.2:
            word = damage(word.encode(errors="replace"), rng).decode("utf-8", errors="replace")
        words.append(word)
    return words


def _reads_back(config: Config, folder: Path) -> None:
    """A run records its config and is taken up with it, so what was accepted must read back as it was."""
    path = folder / "config.yaml"
    path.write_text(config_text(config, meanings=False), encoding="utf-8")
    again = read_config(path)
    if again != config:
        raise AssertionError("the recorded config reads back to another one")


def _go_on(config: Config, folder: Path) -> None:
    """Do what comes before the model is loaded: data, partition, cohorts, actors, layers, folder."""
    from clients.attacks import attackers  # imports transformers

    if config.data.effective_source == "files":
        load_dataset(config.data, config.seed)
    labels_N = np.arange(1500) % 2
    dealt = config.partition.model_copy(update={"max_tries": min(config.partition.max_tries, 20)})
    shards = partition(dealt, labels_N, [f"a{i % 200}" for i in range(1500)], config.seed)
    sizes_N = np.diff(shards.offsets_C1)
    order = cohort(config.sampling, config.seed, 0, sizes_N)
    cut(order, config.group_size, sizes_N.astype(np.float64))
    attackers(config.attack, shards.num_clients, config.seed)
    choose_layers(config.layers, 4, np.arange(4.0), config.seed)
    nodes = [NodeResources(16.0, 2.0), NodeResources(4.0, 0.0)]
    plan_actors(config.ray, config.client.threads, shards.num_clients, nodes)
    locate(config.model)
    if config.output is None or not config.output.startswith(("/", "~", "..")):
        before = Path.cwd()
        os.chdir(folder)
        try:
            with open_location(config, False, lambda sentence: None):
                pass
        finally:
            os.chdir(before)

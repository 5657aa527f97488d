"""What ``benchmarks.fuzz`` does with a damaged input: what a run would do with it, as far as that is cheap.

A target takes the number of a case and an empty folder, and returns when the input was taken; a sentence of ours is raised.
"""

from __future__ import annotations

import atexit
import functools
import hashlib
import itertools
import json
import os
import shutil
import tempfile
from collections.abc import Callable
from pathlib import Path
from random import Random
from typing import Any

import numpy as np
import yaml

from benchmarks import mutations
from fedsim.config import Config, build_config, read_config

ROOT = Path(__file__).parents[1]
SHIPPED = [path.read_bytes() for path in sorted((ROOT / "configs").rglob("*.yaml")) if path.stem != "rayjob"]
EXTENSIONS = (
    "csv",
    "csv",
    "tsv",
    "jsonl",
    "jsonl",
    "json",
    "parquet",
    "parquet",
    "arrow",
    "arrow",
    "csv.gz",
    "jsonl.gz",
)

Target = Callable[[int, Path], None]


def config_case(number: int, folder: Path) -> None:
    """Damage a shipped config, or set keys of an empty or a shipped one, or give overrides; then check and prepare it."""
    rng = Random(number)
    config = _config(rng, folder)
    _reads_back(config, folder)
    _go_on(config, folder)


@functools.cache
def one_key_cases() -> list[tuple[str, Any]]:
    """Return every key of the schema with every value that is tried for it."""
    values = (*mutations.NUMBERS, *mutations.WORDS, *mutations.ODD)
    return [(name, value) for name, field in mutations.KEYS for value in (*values, *mutations.words_of(field))]


def key_case(number: int, folder: Path) -> None:
    """Set one key alone to one value; check and prepare the config."""
    name, value = one_key_cases()[number]
    values: dict[str, Any] = {"name": "one"}
    *parents, last = name.split(".")
    group = values
    for parent in parents:
        group = group.setdefault(parent, {})
    group[last] = value
    config = build_config(values)
    if config.name is not None:
        _reads_back(config, folder)
    _go_on(config, folder)


def _config(rng: Random, folder: Path) -> Config:
    path, words = folder / "run.yaml", []
    match rng.choice(("bytes", "bytes", "keys", "keys", "keys", "words")):
        case "bytes":
            path.write_bytes(mutations.damage(rng.choice(SHIPPED), rng))
        case "keys":
            start = yaml.safe_load(rng.choice(SHIPPED)) if rng.random() < 0.3 else {}
            values = mutations.change_keys(start, rng)
            path.write_text(_yaml(values), encoding="utf-8", errors="surrogateescape")
        case _:
            path.write_bytes(rng.choice(SHIPPED) if rng.random() < 0.5 else b"rounds: 2\n")
            words = mutations.overrides(rng)
    return read_config(path, words)


def _yaml(values: dict[str, Any]) -> str:
    """Return YAML; JSON where it holds what YAML's writer refuses."""
    try:
        return yaml.safe_dump(values, allow_unicode=True)
    except (yaml.YAMLError, ValueError):
        return json.dumps(values, default=str) if not _has_long_number(values) else "seed: " + "9" * 400


def _has_long_number(values: Any) -> bool:
    inner = values.values() if isinstance(values, dict) else values if isinstance(values, list) else ()
    return any(map(_has_long_number, inner)) or (isinstance(values, int) and values.bit_length() > 10_000)


def _reads_back(config: Config, folder: Path) -> None:
    """A run records its config and is taken up with it, so what was accepted must read back as it was."""
    from fedsim.config_text import config_text

    path = folder / "config.yaml"
    path.write_text(config_text(config, meanings=False), encoding="utf-8")
    again = read_config(path)
    if again != config:
        raise AssertionError("the recorded config reads back to another one")


def _go_on(config: Config, folder: Path) -> None:
    """Do what comes before the model is loaded: data, partition, cohorts, actors, layers, folder."""
    from clients.attacks import attackers
    from clients.location import locate
    from fedsim.data.sources import load_dataset, source_of
    from fedsim.executors.plan import NodeResources, plan_actors
    from fedsim.place import open_place
    from partitions import partition
    from server.sampling import cohort, cut
    from server.selection import choose_layers

    if source_of(config.data) == "files":
        load_dataset(config.data, config.seed)
    labels_N = np.arange(1500) % 2
    dealt = config.partition.model_copy(update={"max_tries": min(config.partition.max_tries, 20)})
    shards = partition(dealt, labels_N, [f"a{i % 200}" for i in range(1500)], config.seed)
    sizes_N = np.diff(shards.offsets_C1)
    order = cohort(config.sampling, config.seed, 0, sizes_N)
    cut(order, config.group_size, sizes_N.astype(np.float64))
    attackers(config.attack, config.partition.clients, config.seed)
    choose_layers(config.layers, 4, np.arange(4.0), config.seed)
    nodes = [NodeResources(16.0, 2.0), NodeResources(4.0, 0.0)]
    plan_actors(config.ray, config.client.threads, config.partition.clients, nodes)
    locate(config.model)
    if config.output is None or not config.output.startswith(("/", "~", "..")):
        before = Path.cwd()
        os.chdir(folder)
        try:
            with open_place(config, False, lambda sentence: None):
                pass
        finally:
            os.chdir(before)


# -- data --------------------------------------------------------------------------------------------------------------


def data_case(number: int, folder: Path) -> None:
    """Write a training and a validation file, one of them damaged, and a task; read, deal out and tokenise them."""
    from fedsim.data.tasks import resolve_task
    from fedsim.data.tokenize import tokenize
    from fedsim.preparation import partition_data

    rng = Random(number)
    task = mutations.task(rng)
    fields, labels = _shape(task)
    damaged = rng.randrange(2)
    for place, stem in enumerate(("train", rng.choice(("validation", "dev", "test")))):
        path = folder / f"{stem}.{rng.choice(EXTENSIONS)}"
        found = mutations.rows(rng if place == damaged else Random(7), fields, labels)
        mutations.write_rows(path, found, rng if place == damaged else Random(7))
        if place == damaged and rng.random() < 0.5:
            path.write_bytes(mutations.damage(path.read_bytes(), rng))
    by_column = rng.random() < 0.3
    config = build_config(
        {
            "data": {"path": str(folder), "task": task, "on_bad_row": rng.choice(("raise", "skip"))},
            "partition": {
                "clients": 2,
                "kind": "by_column"
                if by_column
                else rng.choice(("iid", "dirichlet_label", "dirichlet_class", "label_shards")),
                "column": rng.choice(("author", "author", "label", "text", "none")) if by_column else None,
            },
            "sampling": {"clients_per_round": 1},
        }
    )
    data = partition_data(config)
    if rng.random() < 0.3:
        task_config = resolve_task(config.data.task)
        for examples in (data.dataset.train, data.dataset.validation):
            tokenize(examples, task_config, _tokenizer(), head_kind="verbalizer", causal=False, max_length=64)


def _shape(task: str | dict[str, Any]) -> tuple[list[str], list[str]]:
    from fedsim.data.tasks import resolve_task

    if isinstance(task, str):
        known = resolve_task(task)
        return list(known.fields), list(known.labels)
    fields = task.get("fields")
    fields = (
        fields if isinstance(fields, list) and fields and all(isinstance(name, str) for name in fields) else ["text"]
    )
    return fields, ["0", "1"]


@functools.cache
def _tokenizer() -> Any:
    from clients.config import ModelConfig
    from clients.loading import load_tokenizer

    return load_tokenizer(ModelConfig())


# -- runs, models, checkpoints, prompts --------------------------------------------------------------------------------

CAPS = {
    "rounds": 1, "group_size": 4, "prompt.length": 4, "partition.clients": 8, "partition.min_size": 3,
    "partition.max_tries": 20, "sampling.clients_per_round": 3, "client.epochs": 1, "client.steps": 2,
    "client.batch_size": 8, "client.threads": 2,
    "layers.spectrum.warmup_rounds": 1, "layers.spectrum.clients": 2, "layers.spectrum.batch_size": 4,
    "layers.spectrum.lanczos_steps": 4, "layers.spectrum.probes": 2, "layers.spectrum.directions": 2,
    "layers.score_batch_size": 8, "layers.score_clients": 2, "evaluation.batch_size": 16,
}  # fmt: skip
"""Largest sizes with which a config is run to the end."""

PUT = {
    "executor": "local", "model.path": "embedded", "model.package": None, "model.device": "cpu", "model.compile": False,
    "model.trust_remote_code": False, "tracking.tensorboard": False, "tracking.plots": False, "prompt.start_from": None,
}  # fmt: skip
"""What a config that is run must say, whatever was drawn: this process, the embedded model, no pictures."""


def run_case(number: int, folder: Path) -> None:
    """Run a config to the end, its sizes capped (:data:`CAPS`, :data:`PUT`), on 60 examples of the task reviews."""
    rng = Random(number)
    values: dict[str, Any] = json.loads(json.dumps(build_config(_numbers_only(rng)).model_dump(mode="json")))
    for dotted, most in CAPS.items():
        group, key = _at(values, dotted)
        if isinstance(group[key], int):
            group[key] = min(group[key], most)
    for dotted, value in PUT.items():
        group, key = _at(values, dotted)
        group[key] = value
    small = {
        "path": str(small_data()),
        "source": "files",
        "task": "reviews",
        "max_length": min(values["data"]["max_length"], 32),
    }
    values["data"] = {**build_config({}).model_dump(mode="json")["data"], **small}
    values["output"] = str(folder / "run")
    _run(build_config(values))


def _numbers_only(rng: Random) -> dict[str, Any]:
    """Return values that a config accepts, found by trying."""
    from fedsim.core.errors import FedsimError

    for _ in itertools.repeat(None, 50):
        values = mutations.change_keys({}, rng)
        try:
            build_config(values)
        except FedsimError:
            continue
        return values
    return {}


def _at(values: dict[str, Any], dotted: str) -> tuple[dict[str, Any], str]:
    *parents, last = dotted.split(".")
    for parent in parents:
        values = values[parent]
    return values, last


def _run(config: Config, resume: bool = False) -> None:
    from rich.console import Console

    from fedsim.runner import run_config

    with open(os.devnull, "w") as nowhere:  # noqa: PTH123
        run_config(config, resume=resume, quiet=True, console=Console(file=nowhere))


@functools.cache
def workshop() -> Path:
    """Return the folder in which whole inputs, made once, wait to be copied and damaged."""
    folder = Path(tempfile.mkdtemp(prefix="fedsim-fuzz-"))
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    return folder


@functools.cache
def small_data() -> Path:
    """Return a folder with 60 training and 16 validation examples of the embedded task reviews."""
    from fedsim.data.embedded import generate

    folder = workshop() / "data"
    folder.mkdir()
    train, validation = generate("reviews")
    for name, rows in (("train", train[:60]), ("validation", validation[:16])):
        (folder / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return folder


def _small(output: Path, **changes: Any) -> Config:
    values: dict[str, Any] = {
        "name": "small",
        "rounds": 2,
        "executor": "local",
        "output": str(output),
        "data": {"path": str(small_data()), "task": "reviews", "max_length": 32},
        "partition": {"clients": 4},
        "sampling": {"clients_per_round": 2},
        "prompt": {"length": 2},
        "layers": {"choose": "all"},
        "client": {"epochs": None, "steps": 1, "fuse": "off"},
        "tracking": {"plots": False},
    }
    return build_config({**values, **changes})


@functools.cache
def finished_run() -> Path:
    """Return the folder of a run of two rounds that has ended."""
    folder = workshop() / "run"
    if not folder.exists():
        _run(_small(folder))
    return folder


def model_case(number: int, folder: Path) -> None:
    """Damage one file of the embedded model; load it, tokenise a text and take it through."""
    from fedsim.preparation import prepare

    rng = Random(number)
    model = Path(shutil.copytree(ROOT / "fedsim" / "assets" / "backbone", folder / "model"))
    path = model / rng.choice(
        ("config.json", "config.json", "tokenizer.json", "tokenizer_config.json", "model.safetensors")
    )
    if path.suffix == ".json" and rng.random() < 0.6:
        values = json.loads(path.read_bytes())
        for _ in range(rng.choice((1, 1, 2))):
            group = values
            while (
                inner := [value for value in group.values() if isinstance(value, dict) and value]
            ) and rng.random() < 0.6:
                group = rng.choice(inner)
            group[rng.choice(list(group))] = mutations.any_value(rng)
        if not _has_long_number(values):
            path.write_text(json.dumps(values, default=str))
    elif path.suffix == ".safetensors" and rng.random() < 0.7:
        path.write_bytes(_with_damaged_head(path.read_bytes(), rng))
    else:
        path.write_bytes(mutations.damage(path.read_bytes(), rng))
    head = {"kind": rng.choice(("verbalizer", "classifier"))}
    config = _small(folder / "run", model={"path": str(model), "head": head}, rounds=1)
    if rng.random() < 0.7:
        prepare(config)
    else:
        _run(config)


def _with_damaged_head(data: bytes, rng: Random) -> bytes:
    """Damage the JSON text at the head of a safetensors file, and say its new length."""
    length = int.from_bytes(data[:8], "little")
    head = (
        mutations.damage(data[8 : 8 + length], rng)
        if rng.random() < 0.5
        else _with_changed_entry(data[8 : 8 + length], rng)
    )
    said = rng.choice((0, 1, 2**40, 2**63, length + 1)) if rng.random() < 0.1 else len(head)
    return said.to_bytes(8, "little") + head + data[8 + length :]


def _with_changed_entry(head: bytes, rng: Random) -> bytes:
    values = json.loads(head)
    name = rng.choice(list(values))
    if name == "__metadata__" and "fedsim" in values[name]:
        about = json.loads(values[name]["fedsim"])
        group = about
        while (
            inner := [value for value in group.values() if isinstance(value, dict) and value]
        ) and rng.random() < 0.6:
            group = rng.choice(inner)
        key = rng.choice(list(group))
        if rng.random() < 0.3:
            del group[key]
        else:
            value = mutations.any_value(rng)
            group[key] = value if not _has_long_number(value) else -1
        values[name]["fedsim"] = (
            json.dumps(about, default=str) if rng.random() < 0.9 else rng.choice(("", "[]", "3", "{"))
        )
    elif rng.random() < 0.5:
        values[rng.choice(("x", name + "x", "prompt.99"))] = values.pop(name)
    elif isinstance(values[name], dict) and "shape" in values[name]:
        values[name]["shape"] = rng.choice((values[name]["shape"][::-1], [], [-1], [0], [2**62, 4], "x"))
    else:
        values[name] = rng.choice((None, [], 3))
    return json.dumps(values).encode()


def resume_case(number: int, folder: Path) -> None:
    """Damage a file of a run folder, a checkpoint's checksum mended in half of the cases, and resume it for one more round."""
    rng = Random(number)
    run = Path(shutil.copytree(finished_run(), folder / "run"))
    files = sorted(path for path in run.rglob("*") if path.is_file())
    checkpoints = [path for path in files if path.parent.name == "checkpoints"]
    for _ in range(rng.choice((1, 1, 2))):
        path = rng.choice(checkpoints if rng.random() < 0.6 else files)
        if not path.exists():
            continue
        match rng.choice(("damage", "damage", "damage", "remove", "empty", "folder")):
            case "damage":
                arrays = path.suffix == ".safetensors" and rng.random() < 0.7
                path.write_bytes((_with_damaged_head if arrays else mutations.damage)(path.read_bytes(), rng))
            case "remove":
                path.unlink()
            case "empty":
                path.write_bytes(b"")
            case _:
                path.unlink()
                path.mkdir()
        if path.suffix == ".safetensors" and path.is_file() and rng.random() < 0.7:
            path.with_suffix(".sha256").write_text(hashlib.sha256(path.read_bytes()).hexdigest())
    _run(_small(run, rounds=3), resume=True)


def prompt_case(number: int, folder: Path) -> None:
    """Damage a prompt file; predict with it, or start a run from it."""
    from fedsim.prompted import load_prompt

    rng = Random(number)
    path = folder / "global.safetensors"
    data = (finished_run() / "prompt" / "global.safetensors").read_bytes()
    path.write_bytes(_with_damaged_head(data, rng) if rng.random() < 0.8 else mutations.damage(data, rng))
    if rng.random() < 0.6:
        load_prompt(path).predict(["the soup was cold"])
    else:
        _run(_small(folder / "run", rounds=1, prompt={"length": 2, "start_from": str(path)}))


@functools.cache
def adapter() -> Path:
    """Return the folder of a PEFT adapter."""
    from fedsim.peft_adapter import export_peft

    folder, output = workshop() / "paper", workshop() / "adapter"
    if output.exists():
        return output
    _run(_small(folder, rounds=1, prompt={"length": 2, "position_offset": "paper"}))
    return export_peft(folder, output)


def peft_case(number: int, folder: Path) -> None:
    """Damage a PEFT adapter and start a run from it."""
    rng = Random(number)
    copied = Path(shutil.copytree(adapter(), folder / "adapter"))
    path = copied / rng.choice(("adapter_config.json", "adapter_config.json", "adapter_model.safetensors"))
    if path.suffix == ".json" and rng.random() < 0.7:
        values = json.loads(path.read_bytes())
        value = mutations.any_value(rng)
        values[rng.choice(list(values))] = value if not _has_long_number(value) else -1
        path.write_text(json.dumps(values, default=str))
    elif path.suffix == ".safetensors" and rng.random() < 0.7:
        path.write_bytes(_with_damaged_head(path.read_bytes(), rng))
    else:
        path.write_bytes(mutations.damage(path.read_bytes(), rng))
    offset = rng.choice(("paper", "none"))
    _run(_small(folder / "run", rounds=1, prompt={"length": 2, "start_from": str(copied), "position_offset": offset}))


TARGETS: dict[str, Target] = {
    "key": key_case,
    "config": config_case,
    "data": data_case,
    "run": run_case,
    "model": model_case,
    "resume": resume_case,
    "prompt": prompt_case,
    "peft": peft_case,
}
"""What is done, by the kind of input."""

"""Preparation of a run: from a config to data, tokens, shards and frozen weights."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from clients.backbone.location import locate, modeling_module
from clients.backbone.product_format import settled as settled_products
from fedsim.configuration.schema import Config, build_config
from fedsim.core.errors import ConfigError, ModelError, shown
from fedsim.core.imports import large_imports
from fedsim.core.messages import VECTOR
from fedsim.core.shards import Shards
from fedsim.core.tokens import TokenTable
from fedsim.data.config import TaskConfig
from fedsim.data.examples import Examples
from fedsim.data.sources import Dataset, load_dataset
from fedsim.data.text_metrics import check_text_metrics
from fedsim.kept.kept import NOTHING_KEPT, Account, Kept, Place
from fedsim.planning.memory import estimate_memory
from fedsim.planning.model_notes import on_cpus
from fedsim.planning.model_shape import model_shape
from fedsim.simulation.fingerprints import contents_of
from fedsim.simulation.fleet import check_clients
from fedsim.simulation.frozen_model import frozen_model
from fedsim.world.traces.read import Recorded, read_recorded
from partitions.base import PARTITIONERS, partition

if TYPE_CHECKING:
    from clients.backbone.families import Family
    from clients.spec import AnalysisSpec, TrainingSpec, WorkerSpec
    from clients.tuners.tuner import Tuner
    from fedsim.executors.base import Executor


@dataclass(frozen=True)
class PartitionedData:
    """The examples, and their assignment to clients."""

    dataset: Dataset
    shards: Shards
    notes: tuple[str, ...] = ()
    """Messages for the user: how columns were read, and which examples are not used."""

    @property
    def task(self) -> TaskConfig:
        """The resolved task."""
        return self.dataset.task


@dataclass(frozen=True)
class Prepared:
    """Everything a run needs, before anything is started."""

    data: PartitionedData
    spec: WorkerSpec
    contents: dict[str, str]
    """SHA-256 of what results depend on besides the config: ``weights``, ``model_config``, ``training_data`` and
    ``validation_data`` (tokens and labels), ``partition``, and, where used, ``label_words`` (their tokens),
    ``empty_text`` (its tokens), ``start``, ``devices`` and ``traces``."""
    kept: Kept = NOTHING_KEPT
    """What earlier runs kept, and where this one does."""
    recorded: Recorded = field(default_factory=Recorded)
    """What files say of the clients' devices."""


def partition_data(config: Config) -> PartitionedData:
    """Load the examples and partition them over clients."""
    column = config.partition.column
    dataset = load_dataset(config.data, config.seed, column)
    _check_task(config, dataset.task)
    values = dataset.train.columns[column] if column is not None else None
    params = config.params.get(config.partition.kind)
    _check_labels(config, dataset.task)
    shards = partition(config.partition, dataset.train.labels_N, values, config.seed, params)
    notes = () if values is None or config.partition.kind != "by_column" else _clients_note(config, values, shards)
    return PartitionedData(dataset, shards, (*dataset.notes, *notes, *_classes_note(dataset)))


def _check_labels(config: Config, task: TaskConfig) -> None:
    """Refuse to deal examples by labels that they do not have."""
    kind = config.partition.kind
    if not task.labels and PARTITIONERS[kind].by_labels:
        others = ", ".join(name for name, other in PARTITIONERS.items() if not other.by_labels)
        raise ConfigError(
            f"partition.kind={kind} deals examples out by their labels, but task {task.name!r} has none; set "
            f"partition.kind to one of {others}, or give data.task.labels and data.task.label_field"
        )


def _classes_note(dataset: Dataset) -> tuple[str, ...]:
    """Warn if all training examples are of one class: nothing can be learned from them."""
    classes = np.unique(dataset.train.labels_N)
    if len(classes) > 1 or dataset.task.of_responses:
        return ()
    label = shown(dataset.task.labels[int(classes[0])])
    return (f"warning: all {len(dataset.train):,} training examples are of the class {label}",)


def _clients_note(config: Config, values: list[object], shards: Shards) -> tuple[str, ...]:
    """Report how many values of a column became clients, and how many examples the others leave unused."""
    many, total, clients = len(set(values)), len(values), shards.num_clients
    left, column = total - len(shards.indices_N), shown(config.partition.column)
    if many > clients:
        return (
            f"{clients:,} of the {many:,} values of partition.column {column} are clients; the examples of the "
            f"others, {left:,} of {total:,}, are not used",
        )
    if config.partition.clients is None:
        return (f"partition.clients is not given: all {many:,} values of partition.column {column} are clients",)
    return ()


def settled(config: Config) -> tuple[Config, PartitionedData | None]:
    """Return the config with its number of clients, and the data if they were read to find it.

    Raises
    ------
    ConfigError
        If that number conflicts with the rest of the config.
    """
    if config.partition.clients is not None:
        return config, None
    data = partition_data(config)
    return with_clients(config, data.shards.num_clients), data


def with_clients(config: Config, clients: int) -> Config:
    """Return the config with the number of clients found in the data.

    Raises
    ------
    ConfigError
        If that number conflicts with the rest of the config.
    """
    values = config.model_dump(mode="json")
    values["partition"]["clients"] = clients
    return build_config(
        values, lambda key: f"partition.column {shown(config.partition.column)} gives {clients} clients"
    )


def prepare(
    config: Config,
    phase: Callable[[str], None] = lambda text: None,
    executor: Executor | None = None,
    data: PartitionedData | None = None,
    kept: Kept = NOTHING_KEPT,
) -> Prepared:
    """Load, partition and tokenise the examples, and load the frozen weights.

    Parameters
    ----------
    phase
        Called with the current phase, for the progress display.
    executor
        Executor to start in the background once the data are known to be valid.
    data
        The data, if already read.
    kept
        Where tokens are looked up and kept.
    """
    if data is None:
        phase("reading data")
        data = partition_data(config)
    recorded = read_recorded(config.world)
    check_clients(config, data.shards.train_sizes, recorded)
    location = locate(config.model)
    begun = executor is None or _begin(executor, config, data, location)
    phase("loading the backbone")
    # What a model brings asks here whether its code may run; what is fetched from a hub is fetched by this process alone.
    if executor is not None and begun and Path(location).is_dir() and not config.model.trust_remote_code:
        spec, account = executor.specify(make_spec, config, data, kept.place, phase=phase, kept=kept)
    else:
        with large_imports():
            spec, account = make_spec(config, data, kept.place, phase, kept)
    kept.take_in(account)
    if executor is not None and not begun:
        _begin(executor, config, data, location)  # by now the model has been fetched
    return Prepared(data, spec, contents_of(spec) | dict(recorded.contents), kept, recorded)


def _begin(executor: Executor, config: Config, data: PartitionedData, location: str) -> bool:
    """Begin to start the executor if the size of its shared objects is known; return whether it was."""
    shape = model_shape(config.model)
    if shape is None:
        return False
    examples = len(data.dataset.train) + len(data.dataset.validation)
    memory = estimate_memory(config, shape, examples, data.task.num_classes)
    module = modeling_module(location)
    # What is recorded in the end: with the number format of products settled.
    model = settled_products(config.model, shape.hidden_size, on_gpu=not on_cpus(config))
    identity = config.model_copy(update={"model": model}).identity
    executor.begin(memory.stored, ("clients.worker", *([module] if module is not None else [])), identity)
    return True


def make_spec(
    config: Config,
    data: PartitionedData,
    place: Place | None = None,
    phase: Callable[[str], None] = lambda text: None,
    kept: Kept | None = None,
) -> tuple[WorkerSpec, Account]:
    """Load the frozen weights, tokenise the examples, and return all that workers need.

    Parameters
    ----------
    place
        Where values are kept between runs.
    kept
        The run's cache if this is its driver; another process opens the place itself, and accounts for what it took and wrote.
    """
    kept = Kept(place) if kept is None else kept
    from clients.backbone.loading import load_tokenizer
    from clients.spec import WorkerSpec
    from clients.tuners.word_vectors import WordVectors
    from fedsim.data.label_words import label_words
    from fedsim.data.tokenize import empty_text, tokenize
    from fedsim.data.vocabulary import Vocabulary, check_label_words, fitted
    from fedsim.kept.tokens import kept_tokens, state_of
    from fedsim.prompts.starting_point import load_start
    from fedsim.simulation.generation_spec import generation_spec

    model, weights = frozen_model(config)
    tokenizer = load_tokenizer(config.model)
    state = state_of(tokenizer)
    phase("tokenising")
    head, causal = config.model.head.kind, weights.kind == "causal_lm"
    vocabulary = Vocabulary.of(weights, config.model.location)
    words = label_words(data.task, tokenizer, causal) if head == "verbalizer" else None
    if words is not None:
        check_label_words(words, data.task, tokenizer, vocabulary)
    settings: Any = {"head_kind": head, "causal": causal, "max_length": config.data.max_length}

    def tokens(examples: Examples) -> TokenTable:
        table = kept_tokens(
            kept, examples, data.task, state, settings, lambda: tokenize(examples, data.task, tokenizer, **settings)
        )
        table = fitted(table, examples, data.task, tokenizer, vocabulary)
        return table if words is None or words.single_C is not None else replace(table, words=words)

    train, validation = tokens(data.dataset.train), tokens(data.dataset.validation)
    asked = None if words is None else words.ids_Q[~np.isin(words.ids_Q, tokenizer.all_special_ids)]
    vectors = WordVectors(weights, frozenset(tokenizer.all_special_ids), len(tokenizer), asked)
    tuner = tuner_of(config, weights.family, json.loads(weights.config_json)).knowing(vectors, config.seed)
    calibrated = config.model.head.calibration == "empty_text" and words is not None
    spec = WorkerSpec(
        weights=weights,
        model=model,
        tuner=tuner,
        num_classes=data.task.num_classes,
        label_word_ids_C=None if words is None else words.single_C,
        training=training_spec(config, len(train)),
        analysis=analysis_spec(config),
        train=train,
        validation=validation,
        shards=data.shards,
        start=load_start(config, weights, tuner),
        generation=generation_spec(config, data.task, tokenizer, len(validation)),
        empty=empty_text(data.task, tokenizer, **settings) if calibrated else None,
    )
    return spec, kept.account()


def tuner_of(config: Config, family: Family, described: dict[str, Any]) -> Tuner:
    """Return what a run trains, as far as it does not read the model's weights.

    Parameters
    ----------
    described
        The model's config.json.
    """
    from clients.tuners.make import make_tuner
    from clients.tuners.prompt_mixture import PromptMixtureTuner
    from fedsim.prompts.source_prompts import load_sources

    tuner = make_tuner(config.tuner, config.prompt, family, config.seed)
    if isinstance(tuner, PromptMixtureTuner) and config.tuner.sources:
        return tuner.with_sources(load_sources(config.tuner, config.model, family.config(described).hidden_size))
    return tuner


def training_spec(config: Config, num_examples: int) -> TrainingSpec:
    """Return how clients train; ``num_examples`` is the number of training examples of all clients together."""
    from clients.attacks import attackers
    from clients.spec import TrainingSpec

    method = config.method
    schedule = config.client.schedule.resolved(config.rounds, num_examples, config.client.batch_size)
    return TrainingSpec(
        client=config.client.model_copy(update={"schedule": schedule}),
        corrections=method.corrections,
        uniform_weights=config.server.weighting == "uniform",
        singles=(VECTOR,) if config.tuner.exact else method.singles(robust=config.server.aggregation != "mean"),
        keep_local=config.layers.unselected == "local",
        keep_half=config.tuner.exchange != "both",
        seed=config.seed,
        attack=config.attacker,
        attackers=attackers(config.attack, config.partition.population, config.seed),
        uplink=config.uplink,
        counts_downloads=config.downlink is not None,
    )


def analysis_spec(config: Config) -> AnalysisSpec:
    """Return how clients score layers, take spectra and evaluate."""
    from clients.analysis.scoring import ScoreSettings
    from clients.analysis.spectrum_settings import SpectrumSettings
    from clients.spec import AnalysisSpec

    layers, spectrum = config.layers, config.layers.spectrum
    return AnalysisSpec(
        score=ScoreSettings(layers.score, layers.score_batch_size, layers.score_last, layers.score_padding == "keep"),
        spectrum=SpectrumSettings(
            rule=layers.share_rule,
            batch_size=spectrum.batch_size,
            lanczos_steps=spectrum.lanczos_steps,
            probes=spectrum.probes,
            directions=spectrum.directions,
            radius=spectrum.radius,
        ),
        evaluation_batch_size=config.evaluation.batch_size,
    )


def check_lengths(config: Config, spec: WorkerSpec, max_tokens: int) -> None:
    """Refuse texts that exceed the backbone's maximum length.

    Raises
    ------
    ModelError
        With the longest text, the limit, and the key to change.
    """
    longest = max(table.longest for table in (spec.train, spec.validation))
    if longest > max_tokens:
        taken = spec.tuner.room
        offset = f" beside a prompt of {taken}" if taken else ""
        family, values = spec.weights.family, json.loads(spec.weights.config_json)
        raise ModelError(
            f"the model {config.model.location} {family.limit(family.config(values))} for {max_tokens} tokens{offset}, but a "
            f"text has {longest}; set data.max_length={max_tokens} or less"
        )


def _check_task(config: Config, task: TaskConfig) -> None:
    if config.evaluation.generate is not None:
        check_text_metrics(config.evaluation.generate.metrics)
    kind = config.model.head.kind
    if task.of_responses and kind != "generation":
        raise ConfigError(
            f"task {task.name!r} is one of responses, which model.head.kind={kind} cannot read; set model.head.kind=generation"
        )
    if kind == "generation" and not task.of_responses:
        raise ConfigError(
            f"task {task.name!r} is one of classes, which model.head.kind=generation cannot read; give data.task.response, the "
            "text to write, or set model.head.kind=verbalizer"
        )
    if kind == "verbalizer" and (task.template is None or task.label_words is None):
        missing = "template" if task.template is None else "label_words"
        raise ConfigError(
            f"task {task.name!r} has no {missing}, which model.head.kind=verbalizer needs; give data.task.{missing}, or set "
            "model.head.kind=classifier"
        )

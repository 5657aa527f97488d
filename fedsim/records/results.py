"""Results written at the end of a run: prompt files, summary, plots."""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

import numpy as np

from clients.training.local_job import Parts
from clients.tuners.config import ONE_PLACE
from clients.tuners.lora_halves import completed, turns
from clients.tuners.words import trained_words
from fedsim.configuration.schema import Config
from fedsim.core.layout import VectorLayout
from fedsim.core.messages import PERSONAL, ClientState
from fedsim.data.config import TaskConfig
from fedsim.data.metrics import compute, loss, perplexity
from fedsim.display.figure import Stamp
from fedsim.display.page.write import write_run_page
from fedsim.display.plots import write_plots
from fedsim.display.progress import Progress
from fedsim.display.run_words import group_words, run_words
from fedsim.planning.memory import kept_numbers
from fedsim.prompts.prompt_file import GLOBAL_PROMPT, PERSONAL_PROMPTS, save_personal_prompts, save_prompt
from fedsim.records.events import writing
from fedsim.records.final_tables import write_final_tables
from fedsim.records.labels import write_labels
from fedsim.records.participation import participation
from fedsim.records.run_folder import RunFolder
from fedsim.records.tables import read_columns
from fedsim.simulation.preparation import Prepared
from fedsim.simulation.privacy import privacy_plan
from fedsim.simulation.result import Result
from fedsim.simulation.totals import better


def write_results(
    config: Config,
    prepared: Prepared,
    result: Result,
    folder: RunFolder,
    progress: Progress,
    about: dict[str, Any],
) -> dict[str, Any]:
    """Write prompt files, ``summary.json`` and then plots; return the summary.

    Parameters
    ----------
    about
        Further summary entries: name, method, task, folder, versions.
    """
    save_prompt(
        folder.prompt / GLOBAL_PROMPT,
        result.state.vector_F,
        result.layout,
        config,
        prepared.data.task,
        constants=prepared.spec.tuner.constants,
        start=prepared.spec.start,
    )
    owners = [state for state in result.personal if PERSONAL in state.arrays and state.arrays[PERSONAL].size]
    if owners:
        layers, rows = _personal(config, prepared, result, owners)
        save_personal_prompts(folder.prompt / PERSONAL_PROMPTS, [state.client for state in owners], rows, layers)
    spec = prepared.spec
    write_final_tables(folder, result.final, prepared.data.task.metric, spec.validation.labels_N, spec.shards)
    # From the records: a resumed run chose its layers in an earlier part.
    chosen = folder.events("layers")[-1]
    task, dataset = prepared.data.task, prepared.data.dataset
    counts_NC = prepared.data.shards.label_counts(dataset.train.labels_N, len(task.groups))
    folder.flush()
    who = _participation(result, folder, counts_NC, class_names(task))
    summary = {**_figures(config, prepared, result, chosen), **who, **about}
    if result.stopped is not None:
        folder.event("stop", round=result.rounds, **asdict(result.stopped))
    folder.event("end", round=result.rounds, **{k: summary[k] for k in ("global_metric", "personalised_metric")})
    folder.flush()
    with writing(folder.labels):
        write_labels(folder.labels, counts_NC, class_names(task))
    folder.write_summary(summary)
    # Last, so that a failing plot or page loses no results.
    if config.tracking.plots:
        progress.start_phase("drawing plots")
        write_plots(
            folder,
            metric_name=task.metric,
            counts_NC=counts_NC,
            class_names=class_names(task),
            words=group_words(config.model.head.kind),
            stamp=Stamp(run_words(config, task.name), svg=True),
            note=progress.note,
        )
        if write_run_page(folder, progress.note):
            progress.note(f"report: {folder.location}/{folder.report.name}")
    return summary


def _participation(result: Result, folder: RunFolder, counts_NC: np.ndarray, names: Sequence[str]) -> dict[str, Any]:
    """Return who took part, where devices are simulated and visits are on record."""
    if result.devices is None or not folder.clients.exists() or not result.totals.clock_seconds:
        return {}
    return participation(result.devices, read_columns(folder.clients), counts_NC, names, result.totals.clock_seconds)


def _personal(
    config: Config, prepared: Prepared, result: Result, owners: list[ClientState]
) -> tuple[list[int], np.ndarray]:
    """Return the layers of which clients keep something, and every client's numbers [N, M] of these, whole."""
    full = VectorLayout.full(result.layout.geometry, result.layout.head_shapes)
    parts = Parts.of(full, result.choice.layers, prepared.spec.training.keep_local, prepared.spec.tuner)
    kept = parts.personal.layers
    rows = []
    for state in owners:
        vector_A = parts.assemble(np.asarray(result.state.vector_F), state.arrays[PERSONAL])
        tuned_LX, _ = parts.trained.split(vector_A)
        own_LX = np.stack([row for layer, row in zip(parts.trained.layers, tuned_LX, strict=True) if layer in kept])
        own = VectorLayout(full.geometry, kept)
        rows.append(completed(config.tuner, own, own_LX, config.seed)[1].reshape(-1))
    return list(kept), np.stack(rows)


def class_names(task: TaskConfig) -> tuple[str, ...]:
    """Return display names of the classes: their labels, with the label word added if the label is a number.

    Of a task of responses they are the groups of examples by which clients are counted.
    """
    words = task.label_words or ("",) * len(task.groups)
    names = (
        f"{label} ({word})" if word and _is_number(label) else label
        for label, word in zip(task.groups, words, strict=True)
    )
    return tuple(name if name.isprintable() else repr(name)[1:-1] for name in names)


def _is_number(label: str) -> bool:
    try:
        float(label)
    except ValueError:
        return False
    return True


def _trained(config: Config, prepared: Prepared, result: Result) -> str:
    """Describe what the run trained."""
    num_layers, layers = result.layout.geometry.num_layers, result.choice.layers
    if config.tuner.kind in ONE_PLACE:
        return trained_words(prepared.spec.tuner.described, None, num_layers, config.model.head.kind)
    trained = range(num_layers) if config.layers.unselected == "local" else layers
    return trained_words(prepared.spec.tuner.described, trained, num_layers, config.model.head.kind)


def _sizes(
    config: Config, prepared: Prepared, result: Result, in_turn: Sequence[VectorLayout]
) -> dict[str, int | float]:
    """Return how many numbers a client sends in a round (the mean, if rounds differ), trains, and keeps between rounds."""
    layout, spec = result.layout, prepared.spec
    full = VectorLayout.full(layout.geometry, layout.head_shapes)
    parts = Parts.of(full, result.choice.layers, spec.training.keep_local, spec.tuner)
    by_turns = list(dict.fromkeys(name for part in in_turn for name in part.arrays or ()))
    trained = layout.holding(by_turns).size if in_turn else parts.trained.size
    return {
        "sent_parameters": statistics.mean(part.size for part in in_turn or [layout]),
        "trained_parameters": trained,
        "stored_parameters": kept_numbers(config, layout.size, parts.personal.size, trained),
    }


def _perplexities(config: Config, result: Result) -> dict[str, float | None]:
    """Return the perplexity of responses, before any training and at the end; nothing of a run that tells classes apart."""
    if config.model.head.kind != "generation":
        return {}
    totals, own = result.totals, result.final.personalised
    return {
        "first_global_perplexity": perplexity(totals.initial_loss),
        "global_perplexity": perplexity(totals.global_loss),
        "personalised_perplexity": None if own is None else perplexity(loss(own)),
    }


def _figures(config: Config, prepared: Prepared, result: Result, chosen: dict[str, Any]) -> dict[str, Any]:
    totals, layout = result.totals, result.layout
    in_turn = [layout.holding(arrays) for arrays in turns(config.tuner, layout.geometry)]
    metric = prepared.data.task.metric
    end, start = result.final.personalised, result.final.personalised_start
    personalised = math.nan if end is None else compute(metric, end.confusion_CC)
    best_personalised, best_personalised_round = better(
        totals.best_personalised_metric, totals.best_personalised_round, personalised, result.rounds
    )
    return {
        "metric_name": metric,
        "num_classes": prepared.data.task.num_classes,
        "global_metric": totals.global_metric,
        "best_global_metric": totals.best_global_metric,
        "best_global_round": totals.best_global_round,
        "select_on": config.evaluation.select_on,
        "selected_round": totals.selected_round,
        "selected_metric": totals.selected_metric,
        "selected_global_metric": totals.selected_global_metric,
        "personalised_metric": personalised,
        "best_personalised_metric": best_personalised,
        "best_personalised_round": best_personalised_round,
        "first_global_metric": totals.initial_metric,
        **_perplexities(config, result),
        "start_personalised_metric": None if start is None else compute(metric, start.confusion_CC),
        **({} if (texts := result.final.texts) is None else {"generated": texts.summary()}),
        "rounds": result.rounds,
        "stopped": None if result.stopped is None else asdict(result.stopped),
        "clients": config.partition.population,
        "layers": list(result.choice.layers),
        **{key: chosen.get(key) for key in ("share", "share_rule", "share_cost")},
        "tuner": config.tuner.kind,
        "trained": _trained(config, prepared, result),
        "num_layers": layout.geometry.num_layers,
        "exchanged_parameters": layout.size,
        # What a client sends in a round; where rounds send one half in turn, the mean.
        "transferred_parameters": statistics.mean(part.tuned_size for part in in_turn or [layout]),
        **_sizes(config, prepared, result, in_turn),
        "client_updates": totals.client_updates,
        "client_steps": totals.client_steps,
        "client_tokens": totals.client_tokens,
        "padding_share": 1.0 - totals.client_tokens / totals.client_slots if totals.client_slots else 0.0,
        "clients_failed": totals.client_failures,
        "bytes_up": totals.bytes_up,
        "bytes_down": totals.bytes_down,
        "vectors_up": list(config.traffic.up),
        "vectors_down": list(config.traffic.down),
        "sums_are_enough": config.sums_are_enough,
        "privacy": None if (plan := privacy_plan(config)) is None else plan.described(result.rounds),
        "seconds_published": totals.seconds_longest_clients,
        "seconds_simulated": totals.clock_seconds,
        "seconds_total": result.seconds,
        "seconds_per_round_median": statistics.median(totals.seconds_rounds) if totals.seconds_rounds else math.nan,
    }

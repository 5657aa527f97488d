"""What is written when a run ends: the prompt, the summary, the pictures."""

from __future__ import annotations

import math
import statistics
from typing import Any

import numpy as np

from fedsim.config import Config
from fedsim.core.layout import VectorLayout
from fedsim.data.metrics import compute
from fedsim.events import writing
from fedsim.plots import write_plots
from fedsim.preparation import Prepared
from fedsim.progress import Progress
from fedsim.prompted import GLOBAL_PROMPT, PERSONAL_PROMPTS, save_personal_prompts, save_prompt
from fedsim.result import Result
from fedsim.tracking import RunFolder


def write_results(
    config: Config,
    prepared: Prepared,
    result: Result,
    folder: RunFolder,
    progress: Progress,
    about: dict[str, Any],
) -> dict[str, Any]:
    """Write prompt files, plots and ``summary.json``; return the summary.

    Parameters
    ----------
    about
        What is known of the run beside its result: name, method, task, folder, versions.
    """
    save_prompt(folder.prompt / GLOBAL_PROMPT, result.state.vector_F, result.layout, config, prepared.data.task)
    owners = [state for state in result.personal if state.personal_M is not None and state.personal_M.size]
    if owners:
        full = VectorLayout.full(result.layout.geometry, result.layout.head_shapes)
        rows = np.stack([state.personal_M for state in owners if state.personal_M is not None])
        layers = full.local(result.choice.layers).layers
        save_personal_prompts(folder.prompt / PERSONAL_PROMPTS, [state.client for state in owners], rows, layers)
    # From the records: a run that was resumed has chosen its layers in an earlier part.
    chosen = folder.events("layers")[-1]
    summary = {**_figures(config, prepared, result, chosen), **about}
    folder.event("end", round=config.rounds, **{k: summary[k] for k in ("global_metric", "personalised_metric")})
    folder.flush()
    if config.tracking.plots:
        progress.start_phase("drawing plots")
        labels_N, shards = prepared.data.dataset.train.labels_N, prepared.data.shards
        with writing(folder.plots):
            write_plots(
                folder,
                metric_name=prepared.data.task.metric,
                counts_NC=shards.label_counts(labels_N, len(prepared.data.task.labels)),
                class_names=class_names(prepared.data.task),
                scores_L=result.choice.scores_L,
                chosen=result.choice.layers,
            )
    folder.write_summary(summary)
    return summary


def class_names(task: Any) -> tuple[str, ...]:
    """Return what to call the classes in pictures: label words where there are some, else labels."""
    return tuple(task.label_words or task.labels)


def _figures(config: Config, prepared: Prepared, result: Result, chosen: dict[str, Any]) -> dict[str, Any]:
    totals = result.totals
    personalised = result.personalised
    metric = prepared.data.task.metric
    return {
        "metric_name": metric,
        "global_metric": totals.global_metric,
        "best_global_metric": totals.best_global_metric,
        "personalised_metric": math.nan if personalised is None else compute(metric, personalised.confusion_CC),
        "first_global_metric": totals.initial_metric,
        "rounds": config.rounds,
        "clients": config.partition.population,
        "layers": list(result.choice.layers),
        **{key: chosen.get(key) for key in ("share", "share_rule", "share_cost")},
        "num_layers": result.layout.geometry.num_layers,
        "exchanged_parameters": result.layout.size,
        "client_updates": totals.client_updates,
        "client_steps": totals.client_steps,
        "client_tokens": totals.client_tokens,
        "padding_share": 1.0 - totals.client_tokens / totals.client_slots if totals.client_slots else 0.0,
        "clients_failed": totals.client_failures,
        "bytes_up": totals.bytes_up,
        "bytes_down": totals.bytes_down,
        "seconds_total": result.seconds,
        "seconds_per_round_median": statistics.median(totals.seconds_rounds) if totals.seconds_rounds else math.nan,
    }

"""Columns of a run's tables: ``rounds``, ``clients``, ``personal`` and ``predictions``, each ``.parquet``."""

from __future__ import annotations

from collections.abc import Collection
from typing import TYPE_CHECKING, Any

from fedsim.core.messages import ClientReport
from fedsim.world.schedule import Visit

if TYPE_CHECKING:
    from fedsim.world.devices import Devices

ROUND_COLUMNS: dict[str, str] = {
    "round": "int32",  # rounds completed: 1 for the first; 0 for the evaluation before any training
    "global_metric": "float64",  # central evaluation of the state after the round
    "global_loss": "float64",
    "personalised_metric": "float64",  # on the clients' own held-out examples
    "personalised_loss": "float64",
    "holdout_metric": "float64",  # the global state on the clients' held-out examples, with evaluation.select_on=holdout
    "holdout_loss": "float64",
    "train_loss_first": "float64",  # mean over usable clients, weighted by examples; first local epoch
    "train_loss_last": "float64",  # the same, last local epoch
    "server_lr": "float64",
    "epsilon": "float64",  # spent up to the round, at privacy.delta
    "clip_norm": "float64",  # to which the round's clients clipped their changes
    "clip_share": "float64",  # share of the clients whose change was longer: the experimenter's view, not released
    "clients_ok": "int32",
    "clients_failed": "int32",
    "clients_absent": "int32",  # drawn, but out of reach, then or before its result had arrived; not a failure
    "clients_late": "int32",  # in reach, but not in time (a deadline, over-selection, buffer.max_staleness); not a failure
    "clients_too_small": "int32",  # never drawn, since their device cannot hold the model (world.devices)
    "staleness_mean": "float64",  # server steps between the start of a usable client and this one (buffered rounds)
    "staleness_max": "int32",
    "clients_retried": "int32",  # retries of a client's work after a lost actor or a missed deadline
    "client_examples": "int64",  # training examples held by the usable clients
    "client_steps": "int64",  # local optimizer steps of the usable clients
    "actors_replaced": "int32",
    "bytes_down": "int64",  # received and sent by real devices, all clients together; see fedsim.core.traffic
    "bytes_up": "int64",
    "seconds_longest_client": "float64",  # longest local training of a usable client: the published round time
    "seconds_simulated": "float64",  # time the round would have taken on real devices (world.devices, sampling.delay)
    "seconds_waited": "float64",  # part of it until enough clients were in reach (world.devices)
    "clock_seconds": "float64",  # the same of all rounds so far: the virtual clock when the round ended
    "seconds_round": "float64",  # the sum of these three
    "seconds_train": "float64",  # until the last group was trained
    "seconds_server": "float64",
    "seconds_evaluate": "float64",  # waiting for evaluations; overlapped ones count only after the next round's training
}
"""Columns of ``rounds.parquet`` with their Arrow types; a value that was not measured is null."""

CLIENT_COLUMNS: dict[str, str] = {
    "round": "int32",
    "client": "int32",
    "num_examples": "int32",
    "num_steps": "int32",
    "num_tokens": "int64",  # of all its mini-batches
    "loss_first": "float64",  # mean loss of the first and the last local epoch
    "loss_last": "float64",
    "change_norm": "float64",  # of the change before clipping (privacy)
    "seconds": "float64",
    "began_seconds": "float64",  # on the virtual clock: when its visit began, and when its result arrived (world.devices)
    "arrived_seconds": "float64",
    "version": "int32",  # server steps done when it began
    "staleness": "int32",  # server steps from then to the one that takes it in; 0 in synchronous rounds
    "bytes_down": "int64",
    "bytes_up": "int64",
    "node": "string",
    "pid": "int32",
    "status": "string",  # ok, error, non_finite, lost or timeout
    "message": "string",  # of the failure; null for ok
}
"""Columns of ``clients.parquet`` with their Arrow types: one row per client and round."""

VISIT_COLUMNS: dict[str, str] = {
    "round": "int32",  # in whose record the visit is: that of the step that takes it in, or that does without it
    "client": "int32",
    "outcome": "string",  # taken, failed (its training), late, or absent: out of reach before its result had arrived
    "version": "int32",  # server steps done when it began
    "drawn_seconds": "float64",  # on the virtual clock: drawn, in reach and begun, received, trained, arrived
    "began_seconds": "float64",
    "received_seconds": "float64",  # null if it was out of reach before
    "trained_seconds": "float64",  # the same
    "ended_seconds": "float64",  # when its result arrived, or of one absent when it went out of reach
}
"""Columns of ``visits.parquet`` with their Arrow types: one row per visit of a simulated device (world.devices)."""

DEVICE_COLUMNS: dict[str, str] = {
    "client": "int32",
    "tokens_per_second": "float64",
    "downlink_megabits": "float64",
    "uplink_megabits": "float64",
    "latency_seconds": "float64",
    "gigabytes": "float64",
    "visit_seconds": "float64",  # of a visit that is not the client's first, in the first round
    "drawable": "string",  # yes, or why the client is never drawn: examples (none), memory (too little), reach (never)
}
"""Columns of ``devices.parquet`` with their Arrow types: one row per client (world.devices)."""

PERSONAL_COLUMNS: dict[str, str] = {
    "client": "int32",
    "rounds": "int32",  # in which it trained; 0 for a client that the run has never seen
    "examples": "int32",  # that it holds out
    "metric": "float64",  # on these, with its own prompts after the last round
    "loss": "float64",
    "confusion": "list<int64>",  # counts by class and predicted class, row by row; they add up over clients
    "start_metric": "float64",  # the same with the prompts before any training (evaluation.personalised_start)
    "start_loss": "float64",
    "start_confusion": "list<int64>",
}
"""Columns of ``personal.parquet`` with their Arrow types: one row per client that holds out examples."""

PREDICTION_COLUMNS: dict[str, str] = {
    "example": "int64",  # number of the validation example, in the order of the data
    "label": "int32",  # class numbers
    "prediction": "int32",  # of the global prompt after the last round
    "loss": "float64",
    "best_prediction": "int32",  # the same after the best round, that of prompt/best.safetensors
    "best_loss": "float64",
}
"""Columns of ``predictions.parquet`` with their Arrow types: one row per validation example."""

_OF_VISIT = ("began_seconds", "arrived_seconds", "version")
_OTHERS = ("round", "staleness", "status", "message", *_OF_VISIT)
_OF_REPORT = tuple(name for name in CLIENT_COLUMNS if name not in _OTHERS)


def client_row(round: int, report: ClientReport, visit: Visit | None = None) -> dict[str, Any]:
    """Return the row of one client's local training; without a visit nothing is known of when it began."""
    values, failure = vars(report), report.failure
    row = {name: values[name] for name in _OF_REPORT} | {name: getattr(visit, name, None) for name in _OF_VISIT}
    return row | {
        "round": round,
        "staleness": None if visit is None else round - 1 - visit.version,
        "status": failure.kind if failure else "ok",
        "message": failure.message if failure else None,
    }


def visit_row(round: int, visit: Visit, devices: Devices, failed: Collection[int]) -> dict[str, Any]:
    """Return the row of a visit of a simulated device; ``failed`` names the clients whose training failed."""
    began, ended = visit.began_seconds or 0.0, visit.arrived_seconds or 0.0
    receiving, training = devices.phases(visit.client, visit.version, visit.missed)
    received, trained = began + receiving, began + receiving + training
    gone = visit.outcome == "absent"
    return {
        "round": round,
        "client": visit.client,
        "outcome": "failed" if visit.outcome == "taken" and visit.client in failed else visit.outcome,
        "version": visit.version,
        "drawn_seconds": visit.drawn_seconds,
        "began_seconds": began,
        "received_seconds": None if gone and received > ended else received,
        "trained_seconds": None if gone and trained > ended else trained,
        "ended_seconds": ended,
    }

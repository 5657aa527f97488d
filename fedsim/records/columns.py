"""Columns of a run's tables: ``rounds``, ``clients``, ``personal``, ``generations`` and the others, each ``.parquet``."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import TYPE_CHECKING, Any, NamedTuple

from fedsim.core.messages import ClientReport
from fedsim.world.schedule import Visit

if TYPE_CHECKING:
    from fedsim.world.devices import Devices


class Column(NamedTuple):
    """A column of a table, or a field of a JSON file."""

    kind: str
    """Arrow type; of a field, its type in JSON."""
    unit: str
    """What is counted or measured; empty for names, and where a number has no unit."""
    meaning: str


TEXT_METRIC_WORDS = {
    "exact_match": "exact match with that of the data, normalised as SQuAD does",
    "f1": "F1 of the normalised words",
    "rouge1": "ROUGE-1",
    "rouge2": "ROUGE-2",
    "rougeL": "ROUGE-L",
    "chrf": "chrF",
}
"""Metrics of texts (evaluation.generate.metrics) in words."""

ROUNDS: dict[str, Column] = {
    "round": Column("int32", "rounds", "rounds completed: 1 for the first; 0 for the evaluation before any training"),
    "global_metric": Column(
        "float64", "", "the task's metric on the validation examples, with the state after the round"
    ),
    "global_loss": Column("float64", "nats", "mean loss on the same examples; of responses, of their tokens"),
    "personalised_metric": Column(
        "float64", "", "the metric on the clients' own held-out examples, with their own prompts"
    ),
    "personalised_loss": Column("float64", "nats", "mean loss on the same examples"),
    "holdout_metric": Column(
        "float64", "", "the global state on the clients' held-out examples, with evaluation.select_on=holdout"
    ),
    "holdout_loss": Column("float64", "nats", "mean loss on the same examples"),
    **{
        f"generated_{name}": Column(
            "float64",
            "0 to 1",
            f"mean over the responses that the global model then wrote of {words} (evaluation.generate)",
        )
        for name, words in TEXT_METRIC_WORDS.items()
    },
    "train_loss_first": Column(
        "float64", "nats", "mean over usable clients, weighted by examples, of their first local epoch's loss"
    ),
    "train_loss_last": Column("float64", "nats", "the same, last local epoch"),
    "server_lr": Column("float64", "", "learning rate of the server's step"),
    "epsilon": Column("float64", "", "privacy spent up to the round, at privacy.delta"),
    "clip_norm": Column("float64", "", "L2 norm to which the round's clients clipped their changes"),
    "clip_share": Column(
        "float64", "0 to 1", "share of the clients whose change was longer: the experimenter's view, not released"
    ),
    "clients_ok": Column("int32", "clients", "usable clients: trained, in time, and finite"),
    "clients_failed": Column("int32", "clients", "clients whose training failed"),
    "clients_absent": Column(
        "int32", "clients", "drawn, but out of reach, then or before the result had arrived; not a failure"
    ),
    "clients_late": Column(
        "int32",
        "clients",
        "in reach, but not in time (a deadline, over-selection, buffer.max_staleness); not a failure",
    ),
    "clients_too_small": Column(
        "int32", "clients", "never drawn, since their device cannot hold the model (world.devices)"
    ),
    "staleness_mean": Column(
        "float64", "server steps", "between the start of a usable client and this step (buffered rounds)"
    ),
    "staleness_max": Column("int32", "server steps", "the largest of these"),
    "clients_retried": Column("int32", "", "retries of a client's work after a lost actor or a missed deadline"),
    "client_examples": Column("int64", "examples", "training examples that the usable clients hold"),
    "client_steps": Column("int64", "local steps", "local optimizer steps of the usable clients"),
    "actors_replaced": Column("int32", "actors", "actors that were lost and started anew"),
    "bytes_down": Column("int64", "bytes", "received by real devices, all clients together"),
    "bytes_up": Column("int64", "bytes", "sent by real devices, all clients together"),
    "seconds_longest_client": Column(
        "float64", "s", "longest local training of a usable client: the published round time"
    ),
    "seconds_simulated": Column(
        "float64", "s", "time that the round would have taken on real devices (world.devices, sampling.delay)"
    ),
    "seconds_waited": Column("float64", "s", "part of it until enough clients were in reach (world.devices)"),
    "clock_seconds": Column(
        "float64", "s", "the virtual clock when the round ended: seconds_simulated of all rounds so far"
    ),
    "seconds_round": Column("float64", "s", "wall time of the round: the sum of the next three"),
    "seconds_train": Column("float64", "s", "until the last work group was trained"),
    "seconds_server": Column("float64", "s", "in the server's step"),
    "seconds_evaluate": Column(
        "float64", "s", "waiting for evaluations; overlapped ones count only after the next round's training"
    ),
}
"""Columns of ``rounds.parquet``; a value that was not measured is null."""

CLIENTS: dict[str, Column] = {
    "round": Column("int32", "rounds", "the round that took it in, from 1"),
    "client": Column("int32", "", "number of the client, from 0"),
    "num_examples": Column("int32", "examples", "training examples that it holds"),
    "num_steps": Column("int32", "local steps", "local optimizer steps"),
    "num_tokens": Column("int64", "tokens", "of all its mini-batches"),
    "loss_first": Column("float64", "nats", "mean loss of its first local epoch"),
    "loss_last": Column("float64", "nats", "mean loss of its last local epoch"),
    "change_norm": Column("float64", "", "L2 norm of its change before clipping (privacy)"),
    "seconds": Column("float64", "s", "its local training on the machine that simulates it"),
    "began_seconds": Column("float64", "s", "on the virtual clock: when its visit began (world.devices)"),
    "arrived_seconds": Column("float64", "s", "on the virtual clock: when its result arrived"),
    "version": Column("int32", "server steps", "done when its visit began"),
    "staleness": Column("int32", "server steps", "from then to the one that takes it in; 0 in synchronous rounds"),
    "bytes_down": Column("int64", "bytes", "that a real device would receive"),
    "bytes_up": Column("int64", "bytes", "that a real device would send"),
    "node": Column("string", "", "machine that simulated it"),
    "pid": Column("int32", "", "process that simulated it"),
    "status": Column("string", "", "ok, error, non_finite, lost or timeout"),
    "message": Column("string", "", "of the failure; null for ok"),
}
"""Columns of ``clients.parquet``: one row per client and round."""

VISITS: dict[str, Column] = {
    "round": Column(
        "int32", "", "in whose record the visit is: that of the step that takes it in, or that does without it"
    ),
    "client": Column("int32", "", "number of the client, from 0"),
    "outcome": Column(
        "string", "", "taken, failed (its training), late, or absent: out of reach before its result had arrived"
    ),
    "version": Column("int32", "server steps", "done when it began"),
    "drawn_seconds": Column("float64", "s", "on the virtual clock: when it was drawn"),
    "began_seconds": Column("float64", "s", "when it was in reach and began"),
    "received_seconds": Column("float64", "s", "when the download was done; null if it was out of reach before"),
    "trained_seconds": Column("float64", "s", "when training was done; null if it was out of reach before"),
    "ended_seconds": Column("float64", "s", "when its result arrived, or of one absent when it went out of reach"),
}
"""Columns of ``visits.parquet``: one row per visit of a simulated device (world.devices)."""

DEVICES: dict[str, Column] = {
    "client": Column("int32", "", "number of the client, from 0"),
    "tokens_per_second": Column("float64", "tokens/s", "that it trains"),
    "downlink_megabits": Column("float64", "Mbit/s", "of its download"),
    "uplink_megabits": Column("float64", "Mbit/s", "of its upload"),
    "latency_seconds": Column("float64", "s", "each way"),
    "gigabytes": Column("float64", "GB", "memory"),
    "visit_seconds": Column("float64", "s", "of a visit that is not the client's first, in the first round"),
    "drawable": Column(
        "string", "", "yes, or why the client is never drawn: examples (none), memory (too little), reach (never)"
    ),
}
"""Columns of ``devices.parquet``: one row per client (world.devices)."""

PERSONAL: dict[str, Column] = {
    "client": Column("int32", "", "number of the client, from 0"),
    "rounds": Column("int32", "rounds", "in which it trained; 0 for a client that the run has never seen"),
    "examples": Column("int32", "examples", "that it holds out"),
    "metric": Column("float64", "", "on these, with its own prompts after the last round"),
    "loss": Column("float64", "nats", "mean loss on these"),
    "confusion": Column(
        "list<int64>",
        "examples",
        "counts by class and predicted class, row by row; they add up over clients. Of responses: 0, 0, tokens that are not "
        "the most likely ones, tokens that are",
    ),
    "start_metric": Column(
        "float64", "", "the metric with the prompts before any training (evaluation.personalised_start)"
    ),
    "start_loss": Column("float64", "nats", "the loss with these"),
    "start_confusion": Column("list<int64>", "examples", "the counts with these"),
}
"""Columns of ``personal.parquet``: one row per client that holds out examples."""

PREDICTIONS: dict[str, Column] = {
    "example": Column("int64", "", "number of the validation example, in the order of the data"),
    "label": Column("int32", "", "number of its class; of a response 1"),
    "prediction": Column(
        "int32",
        "",
        "class predicted by the global prompt after the last round; of a response 1 if each of its tokens is the most likely "
        "one behind those before it, else 0",
    ),
    "loss": Column("float64", "nats", "loss of this prediction; of a response the mean of its tokens"),
    "best_prediction": Column("int32", "", "the same after the best round, that of prompt/best.safetensors"),
    "best_loss": Column("float64", "nats", "loss of this prediction"),
}
"""Columns of ``predictions.parquet``: one row per validation example."""

GENERATIONS: dict[str, Column] = {
    "round": Column("int32", "rounds", "done when the model wrote"),
    "client": Column("int32", "", "whose own model wrote, to an example that it holds out; null for the global model"),
    "example": Column("int64", "", "number of the validation example, or of a client's training example, in the data"),
    "prompt": Column("string", "", "what the model was given, decoded from its tokens"),
    "reference": Column("string", "", "the response of the data"),
    "text": Column("string", "", "the response of the model, without its end token"),
    "tokens": Column("int32", "tokens", "of this response, its end token included"),
    "ended": Column(
        "bool", "", "whether the model ended it, or else evaluation.generate.max_new_tokens or its positions"
    ),
    "only_at_end": Column(
        "bool",
        "",
        "no part of a round's record, but made when the run ended: by clients' own models, after an early stop, or for a run "
        "that was finished and resumed with evaluation.generate; made anew when the run goes on",
    ),
}
"""Columns of ``generations.parquet``: one row per response."""

LABELS: dict[str, Column] = {
    "client": Column("int32", "", "number of the client, from 0"),
    "label": Column("int32", "", "number of the class"),
    "name": Column("string", "", "name of the class"),
    "examples": Column("int32", "examples", "that the client holds of this class; no row for none"),
}
"""Columns of ``labels.parquet``: who holds what."""


def kinds(columns: Mapping[str, Column]) -> dict[str, str]:
    """Return the Arrow type of each column."""
    return {name: column.kind for name, column in columns.items()}


ROUND_COLUMNS = kinds(ROUNDS)
CLIENT_COLUMNS = kinds(CLIENTS)
VISIT_COLUMNS, DEVICE_COLUMNS = kinds(VISITS), kinds(DEVICES)
PERSONAL_COLUMNS = kinds(PERSONAL)
PREDICTION_COLUMNS = kinds(PREDICTIONS)
GENERATION_COLUMNS = kinds(GENERATIONS)

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

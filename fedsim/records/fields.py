"""Fields of a run's JSON: ``summary.json``, the events of ``metrics.jsonl``, and the metadata of its safetensors files.

Together with :mod:`fedsim.records.columns` this is the dictionary of all that a run writes; the docs' page on files is made
from it, and a test holds it against the files of real runs.
"""

from __future__ import annotations

from fedsim.records.columns import GENERATIONS, ROUNDS, TEXT_METRIC_WORDS, Column

_COUNT, _NUMBER, _TEXT, _LIST, _GROUP = "integer", "number", "text", "list", "group"

SUMMARY: dict[str, Column] = {
    "metric_name": Column(_TEXT, "", "the task's metric, which all figures named metric are values of"),
    "num_classes": Column(_COUNT, "classes", "of the task"),
    "global_metric": Column(_NUMBER, "", "on the validation examples, with the state after the last round"),
    "best_global_metric": Column(_NUMBER, "", "the best of all evaluated rounds"),
    "best_global_round": Column(_COUNT, "", "the round of the best"),
    "select_on": Column(_TEXT, "", "by which examples the best prompt was selected: evaluation.select_on"),
    "selected_round": Column(_COUNT, "", "the round that prompt/best.safetensors is of"),
    "selected_metric": Column(_NUMBER, "", "its metric on the examples that it was selected by"),
    "selected_global_metric": Column(_NUMBER, "", "its metric on the validation examples"),
    "personalised_metric": Column(_NUMBER, "", "on clients' held-out examples, with their own prompts, at the end"),
    "best_personalised_metric": Column(_NUMBER, "", "the best of all rounds in which it was evaluated"),
    "best_personalised_round": Column(_COUNT, "", "the round of this best"),
    "first_global_metric": Column(_NUMBER, "", "on the validation examples, before any training"),
    "first_global_perplexity": Column(
        _NUMBER, "", "of a task of responses: the exponential of the mean loss of their tokens"
    ),
    "global_perplexity": Column(_NUMBER, "", "the same, with the state after the last round"),
    "personalised_perplexity": Column(_NUMBER, "", "the same on clients' held-out examples, with their own prompts"),
    "start_personalised_metric": Column(
        _NUMBER, "", "on clients' held-out examples, before any training (evaluation.personalised_start)"
    ),
    "generated": Column(
        _GROUP,
        "",
        "responses that the model wrote last, compared to those of the data (evaluation.generate); in it start: those before "
        "any training, personal: those of clients' own models",
    ),
    "rounds": Column(_COUNT, "rounds", "done"),
    "stopped": Column(_GROUP, "", "rule and reason, if a rule or a program ended the run before its last round"),
    "clients": Column(_COUNT, "clients", "registered"),
    "layers": Column(_LIST, "", "numbers of the layers that were exchanged, from 0"),
    "share": Column(_NUMBER, "0 to 1", "share of the layers (or of the parameters) that the choice aimed at"),
    "share_rule": Column(_TEXT, "", "where the share comes from: fixed, or the layers.share_rule that estimated it"),
    "share_cost": Column(_GROUP, "", "rounds, steps, products and bytes that the estimate took"),
    "tuner": Column(_TEXT, "", "what was trained: tuner.kind"),
    "trained": Column(_TEXT, "", "the same in words"),
    "num_layers": Column(_COUNT, "layers", "of the model"),
    "exchanged_parameters": Column(_COUNT, "numbers", "length of the vector that clients and server exchange"),
    "transferred_parameters": Column(
        _NUMBER, "numbers", "that a client sends in a round, of the tuner alone; the mean, where rounds differ"
    ),
    "sent_parameters": Column(_NUMBER, "numbers", "the same with the head"),
    "trained_parameters": Column(_COUNT, "numbers", "that a client trains"),
    "stored_parameters": Column(_COUNT, "numbers", "that a client keeps between rounds"),
    "client_updates": Column(_COUNT, "", "usable results of clients, over all rounds"),
    "client_steps": Column(_COUNT, "local steps", "of all clients"),
    "client_tokens": Column(_COUNT, "tokens", "of all mini-batches"),
    "padding_share": Column(_NUMBER, "0 to 1", "share of the positions in attention that held no token"),
    "clients_failed": Column(_COUNT, "", "failures of clients, over all rounds"),
    "bytes_up": Column(_COUNT, "bytes", "that real devices would have sent, all together"),
    "bytes_down": Column(_COUNT, "bytes", "that real devices would have received, all together"),
    "vectors_up": Column(_LIST, "", "names of the vectors that a client sends in a round"),
    "vectors_down": Column(_LIST, "", "names of the vectors that a client receives in a round"),
    "sums_are_enough": Column("boolean", "", "true if the server needs the sums over a round's clients alone"),
    "privacy": Column(_GROUP, "", "mechanism, noise, sampling, epsilon and delta of a private run"),
    "seconds_published": Column(_NUMBER, "s", "the longest local training of each round, summed"),
    "seconds_simulated": Column(_NUMBER, "s", "the virtual clock at the end; null without simulated devices"),
    "seconds_total": Column(
        _NUMBER, "s", "wall time of the rounds and their evaluations, over all parts of a resumed run"
    ),
    "seconds_per_round_median": Column(_NUMBER, "s", "median wall time of a round"),
    "participation_by_speed": Column(
        _LIST, "0 to 1", "shares of all visits by fifths of the clients, the fastest first (simulated devices)"
    ),
    "participation_by_label": Column(
        _GROUP, "0 to 1", "by class: its share of the examples visited, and of all that clients hold"
    ),
    "clients_never_seen": Column(_COUNT, "clients", "with examples, that no round took in"),
    "clients_too_small": Column(_COUNT, "clients", "whose device cannot hold the model"),
    "device_utilisation": Column(_NUMBER, "0 to 1", "time in visits over the time of all able devices"),
    "name": Column(_TEXT, "", "of the run"),
    "method": Column(_TEXT, "", "server.kind"),
    "task": Column(_TEXT, "", "of the data"),
    "model": Column(_TEXT, "", "folder or name of the frozen model"),
    "executor": Column(_TEXT, "", "ray or local"),
    "ray": Column(_GROUP, "", "job, submission, namespace and addresses of the Ray that it ran on; null without one"),
    "workers": Column(_LIST, "", "node, process, device, threads and limits of each worker"),
    "folder": Column(_TEXT, "", "path or URL of the run"),
    "seed": Column(_COUNT, "", "root of all draws"),
    "config_hash": Column(_TEXT, "", "SHA-256 of the keys that results depend on"),
    "contents": Column(_GROUP, "", "SHA-256 of weights, data, partition and starting point"),
    "seconds_to_first_step": Column(_NUMBER, "s", "from the start of the run until its first work group was trained"),
    "versions": Column(_GROUP, "", "of fedsim, Python and the libraries that results depend on"),
    "plugins": Column(_GROUP, "", "SHA-256 of each plug-in's file, or its version"),
    "peak_memory_bytes": Column(_GROUP, "bytes", "largest resident memory of the driver, each worker and the server"),
    "fuse": Column(_COUNT, "clients", "that shared passes through the model"),
    "trunk_cache": Column(_GROUP, "", "hits, misses, evictions and bytes of the cache of frozen lower layers"),
    "cache": Column(_GROUP, "", "entries taken from earlier runs and written for later ones, by kind; null without"),
    "skipped_rows": Column(_COUNT, "rows", "of the data that data.on_bad_row=skip left out"),
}
"""Fields of ``summary.json``. Those of simulated devices, and of responses, are left out where there are none."""
OF_RESPONSES = ("first_global_perplexity", "global_perplexity", "personalised_perplexity", "generated")
"""Those of runs with ``model.head.kind=generation`` alone."""

EVENT: dict[str, Column] = {
    "event": Column(_TEXT, "", "kind of event"),
    "time": Column(_TEXT, "", "ISO 8601, UTC"),
    "seconds": Column(_NUMBER, "s", "since the start of the run, without the pauses before a resume"),
}
"""Fields that every event of ``metrics.jsonl`` has."""
_ROUND = Column(_COUNT, "", "the round that it belongs to")
_CLIENTS = Column(_LIST, "", "numbers of the clients")

EVENTS: dict[str, tuple[str, dict[str, Column]]] = {
    "created": ("The folder was made.", {"fedsim": Column(_TEXT, "", "version")}),
    "attack": (
        "Clients are simulated attackers.",
        {"round": _ROUND, "kind": Column(_TEXT, "", "attack.kind"), "clients": _CLIENTS},
    ),
    "layers": (
        "The exchanged layers were chosen.",
        {
            "layers": SUMMARY["layers"],
            "num_layers": SUMMARY["num_layers"],
            "scores": Column(_LIST, "", "score of each layer; null if they were not scored"),
            "scores_spread": Column(
                _LIST, "", "two lists: for each layer, between which scores the middle 80 % of the clients are"
            ),
            **{name: SUMMARY[name] for name in ("share", "share_rule", "share_cost")},
        },
    ),
    "spectrum": (
        "A client's Hessian spectrum, from which the share was estimated.",
        {
            "round": _ROUND,
            "client": Column(_COUNT, "", "number of the client"),
            "num_examples": Column(_COUNT, "examples", "that it holds"),
            "share": Column(_NUMBER, "0 to 1", "of the parameters, that it asks to keep"),
            "threshold": Column(_NUMBER, "", "eigenvalues above it are kept; null if there is no gap"),
            "values_RK": Column(_LIST, "", "Ritz values of each probe, ascending"),
            "weights_RK": Column(_LIST, "0 to 1", "weights of the Ritz values"),
            "lipschitz": Column(_NUMBER, "", "estimate of the Lipschitz constant, if the rule needs it"),
            "products": Column(_COUNT, "", "Hessian-vector products computed"),
            "weight": Column(_NUMBER, "", "of the client in the mean share"),
            "seconds_client": Column(_NUMBER, "s", "that it took"),
        },
    ),
    "fuse": (
        "It was settled how many clients share passes.",
        {
            "fuse": SUMMARY["fuse"],
            "reason": Column(_TEXT, "", "why so many"),
            "clients": Column(_COUNT, "clients", "of the trial; this and what follows only where there was one"),
            "seconds_alone": Column(_NUMBER, "s", "of a step of these clients, one after another"),
            "seconds_together": Column(_NUMBER, "s", "of the same step in shared passes"),
            "bytes_per_client": Column(_COUNT, "bytes", "memory of a client's vectors in a shared step"),
            "bytes_free": Column(_COUNT, "bytes", "free memory; null if the system does not say"),
        },
    ),
    "too_small": ("Devices cannot hold the model.", {"round": _ROUND, "clients": _CLIENTS}),
    "start": (
        "The state before any training was evaluated.",
        {"round": _ROUND, "global_metric": ROUNDS["global_metric"], "global_loss": ROUNDS["global_loss"]},
    ),
    "first_group": ("The first work group was trained.", {"round": _ROUND}),
    "round": (
        "A round is done; the fields are the columns of `rounds.parquet`.",
        {**ROUNDS, "update_norm": Column(_NUMBER, "", "L2 norm of the server's step")},
    ),
    "generated": (
        "The global model wrote responses: before any training (round 0), after one of evaluation.generate.every, at the end.",
        {
            "round": _ROUND,
            "only_at_end": GENERATIONS["only_at_end"],
            "examples": Column(_COUNT, "examples", "that it answered"),
            "tokens": Column(_NUMBER, "tokens", "of a response, the mean"),
            "ended": Column(_NUMBER, "0 to 1", "share of the responses that it ended by itself"),
            **{
                name: Column(_NUMBER, "0 to 1", f"mean over the responses of {words}")
                for name, words in TEXT_METRIC_WORDS.items()
            },
        },
    ),
    "tracker_failed": (
        "A tracker failed; the run goes on without it.",
        {"tracker": Column(_TEXT, "", "its name"), "reason": Column(_TEXT, "", "what happened")},
    ),
    "absent": ("Drawn clients were out of reach.", {"round": _ROUND, "clients": _CLIENTS}),
    "late": ("Drawn clients were not in time.", {"round": _ROUND, "clients": _CLIENTS}),
    "client_failure": (
        "A client failed.",
        {
            "round": _ROUND,
            "client": Column(_COUNT, "", "number of the client"),
            "kind": Column(_TEXT, "", "error, non_finite, lost or timeout"),
            "message": Column(_TEXT, "", "what happened"),
            "traceback": Column(_TEXT, "", "of an error, the first time that it occurs"),
        },
    ),
    "resumed": ("A process went on from a checkpoint.", {"round": _ROUND}),
    "recovered": (
        "State was lost, and the run went back.",
        {"round": _ROUND, "reason": Column(_TEXT, "", "what was lost")},
    ),
    "stopped": (
        "The run was left, interrupted, or ended by an error.",
        {"reason": Column(_TEXT, "", "kind of error"), "message": Column(_TEXT, "", "its sentence")},
    ),
    "stop": (
        "A rule, or a program, ended the run early.",
        {
            "round": _ROUND,
            "rule": Column(_TEXT, "", "target, patience, seconds, bytes, epsilon or call"),
            "reason": Column(_TEXT, "", "the same in words"),
        },
    ),
    "end": (
        "The run has finished.",
        {
            "round": _ROUND,
            "global_metric": SUMMARY["global_metric"],
            "personalised_metric": SUMMARY["personalised_metric"],
        },
    ),
}
"""What each kind of event says, and its fields beside those of every event."""

PROMPT: dict[str, Column] = {
    "format": Column(_COUNT, "", "1"),
    "fedsim": Column(_TEXT, "", "version that wrote it"),
    "model": Column(_GROUP, "", "section model of the config, without the device"),
    "prompt": Column(_GROUP, "", "section prompt of the config"),
    "max_length": Column(_COUNT, "tokens", "data.max_length"),
    "task": Column(_GROUP, "", "the task: fields, labels, template, label words, metric"),
    "tuner": Column(_GROUP, "", "section tuner of the config, as far as it gives the numbers their meaning"),
    "geometry": Column(_GROUP, "", "shape of what is trained in a layer"),
    "layers": Column(_LIST, "", "layers that the arrays are of"),
    "head_shapes": Column(_LIST, "", "name and shape of each array of the head"),
    "round": Column(_COUNT, "", "of best.safetensors: the round that it is of"),
}
"""Metadata ``fedsim`` (JSON) of ``prompt/global.safetensors`` and ``best.safetensors``."""

PERSONAL_PROMPT: dict[str, Column] = {"format": PROMPT["format"], "layers": PROMPT["layers"]}
"""Metadata ``fedsim`` (JSON) of ``prompt/personal.safetensors``."""

CHECKPOINT: dict[str, Column] = {
    "format": Column(_COUNT, "", "of the file; older ones are refused"),
    "round": Column(_COUNT, "", "last round that the state holds"),
    "layers": SUMMARY["layers"],
    "config": Column(_GROUP, "", "the keys that results depend on"),
    "contents": SUMMARY["contents"],
    "totals": Column(_GROUP, "", "running figures of the summary"),
    "fuse": SUMMARY["fuse"],
}
"""Metadata ``fedsim`` (JSON) of ``checkpoints/round-….safetensors``."""

SCALING_PROGRESS: dict[str, Column] = {
    "rounds": Column(_COUNT, "rounds", "of each run"),
    "runs": Column(_LIST, "", "runs that the last command was asked for, in order: clients, cohort, actors, repeat"),
    "running": Column(_GROUP, "", "the one under way; null between two, and at the end"),
    "failures": Column(_LIST, "", "runs that failed in the last command, each with its sentence"),
}
"""Fields of ``progress.json`` of a scaling study."""

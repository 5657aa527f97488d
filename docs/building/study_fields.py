"""Columns and fields of what studies write; types and names come from the code, which the tests hold against this."""

from __future__ import annotations

import ast
import inspect
from dataclasses import fields
from typing import Any

from fedsim.records.columns import TEXT_METRIC_WORDS, Column
from fedsim.scaling.accounting import PARTS
from fedsim.scaling.records import SCALING_COLUMNS
from fedsim.scaling.summary import PointSummary as ScalingPoint
from fedsim.study.exports import cell_columns, pair_columns
from fedsim.study.figures import CellFigures, CurvePoint
from fedsim.study.outcome import Difference, PairSummary
from fedsim.study.outcome import StudySummary as Study

_MEANINGS = {
    "dataset": "name of the data set",
    "arm": "name of the arm",
    "seed": "root of the run's draws",
    "status": "finished or failed",
    "sentence": "of a failed run: why; of a comparison: what it shows",
    "folder": "of the run",
    "metric_name": "the task's metric",
    "num_classes": "classes of the task",
    "rounds": "done",
    "round": "its number",
    "metric": "the global metric after it",
    "last": "global metric after the last round",
    "best": "best global metric of all rounds",
    "best_round": "the round of the best",
    "personalised": "metric with clients' own prompts on their held-out examples, at the end",
    "best_personalised": "the best of all rounds in which it was evaluated",
    "client_median": "median over clients of the metric on their held-out examples",
    "target": "the study's target; NaN without one",
    **{
        f"generated_{name}": f"{words}, of what the global model then wrote"
        for name, words in TEXT_METRIC_WORDS.items()
    },
    "target_round": "first round that reaches it",
    "target_bytes": "traffic until then, up and down",
    "target_seconds_published": "published time until then",
    "target_seconds_modelled": "modelled time until then",
    "bytes_up": "sent by real devices, all together",
    "bytes_down": "received by real devices, all together",
    "client_updates": "usable results of clients",
    "client_tokens": "tokens of all mini-batches",
    "seconds_wall": "wall time of the run",
    "seconds_published": "the longest local training of each round, summed",
    "target_seconds_wall": "wall time until then",
    "seconds_modelled": "time on the study's modelled devices",
    "curve": "one entry per evaluated round",
    "layers": "exchanged layers",
    "reference": "arm that it is compared with",
    "verdict": "better, worse, not shown or cannot show",
    "n": "pairs of seeds",
    "mean": "of the differences",
    "sd": "sample standard deviation of the differences",
    "high": "upper end of the interval",
    "losses": "seeds in which the arm is worse",
    "ties": "seeds without a difference",
}
_UNITS = {"bytes": "bytes", "seconds": "s", "parameters": "numbers", "tokens": "tokens", "share": "0 to 1"}

SCALING: dict[str, tuple[str, str]] = {
    "clients": ("clients", "registered"),
    "cohort": ("clients", "of a round"),
    "actors": ("", "as asked for: a number, pool or per_client"),
    "workers": ("workers", "that were started"),
    "repeat": ("", "number of the run of this point, from 1"),
    "round": ("", "from 1; the first includes warm-up"),
    "seconds_wall": ("s", "from the end of the previous round to the end of this one"),
    "seconds_train": ("s", "that the driver waited for work groups"),
    "seconds_server": ("s", "that the driver waited for the server"),
    "seconds_evaluate": ("s", "that evaluations took"),
    **{f"actor_seconds_{part}": ("actor-seconds", f"part {part} of the time accounting") for part in PARTS},
    "clients_ok": ("clients", "usable"),
    "clients_trained": ("clients", "usable, trained in this round"),
    "seconds_simulated": ("s", "on the virtual clock; null without one"),
    "client_steps": ("local steps", "of the usable clients"),
    "bytes_down": ("bytes", "received by real devices, all together"),
    "bytes_up": ("bytes", "sent by real devices, all together"),
}
"""Unit and meaning of each column of ``scaling.parquet``."""
SCALING_SUMMARY: dict[str, tuple[str, str]] = {
    "versions": ("group", "of fedsim and of the libraries that its figures depend on"),
    "machine": ("group", "CPUs, processor and system"),
    "points": ("list", "one entry per point, as below"),
    "failures": ("list", "points that failed, each with its sentence"),
    "strong_scaling": ("list", "the same work on more actors"),
    "weak_scaling": ("list", "more work on more actors"),
    "client_update": ("list", "wall time of a client update, by number of actors"),
    "predictions": ("group", "what the cost model predicts, and its error on points left out"),
    "notes": ("list", "sentences on missing and misleading figures"),
}
"""Type and meaning of each field of ``scaling.json``."""


def docstrings(schema: type) -> dict[str, str]:
    """Return the text below each field of a dataclass."""
    (tree,) = ast.parse(inspect.getsource(schema)).body
    assert isinstance(tree, ast.ClassDef)
    found = {}
    for field, text in zip(tree.body, tree.body[1:], strict=False):
        if isinstance(field, ast.AnnAssign) and isinstance(text, ast.Expr) and isinstance(text.value, ast.Constant):
            found[ast.unparse(field.target)] = str(text.value.value)
    return found


def cells() -> dict[str, Column]:
    """Return the columns of ``cells.parquet`` and ``cells.csv``."""
    return _described(cell_columns(), docstrings(CellFigures))


def pairs() -> dict[str, Column]:
    """Return the columns of ``pairs.parquet`` and ``pairs.csv``."""
    return _described(pair_columns(), docstrings(PairSummary) | docstrings(Difference))


def curve() -> dict[str, Column]:
    """Return the fields of an entry of the column ``curve``."""
    return _described({f.name: str(f.type) for f in fields(CurvePoint)}, docstrings(CurvePoint))


def study() -> dict[str, Column]:
    """Return the fields of a study's ``summary.json``."""
    more = {
        "name": "of the study",
        "reference": "arm that all others are compared with",
        "arms": "names of the arms",
        "datasets": "names of the data sets",
        "ratios": "what each arm needs to the target, as a multiple of the reference",
        "alpha": "level of the tests",
        "level": "of the intervals",
    }
    named = {f.name: str(f.type).partition("[")[0] for f in fields(Study) if f.name != "cells"}
    kinds = {"tuple": "list", "str": "text", "float": "number"}
    return _described({name: kinds[kind] for name, kind in named.items()}, docstrings(Study) | more)


def scaling() -> dict[str, Column]:
    """Return the columns of ``scaling.parquet``."""
    return {name: Column(SCALING_COLUMNS.get(name, ""), *about) for name, about in SCALING.items()}


def scaling_summary() -> dict[str, Column]:
    """Return the fields of ``scaling.json``."""
    return {name: Column(kind, "", meaning) for name, (kind, meaning) in SCALING_SUMMARY.items()}


def scaling_point() -> dict[str, Column]:
    """Return the fields of a point of ``scaling.json``."""
    texts = docstrings(ScalingPoint)
    inner = ("point", "parts", "first_parts")
    found: dict[str, Any] = dict.fromkeys(("clients", "cohort", "actors"), "integer")
    found |= {f.name: str(f.type) for f in fields(ScalingPoint) if f.name not in inner}
    more = {
        **{name: SCALING[name][1] for name in ("clients", "cohort", "actors", "workers")},
        "repeats": "runs of the point",
        "seconds_first_round": "wall time of the first round",
        "bytes_up": "the same, sent",
        "peak_driver_bytes": "largest resident memory of the driver",
        "peak_server_bytes": "of the server's process; null if it is the driver's",
        "actor_seconds": "time accounting, summed over rounds",
        "shares": "its parts as shares",
        "first_round_shares": "the same of first rounds",
    }
    return _described(found | dict.fromkeys(("actor_seconds", "shares", "first_round_shares"), "group"), texts | more)


def _described(kinds: dict[str, str], texts: dict[str, str]) -> dict[str, Column]:
    return {name: Column(kind, _unit(name), texts.get(name) or _MEANINGS.get(name, "")) for name, kind in kinds.items()}


def _unit(name: str) -> str:
    return next((unit for word, unit in _UNITS.items() if word in name.split("_")), "")

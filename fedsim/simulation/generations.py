"""Generation in a run: when the model writes, to which examples, and how its texts compare to those of the data."""

from __future__ import annotations

import functools
import operator
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any

from clients.generation_settings import GenerationSpec
from fedsim.core.generated import Generated
from fedsim.core.imports import large_imports
from fedsim.core.messages import ClientFailure
from fedsim.data.text_metrics import score_texts
from fedsim.data.written import reference
from fedsim.simulation.open_round import did_not_fit

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

    from fedsim.data.sources import Examples
    from fedsim.executors.base import Handle
    from fedsim.simulation.context import RunContext
    from fedsim.simulation.federation import Federation

Rows = tuple[Mapping[str, Any], ...]
"""Rows of ``generations.parquet``."""


@dataclass(frozen=True)
class FinalTexts:
    """What the model wrote last, and before any training."""

    metrics: tuple[str, ...]
    """Names of the text metrics."""
    rows: Rows
    """Of the global model."""
    start: Rows
    """Of the global model before any training; none if it did not write then."""
    personal: Rows
    """Of clients' own models."""
    new: Rows
    """Those of all these rows that are not on record yet."""

    def summary(self) -> dict[str, Any]:
        """Return how the texts compare to those of the data."""
        parts = {"start": self.start, "personal": self.personal}
        others = {name: figures(rows, self.metrics) for name, rows in parts.items() if rows}
        return {**figures(self.rows, self.metrics), **others}

    def new_figures(self) -> dict[int, dict[str, Any]]:
        """Return, by round, how the global model's texts that are not on record yet compare to those of the data."""
        new = [row for row in self.new if row["client"] is None]
        rounds = sorted({row["round"] for row in new})
        return {round: figures([row for row in new if row["round"] == round], self.metrics) for round in rounds}


def figures(rows: Sequence[Mapping[str, Any]], metrics: Sequence[str]) -> dict[str, Any]:
    """Return the number of responses, the mean number of their tokens, the share that was ended, and their text metrics."""
    if not rows:
        return {"examples": 0}
    scores = score_texts([row["text"] for row in rows], [row["reference"] for row in rows], metrics)
    about = {name: sum(row[name] for row in rows) / len(rows) for name in ("tokens", "ended")}
    return {"examples": len(rows), **about, **scores}


class Generations:
    """Lets the global model, and clients' own, write responses, as set in ``evaluation.generate``."""

    def __init__(self, run: RunContext, spec: GenerationSpec) -> None:
        self._run, self._spec = run, spec
        config, total = run.config, len(spec.examples_N)
        assert config.evaluation.generate is not None
        self._every, self._rounds = config.evaluation.generate.every, config.rounds
        self.at_start = config.evaluation.generate.at_start
        """Whether the global model writes before any training."""
        self.metrics: tuple[str, ...] = config.evaluation.generate.metrics
        """Names of the text metrics, the main one first."""
        size = config.evaluation.shard_size
        self._ranges = [(start, min(start + size, total)) for start in range(0, total, size)]
        shards = run.prepared.spec.shards
        clients = range(shards.num_clients) if spec.client_examples else ()
        self._clients = [client for client in clients if len(shards.holdout(client))]

    @classmethod
    def of(cls, run: RunContext) -> Generations | None:
        """Return the generations of a run; None where it has none."""
        spec = run.prepared.spec.generation
        return None if spec is None else cls(run, spec)

    def is_due(self, round: int) -> bool:
        """Whether the global model writes after a round, counted from 1, for that round's record; 0 stands for the start."""
        if round == 0:
            return self.at_start
        return round == self._rounds or (self._every > 0 and round % self._every == 0)

    def record(self, rows: Rows, round: int) -> dict[str, float]:
        """Record what the global model wrote after a round; return the columns of the round's record that it fills."""
        if not rows:
            return {}
        found = figures(rows, self.metrics)
        self._run.folder.generation_records(rows)
        self._run.folder.event("generated", round=round, only_at_end=False, **found)
        return {f"generated_{name}": found[name] for name in self.metrics}

    def of_state(self, state: Handle, round: int) -> Rows:
        """Return what a global state writes to the validation examples chosen for it."""
        made = functools.reduce(operator.add, self._run.executor.generate(state, self._ranges))
        self._warn(made, round)
        return self._rows(made, self._run.prepared.data.dataset.validation, round, None)

    def of_clients(self, state: Handle, states: Mapping[int, Handle], round: int) -> Rows:
        """Return what each client's own model writes to its first held-out examples; none of clients that failed."""
        run, clients = self._run, self._clients
        size = 1 if run.executor.per_client else 4 * run.config.group_size
        groups = [tuple(clients[start : start + size]) for start in range(0, len(clients), size)]
        results = run.executor.generate_clients(state, groups, states) if groups else []
        by_client = dict(zip(clients, results, strict=True))
        run.failures.of_evaluation(round, {c: r for c, r in by_client.items() if isinstance(r, ClientFailure)})
        found: list[Mapping[str, Any]] = []
        for client, made in by_client.items():
            if isinstance(made, Generated):
                self._warn(made, round)
                found += self._rows(made, run.prepared.data.dataset.train, round, client)
        return tuple(found)

    def at_end(self, federation: Federation) -> FinalTexts:
        """Return what is written last, by the global model and by clients' own, and before any training, in so far as this is
        not on record.
        """
        state, states, round = federation.state, federation.clients, federation.round
        known: dict[int, Rows] = {}
        for row in self._run.folder.recorded_generations():
            known[row["round"]] = (*known.get(row["round"], ()), row)
        last = known.get(round) or self._at_end(self.of_state(state, round))
        start: Rows = ()
        if self.at_start and round:
            start = known.get(0) or self._at_end(self.of_state(federation.initial_state(), 0))
        personal = self._at_end(self.of_clients(state, states, round))
        new = tuple(row for row in (*start, *last, *personal) if row["only_at_end"])
        return FinalTexts(self.metrics, last, start, personal, new)

    @staticmethod
    def _at_end(rows: Rows) -> Rows:
        return tuple({**row, "only_at_end": True} for row in rows)

    def _rows(self, made: Generated, examples: Examples, round: int, client: int | None) -> Rows:
        from clients.generation import prompt_ids
        from fedsim.simulation.generation_spec import decoded

        spec, task = self._run.prepared.spec, self._run.prepared.data.task
        table = spec.validation if client is None else spec.train
        ends = self._spec.decoding.end_ids
        rows = []
        for example, ids in zip(made.examples_N.tolist(), made.responses, strict=True):
            ended = bool(len(ids)) and int(ids[-1]) in ends
            rows.append(
                {
                    "round": round,
                    "client": client,
                    "example": example,
                    "prompt": decoded(self._tokenizer, prompt_ids(table, example)),
                    "reference": reference(examples.texts[example], task).strip(),
                    "text": decoded(self._tokenizer, ids[:-1] if ended else ids),
                    "tokens": len(ids),
                    "ended": ended,
                    "only_at_end": False,
                }
            )
        return tuple(rows)

    @cached_property
    def _tokenizer(self) -> PreTrainedTokenizerBase:
        with large_imports():
            from clients.backbone.loading import load_tokenizer

            return load_tokenizer(self._run.config.model)

    def _warn(self, made: Generated, round: int) -> None:
        if made.memory_splits:
            self._run.progress.note(
                f"warning: responses after round {round}: {did_not_fit(made.memory_splits)}; set evaluation.batch_size to less "
                f"than {self._run.config.evaluation.batch_size}"
            )

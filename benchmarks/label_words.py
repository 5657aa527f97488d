"""Label words of two tokens against words of one token, on the same texts: a group's local training, and an evaluation.

    python -m benchmarks.label_words --model FOLDER

Both sides read the same reviews with the same template and tuner; only the words differ. All candidates of an example share one
pass over its text, so words of two tokens cost their own tokens and the LM head over the vocabulary. Seconds are those of the
processor, on one thread, so that other processes on the machine matter little.
"""

from __future__ import annotations

import time
from pathlib import Path
from typing import Annotated

import typer

from benchmarks.measure import Row, compare, in_turn, present
from clients.worker import ClientWorker
from fedsim.configuration.schema import Config, read_config
from fedsim.core.messages import ClientState, GlobalState, WorkGroup
from fedsim.simulation.preparation import prepare

ROOT = Path(__file__).parents[1]
ONE, TWO = "words of one token", "words of two tokens"
WORDS = {ONE: [["terrible"], ["great"]], TWO: [["not good"], ["very good"]]}
CLIENTS = (0, 1, 2, 3)
TASK = {
    "name": "reviews",
    "fields": ["text"],
    "labels": ["negative", "positive"],
    "template": "{text} . It was <mask> .",
}


def config_of(words: list[list[str]], model: str, overrides: list[str]) -> Config:
    """Return the run whose clients are measured."""
    changes = {
        "model": {"path": model},
        "data": {"task": {**TASK, "label_words": words}, "train_examples": 320, "validation_examples": 200},
        "partition": {"clients": 8},
        "sampling": {"clients_per_round": 4},
        "client": {"epochs": 1, "fuse": len(CLIENTS)},
    }
    return read_config(ROOT / "configs" / "quickstart.yaml", overrides, changes)


class Side:
    """A worker with label words of one kind."""

    def __init__(self, words: list[list[str]], model: str, overrides: list[str]) -> None:
        config = config_of(words, model, overrides)
        spec = prepare(config).spec
        found = spec.train.words
        self.tokens = 1 if found is None else int(found.lengths_W.max())
        """Tokens of the longest word."""
        self._worker = ClientWorker(spec)
        full = self._worker.info().full
        layers = tuple(range(full.geometry.num_layers // 2, full.geometry.num_layers)) if len(full.layers) > 1 else None
        exchanged = full if layers is None else full.exchanged(layers)
        self._state = GlobalState(0, exchanged.layers, spec.initial_vector(exchanged))
        self._stop = len(spec.validation)
        self._states = [ClientState(client) for client in CLIENTS]

    def train(self) -> float:
        """Return the seconds of a group's local training."""
        group = WorkGroup(0, 0, CLIENTS, fuse=len(CLIENTS))
        started = time.process_time()
        self._worker.train(group, self._state, *self._states)
        return time.process_time() - started

    def evaluate(self) -> float:
        """Return the seconds of an evaluation, frozen layers included."""
        started = time.process_time()
        self._worker.evaluate(self._state, 0, self._stop)
        return time.process_time() - started


def measure(model: str, runs: int, overrides: list[str] | None = None) -> list[Row]:
    """Measure both sides in turn, after one run of each."""
    sides = {name: Side(words, model, overrides or []) for name, words in WORDS.items()}
    tokens = {name: side.tokens for name, side in sides.items()}
    if tokens != {ONE: 1, TWO: 2}:
        raise typer.BadParameter(f"the tokenizer of {model} makes words of {tokens} tokens; give a model that has them")
    rows = []
    for work in ("train", "evaluate"):
        figures = in_turn({name: getattr(side, work) for name, side in sides.items()}, runs + 1)
        rows += compare(
            "label words", {name: values[1:] for name, values in figures.items()}, "CPU s", ONE, f"{work}: "
        )
    return rows


def main(
    model: Annotated[str, typer.Option(help="embedded, or a folder with a model.")] = "embedded",
    runs: Annotated[int, typer.Option(help="Runs of each side.")] = 5,
    overrides: Annotated[list[str] | None, typer.Argument(help="KEY=VALUE words for both sides.")] = None,
) -> None:
    """Measure words of two tokens against words of one."""
    present(measure(model, runs, overrides))


if __name__ == "__main__":
    typer.run(main)

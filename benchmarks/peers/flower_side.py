"""The same work in Flower's simulation engine; run by ``benchmarks.peers`` with the interpreter of Flower's environment.

A strategy of one's own chooses the clients, as the cohort of each round is given; the average is Flower's own FedAvg. Two
messages of evaluation share the validation examples, so that both workers are busy.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
from flwr.app import ArrayRecord, ConfigRecord, Context, Message, MessageType, MetricRecord, RecordDict
from flwr.clientapp import ClientApp
from flwr.serverapp import Grid, ServerApp
from flwr.serverapp.strategy import FedAvg
from flwr.simulation import run_simulation

from benchmarks.peers.files import Events, Plan

WORKERS = 2


class Rounds(FedAvg):
    """FedAvg with given cohorts.

    Parameters
    ----------
    plan
        Names the clients of each round.
    config
        What every message tells the clients.
    evaluates
        Evaluate after every round.
    """

    def __init__(self, plan: Plan, config: dict[str, Any], evaluates: bool, events: Events) -> None:
        super().__init__(weighted_by_key="examples")
        self._plan, self._config, self._evaluates, self._events = plan, config, evaluates, events
        self._nodes: list[int] = []

    def configure_train(
        self, server_round: int, arrays: ArrayRecord, config: ConfigRecord, grid: Grid
    ) -> Iterable[Message]:
        while len(self._nodes) < self._plan.clients:  # they are registered while the server is starting
            time.sleep(0.01)
            self._nodes = sorted(grid.get_node_ids())
        for client in self._plan.cohorts_Rk[server_round - 1].tolist():
            node = self._nodes[client]
            yield self._message(arrays, MessageType.TRAIN, node, round=server_round - 1, client=client)

    def configure_evaluate(
        self, server_round: int, arrays: ArrayRecord, config: ConfigRecord, grid: Grid
    ) -> Iterable[Message]:
        for part in range(WORKERS if self._evaluates else 0):
            yield self._message(arrays, MessageType.EVALUATE, self._nodes[part], part=part, parts=WORKERS)

    def aggregate_train(
        self, server_round: int, replies: Iterable[Message]
    ) -> tuple[ArrayRecord | None, MetricRecord | None]:
        replies = list(replies)
        _check(replies, self._plan.cohorts_Rk.shape[1])
        return super().aggregate_train(server_round, replies)

    def aggregate_evaluate(self, server_round: int, replies: Iterable[Message]) -> MetricRecord | None:
        if not self._evaluates:
            self._events.round(server_round)
            return None
        replies = list(replies)
        _check(replies, WORKERS)
        metrics = super().aggregate_evaluate(server_round, replies)
        assert metrics is not None
        self._events.round(server_round, loss=float(metrics["loss"]), accuracy=float(metrics["accuracy"]))
        return metrics

    def _message(self, arrays: ArrayRecord, kind: str, node: int, **values: int) -> Message:
        content = RecordDict({"arrays": arrays, "config": ConfigRecord({**self._config, **values})})
        return Message(content=content, message_type=kind, dst_node_id=node)


def _check(replies: list[Message], expected: int) -> None:
    """Flower goes on without clients that failed; a benchmark must not."""
    errors = [reply.error.reason for reply in replies if reply.has_error()]
    if errors or len(replies) != expected:
        raise RuntimeError(f"{len(replies)} of {expected} clients replied, {len(errors)} with an error: {errors[:1]}")


client_app = ClientApp()


@client_app.train()
def train(message: Message, context: Context) -> Message:
    config = message.content["config"]
    (vector_F,) = message.content["arrays"].to_numpy_ndarrays()
    if "work" in config:
        from benchmarks.peers.work import plain_clients

        vector_F, examples = plain_clients(config["work"]).train(config["round"], config["client"], vector_F)
    else:
        vector_F, examples = vector_F + np.float32(1.0), 1
    metrics = MetricRecord({"examples": examples})
    return Message(content=RecordDict({"arrays": ArrayRecord([vector_F]), "metrics": metrics}), reply_to=message)


@client_app.evaluate()
def evaluate(message: Message, context: Context) -> Message:
    from benchmarks.peers.work import plain_clients

    config = message.content["config"]
    (vector_F,) = message.content["arrays"].to_numpy_ndarrays()
    counts = plain_clients(config["work"]).evaluate(vector_F, config["part"], config["parts"])
    metrics = MetricRecord(
        {
            "examples": counts.examples,
            "loss": counts.loss_sum / counts.examples,
            "accuracy": counts.correct / counts.examples,
        }
    )
    return Message(content=RecordDict({"metrics": metrics}), reply_to=message)


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--rounds", type=int, required=True)
    parser.add_argument("--work", type=Path, help="Folder of the work; without it vectors are sent to and fro.")
    parser.add_argument("--clients", type=int, default=0)
    parser.add_argument("--elements", type=int, default=0)
    options = parser.parse_args()
    if options.work is None:
        plan, config = Plan.everyone(options.clients, options.rounds, options.elements), {}
    else:
        plan, config = Plan.load(options.work), {"work": str(options.work)}
    events = Events(options.out)
    server_app = ServerApp()

    @server_app.main()
    def serve(grid: Grid, context: Context) -> None:
        strategy = Rounds(plan, config, options.work is not None, events)
        result = strategy.start(grid, ArrayRecord([plan.start_F]), options.rounds)
        events.end(result.arrays.to_numpy_ndarrays()[0])

    run_simulation(
        server_app,
        client_app,
        num_supernodes=plan.clients,
        backend_config={
            "init_args": {"address": "local", "num_cpus": WORKERS, "num_gpus": 0},
            "client_resources": {"num_cpus": 1, "num_gpus": 0.0},
        },
    )

"""Real rounds of a config of configs/methods, small, with each client's result in sight."""

from __future__ import annotations

import numpy as np
from support import ROOT

from clients.tuners.lora_halves import completed
from clients.worker import ClientWorker
from fedsim.configuration.schema import Config, read_config
from fedsim.core.messages import VECTOR, ClientState, WorkGroup
from fedsim.simulation.preparation import prepare
from server.core import Server

TINY = (
    "rounds=3", "group_size=2", "data.train_examples=240", "data.validation_examples=60", "partition.clients=12",
    "sampling.clients_per_round=5", "client.epochs=1", "tracking.plots=false", "executor=local",
)  # fmt: skip


def shipped(name: str, *overrides: str) -> Config:
    return read_config(ROOT / f"configs/methods/{name}.yaml", (*TINY, *overrides))


class Rounds:
    """A server and its clients, with what every client has after a round, and what the server has."""

    def __init__(self, config: Config, clients: tuple[int, ...] = (0, 3, 5)) -> None:
        self.config, self.clients = config, clients
        spec = prepare(config).spec
        self.spec, self.worker = spec, ClientWorker(spec)
        full = self.worker.info().full
        self.layout, self.turns = spec.exchanged(full, full.layers), spec.turns(full, full.layers)
        vector_F = spec.initial_vector(self.layout).astype(config.model.exchange_dtype)
        self.server = Server(
            config.method, vector_F, full.layers, 0.5, None, config.rule, self.turns, spec.tuner.low_rank(self.layout)
        )
        self.states = {client: ClientState(client) for client in clients}

    def play(self, round: int) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
        """Return the vector before, the clients' vectors [C, F] and weights, and the vector after."""
        state = self.server.global_state()
        returns = [
            self.worker.train(WorkGroup(round, group, (client,)), state, self.states[client])
            for group, client in enumerate(self.clients)
        ]
        self.states = {done.states[0].client: done.states[0] for done in returns}
        updates = [done.update for done in returns]
        own = self.turns[round % len(self.turns)] if self.turns else np.arange(self.layout.size)
        vectors = np.stack([state.vector_F] * len(updates))
        vectors[:, own] = [update.sums[VECTOR] / update.weight_sum for update in updates]
        self.server.apply(round, self.clients, *updates)
        weights = np.array([update.weight_sum for update in updates])
        return state.vector_F, vectors, weights / weights.sum(), self.server.global_state().vector_F

    def changes(self, vector_F: np.ndarray) -> dict[str, np.ndarray]:
        """Return what is added to each map, [L, O, I]: s B A, and a residual if there is one."""
        tuned_LX, _ = self.layout.split(vector_F)
        layout, whole_LX = completed(self.config.tuner, self.layout, tuned_LX, self.config.seed)
        arrays = layout.geometry.split(whole_LX)
        found = {}
        for target in [name.removesuffix(".lora_A") for name in arrays if name.endswith("lora_A")]:
            product = arrays[f"{target}.lora_B"] @ arrays[f"{target}.lora_A"]
            found[target] = self.spec.tuner.scale * product + arrays.get(f"{target}.residual", 0.0)
        return found

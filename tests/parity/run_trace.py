"""A trace of a whole run as a fedsim run: its config, examples, vector layout and rounds."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import cached_property

import numpy as np
from support import merged
from test_server_golden import server_config

from clients.backbone.loading import load_shared_weights
from clients.training.local_job import Parts
from clients.tuners.prefix_tuner import PrefixTuner
from clients.worker import ClientWorker, WorkerSpec
from fedsim.configuration.schema import Config, build_config
from fedsim.core.layout import PromptGeometry, VectorLayout
from fedsim.core.messages import ClientState, GlobalState, GroupUpdate, WorkGroup
from fedsim.core.shards import Shards
from fedsim.core.tokens import TokenTable
from fedsim.simulation.preparation import analysis_spec, training_spec
from server.aggregation import combine
from server.core import Server
from server.sampling import cut


@dataclass(frozen=True)
class Trace:
    """The arrays of a trace and what its description says.

    Shape suffixes of vectors: F exchanged entries, M personal ones, A all that a client trains, W those of all layers.
    """

    name: str
    arrays: dict[str, np.ndarray]
    about: dict
    model: dict
    """Configuration of the model of 05_forward."""
    folder: str
    """Folder of that model."""
    dtype: str
    changes: dict = field(default_factory=dict)
    """Config keys that override the trace's."""

    @cached_property
    def config(self) -> Config:
        """The config of a run that does what the trace does."""
        return build_config(
            merged(
                {
                    "model": {"path": self.folder, "dtype": self.dtype, "head": {"loss": "vocabulary"}},
                    "prompt": {"length": len(self.arrays["initial_prefix"]), "position_offset": "paper"},
                    "layers": {
                        "choose": "fixed",
                        "fixed": self.about["prompt_layer_list"],
                        "unselected": "local" if self.about["personalization"] else "none",
                    },
                    "partition": {"clients": len(self.about["client_samples"])},
                    "sampling": {"clients_per_round": self.arrays["selected"].shape[1]},
                    "client": self._client(),
                    "server": server_config(self.name, self.about["server_lr_start"]).model_dump(mode="json"),
                },
                self.changes,
            )
        )

    def _client(self) -> dict:
        about = self.about
        return {
            "epochs": about["local_eps"],
            "batch_size": about["batch_size"],
            "shuffle": False,
            "correction": "none",
            "optimizer": {
                "kind": "adamw_published",
                "moments": "keep",
                "lr": about["learning_rate"],
                "beta1": about["betas"][0],
                "beta2": about["betas"][1],
                "eps": about["adam_eps"],
                "weight_decay": about["weight_decay"],
                "clip_norm": about["max_grad_norm"],
            },
            "schedule": {"kind": "linear", "total_steps": int(re.search(r"over (\d+) steps", about["schedule"])[1])},
        }

    def spec(self, steps: int | None = None) -> WorkerSpec:
        """Return the worker specification; ``steps`` cuts every local training short."""
        config = self.config
        if steps is not None:
            client = config.client.model_copy(update={"epochs": None, "steps": steps})
            config = config.model_copy(update={"client": client})
        table, shards = self.examples
        words = np.arange(self.model["vocab_size"])  # labels of the trace are token ids
        return WorkerSpec(
            weights=load_shared_weights(config.model),
            model=config.model,
            tuner=PrefixTuner(config.prompt),
            num_classes=len(words),
            label_word_ids_C=words,
            training=training_spec(config, len(table)),
            analysis=analysis_spec(config),
            train=table,
            validation=table,
            shards=shards,
        )

    @cached_property
    def examples(self) -> tuple[TokenTable, Shards]:
        """The texts of all clients, one client after another, and whose they are."""
        names = ("input_ids", "attention_mask", "mask_pos", "labels")
        data = [
            [self.arrays[f"data/{client}/{name}"] for name in names] for client in range(self.config.partition.clients)
        ]
        rows = [row[mask == 1] for ids, masks, *_ in data for row, mask in zip(ids, masks, strict=True)]
        table = TokenTable(
            ids_Z=np.concatenate(rows).astype(np.int32),
            offsets_N1=starts(map(len, rows)),
            read_positions_N=np.concatenate([reads for *_, reads, _ in data]).astype(np.int32),
            labels_N=np.concatenate([labels for *_, labels in data]).astype(np.int64),
            pad_id=self.model["pad_token_id"],
        )
        offsets_C1 = starts(self.about["client_samples"])
        return table, Shards(np.arange(len(table)), offsets_C1, offsets_C1[1:])

    # -- vectors ---------------------------------------------------------------------------------------------------------

    @cached_property
    def full(self) -> VectorLayout:
        heads = self.model["num_attention_heads"]
        size = self.model["hidden_size"] // heads
        return VectorLayout.full(
            PromptGeometry(self.model["num_hidden_layers"], heads, self.config.prompt.length, size)
        )

    @cached_property
    def parts(self) -> Parts:
        return Parts.of(self.full, tuple(self.about["prompt_layer_list"]), self.config.layers.unselected == "local")

    def vectors(self, prefixes: np.ndarray) -> np.ndarray:
        """Turn published prefixes [..., P, L * 2 * H] into vectors [..., W]."""
        num_layers, keys_values, heads, length, size = self.full.tuned_shape
        *front, _, _ = prefixes.shape
        view = prefixes.reshape(-1, length, num_layers, keys_values, heads, size)
        return view.transpose(0, 2, 3, 4, 1, 5).reshape(*front, -1).astype(self.dtype)

    def exchanged_F(self, prefixes: np.ndarray) -> np.ndarray:
        """Return the exchanged entries [..., F] of published prefixes."""
        return self.vectors(prefixes)[..., self.full.positions(self.parts.exchanged)]

    def personal_M(self, prefixes: np.ndarray) -> np.ndarray:
        """Return the entries [..., M] of published prefixes that stay on the device; M is 0 where nothing does."""
        return self.vectors(prefixes)[..., self.full.positions(self.parts.personal)]

    def state_M(self, state: ClientState) -> np.ndarray:
        """Return a client's personal entries; empty where it keeps none."""
        return state.arrays.get("personal", np.empty(0, self.dtype))


def starts(lengths) -> np.ndarray:
    """Return where pieces of these lengths start, and where the last one ends."""
    return np.cumsum([0, *lengths])


@dataclass(frozen=True)
class Round:
    """A fedsim round."""

    number: int
    order: tuple[int, ...]
    start: GlobalState
    states_before: dict[int, ClientState]
    states: dict[int, ClientState]
    """States of all clients after the round."""
    updates: list[GroupUpdate]
    average_F: np.ndarray
    end: GlobalState
    server: dict[str, np.ndarray]
    """The server's own state after the round."""


def rounds(trace: Trace, group_size: int = 1, fuse: int = 1) -> Iterator[Round]:
    """Run worker and server as an executor does, from the initial prefix and with the cohorts of a trace."""
    worker, config, initial = ClientWorker(trace.spec()), trace.config, trace.arrays["initial_prefix"]
    server = Server(config.method, trace.exchanged_F(initial), trace.parts.exchanged.layers, trace.about["sample_rate"])
    personal = {"personal": trace.personal_M(initial)} if config.layers.unselected == "local" else {}
    states = {client: ClientState(client, arrays=personal) for client in range(config.partition.clients)}
    for number, order in enumerate(trace.arrays["selected"].tolist()):
        start, before, updates = server.global_state(), dict(states), []
        for group, clients in enumerate(cut(order, group_size)):
            work = WorkGroup(number, group, clients, fuse=fuse)
            reports, update, *new = worker.train(work, start, *(before[client] for client in clients)).pack()
            assert [report.failure for report in reports] == [None] * len(clients)
            states |= {state.client: state for state in new}
            updates.append(update)
        server.apply(number, tuple(order), *updates)
        average_F = combine(updates, order).vector_F
        end = server.global_state()
        yield Round(number, tuple(order), start, before, dict(states), updates, average_F, end, server.arrays())

"""The work of all sides: its files, and the client loop that a careful user of a peer would write.

The peers run fedsim's own frozen model with prompts (:class:`clients.backbone.model.Backbone`), token tables and shards; what
differs is who transfers vectors and who calls the model. Nothing here imports Ray, Flower or pfl.

Shape suffixes: F entries of the exchanged vector, B examples of a batch, N examples.
"""

from __future__ import annotations

import functools
import json
from collections.abc import Iterator
from dataclasses import dataclass, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from safetensors.numpy import load_file, save_file
from torch import Tensor

from benchmarks.peers.files import Plan
from clients.backbone.families import FAMILIES
from clients.backbone.model import Backbone
from clients.backbone.shared_weights import SharedWeights
from clients.config import ClientConfig, ModelConfig, PromptConfig
from clients.tuners.config import TunerConfig
from clients.tuners.make import make_tuner
from fedsim.core import seeds
from fedsim.core.layout import VectorLayout
from fedsim.core.shards import Shards
from fedsim.core.tokens import TokenTable

if TYPE_CHECKING:
    from fedsim.configuration.schema import Config


@dataclass(frozen=True)
class Work:
    """A federated run without the framework: model, data, who holds what, who trains when."""

    weights: SharedWeights
    model: ModelConfig
    prompt: PromptConfig
    tuner: TunerConfig
    client: ClientConfig
    train: TokenTable
    validation: TokenTable
    shards: Shards
    num_classes: int
    layers: tuple[int, ...]
    """Prompted layers."""
    constants: dict[str, np.ndarray]
    """Frozen arrays of the tuner, by name."""
    seed: int
    evaluation_batch_size: int
    autocast: bool = False
    """Whether the plain loop runs under ``torch.autocast`` in bfloat16."""

    @classmethod
    def of(cls, config: Config, rounds: int) -> tuple[Work, Plan]:
        """Return the work and the plan of a config: what ``fedsim run`` makes of it before its first round."""
        from clients.tuners.initial import initial_vector
        from fedsim.simulation.preparation import prepare
        from server.sampling import cohort

        spec = prepare(config).spec
        backbone = Backbone.build(spec.weights, spec.model, spec.tuner, spec.num_classes, None, "cpu")
        full = VectorLayout.full(backbone.geometry, backbone.head_shapes)
        layers = full.layers if config.layers.fixed is None else tuple(sorted(config.layers.fixed))
        sizes_N = spec.shards.train_sizes
        cohorts = [cohort(config.sampling, config.seed, round, sizes_N) for round in range(rounds)]
        start_F = initial_vector(full.exchanged(layers), spec.tuner, spec.model.head, config.seed)
        work = cls(
            weights=spec.weights,
            model=spec.model,
            prompt=config.prompt,
            tuner=config.tuner,
            client=spec.training.client,
            train=spec.train,
            validation=spec.validation,
            shards=spec.shards,
            num_classes=spec.num_classes,
            layers=layers,
            constants=dict(spec.tuner.constants),
            seed=config.seed,
            evaluation_batch_size=config.evaluation.batch_size,
        )
        return work, Plan(spec.shards.num_clients, np.array(cohorts), start_F)

    def save(self, folder: Path) -> None:
        """Write the work as one JSON file and one safetensors file."""
        arrays = {f"weights/{name}": array for name, array in self.weights.arrays.items()}
        arrays |= {f"constants/{name}": array for name, array in self.constants.items()}
        values: dict[str, Any] = {key: getattr(self, key) for key in _PLAIN}
        values |= {key: getattr(self, key).model_dump(mode="json") for key in _SCHEMAS}
        values["weights"] = {key: getattr(self.weights, key) for key in ("config_json", "kind", "dtype", "aliases")}
        for part in _TABLES:
            for field in fields(getattr(self, part)):
                value = getattr(getattr(self, part), field.name)
                (arrays if isinstance(value, np.ndarray) else values)[f"{part}/{field.name}"] = value
        save_file({name: np.asarray(array, order="C") for name, array in arrays.items()}, folder / "work.safetensors")
        (folder / "work.json").write_text(json.dumps(values), encoding="utf-8")

    @classmethod
    def load(cls, folder: Path) -> Work:
        """Read what :meth:`save` wrote."""
        arrays = load_file(folder / "work.safetensors")
        values = json.loads((folder / "work.json").read_text(encoding="utf-8"))

        def part(name: str) -> dict[str, Any]:
            both = {**values, **arrays}
            return {key.removeprefix(f"{name}/"): both[key] for key in both if key.startswith(f"{name}/")}

        about = values["weights"]
        about["aliases"] = tuple(tuple(pair) for pair in about["aliases"])
        family = FAMILIES[json.loads(about["config_json"])["model_type"]]
        return cls(
            weights=SharedWeights(arrays=part("weights"), family=family, **about),
            **{key: schema.model_validate(values[key]) for key, schema in _SCHEMAS.items()},
            **{name: table(**part(name)) for name, table in _TABLES.items()},
            layers=tuple(values["layers"]),
            constants=part("constants"),
            **{key: values[key] for key in ("num_classes", "seed", "evaluation_batch_size", "autocast")},
        )


_PLAIN = ("num_classes", "layers", "seed", "evaluation_batch_size", "autocast")
_SCHEMAS: dict[str, Any] = {"model": ModelConfig, "client": ClientConfig, "prompt": PromptConfig, "tuner": TunerConfig}
_TABLES: dict[str, Any] = {"train": TokenTable, "validation": TokenTable, "shards": Shards}


@dataclass(frozen=True)
class Counts:
    """Counts of an evaluation; parts add up."""

    loss_sum: float
    correct: int
    examples: int


class PlainClients:
    """Trains and evaluates in a plain PyTorch loop; one per worker process, for all its clients."""

    def __init__(self, work: Work) -> None:
        torch.set_num_threads(work.client.threads)
        self.work = work
        tuner = make_tuner(work.tuner, work.prompt, work.weights.family)
        self._backbone = Backbone.build(work.weights, work.model, tuner, work.num_classes, None, "cpu")
        self._layout = VectorLayout.full(self._backbone.geometry, self._backbone.head_shapes).exchanged(work.layers)

    def parameters(self, vector_F: np.ndarray) -> dict[str, Tensor]:
        """Return a copy of the vector as the tensors that an optimizer trains, by name."""
        prompt_LKHPD, head = self._layout.split(torch.tensor(vector_F))
        return {name: tensor.clone().requires_grad_() for name, tensor in {"prompt": prompt_LKHPD, **head}.items()}

    def vector(self, parameters: dict[str, Tensor]) -> np.ndarray:
        """Return the flat vector of trained tensors."""
        arrays = {name: tensor.detach().numpy() for name, tensor in parameters.items()}
        return self._layout.join(arrays.pop("prompt"), arrays)

    def read(self, parameters: dict[str, Tensor], table: TokenTable, indices_B: np.ndarray) -> tuple[Tensor, Tensor]:
        """Return losses [B] and whether each prediction is right [B], in the work's number format."""
        with torch.autocast("cpu", torch.bfloat16, enabled=self.work.autocast):
            return self.losses(parameters, table, indices_B)

    def losses(self, parameters: dict[str, Tensor], table: TokenTable, indices_B: np.ndarray) -> tuple[Tensor, Tensor]:
        """Return losses [B] and whether each prediction is right [B]."""
        batch = table.batch(indices_B)
        head = {name: tensor.unsqueeze(0) for name, tensor in parameters.items() if name != "prompt"}
        reading = self._backbone.forward(batch, parameters["prompt"].unsqueeze(0), self.work.layers, head)
        return reading.loss_B, reading.logits_BC.argmax(1) == torch.from_numpy(batch.labels_B)

    def epochs(self, round: int, client: int) -> Iterator[Iterator[np.ndarray]]:
        """Yield, for each pass over a client's examples, the batches of example numbers in the order of fedsim."""
        indices_N, size = self.work.shards.train(client), self.work.client.batch_size
        rng = seeds.stream(self.work.seed, round, client, "shuffle")
        for _ in range(self.work.client.epochs or 0):
            order_N = indices_N[rng.permutation(len(indices_N))]
            yield (order_N[start : start + size] for start in range(0, len(order_N), size))

    def optimizer(self, parameters: Any, lr: float) -> torch.optim.Optimizer:
        """Return the client's optimizer."""
        config = self.work.client.optimizer
        betas = (config.beta1, config.beta2)
        return torch.optim.AdamW(parameters, lr=lr, betas=betas, eps=config.eps, weight_decay=config.weight_decay)

    def train(self, round: int, client: int, vector_F: np.ndarray) -> tuple[np.ndarray, int]:
        """Train one client from the global vector; return its vector and its number of examples.

        Parameters
        ----------
        round
            Counted from 0.
        """
        config = self.work.client.optimizer
        parameters = self.parameters(vector_F)
        optimizer = self.optimizer(parameters.values(), config.lr)
        for batches in self.epochs(round, client):
            for indices_B in batches:
                loss_B, _ = self.read(parameters, self.work.train, indices_B)
                optimizer.zero_grad()
                loss_B.mean().backward()
                if config.clip_norm is not None:
                    torch.nn.utils.clip_grad_norm_(parameters.values(), config.clip_norm)
                optimizer.step()
        return self.vector(parameters), len(self.work.shards.train(client))

    def validation_order(self, part: int = 0, parts: int = 1) -> np.ndarray:
        """Return the validation examples by length, for little padding; one of ``parts`` equal shares of them."""
        return np.argsort(self.work.validation.lengths_N, kind="stable")[part::parts]

    @torch.no_grad()
    def evaluate(self, vector_F: np.ndarray, part: int, parts: int) -> Counts:
        """Evaluate the vector on one of ``parts`` shares of the validation examples."""
        parameters, order_N = self.parameters(vector_F), self.validation_order(part, parts)
        loss_sum, correct, size = 0.0, 0, self.work.evaluation_batch_size
        for start in range(0, len(order_N), size):
            loss_B, right_B = self.read(parameters, self.work.validation, order_N[start : start + size])
            loss_sum += float(loss_B.double().sum())
            correct += int(right_B.sum())
        return Counts(loss_sum, correct, len(order_N))


@functools.cache
def plain_clients(folder: str) -> PlainClients:
    """Return this process's model and data; loaded by the first call, kept for the next ones."""
    return PlainClients(Work.load(Path(folder)))

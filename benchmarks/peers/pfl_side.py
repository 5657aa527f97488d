"""The same work in pfl-research; run twice at a time by ``benchmarks.peers`` with the interpreter of pfl's environment.

The two processes share every round by pfl's own distributed simulation (torch.distributed, gloo), with its balancing of
clients by their numbers of examples. Training, weights and average are those of pfl's FederatedAveraging.
"""

from __future__ import annotations

import argparse
import dataclasses
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from pfl.aggregate.simulate import SimulatedBackend
from pfl.aggregate.weighting import WeightByDatapoints
from pfl.algorithm.base import NNAlgorithmParams
from pfl.algorithm.federated_averaging import FederatedAveraging
from pfl.callback.base import TrainingProcessCallback
from pfl.callback.central_evaluation import CentralEvaluationCallback
from pfl.context import CentralContext
from pfl.data.dataset import Dataset
from pfl.data.federated_dataset import FederatedDataset
from pfl.data.sampling import get_user_sampler
from pfl.hyperparam import NNEvalHyperParams, NNTrainHyperParams
from pfl.internal.ops import pytorch_ops
from pfl.metrics import Metrics, Weighted
from pfl.model.pytorch import PyTorchModel
from pfl.stats import MappedVectorStatistics

from benchmarks.peers.files import Events, Plan

LOSS, ACCURACY = "Central val | loss", "Central val | accuracy"


class Prompted(torch.nn.Module):
    """Trained tensors as a module; the frozen backbone is none of its parameters."""

    def __init__(self, clients: Any, start_F: np.ndarray) -> None:
        super().__init__()
        self._clients = clients
        tensors = clients.parameters(start_F)
        self._names = tuple(tensors)
        self._tensors = torch.nn.ParameterList([tensor.detach() for tensor in tensors.values()])

    def loss(self, indices_B: torch.Tensor) -> torch.Tensor:
        loss_B, _ = self._clients.read(self.tensors(), self._clients.work.train, indices_B.numpy())
        return loss_B.mean()

    @torch.no_grad()
    def metrics(self, indices_B: torch.Tensor, validation: bool = False) -> dict[str, Weighted]:
        work = self._clients.work
        table = work.validation if validation else work.train
        loss_B, right_B = self._clients.read(self.tensors(), table, indices_B.numpy())
        return {
            "loss": Weighted(float(loss_B.sum()), len(loss_B)),
            "accuracy": Weighted(int(right_B.sum()), len(loss_B)),
        }

    def tensors(self) -> dict[str, torch.Tensor]:
        return dict(zip(self._names, self._tensors, strict=True))


class Examples(Dataset):
    """A client's example numbers, dealt out in the batches of fedsim; a new order every pass."""

    def __init__(self, clients: Any, round: int, client: int) -> None:
        super().__init__((clients.work.shards.train(client),), user_id=client)
        self._passes = clients.epochs(round, client)

    def iter(self, batch_size: int | None) -> Iterator[list[torch.Tensor]]:
        for indices_B in next(self._passes):
            yield [torch.from_numpy(indices_B)]


class Validation(Dataset):
    """The validation examples by length; workers take every other one, so that they have as much to do."""

    def __init__(self, clients: Any, part: int = 0, parts: int = 1) -> None:
        order = torch.from_numpy(clients.validation_order(part, parts))
        super().__init__((order,), eval_kwargs={"validation": True})
        self._clients = clients

    def get_worker_partition(self) -> Validation:
        return Validation(self._clients, pytorch_ops.distributed.global_rank, pytorch_ops.distributed.world_size)


class Averaging(FederatedAveraging):
    """pfl's federated averaging; without the evaluation on the clients of the first round, which no other side does."""

    def get_next_central_contexts(self, *arguments: Any) -> Any:
        contexts, model, metrics = super().get_next_central_contexts(*arguments)
        quiet = contexts and tuple(dataclasses.replace(context, do_evaluation=False) for context in contexts)
        return quiet, model, metrics


class EvaluateEveryRound(CentralEvaluationCallback):
    """pfl evaluates before the first round in place of after it; here it does so after each, as the other sides."""

    def on_train_begin(self, *, model: Any) -> Metrics:
        return Metrics()

    def after_central_iteration(
        self, aggregate_metrics: Metrics, model: Any, *, central_iteration: int
    ) -> tuple[bool, Metrics]:
        return self._eval(model)


class Note(TrainingProcessCallback):
    """Notes the end of each round, in the first process."""

    def __init__(self, events: Events) -> None:
        self._events = events

    def after_central_iteration(
        self, aggregate_metrics: Metrics, model: Any, *, central_iteration: int
    ) -> tuple[bool, Metrics]:
        if pytorch_ops.distributed.global_rank == 0:
            figures = aggregate_metrics.to_simple_dict()
            found = {"loss": figures.get(LOSS), "accuracy": figures.get(ACCURACY)}
            self._events.round(
                central_iteration + 1, **{name: float(value) for name, value in found.items() if value is not None}
            )
        return False, Metrics()


def train(folder: Path, rounds: int, events: Events) -> None:
    """Run the work of a folder."""
    from benchmarks.peers.work import plain_clients

    plan, clients = Plan.load(folder), plain_clients(str(folder))
    work = clients.work
    settings = work.client.optimizer
    module = Prompted(clients, plan.start_F)
    model = PyTorchModel(
        module,
        local_optimizer_create=lambda parameters, lr: clients.optimizer(parameters, lr),
        central_optimizer=torch.optim.SGD(module.parameters(), lr=1.0),
    )
    jobs = [(round, client) for round, cohort in enumerate(plan.cohorts_Rk.tolist()) for client in cohort]
    sizes = work.shards.train_sizes
    federated = FederatedDataset(
        lambda job: Examples(clients, *job),
        get_user_sampler("minimize_reuse", jobs),
        user_id_to_weight={job: int(sizes[job[1]]) for job in jobs},
    )
    evaluation = NNEvalHyperParams(local_batch_size=work.evaluation_batch_size)
    Averaging().run(
        _rounds(plan, rounds),
        SimulatedBackend(training_data=federated, val_data=federated, postprocessors=[WeightByDatapoints()]),
        model,
        NNTrainHyperParams(
            local_num_epochs=work.client.epochs,
            local_learning_rate=settings.lr,
            local_batch_size=work.client.batch_size,
            local_max_grad_norm=settings.clip_norm,
        ),
        evaluation,
        [EvaluateEveryRound(Validation(clients), evaluation), Note(events)],
    )
    if pytorch_ops.distributed.global_rank == 0:
        events.end(clients.vector(module.tensors()))


class Carried(torch.nn.Module):
    """A vector as a module."""

    def __init__(self, vector_F: np.ndarray) -> None:
        super().__init__()
        self.vector_F = torch.nn.Parameter(torch.from_numpy(vector_F))

    def loss(self, *data: torch.Tensor) -> torch.Tensor:
        raise RuntimeError("nothing is trained here, so nothing should ask for a loss")

    metrics = loss


class AddOne(Averaging):
    """Federated averaging of a PyTorch model whose clients add one to it."""

    @torch.no_grad()
    def train_one_user(
        self, initial_model_state: Any, model: PyTorchModel, user_dataset: Dataset, central_context: CentralContext
    ) -> tuple[Any, Metrics]:
        model.pytorch_model.vector_F.add_(1.0)
        return model.get_model_difference(initial_model_state), Metrics()


class AddOneBare(Averaging):
    """The same without what pfl does for models: nothing is saved, restored or subtracted for a client."""

    def simulate_one_user(
        self, model: PyTorchModel, user_dataset: Dataset, central_context: CentralContext
    ) -> tuple[Any, Metrics]:
        return MappedVectorStatistics({"vector_F": model.pytorch_model.vector_F.detach() + 1.0}), Metrics()

    def process_aggregated_statistics(
        self, central_context: CentralContext, aggregate_metrics: Metrics, model: PyTorchModel, statistics: Any
    ) -> tuple[PyTorchModel, Metrics]:
        statistics.average()
        model.set_parameters(statistics)
        return model, Metrics()


def carry(plan: Plan, rounds: int, bare: bool, events: Events) -> None:
    """Send the vector to all clients and average what comes back."""
    module = Carried(plan.start_F)
    model = PyTorchModel(module, torch.optim.SGD, torch.optim.SGD(module.parameters(), lr=1.0))
    data = (np.zeros(1, dtype=np.float32),)
    federated = FederatedDataset(
        lambda client: Dataset(data, user_id=client), get_user_sampler("minimize_reuse", range(plan.clients))
    )
    (AddOneBare if bare else AddOne)().run(
        _rounds(plan, rounds),
        SimulatedBackend(training_data=federated, val_data=federated),
        model,
        NNTrainHyperParams(local_num_epochs=1, local_learning_rate=1.0, local_batch_size=1),
        callbacks=[Note(events)],
    )
    if pytorch_ops.distributed.global_rank == 0:
        events.end(module.vector_F.detach().numpy())


def _rounds(plan: Plan, rounds: int) -> NNAlgorithmParams:
    return NNAlgorithmParams(
        central_num_iterations=rounds,
        evaluation_frequency=rounds,
        train_cohort_size=plan.cohorts_Rk.shape[1],
        val_cohort_size=None,
    )


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--rounds", type=int, required=True)
    parser.add_argument("--work", type=Path, help="Folder of the work; without it vectors are sent to and fro.")
    parser.add_argument("--clients", type=int, default=0)
    parser.add_argument("--elements", type=int, default=0)
    parser.add_argument("--bare", action="store_true", help="Carry vectors by an algorithm without a model.")
    options = parser.parse_args()
    torch.set_num_threads(1)
    events = Events(options.out)
    if options.work is None:
        plan = Plan.everyone(options.clients, options.rounds, options.elements)
        carry(plan, options.rounds, options.bare, events)
    else:
        train(options.work, options.rounds, events)
    # Without this a process may be aborted on its way out, when the other one has gone before it.
    torch.distributed.destroy_process_group()

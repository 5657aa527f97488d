"""One local step of all clients against gradient descent on all examples, on the embedded backbone in float64."""

import numpy as np
import pytest
import torch
from support import make_tiny, sweep

from clients.training.gradients import StepBatch, gradients
from clients.tuners.initial import initial_vector
from clients.worker import ClientWorker
from fedsim.core.messages import ClientState, WorkGroup
from fedsim.simulation.preparation import prepare
from server.core import Server
from server.sampling import cut

OURS = {
    "kind": "fedpeptao",
    "gradient": "pseudo",
    "base": "previous",
    "coupling": "independent",
    "momentum_form": "control_in_gradient",
    "control_form": "displacement",
    "control_timing": "before",
    "debias": True,
    "lr": 1.0,
    "lr_decay": 1.0,
    "momentum": 0.0,
}


@pytest.mark.parametrize(
    "kind, partition, fuse",
    sweep(
        [
            (*kind, fuse)
            for kind in (
                ("fedavg", "dirichlet_label"), ("fedprox", "dirichlet_label"), ("scaffold", "iid"), ("fedpeptao", "iid"),
            )
            for fuse in (1, 2)
        ],
        [
            ("fedavg", "dirichlet_label", 2), ("fedprox", "dirichlet_label", 1), ("scaffold", "iid", 1),
            ("fedpeptao", "iid", 2),
        ],
    ),
)  # fmt: skip
def test_one_local_step_of_all_clients_is_gradient_descent_on_all_examples(kind, partition, fuse):
    """To a few units in the last place, through worker and server; clients weigh as many as their examples."""
    config = make_tiny(
        executor="local",
        model={"dtype": "float64"},
        data={"train_examples": 96, "validation_examples": 10},
        partition={"kind": partition, "clients": 6, "holdout_fraction": 0.0},
        sampling={"clients_per_round": 6},
        client={
            "batch_size": 1000,
            "epochs": 1,
            "optimizer": {"kind": "sgd", "lr": 50.0, "weight_decay": 0.0, "clip_norm": None},
        },
        server=OURS if kind == "fedpeptao" else {"kind": kind},
    )
    prepared = prepare(config)
    worker, sizes = ClientWorker(prepared.spec), prepared.spec.shards.train_sizes
    assert (len(set(sizes.tolist())) > 1) == (partition == "dirichlet_label") and sizes.sum() == 96
    layout = worker.info().full.exchanged((1, 2))
    central_F = initial_vector(layout, prepared.spec.tuner, prepared.spec.model.head, 0).astype(np.float64)
    first_F = central_F
    server = Server(config.method, central_F, (1, 2), 1.0)
    states = [ClientState(client) for client in range(6)]
    for round in range(3):
        updates = []
        for number, group in enumerate(cut(range(6), 2)):
            work = WorkGroup(round, number, tuple(group), fuse=fuse)
            made = worker.train(work, server.global_state(), *(states[client] for client in group))
            updates.append(made.update)
            states[group[0] : group[-1] + 1] = made.states
        server.apply(round, (3, 0, 5, 1, 4, 2), *updates)
        start_1F = torch.from_numpy(central_F).unsqueeze(0)
        every = StepBatch(np.arange(96), np.zeros(96, np.int64), np.full(96, 1 / 96))
        slope_1F = gradients(worker._backbone, prepared.spec.train, every, layout, start_1F).gradient_CA
        central_F = central_F - 50.0 * slope_1F[0].numpy()
        # Sums in another order: a few units in the last place (1.4e-17 each), on a way of 1e-2 a round.
        np.testing.assert_allclose(server.global_state().vector_F, central_F, rtol=0, atol=2e-16)
    assert np.abs(central_F - first_F).max() > 1e-2

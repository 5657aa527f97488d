"""Local training on the embedded backbone: what each setting does to one client's visit."""

import dataclasses

import numpy as np
import pytest
import torch

from clients.config import ClientConfig
from clients.training.gradients import StepBatch, gradients
from clients.training.local_job import LocalJob, Parts, batches, num_steps, sees_all
from clients.training.local_training import train_clients
from clients.tuners.initial import initial_vector
from clients.worker import ClientWorker
from fedsim.core.layout import PromptGeometry, VectorLayout
from fedsim.core.messages import ClientState, GlobalState, WorkGroup
from fedsim.core.method import CORRECTIONS, Correction
from fedsim.methods.control import ControlVariates, client_control, drift
from fedsim.methods.preconditioner import Preconditioner
from fedsim.simulation.preparation import prepare
from server.aggregation import combine


@pytest.fixture(scope="module")
def prepared():
    from support import make_tiny

    return prepare(make_tiny(executor="local"))


@pytest.fixture(scope="module")
def worker(prepared):
    return ClientWorker(prepared.spec)


def job(worker, prepared, parts, correction="none", drift=None, **client):
    epochs = {"epochs": None} if "steps" in client else {}
    config = ClientConfig.model_validate({**prepared.spec.training.client.model_dump(), **epochs, **client})
    start_A = initial_vector(parts.trained, prepared.spec.tuner, prepared.spec.model.head, 0)
    one = LocalJob(1, prepared.spec.shards.train(1), start_A, begun={} if drift is None else {"drift": drift})
    chosen = (CORRECTIONS[correction].of(config),)
    (result,) = train_clients(worker._backbone, prepared.spec.train, [one], parts, config, chosen, seed=0, round=0)
    return start_A, result


def test_batches_cover_every_example_once_an_epoch():
    config = ClientConfig(epochs=3, batch_size=4)
    seen = list(batches(config, 10, np.random.default_rng(0)))
    assert len(seen) == num_steps(config, 10) == 9
    for epoch in range(3):
        positions = np.concatenate([positions for number, positions in seen if number == epoch])
        assert sorted(positions) == list(range(10))
    orders = [tuple(np.concatenate([p for n, p in seen if n == epoch])) for epoch in range(3)]
    assert len(set(orders)) == 3
    unshuffled = [p for _, p in batches(config.model_copy(update={"shuffle": False}), 10, np.random.default_rng(0))]
    assert np.concatenate(unshuffled).tolist() == list(range(10)) * 3


def test_steps_instead_of_epochs():
    config = ClientConfig(steps=7, batch_size=4)
    seen = list(batches(config, 10, np.random.default_rng(0)))
    assert [epoch for epoch, _ in seen] == [0, 0, 0, 1, 1, 1, 2]
    assert num_steps(config, 10) == 7


@pytest.mark.parametrize("keys, count", [({"steps": 2}, 8), ({"steps": 2}, 9), ({"steps": 3}, 9), ({"epochs": 1}, 9)])
def test_a_visit_sees_all_examples_or_is_known_not_to(keys, count):
    config = ClientConfig(batch_size=4, **{"epochs": None, **keys})
    seen = np.concatenate([positions for _, positions in batches(config, count, np.random.default_rng(0))])
    assert sees_all(config, count) == (len(set(seen.tolist())) == count)


def test_parts_cut_what_travels_from_what_stays():
    full = VectorLayout.full(PromptGeometry(4, 1, 2, 3), (("head.bias", (2,)),))
    local = Parts.of(full, (1, 3), keep_local=True)
    assert (local.trained, local.personal.layers, local.exchanged.size) == (full, (0, 2), 26)
    none = Parts.of(full, (1, 3), keep_local=False)
    assert (none.trained, none.personal.size) == (none.exchanged, 0)
    vector_A = local.assemble(np.arange(26, dtype=np.float32), -np.arange(24, dtype=np.float32))
    np.testing.assert_array_equal(vector_A[local.exchanged_F], np.arange(26))
    np.testing.assert_array_equal(vector_A[local.personal_M], -np.arange(24))


def test_the_gradient_is_that_of_the_loss(worker, prepared):
    layout = worker.info().full.exchanged((1, 2))
    vector_1A = torch.from_numpy(initial_vector(layout, prepared.spec.tuner, prepared.spec.model.head, 0)).unsqueeze(0)
    batch = StepBatch(prepared.spec.shards.train(0)[:4], np.zeros(4, np.int64), np.full(4, 0.25))

    def at(vector_1A, **limit):
        said = gradients(worker._backbone, prepared.spec.train, batch, layout, vector_1A, **limit)
        return said.loss_C[0], said.gradient_CA

    loss, slope_1A = at(vector_1A)
    direction_1A = slope_1A / slope_1A.norm()
    step = 3e-2
    ahead, _ = at(vector_1A + step * direction_1A)
    behind, _ = at(vector_1A - step * direction_1A)
    assert float((ahead - behind) / (2 * step)) == pytest.approx(float(slope_1A.norm()), rel=2e-2)
    assert float(loss) > 0
    in_parts, slope_in_parts_1A = at(vector_1A, max_tokens=1)
    assert float(in_parts) == pytest.approx(float(loss), rel=1e-6)
    torch.testing.assert_close(slope_in_parts_1A, slope_1A, rtol=1e-5, atol=1e-8)


def test_training_lowers_the_loss_and_repeats_to_the_bit(worker, prepared):
    parts = Parts.of(worker.info().full, (0, 1, 2, 3), keep_local=False)
    _, first = job(worker, prepared, parts, epochs=8)
    _, second = job(worker, prepared, parts, epochs=8)
    assert first.loss_last < first.loss_first
    np.testing.assert_array_equal(first.vector_A, second.vector_A)


def test_the_proximal_term_keeps_the_client_near_the_global_vector(worker, prepared):
    parts = Parts.of(worker.info().full, (0, 1), keep_local=False)
    sgd = {"optimizer": {"kind": "sgd", "lr": 0.05, "weight_decay": 0.0, "clip_norm": None}, "epochs": 6}
    distances = []
    for mu in (0.0, 1.0, 10.0):
        start_A, result = job(worker, prepared, parts, "proximal", proximal_mu=mu, **sgd)
        distances.append(np.linalg.norm(result.vector_A - start_A))
    _, plain = job(worker, prepared, parts, "none", **sgd)
    assert distances[0] == pytest.approx(np.linalg.norm(plain.vector_A - start_A))
    assert distances == sorted(distances, reverse=True) and distances[2] < 0.7 * distances[0]


def test_control_adds_the_drift_to_every_step_of_the_exchanged_entries(worker, prepared):
    parts = Parts.of(worker.info().full, (0, 1), keep_local=True)
    drift_F = np.linspace(-0.5, 0.5, parts.exchanged.size, dtype=np.float32)
    sgd = {"optimizer": {"kind": "sgd", "lr": 1e-3, "weight_decay": 0.0, "clip_norm": None}, "steps": 1}
    _, plain = job(worker, prepared, parts, "none", **sgd)
    _, corrected = job(worker, prepared, parts, "control", drift_F, **sgd)
    moved_A = corrected.vector_A - plain.vector_A
    np.testing.assert_allclose(moved_A[parts.exchanged_F], -1e-3 * drift_F, atol=1e-7)
    assert not moved_A[parts.personal_M].any()


def test_control_variate_formula():
    c_i, c, start, end = (np.array([value], np.float64) for value in (0.3, 0.1, 2.0, 1.2))
    assert client_control(c_i, c, start, end, num_steps=4, lr=0.1)[0] == pytest.approx(0.3 - 0.1 + 0.8 / 0.4)


def test_control_variates_as_displacements():
    c_i, c, start, end = (np.array([value], np.float64) for value in (0.3, 0.1, 2.0, 1.2))
    plain = client_control(c_i, c, start, end, 4, 0.1, form="displacement")
    assert plain[0] == pytest.approx(0.8)
    corrected = client_control(c_i, c, start, end, 4, 0.1, form="displacement", drift_applied=True)
    assert corrected[0] == pytest.approx(0.8 + 0.3 - 0.1)
    # What is added to a local step does not depend on the units that the variates are kept in.
    assert drift(c_i, c, 4, 0.1, "scaffold")[0] == pytest.approx(-0.2)
    assert drift(0.4 * c_i, 0.4 * c, 4, 0.1, "displacement")[0] == pytest.approx(-0.2)


def settings_with(prepared, **changes):
    return dataclasses.replace(prepared.spec, training=dataclasses.replace(prepared.spec.training, **changes))


def test_the_server_gets_the_variates_that_it_asks_for(prepared):
    for before, by_steps in ((False, True), (True, False)):
        variates = ControlVariates(mean="steps" if by_steps else "weights", before=before, corrects=False)
        worker = ClientWorker(settings_with(prepared, corrections=(variates,)))
        size = worker.info().full.exchanged((0, 2)).size
        state = GlobalState(0, (0, 2), np.full(size, 0.01, np.float32), {"control": np.zeros(size, np.float32)})
        old = ClientState(3, 1, 2, arrays={"control": np.full(size, 0.5, np.float32)})
        (report,), update, new = worker.train(WorkGroup(0, 0, (3,)), state, old).pack()
        used = old if before else new
        np.testing.assert_array_equal(
            update.sums["control"], report.num_examples * used.arrays["control"].astype(np.float64)
        )
        share = report.num_steps if by_steps else report.num_examples
        change = share * (new.arrays["control"].astype(np.float64) - old.arrays["control"])
        np.testing.assert_array_equal(update.sums["control_change"], change)


@pytest.mark.parametrize("kind", ["adamw", "adamw_published", "sgd"])
def test_a_common_metric_changes_nothing_for_one_client(prepared, kind):
    client = ClientConfig.model_validate(
        {**prepared.spec.training.client.model_dump(), "optimizer": {"kind": kind, "weight_decay": 0.1, "lr": 0.01}}
    )
    plain, metric = (
        ClientWorker(settings_with(prepared, client=client, corrections=(correction,)))
        for correction in (Correction(), Preconditioner())
    )
    size = plain.info().full.exchanged((0, 2)).size
    state = GlobalState(0, (0, 2), np.full(size, 0.01, np.float32), {"control": np.zeros(size, np.float32)})
    group = WorkGroup(0, 0, (3,))
    (one,), plain_update, _ = plain.train(group, state, ClientState(3)).pack()
    (two,), metric_update, _ = metric.train(group, state, ClientState(3)).pack()
    assert metric_update.sums["metric"].min() > 0
    np.testing.assert_allclose(
        combine([metric_update], [3], Preconditioner().average).vector_F,
        combine([plain_update], [3]).vector_F,
        rtol=1e-5,
        atol=1e-7,
    )
    # One number in all entries is SGD's gain.
    assert (one.bytes_up, two.bytes_up) == (4 * size, 4 * size * (2 if kind == "sgd" else 3))


def test_in_a_common_metric_each_entry_moves_between_what_the_clients_did(prepared):
    worker = ClientWorker(settings_with(prepared, corrections=(Preconditioner(),)))
    size = worker.info().full.exchanged((0, 2)).size
    state = GlobalState(0, (0, 2), np.full(size, 0.01, np.float32), {"control": np.zeros(size, np.float32)})
    clients = (3, 5)
    _, together, *_ = worker.train(WorkGroup(0, 0, clients), state, *map(ClientState, clients)).pack()
    alone = [worker.train(WorkGroup(0, 0, (c,)), state, ClientState(c)).update for c in clients]
    moved = [update.sums["metric_step"] / update.sums["metric"] for update in alone]
    both = together.sums["metric_step"] / together.sums["metric"]
    assert (both >= np.minimum(*moved) - 1e-12).all() and (both <= np.maximum(*moved) + 1e-12).all()
    assert (
        np.abs(
            both - sum(update.weight_sum * m for update, m in zip(alone, moved, strict=True)) / together.weight_sum
        ).max()
        > 1e-4
    )


def test_dropout_changes_training_but_repeats_and_is_off_again_after(worker, prepared):
    parts = Parts.of(worker.info().full, (0, 1), keep_local=False)
    before = torch.random.get_rng_state()
    _, plain = job(worker, prepared, parts)
    _, dropped = job(worker, prepared, parts, dropout=True)
    _, again = job(worker, prepared, parts, dropout=True)
    _, plain_again = job(worker, prepared, parts)
    np.testing.assert_array_equal(dropped.vector_A, again.vector_A)
    np.testing.assert_array_equal(plain.vector_A, plain_again.vector_A)
    assert not np.array_equal(plain.vector_A, dropped.vector_A)
    assert torch.equal(before, torch.random.get_rng_state())


def test_a_worker_remembers_nothing_between_calls(worker, prepared):
    size = worker.info().full.exchanged((0, 2)).size
    state = GlobalState(0, (0, 2), np.full(size, 0.01, np.float32), {"control": np.zeros(size, np.float32)})
    first = worker.train(WorkGroup(0, 0, (3,)), state, ClientState(3)).pack()
    worker.train(WorkGroup(0, 0, (5,)), state, ClientState(5))
    second = worker.train(WorkGroup(0, 0, (3,)), state, ClientState(3)).pack()
    np.testing.assert_array_equal(first[1].sums["vector"], second[1].sums["vector"])
    np.testing.assert_array_equal(first[2].arrays["control"], second[2].arrays["control"])


def test_a_group_is_the_fold_of_its_clients(worker, prepared):
    size = worker.info().full.exchanged((0, 2)).size
    state = GlobalState(0, (0, 2), np.full(size, 0.01, np.float32), {"control": np.zeros(size, np.float32)})
    _, together, *_ = worker.train(WorkGroup(0, 0, (3, 5)), state, ClientState(3), ClientState(5)).pack()
    parts = [worker.train(WorkGroup(0, 0, (c,), part), state, ClientState(c)).update for part, c in enumerate((3, 5))]
    np.testing.assert_array_equal(together.sums["vector"], parts[0].sums["vector"] + parts[1].sums["vector"])
    np.testing.assert_array_equal(
        together.sums["control_change"], parts[0].sums["control_change"] + parts[1].sums["control_change"]
    )
    assert together.weight_sum == sum(part.weight_sum for part in parts)


def test_kept_moments_go_on_and_restarted_ones_do_not(prepared):
    training = prepared.spec.training
    client = ClientConfig.model_validate(
        {**training.client.model_dump(), "optimizer": {**training.client.optimizer.model_dump(), "moments": "keep"}}
    )
    keeping = ClientWorker(settings_with(prepared, client=client))
    size = keeping.info().full.exchanged((0,)).size
    state = GlobalState(0, (0,), np.full(size, 0.01, np.float32), {"control": np.zeros(size, np.float32)})
    *_, once = keeping.train(WorkGroup(0, 0, (3,)), state, ClientState(3)).pack()
    *_, twice = keeping.train(WorkGroup(1, 0, (3,)), dataclasses.replace(state, round=1), once).pack()
    assert (once.rounds, twice.rounds, twice.steps) == (1, 2, 2 * once.steps)
    assert once.arrays["first_moment"].any() and not np.array_equal(
        once.arrays["first_moment"], twice.arrays["first_moment"]
    )
    forgetful = dataclasses.replace(once, arrays={"control": once.arrays["control"]})
    *_, anew = keeping.train(WorkGroup(1, 0, (3,)), dataclasses.replace(state, round=1), forgetful).pack()
    assert not np.array_equal(anew.arrays["control"], twice.arrays["control"])

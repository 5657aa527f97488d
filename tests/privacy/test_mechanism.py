"""The server's half: fixed divisor, noise of the stated size, an adaptive norm, and rounds without clients."""

import math
from dataclasses import replace

import numpy as np
import pytest

from fedsim.core.errors import CheckpointError
from fedsim.core.messages import VECTOR, GroupUpdate
from fedsim.core.method import METHODS, Method
from server.aggregation import combine
from server.blocks import add_to_block
from server.core import Server
from server.privacy.mechanism import AdaptiveNorm, Mechanism, nobody

SIZE = 5000


def group(round, vectors, number=0, bits=0.0, first=0):
    clients = tuple(range(first, first + len(vectors)))
    sums = {VECTOR: np.sum(np.asarray(vectors, dtype=np.float64), axis=0)}
    return GroupUpdate(round, number, 0, clients, float(len(vectors)), 0, sums, bits_sum=bits)


def server(mechanism, method=None, start_F=None, turns=()):
    start_F = np.zeros(SIZE, np.float32) if start_F is None else start_F
    return Server(method or Method(), start_F, (0,), 0.1, 40.0, turns=turns, mechanism=mechanism)


def mechanism(multiplier=1.0, norm=2.0, divisor=4, seed=0, **more):
    return Mechanism(seed, divisor, norm, multiplier, **more)


def test_noise_has_the_stated_deviation_and_the_mean_the_fixed_divisor():
    start_F = np.full(SIZE, 0.25, np.float32)
    changes = [np.full(SIZE, c) for c in (0.1, 0.2, 0.3)]
    drawn = []
    for seed in range(3):
        one = server(mechanism(seed=seed), start_F=start_F)
        one.apply(0, (0, 1, 2), group(0, [start_F + change for change in changes]))
        drawn.append(one.arrays()[VECTOR] - start_F - 0.6 / 4)  # three came, and four were expected
    for noise in drawn:
        assert np.std(noise) == pytest.approx(1.0 * 2.0 / 4, rel=0.05) and abs(np.mean(noise)) < 0.03
    assert np.abs(np.corrcoef(drawn) - np.eye(3)).max() < 0.1


def test_noise_is_a_function_of_seed_and_round():
    def after(rounds):
        one = server(mechanism())
        for round in range(rounds):
            one.apply(round, ())
        return one.arrays()[VECTOR]

    first, second = after(1), after(2) - after(1)
    assert np.array_equal(after(2), after(2)) and abs(np.corrcoef(first, second)[0, 1]) < 0.1


@pytest.mark.parametrize("kind", ["fedavg", "fedavgm", "fedadam", "fedyogi", "fedadagrad", "feddyn"])
def test_a_round_without_clients_is_a_step_of_noise_alone(kind):
    one = server(mechanism(), METHODS[kind]())
    report = one.apply(0, ())
    assert report.clients == 0 and report.clip_norm == 2.0 and one.global_state().round == 1
    assert np.isfinite(one.arrays()[VECTOR]).all() and report.update_norm > 0
    if kind == "fedavg":
        assert report.update_norm == pytest.approx(2.0 / 4 * math.sqrt(SIZE), rel=0.05)


@pytest.mark.parametrize("kind", ["fedavg", "fedavgm", "fedadam", "feddyn"])
def test_nothing_but_the_noisy_sum_tells_how_many_clients_came(kind):
    """Clients that change nothing: whether five or none, the next state is the same."""
    states = []
    for many in (0, 1, 5):
        one = server(mechanism(), METHODS[kind]())
        updates = [group(0, [np.zeros(SIZE)] * many)] if many else []
        one.apply(0, tuple(range(many)), *updates)
        states.append(one.arrays())
    for other in states[1:]:
        for name, array in states[0].items():
            assert np.array_equal(array, other[name]), name


def test_rounds_that_train_half_of_the_entries_have_noise_on_these_alone():
    turns = np.arange(0, SIZE, 2), np.arange(1, SIZE, 2)
    one = server(mechanism(), turns=turns)
    one.apply(0, (0,), group(0, [np.zeros(SIZE // 2)]))
    vector_F = one.arrays()[VECTOR]
    assert not vector_F[1::2].any() and np.std(vector_F[::2]) == pytest.approx(0.5, rel=0.05)


def test_shares_at_the_clients_add_up_to_the_noise_and_the_server_adds_none():
    at_clients = mechanism(at_clients=True, adaptive=AdaptiveNorm(0.5, 0.2, 3.0))
    told = at_clients.told(2.0)
    assert 4 * told.noise_std**2 == pytest.approx(2.0**2) and 4 * told.bit_noise_std**2 == pytest.approx(3.0**2)
    one = server(at_clients)
    one.apply(0, (0, 1), group(0, [np.zeros(SIZE)] * 2, bits=2.0))
    assert not one.arrays()[VECTOR].any()
    assert one.global_state().clipping.norm == pytest.approx(2.0 * math.exp(-0.2 * ((2 - 1) / 4 + 0.5 - 0.5)))


def test_an_adaptive_norm_follows_the_quantile():
    """Andrew et al. 2021, algorithm 1, without noise to speak of: C moves by exp(-lr (share within - quantile))."""
    adaptive = AdaptiveNorm(quantile=0.25, lr=0.3, bit_noise=1e-9)
    one, norm = server(mechanism(adaptive=adaptive)), 2.0
    for round, within in enumerate((4, 0, 1)):
        assert one.global_state().clipping.norm == pytest.approx(norm)
        one.apply(round, tuple(range(4)), group(round, [np.zeros(SIZE)] * 4, bits=float(within)))
        norm *= math.exp(-0.3 * (within / 4 - 0.25))
    again = server(mechanism(adaptive=adaptive))
    again.load_arrays(one.arrays())
    assert again.global_state().clipping == one.global_state().clipping
    assert again.global_state().clipping.norm == pytest.approx(norm)


def test_it_reaches_the_quantile_of_changes():
    rng, adaptive = np.random.default_rng(0), AdaptiveNorm(quantile=0.8, lr=0.2, bit_noise=2.0)
    one = mechanism(divisor=50, adaptive=adaptive)
    norm = 0.01
    for round in range(200):
        lengths = rng.lognormal(size=50)
        update = replace(nobody(round, 1), clients=tuple(range(50)), bits_sum=float(np.sum(lengths <= norm)))
        norm = one.next_norm(round, update, norm)
    assert norm == pytest.approx(np.quantile(rng.lognormal(size=100_000), 0.8), rel=0.2)


def test_a_checkpoint_without_a_norm_is_refused():
    arrays = server(None).arrays()
    with pytest.raises(CheckpointError, match="lacks clip_norm"):
        server(mechanism()).load_arrays(arrays)


def test_bits_add_up_alike_in_groups_parts_and_blocks():
    shares = [0.5 + 2.0**-30, -1.25, 3.0 - 2.0**-29, 1.0]
    updates = [group(0, [np.zeros(3)], number, bits=share, first=number) for number, share in enumerate(shares)]
    block = add_to_block(add_to_block(None, updates[:1], whole=True), updates[1:], whole=True)
    for parts in (updates, [block]):
        assert combine(parts, range(4)).bits_sum == sum(shares)

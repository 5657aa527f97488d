"""Synchronous rounds on the virtual clock: who is drawn, taken, late and lost, and when a round ends."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from clients.config import ClientConfig
from clients.training.local_job import batches, num_processed
from fedsim.core.errors import ConfigError
from fedsim.core.messages import ClientFailure, ClientReport
from fedsim.world.availability import Always
from fedsim.world.config import AvailabilityConfig, DevicesConfig, WorldConfig
from fedsim.world.cost import Downloads, VisitCost, layer_share
from fedsim.world.devices import Devices, Hardware
from fedsim.world.synchronous import Synchronous
from fedsim.world.utility import Losses
from server.availability import answers
from server.config import DelayConfig, SamplingConfig
from server.sampling import cohort

CLIENTS, COHORT = 24, 4
SIZES = np.array([0 if client == 5 else 1 + client % 4 for client in range(CLIENTS)])
COST = VisitCost(SIZES * 4e5, SIZES * 6e5, (10**6,), (10**6, 2 * 10**6), 2e9)
KINDS = ("uniform", "by_size", "round_robin", "tiers", "oort", "power_of_choice")
EQUAL = {"tokens_per_second": 100.0, "downlink_megabits": 8.0, "uplink_megabits": 8.0, "gigabytes": 8.0}
ALWAYS = {"availability": AvailabilityConfig(kind="always")}


def schedule(kind="uniform", devices=None, seed=0, dropout=0.0, cost=COST, **world):
    config = DevicesConfig(**(devices or {}))
    sampling = SamplingConfig(
        kind=kind, clients_per_round=COHORT, dropout=dropout, **({"tiers": 3} if kind == "tiers" else {})
    )
    found = Devices.of(config, seed, cost, SIZES)
    return Synchronous(sampling, seed, SIZES, SIZES, found, WorldConfig(devices=config, **world)), found


def reports(step):
    for client in step.clients:
        failure = ClientFailure("error", "x") if client % 7 == 3 else None
        yield ClientReport(client, step.number, 1, loss_first=np.sin(client + step.number) + 2, failure=failure)


def played(made, rounds):
    steps = []
    for number in range(rounds):
        steps.append(made.step(number))
        made.learn(number, reports(steps[-1]))
    return steps


@given(
    st.sampled_from(KINDS), st.integers(0, 20), st.floats(0.0, 1.0), st.sampled_from([None, 1.0, 900.0, 4000.0]),
    st.sampled_from([0.0, 0.3]), st.sampled_from(["markov", "always", "diurnal"]),
)  # fmt: skip
def test_every_drawn_client_is_taken_lost_or_late_and_the_clock_goes_on(
    kind, seed, over, deadline, dropout, availability
):
    devices = {
        "availability": AvailabilityConfig(kind=availability, share=0.3)
        if availability != "always"
        else ALWAYS["availability"]
    }
    made, found = schedule(kind, devices, seed, dropout, deadline_seconds=deadline, over_selection=over)
    before = 0.0
    for step in played(made, 4):
        drawn = [*step.clients, *step.absent, *step.late]
        assert len(set(drawn)) == len(drawn) and 1 <= len(step.visits) <= COHORT
        assert set(drawn) <= set(np.flatnonzero(found.able_N).tolist())
        assert not set(step.too_small) & set(drawn)
        assert step.began_seconds == before <= step.ended_seconds
        assert 0 <= step.waited_seconds <= step.seconds == step.ended_seconds - before
        before = step.ended_seconds
        for visit in step.visits:
            began = visit.began_seconds
            assert visit.version == step.number and step.began_seconds <= began <= visit.arrived_seconds <= before
            lengths = [found.seconds(visit.client, step.number, last=last) for last in (None, 0)]
            assert any(np.isclose(visit.arrived_seconds - began, length) for length in lengths)
            assert found.available_N(began)[visit.client]
        last = max(visit.arrived_seconds for visit in step.visits)
        if len(step.visits) == COHORT:
            assert step.ended_seconds == last  # it does not wait for more than it takes
        if deadline is None and not over:
            assert not step.late


@pytest.mark.parametrize("kind", KINDS)
def test_steps_are_the_same_in_whatever_order_they_are_asked_for_and_after_a_resume(kind):
    made, _ = schedule(kind, over_selection=0.5)
    steps = played(made, 9)
    assert [made.step(number) for number in (8, 2, 7, 0, 5)] == [steps[number] for number in (8, 2, 7, 0, 5)]
    again, _ = schedule(kind, over_selection=0.5)
    again.losses.restore(made.losses.arrays(6))
    assert again.step(0) == steps[0] and again.step(6) == steps[6]


@pytest.mark.parametrize("kind", ["uniform", "by_size", "round_robin"])
def test_devices_that_are_always_in_reach_change_no_draw(kind):
    made, _ = schedule(kind, EQUAL | ALWAYS)
    sampling = SamplingConfig(kind=kind, clients_per_round=COHORT)
    plain = Synchronous(sampling, 0, SIZES, SIZES)
    for number in range(8):
        assert list(made.step(number).clients) == cohort(sampling, 0, number, SIZES).tolist()
        step = plain.step(number)
        assert step.clients == made.step(number).clients and step.seconds is step.ended_seconds is None


def test_simulated_delays_are_a_clock_as_before():
    sampling = SamplingConfig(
        dropout=0.3, clients_per_round=6, delay=DelayConfig(seconds_per_example=2.0, deadline_seconds=5.0)
    )
    made, ended = Synchronous(sampling, 3, SIZES, SIZES), 0.0
    for number in range(6):
        step = made.step(number)
        found = answers(sampling, cohort(sampling, 3, number, SIZES).tolist(), 3, number, SIZES)
        assert (step.clients, step.absent, step.late, step.seconds) == (
            found.in_time,
            found.absent,
            found.late,
            found.seconds,
        )
        ended += found.seconds
        assert step.ended_seconds == ended


def test_the_first_answers_of_more_clients_than_a_cohort_are_taken():
    made, found = schedule(devices=ALWAYS, over_selection=1.0)
    step = made.step(0)
    seconds = found.seconds_N(0, None)
    drawn = [*step.clients, *step.late]
    assert len(drawn) == 2 * COHORT and not step.absent
    assert sorted(step.clients) == sorted(sorted(drawn, key=lambda client: seconds[client])[:COHORT])
    assert step.seconds == max(seconds[list(step.clients)])


@given(st.floats(1.0, 1e5), st.integers(0, 5))
def test_nobody_answers_behind_the_deadline_but_the_fastest(deadline, seed):
    made, found = schedule(devices=ALWAYS, seed=seed, deadline_seconds=deadline)
    step, seconds = made.step(0), found.seconds_N(0, None)
    assert all(seconds[client] > deadline for client in step.late)
    if len(step.visits) > 1:
        assert all(seconds[client] <= deadline for client in step.clients)
    assert step.seconds == (max(deadline, seconds[step.clients[0]]) if step.late else max(seconds[list(step.clients)]))


def test_too_few_clients_in_reach_are_waited_for():
    devices = EQUAL | {"availability": AvailabilityConfig(share=0.05, cycle_hours=100.0)}
    made, found = schedule(devices=devices)
    step = made.step(0)
    here = found.available_N(0.0) & found.able_N
    assert here.sum() < COHORT
    waited = [visit for visit in step.visits if visit.began_seconds > 0]
    next_N = np.where(found.able_N & ~here, found.next_available(0.0), np.inf)
    drawn = [*step.clients, *step.absent, *step.late]
    assert set(np.flatnonzero(here).tolist()) | set(np.argsort(next_N)[: COHORT - here.sum()].tolist()) <= set(drawn)
    assert all(visit.began_seconds == next_N[visit.client] for visit in waited if visit.client in drawn[:COHORT])
    assert step.waited_seconds > 0


def test_clients_that_cannot_hold_the_model_are_never_drawn_and_counted():
    devices = ALWAYS | {"gigabytes": {"median": 2.0, "sigma": 1.0}}
    made, found = schedule(devices=devices)
    small = tuple(c for c in range(CLIENTS) if SIZES[c] and found.hardware.memory_bytes_N[c] < 2e9)
    assert small and made.step(0).too_small == found.too_small == small
    assert not any(set(small) & {*step.clients, *step.late} for step in played(made, 6))
    with pytest.raises(
        ConfigError,
        match=r"none can be drawn.*needs 2 GB \(world\.devices\.needed_gigabytes\), where the largest.* 1 GB; give",
    ):
        schedule(devices=ALWAYS | {"gigabytes": 1.0})


def test_more_than_all_clients_cannot_be_drawn():
    able = int(schedule(devices=ALWAYS)[1].able_N.sum())
    with pytest.raises(
        ConfigError, match=rf"world\.over_selection=9 draws {10 * COHORT} .* only {able} can be drawn; set"
    ):
        schedule(devices=ALWAYS, over_selection=9.0)


def test_where_no_client_can_finish_the_sentence_says_so():
    slow = EQUAL | {"availability": AvailabilityConfig(share=0.5, cycle_hours=0.001)}
    made, _ = schedule(devices=slow)
    with pytest.raises(
        ConfigError, match=r"round 1: in 200 draws no client's result has arrived before it went out of reach"
    ):
        made.step(0)


def test_a_tier_holds_clients_of_like_speed_and_all_have_their_turn():
    made, found = schedule("tiers", ALWAYS)
    able = np.flatnonzero(found.able_N)
    rank = {
        client: place for place, client in enumerate(able[np.argsort(found.seconds_N(0)[able], kind="stable")].tolist())
    }
    tiers = np.array_split(np.arange(len(able)), 3)
    for start in (0, 3):
        cohorts = [{rank[client] for client in made.step(start + number).clients} for number in range(3)]
        assert sorted(next(i for i, tier in enumerate(tiers) if set(tier.tolist()) >= ranks) for ranks in cohorts) == [
            0,
            1,
            2,
        ]


def test_power_of_choice_takes_the_highest_losses_and_unknown_ones_first():
    sampling = SamplingConfig(kind="power_of_choice", clients_per_round=COHORT, candidates=CLIENTS)
    made = Synchronous(sampling, 0, SIZES, SIZES)
    seen: dict[int, float] = {}
    for number in range(8):
        step = made.step(number)
        worst = sorted((seen.get(client, np.inf) for client in range(CLIENTS) if SIZES[client]), reverse=True)[:COHORT]
        assert sorted((seen.get(client, np.inf) for client in step.clients), reverse=True) == worst
        made.learn(number, reports(step))
        seen |= {report.client: report.loss_first for report in reports(step) if report.failure is None}


def test_oort_prefers_high_losses_and_fast_devices():
    sampling = SamplingConfig(kind="oort", clients_per_round=2, exploration=0.0)
    hardware = Hardware(*(np.full(CLIENTS, value) for value in (100.0, 1e6, 1e6, 0.0, 9e9)))
    hardware.tokens_per_second_N[:12] = 10.0
    even = np.full(CLIENTS, 10)
    cost = VisitCost(even * 100.0, even * 100.0, (1,), (1,), 1.0)
    made = Synchronous(
        sampling, 0, even, even, Devices(hardware, Always(), cost, even), WorldConfig(devices=DevicesConfig())
    )
    made.learn(0, [ClientReport(c, 0, 10, loss_first=5.0 if c in (3, 7, 15, 20) else 0.1) for c in range(CLIENTS)])
    assert sorted(made.step(1).clients) == [15, 20]  # 3 and 7 have that loss too, but are ten times slower


def test_what_was_learned_reads_back_and_the_last_loss_before_a_round_counts():
    losses, again = Losses(), Losses()
    losses.learn(0, [ClientReport(1, 0, 1, loss_first=4.0), ClientReport(2, 0, 1, loss_first=3.0)])
    losses.learn(2, [ClientReport(1, 2, 1, loss_first=1.0)])
    again.restore(losses.arrays(99))
    for found in (losses, again):
        loss, seen = found.last(2, 4)
        np.testing.assert_array_equal(loss, [np.nan, 4.0, 3.0, np.nan])
        assert seen.tolist() == [-1, 0, 0, -1]
        assert found.last(3, 4)[0][1] == 1.0
    assert losses.arrays(2)["client"].tolist() == [1, 2]


@given(st.integers(1, 30), st.data())
def test_a_token_costs_the_layers_that_run(depth, data):
    lowest = data.draw(st.integers(0, depth))
    above = depth - lowest
    assert layer_share(depth, lowest, cached=True) == pytest.approx(above / depth)
    assert layer_share(depth, lowest, cached=False) == pytest.approx((depth + above) / (2 * depth))
    assert layer_share(depth, 0, cached=False) == 1.0
    assert layer_share(depth, lowest, cached=True, backward=False, candidates=6) == pytest.approx(3 * above / depth)


def test_a_visit_is_its_tokens_its_bytes_and_two_latencies():
    hardware = Hardware(*(np.array([value]) for value in (100.0, 1e6, 5e5, 0.25, 1e9)))
    cost = VisitCost(np.array([300.0]), np.array([500.0]), (2_000_000,), (1_000_000, 0), 1.0)
    devices = Devices(hardware, Always(), cost, np.array([1]))
    assert devices.seconds(0, 1, last=0) == 0.5 + 2 + 3 + 0
    assert devices.seconds(0, 0) == 0.5 + 2 + 5 + 2
    assert devices.seconds(0, 2, last=0) == 0.5 + 2 + 3 + 2


def test_stragglers_are_so_many_and_so_slow():
    plain, slow = (
        Devices.of(DevicesConfig(**EQUAL, **more), 0, COST, SIZES).hardware for more in ({}, {"slow_share": 0.25})
    )
    ratio = plain.tokens_per_second_N / slow.tokens_per_second_N
    assert sorted(ratio.tolist()) == [1.0] * 18 + [10.0] * 6


@given(st.integers(0, 20), st.integers(1, 6), st.integers(1, 9), st.booleans())
def test_a_visit_processes_the_examples_of_its_batches(size, batch_size, count, by_steps):
    """A pass may end with a smaller batch, so so many steps are not so many times a whole batch."""
    config = ClientConfig(
        batch_size=batch_size, **({"steps": count, "epochs": None} if by_steps else {"epochs": count})
    )
    if size:
        found = batches(config, size, np.random.default_rng(0))
        assert num_processed(config, size) == sum(len(batch) for _, batch in found)
    else:
        assert num_processed(config, size) == 0


def test_visits_of_many_clients_take_what_each_takes_alone():
    """Where downloads are compressed, a visit's length depends on when the client was last here, if it ever was."""
    cost = VisitCost(*(getattr(COST, name) for name in ("tokens_N", "first_tokens_N", "bytes_down", "bytes_up")), 0.0,
                     Downloads(4_000_000, 700_000, 1, 100))  # fmt: skip
    devices = Devices.of(DevicesConfig(), 3, cost, SIZES)
    last_N = np.arange(CLIENTS) % 9 - 1
    found = devices.seconds_K(np.arange(CLIENTS)[::-1], 8, last_N[::-1])
    alone = [devices.seconds(client, 8, last=None if last < 0 else int(last)) for client, last in enumerate(last_N)]
    assert found.tolist() == alone[::-1] and len(set(alone)) == CLIENTS

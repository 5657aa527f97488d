"""How many clients share passes: what is asked, what a trial says, what an earlier part of a run had."""

import dataclasses

import pytest
from support import make_tiny

from fedsim.core.errors import ConfigError
from fedsim.core.messages import FuseTrial
from fedsim.kept.kept import NO_SLOT, Slot
from fedsim.kept.store import Store
from fedsim.simulation.fusing import choose_fuse, with_fuse

GOOD = FuseTrial(clients=4, seconds_alone=1.0, seconds_together=0.4, bytes_per_client=100, bytes_free=10_000)
CLIENTS = (1, 2, 5, 7)


class Tries:
    """The one method of an executor that the choice needs."""

    def __init__(self, trial=GOOD, per_client=False):
        self.trial, self.per_client, self.asked = trial, per_client, []

    def try_fusing(self, state, clients):
        self.asked.append((state, clients))
        return self.trial


def choose(executor=None, workers=1, kept=None, clients=CLIENTS, slot=NO_SLOT, **client):
    return choose_fuse(make_tiny(client=client), executor or Tries(), "state", clients, workers, kept, slot)


def test_auto_takes_a_whole_group_after_one_trial():
    executor = Tries()
    choice = choose(executor)
    assert (choice.fuse, choice.trial, executor.asked) == (4, GOOD, [("state", CLIENTS)])
    assert choice.record()["seconds_alone"] == 1.0


@pytest.mark.parametrize(
    ("changes", "workers", "expected"),
    [
        ({"seconds_together": 1.2}, 1, 1),
        ({"seconds_together": 1.05}, 1, 4),  # noise must not decide
        ({"bytes_free": 600}, 1, 3),
        ({"bytes_free": 600}, 2, 1),
        ({"bytes_free": 10}, 1, 1),
        ({"bytes_free": None}, 8, 4),
    ],
)
def test_time_and_memory_can_speak_against_it(changes, workers, expected):
    executor = Tries(dataclasses.replace(GOOD, **changes))
    assert choose(executor, workers).fuse == expected


@pytest.fixture
def slot(tmp_path):
    return Slot("fuse", "a" * 64, "here", Store(tmp_path, 10**6))


@pytest.mark.parametrize("seconds_together", [0.4, 1.2])
def test_a_repeat_has_the_number_of_the_first_run_whatever_a_trial_would_say_now(slot, seconds_together):
    first = choose(Tries(dataclasses.replace(GOOD, seconds_together=seconds_together)), slot=slot)
    again, otherwise = Tries(dataclasses.replace(GOOD, seconds_together=1.6 - seconds_together)), Tries()
    repeat = choose(again, slot=slot)
    assert (repeat.fuse, again.asked) == (first.fuse, []) and "earlier run" in repeat.reason
    assert choose(again).fuse != first.fuse
    assert choose(otherwise, slot=slot, fuse=3).fuse == choose(otherwise, slot=slot, kept=3).fuse == 3


def test_an_answer_of_a_moments_memory_is_not_kept(slot):
    assert choose(Tries(dataclasses.replace(GOOD, bytes_free=600)), slot=slot).fuse == 3
    roomy = Tries()
    assert choose(roomy, slot=slot).fuse == 4 and roomy.asked


def test_a_kept_answer_that_needs_more_memory_than_is_free_is_tried_again(slot):
    huge = dataclasses.replace(GOOD, bytes_per_client=2**60, bytes_free=2**70)
    assert choose(Tries(huge), slot=slot).fuse == 4
    again = Tries(dataclasses.replace(huge, bytes_free=2**62))
    assert choose(again, slot=slot).fuse == 2 and again.asked


def test_the_trial_of_another_group_does_not_count(slot):
    choose(Tries(), slot=slot)
    pair = Tries(dataclasses.replace(GOOD, clients=2))
    assert choose(pair, slot=slot, clients=(1, 2)).fuse == 2 and pair.asked


def test_what_is_asked_for_needs_no_trial():
    executor = Tries()
    assert choose(executor, fuse=3).fuse == 3
    assert choose(executor, fuse="off").fuse == 1
    assert choose(executor, dropout=True).fuse == 1
    assert choose(Tries(per_client=True)).fuse == 1
    assert choose(executor, clients=(4,)).fuse == 1
    assert executor.asked == []


def test_a_resumed_run_keeps_its_number():
    executor = Tries()
    assert choose(executor, kept=2).fuse == 2
    assert choose(executor, kept=3, fuse=3).fuse == 3
    assert executor.asked == []
    with pytest.raises(ConfigError, match=r"run to resume has client.fuse=off, not 3"):
        choose(kept=1, fuse=3)
    with pytest.raises(ConfigError, match=r"run to resume has client.fuse=3, not off"):
        choose(kept=3, fuse="off")


def test_a_number_that_cannot_be_had_is_refused():
    with pytest.raises(ConfigError, match=r"ray.actors is per_client; set client.fuse=off"):
        choose(Tries(per_client=True), fuse=2)
    with pytest.raises(ConfigError, match=r"dropout .* set fuse=off, not 2"):
        choose(fuse=2, dropout=True)


def test_the_recorded_config_has_the_number_and_the_same_identity():
    config = make_tiny()
    assert with_fuse(config, 4).client.fuse == 4
    assert with_fuse(config, 1).client.fuse == "off"
    assert with_fuse(config, 4).identity == config.identity

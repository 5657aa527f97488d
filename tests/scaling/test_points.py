import re

import pytest
import yaml
from support import ROOT, TINY

from fedsim.core.errors import ConfigError, PartitionError, ResourceError
from fedsim.scaling.points import Point, make_points, parse_numbers


@pytest.fixture
def tiny_file(tmp_path):
    path = tmp_path / "tiny.yaml"
    path.write_text(yaml.safe_dump(TINY))
    return path


def points(path, *overrides, clients=(6, 12), cohorts=None, actors=None, rounds=3):
    return make_points(path, overrides, clients=clients, cohorts=cohorts, actors=actors, rounds=rounds)


def test_numbers_are_sorted_and_each_is_taken_once():
    assert parse_numbers("--clients", "100, 10,1000,10") == [10, 100, 1000]


@pytest.mark.parametrize("text", ["10,x", "0", "10,,100", "", "-3", "1e3", "2.5", "1_000", "²", "9999999999"])
def test_anything_else_is_refused_with_a_sentence(text):
    with pytest.raises(ConfigError, match=re.escape(f"--clients {text}: ") + ".* is not a whole number"):
        parse_numbers("--clients", text)


def test_every_combination_becomes_a_config(tiny_file):
    found = points(tiny_file, "client.epochs=2", "cache.folder=x", cohorts=[3, 9], actors=[1, 2], rounds=4)
    assert list(found.configs) == [
        Point(6, 3, 1), Point(6, 3, 2), Point(12, 3, 1), Point(12, 3, 2), Point(12, 9, 1), Point(12, 9, 2)
    ]  # fmt: skip
    for point, config in found.configs.items():
        assert (config.partition.clients, config.sampling.clients_per_round) == (point.clients, point.cohort)
        assert (config.ray.actors, config.rounds, config.client.epochs) == (point.actors, 4, 2)
        assert config.tracking.client_records and not config.tracking.plots
        assert not config.cache.enabled  # else the first point would pay for the others
    assert found.notes == ("left out: 9 clients a round, where there are only 6",)


def test_what_is_not_varied_is_the_config_s_own(tiny_file):
    (point,) = points(tiny_file, "sampling.clients_per_round=4", clients=[7]).configs
    assert point == Point(7, 4, "pool")
    (point,) = points(tiny_file, "executor=local", clients=[7]).configs
    assert point == Point(7, 5, 1)


@pytest.mark.parametrize("point", [Point(10, 5, 2), Point(1000, 50, "pool"), Point(3, 3, "per_client")])
def test_a_point_is_known_again_by_its_folder(point):
    assert Point.named(point.name) == point


def test_more_actors_than_cpus_are_noted(tiny_file):
    found = points(tiny_file, "ray.num_cpus=2", actors=[2, 4])
    assert found.notes == ("4 actors share 2 CPUs, 0.5 each: more actors than CPUs cannot show what more CPUs would",)


BUFFERED = ("sampling.clients_per_round=", "server.kind=fedavg", "buffer.size=2", "buffer.concurrency=5")


def test_the_cohort_of_a_buffered_study_is_what_a_step_takes_in(tiny_file):
    """As many train at a time in proportion as in the config; where there are not so many clients, the point is left out."""
    found = points(tiny_file, *BUFFERED, cohorts=[1, 2, 4])
    sizes = [(point.clients, config.buffer.size, config.buffer.concurrency) for point, config in found.configs.items()]
    assert sizes == [(6, 1, 2), (6, 2, 5), (12, 1, 2), (12, 2, 5), (12, 4, 10)]
    assert found.notes == (
        "--cohort takes the place of buffer.size=2; buffer.concurrency stays 2.5 times as much",
        "left out: 10 clients that train at a time, where there are only 6",
    )
    (point,) = points(tiny_file, *BUFFERED, clients=[7]).configs
    assert point == Point(7, 2, "pool")


REFUSED = {
    "no point left": (ConfigError, (), {"cohorts": [13, 40]}, r"every cohort \(13 clients .* --clients 6,12"),
    "clients as override": (ConfigError, ("partition.clients=3",), {}, "--clients sets this"),
    "cohort as both": (ConfigError, ("sampling.clients_per_round=3",), {"cohorts": [2]}, "--cohort sets this"),
    "rounds as override": (ConfigError, ("rounds=3",), {}, "--rounds sets this"),
    "output as override": (ConfigError, ("output=x",), {}, "--output sets this"),
    "no rounds": (ConfigError, (), {"rounds": 0}, "--rounds 0"),
    "actors of a local run": (ConfigError, ("executor=local",), {"actors": [1, 2]}, "--actors needs executor=ray"),
    "actors that do not fit": (
        ResourceError,
        ("ray.num_cpus=4", "ray.num_cpus_per_actor=2"),
        {"actors": [2, 3]},
        "the point of 6 clients, 5 a round, 3 actors does not fit: .* set ray.actors=2",
    ),
    "more clients than examples": (
        PartitionError, (), {"clients": [12, 241]}, r"--clients 241 cannot .* to work is --clients 1\d\d$"
    ),
    "by as many as equal shares allow": (
        PartitionError,
        ("partition.kind=iid", "partition.min_size=9"),
        {"clients": [100]},
        r"--clients 100 cannot .* to work is --clients 26$",
    ),
    "no number works": (PartitionError, ("partition.min_size=241",), {}, "no number of clients works"),
}  # fmt: skip


@pytest.mark.parametrize("name", REFUSED)
def test_what_cannot_run_is_refused_before_anything_runs(tiny_file, name):
    kind, overrides, changes, sentence = REFUSED[name]
    with pytest.raises(kind, match=sentence) as caught:
        points(tiny_file, *overrides, **changes)
    assert "\n" not in str(caught.value)


def test_the_largest_number_of_clients_that_is_named_can_be_dealt(tiny_file):
    with pytest.raises(PartitionError) as caught:
        points(tiny_file, clients=[240])
    largest = int(str(caught.value).rpartition(" ")[2])
    assert list(points(tiny_file, clients=[largest]).configs) == [Point(largest, 5, "pool")]


def test_the_examples_in_the_repository_can_be_run():
    found = make_points(
        ROOT / "configs/scaling/quickstart.yaml", ("ray.num_cpus=2",),
        clients=[10, 100, 1000], cohorts=[10, 20], actors=[1, 2], rounds=6,
    )  # fmt: skip
    assert len(found.configs) == 10

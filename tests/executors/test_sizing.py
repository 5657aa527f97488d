import pytest
from hypothesis import given
from hypothesis import strategies as st

from fedsim.core.errors import ResourceError
from fedsim.executors.cluster.sizing import NodeResources, capacity, plan_actors
from fedsim.executors.config import RayConfig


def plan(nodes, population=100, threads=1, **ray):
    return plan_actors(RayConfig(**ray), threads, population, [NodeResources(*node) for node in nodes])


PLANS = [
    # nodes (CPUs, GPUs), config, expected (count, CPUs, per_client)
    # as many as fit
    ([(2, 0)], {}, (2, 1, False)),
    ([(1, 0)], {}, (1, 1, False)),
    ([(64, 0)], {"population": 10}, (10, 1, False)),
    ([(64, 0)], {"population": 1}, (1, 1, False)),
    ([(2.5, 0)], {}, (2, 1, False)),
    ([(1, 0), (1, 0), (1, 0)], {}, (3, 1, False)),
    ([(0, 0), (4, 0)], {}, (4, 1, False)),
    ([(96, 8)], {}, (96, 1, False)),
    # threads
    ([(2, 0)], {"threads": 2}, (1, 2, False)),
    ([(8, 0), (3, 0)], {"threads": 2}, (5, 2, False)),
    ([(3, 0), (3, 0)], {"threads": 2}, (2, 2, False)),
    ([(64, 0)], {"threads": 16}, (4, 16, False)),
    ([(2, 0)], {"threads": 2, "actors": 2}, (2, 1, False)),
    ([(2, 0)], {"threads": 64, "actors": 2}, (2, 1, False)),
    # a part of a CPU, or several
    ([(2, 0)], {"num_cpus_per_actor": 0.5}, (4, 0.5, False)),
    ([(2, 0)], {"num_cpus_per_actor": 0.3}, (6, 0.3, False)),
    ([(8, 0)], {"num_cpus_per_actor": 3}, (2, 3, False)),
    ([(2, 0)], {"num_cpus_per_actor": 0.5, "threads": 4}, (4, 0.5, False)),
    ([(4, 0)], {"num_cpus_per_actor": 2, "actors": 2}, (2, 2, False)),
    # a number of actors
    ([(2, 0)], {"actors": 1}, (1, 1, False)),
    ([(2, 0)], {"actors": 3}, (3, 0.5, False)),
    ([(3, 0), (1, 0)], {"actors": 5}, (5, 0.5, False)),
    # an actor for each client
    ([(2, 0)], {"actors": "per_client", "population": 12}, (12, 0.1666, True)),
    ([(64, 0)], {"actors": "per_client", "population": 12}, (12, 1, True)),
    ([(2, 1)], {"actors": "per_client", "population": 12, "num_gpus_per_actor": 1 / 12}, (12, 0.1666, True)),
    ([(2, 0)], {"actors": "per_client", "population": 8, "num_cpus_per_actor": 0.25}, (8, 0.25, True)),
    # shares of GPUs
    ([(16, 2)], {"num_gpus_per_actor": 1 / 4}, (8, 1, False)),
    ([(16, 1), (16, 1)], {"num_gpus_per_actor": 1.0}, (2, 1, False)),
    ([(2, 8)], {"num_gpus_per_actor": 1.0}, (2, 1, False)),
    ([(64, 1)], {"num_gpus_per_actor": 1 / 3}, (3, 1, False)),
    ([(8, 4), (64, 0)], {"num_gpus_per_actor": 1 / 2}, (8, 1, False)),
    ([(16, 4), (16, 1)], {"num_gpus_per_actor": 1 / 2, "threads": 4}, (6, 4, False)),
    ([(2, 1)], {"num_gpus_per_actor": 1 / 4, "actors": 4}, (4, 0.5, False)),
    ([(2, 1.5)], {"num_gpus_per_actor": 1 / 2, "actors": 2}, (2, 1, False)),
    # several GPUs of one node for each actor
    ([(16, 8)], {"num_gpus_per_actor": 2}, (4, 1, False)),
    ([(16, 3), (16, 1), (16, 5)], {"num_gpus_per_actor": 2}, (3, 1, False)),
    ([(2, 4)], {"num_gpus_per_actor": 4, "actors": 1}, (1, 1, False)),
]


@pytest.mark.parametrize(("nodes", "given_config", "expected"), PLANS)
def test_plans(nodes, given_config, expected):
    result = plan(nodes, **given_config)
    assert (result.count, pytest.approx(result.num_cpus, abs=1e-3), result.per_client) == (
        expected[0], expected[1], expected[2],
    )  # fmt: skip


@given(st.integers(1, 64), st.integers(1, 4))
def test_n_shares_of_one_nth_always_fit_a_gpu_and_no_more(parts, gpus):
    result = plan([(10_000, gpus)], population=10_000, num_gpus_per_actor=1 / parts)
    assert result.count == parts * gpus
    assert parts * result.num_gpus <= 1.0


def remedies(error):
    """Return each request that a refusal names, as the changes of it: [("ray.actors", 4), ...]."""
    _, named, text = str(error).partition("; set ")
    alternatives = [each for each in text.split(", or ") if "=" in each] if named else []
    return [[tuple(change.split("=")) for change in each.split(" and ")] for each in alternatives]


def changed(request, changes):
    """Return a request (threads and the ``ray`` section) with changes as they stand in a refusal."""
    request = dict(request)
    for key, value in changes:
        name = key.removeprefix("client." if key == "client.threads" else "ray.")
        request[name] = value if "/" in value else float(value) if "." in value else int(value)
    return request


def one_more(key, value):
    """Return the next larger value; None where there is none."""
    if key == "ray.num_gpus_per_actor" and "/" not in value:
        return None if value == "0" else str(int(value) + 1)
    if key == "ray.num_gpus_per_actor":
        return f"1/{int(value.removeprefix('1/')) - 1}" if value != "1/1" else None
    return f"{float(value) + 1e-4:.4f}" if key == "ray.num_cpus_per_actor" else str(int(value) + 1)


@given(
    st.lists(st.tuples(st.sampled_from([0, 0.5, 1, 2, 3, 7, 16]), st.integers(0, 4)), max_size=4),
    st.one_of(st.sampled_from(["pool", "per_client"]), st.integers(1, 40)),
    st.sampled_from([0.0, 1.0, 2.0, 3.0, 1 / 2, 1 / 3, 1 / 7]),
    st.sampled_from([None, 0.25, 0.3, 1.0, 5.0, 64.0]),
    st.sampled_from([1, 2, 5, 64]),
)
def test_what_a_refusal_names_is_accepted_and_one_more_is_not(nodes, actors, share, cpus, threads):
    request = {"actors": actors, "num_gpus_per_actor": share, "num_cpus_per_actor": cpus, "threads": threads}
    try:
        result = plan(nodes, **request)
    except ResourceError as error:
        named = remedies(error)
        assert "\n" not in str(error)
        assert bool(named) == any(cpus > 0 for cpus, _ in nodes)
    else:
        assert 1 <= result.count <= capacity([NodeResources(*node) for node in nodes], result.num_cpus, result.num_gpus)
        assert actors == "pool" or result.count == (100 if actors == "per_client" else actors)
        return
    for changes in named:
        plan(nodes, **changed(request, changes))
        for key, value in changes:
            if (more := one_more(key, value)) is not None:
                with pytest.raises(ResourceError):
                    plan(nodes, **changed(request, [*changes, (key, more)]))


NAMED = [
    # nodes, config, what is named
    (
        [(2, 1)],
        {"actors": 9, "num_gpus_per_actor": 1 / 4},
        "only 4 fit; set ray.actors=4, or ray.num_gpus_per_actor=1/9",
    ),
    ([(2, 0)], {"actors": 3, "num_cpus_per_actor": 64}, "only 0 fit; set ray.num_cpus_per_actor=0.6666"),
    ([(2, 0)], {"threads": 64}, "no actor of 64 CPUs fits a node (free: 2 CPUs and 0 GPUs); set client.threads=2"),
    ([(0.5, 0)], {}, "set ray.num_cpus_per_actor=0.5"),
    (
        [(2, 1)],
        {"actors": 9, "num_gpus_per_actor": 1 / 4, "num_cpus_per_actor": 64},
        "set ray.actors=4 and ray.num_cpus_per_actor=0.5",
    ),
    ([(2, 0)], {"num_gpus_per_actor": 1 / 2}, "set ray.num_gpus_per_actor=0, or declare GPUs with ray.num_gpus"),
    ([(8, 3), (8, 2)], {"num_gpus_per_actor": 4}, "set ray.num_gpus_per_actor=3"),
    ([(8, 4)], {"num_gpus_per_actor": 3, "actors": 2}, "only 1 fit; set ray.actors=1, or ray.num_gpus_per_actor=2"),
    ([(8, 1)], {"num_gpus_per_actor": 2, "actors": 3}, "only 0 fit; set ray.num_gpus_per_actor=1/3"),
    ([(0, 4), (2, 0)], {"num_gpus_per_actor": 1 / 2}, "set ray.num_gpus_per_actor=0"),
    ([(0, 0)], {}, "every actor needs a part of a CPU, and none is free"),
    ([(2, 0)], {"actors": "pool", "num_cpus_per_actor": 1e308}, "set ray.num_cpus_per_actor=2"),
    ([(2, 0)], {"actors": "pool", "num_cpus_per_actor": 2.0**53}, "set ray.num_cpus_per_actor=2"),
]


@pytest.mark.parametrize(("nodes", "given_config", "expected"), NAMED)
def test_a_refusal_names_the_key_in_force_and_the_largest_value_that_fits(nodes, given_config, expected):
    with pytest.raises(ResourceError) as refused:
        plan(nodes, **given_config)
    assert str(refused.value).endswith(expected)


def test_of_a_cluster_that_runs_no_gpus_are_to_be_declared():
    with pytest.raises(ResourceError, match=r"none free; set ray.num_gpus_per_actor=0$"):
        plan([(2, 0)], address="auto", num_gpus_per_actor=1.0)


IMPOSSIBLE = [
    ([(2, 0)], {"num_gpus_per_actor": 0.5}, "asks for a GPU, but Ray has none free"),
    ([(1, 0)], {"threads": 4}, "no actor of 4 CPUs fits a node"),
    ([(2, 0)], {"actors": 3, "num_cpus_per_actor": 1}, "ray.actors=3 needs 3 actors of 1 CPUs each, but only 2 fit"),
    ([(8, 1)], {"actors": 5, "num_gpus_per_actor": 1 / 4}, "but only"),
    ([(1e9, 1e9)], {"actors": 100_000, "num_gpus_per_actor": 1.0, "num_cpus_per_actor": 1e5}, "but only 10000 fit"),
    ([(2, 0)], {"actors": 100_000, "threads": 1024}, "ray.actors=100000 needs 100000 actors"),
    ([(2, 0)], {"actors": "per_client", "num_cpus_per_actor": 1}, "ray.actors=per_client needs 100 actors"),
]


@pytest.mark.parametrize(("nodes", "given_config", "expected"), IMPOSSIBLE)
def test_impossible_plans_are_refused_at_once(nodes, given_config, expected):
    with pytest.raises(ResourceError, match=expected):
        plan(nodes, **given_config)

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fedsim.core.errors import ResourceError
from fedsim.executors.config import RayConfig
from fedsim.executors.plan import NodeResources, capacity, plan_actors


def plan(nodes, population=100, threads=1, **ray):
    return plan_actors(RayConfig(**ray), threads, population, [NodeResources(*node) for node in nodes])


PLANS = [
    # nodes (CPUs, GPUs), config, expected (count, CPUs, per_client)
    ([(2, 0)], {}, (2, 1, False)),
    ([(2, 0)], {"threads": 2}, (1, 2, False)),
    ([(8, 0), (3, 0)], {"threads": 2}, (5, 2, False)),
    ([(64, 0)], {"population": 10}, (10, 1, False)),
    ([(2, 0)], {"actors": 1}, (1, 1, False)),
    ([(2, 0)], {"actors": 3}, (3, 0.5, False)),
    ([(2, 0)], {"actors": "per_client", "population": 12}, (12, 0.1666, True)),
    ([(16, 2)], {"num_gpus_per_actor": 1 / 4}, (8, 1, False)),
    ([(16, 1), (16, 1)], {"num_gpus_per_actor": 1.0}, (2, 1, False)),
    ([(2, 1)], {"actors": "per_client", "population": 12, "num_gpus_per_actor": 1 / 12}, (12, 0.1666, True)),
    ([(2, 0)], {"num_cpus_per_actor": 0.5}, (4, 0.5, False)),
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


@given(
    st.lists(st.tuples(st.integers(0, 16), st.integers(0, 4)), min_size=1, max_size=4),
    st.integers(1, 40),
    st.sampled_from([0.0, 1.0, 1 / 2, 1 / 3, 1 / 7]),
)
def test_a_plan_fits_or_says_what_would(nodes, actors, share):
    try:
        result = plan(nodes, actors=actors, num_gpus_per_actor=share)
    except ResourceError as error:
        assert ("\n" not in str(error) and "set" in str(error)) or "use" in str(error)
    else:
        free = [NodeResources(*node) for node in nodes]
        assert result.count == actors <= capacity(free, result.num_cpus, result.num_gpus)


IMPOSSIBLE = [
    ([(2, 0)], {"num_gpus_per_actor": 0.5}, "asks for a GPU, but Ray has none free"),
    ([(1, 0)], {"threads": 4}, "no actor of 4 CPUs and 0 GPUs fits a node"),
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

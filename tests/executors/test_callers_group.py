"""A run inside a placement group that its caller made: a Tune trial's, a Train worker's."""

import pytest
import ray
from ray.util import placement_group, remove_placement_group
from ray.util.scheduling_strategies import PlacementGroupSchedulingStrategy

SECONDS = 60.0


@ray.remote(num_cpus=1)
def inside(**values):
    """Run rounds in the group that this task is in; return the actors' bundles, CPUs free beside, and what was said."""
    from benchmarks.carrying import Carrying
    from fedsim.configuration.schema import build_config
    from fedsim.core.errors import ResourceError
    from fedsim.executors.make import make_executor

    notes = []
    config = build_config({"partition": {"clients": 12}, "ray": {"address": "auto", **values}})
    executor = make_executor(config, lambda: None, notes.append)
    carrying = Carrying(executor, 12, 400, group_size=1)
    try:
        carrying.start()
        carrying.round()
        executor.refresh()  # would use what is free beside the group
        carrying.check()
        return len(executor._pool.ready), ray.available_resources().get("CPU", 0), notes
    except ResourceError as error:
        return 0, ray.available_resources().get("CPU", 0), [str(error)]
    finally:
        carrying.close()


@pytest.fixture
def in_group(session_ray):
    groups = []

    def call(bundles, **values):
        groups.append(placement_group(bundles))
        assert groups[-1].wait(SECONDS)
        where = PlacementGroupSchedulingStrategy(groups[-1], placement_group_bundle_index=0)
        return ray.get(inside.options(scheduling_strategy=where).remote(**values))

    yield call
    for group in groups:
        remove_placement_group(group)


def test_actors_are_in_the_bundles_and_as_many_as_those_hold(in_group):
    """The cluster has a fourth CPU free, which is not this run's."""
    assert in_group([{"CPU": 1}, {"CPU": 1}, {"CPU": 1}]) == (2, 1, [])


def test_a_group_that_is_too_small_is_refused_in_words_of_its_bundles(in_group):
    actors, _, (sentence,) = in_group([{"CPU": 1}, {"CPU": 0.5}], actors=2, num_cpus_per_actor=1)
    assert not actors
    assert sentence.startswith(
        "this run is inside a placement group with the bundles [{'CPU': 1}, {'CPU': 0.5}], of which 0 CPUs, 0.5 CPUs are free "
        "for actors: ray.actors=2 needs 2 actors of 1 CPUs each, but only 0 fit; set ray.num_cpus_per_actor=0.25"
    )
    assert "give the group 2 more bundles of {'CPU': 1}" in sentence

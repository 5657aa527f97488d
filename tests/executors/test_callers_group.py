"""A run inside a placement group that its caller made: a Tune trial's, a Train worker's."""

import pytest
import ray
from ray.util import placement_group, remove_placement_group
from ray.util.scheduling_strategies import PlacementGroupSchedulingStrategy
from support import sweep

from fedsim.core.errors import ResourceError
from fedsim.executors.cluster.callers_group import on_nodes
from fedsim.executors.cluster.sizing import NodeResources

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


LABELS = {"no labels": {}, "labels": {"labels": {"zone": "here"}}}


@pytest.mark.parametrize("labels", sweep(LABELS, ["no labels"]))
def test_actors_are_in_the_bundles_and_as_many_as_those_hold(in_group, labels):
    """The cluster has a fourth CPU free, which is not this run's."""
    assert in_group([{"CPU": 1}, {"CPU": 1}, {"CPU": 1}], **LABELS[labels]) == (2, 1, [])


def test_labels_that_no_node_has_are_refused(in_group):
    actors, _, (sentence,) = in_group([{"CPU": 1}, {"CPU": 1}], labels={"zone": "there"})
    assert not actors and sentence.startswith("no node of the cluster has the labels zone=there (ray.labels)")


def test_bundles_on_other_nodes_are_left_out():
    """Without a second machine: on what Ray says of a group that is on two."""
    found = {"000000": NodeResources(1.0, 0.0), "000001": NodeResources(2.0, 0.0)}
    assert on_nodes(found, {0: "one", 1: "two"}, {"two"}, "the labels zone=eu") == {"000001": NodeResources(2.0, 0.0)}
    with pytest.raises(
        ResourceError, match="no bundle is on a node with the labels zone=eu; make the group with bundle_l"
    ):
        on_nodes(found, {0: "one", 1: "two"}, {"three"}, "the labels zone=eu")


def test_a_group_that_is_too_small_is_refused_in_words_of_its_bundles(in_group):
    actors, _, (sentence,) = in_group([{"CPU": 1}, {"CPU": 0.5}], actors=2, num_cpus_per_actor=1)
    assert not actors
    assert sentence.startswith(
        "this run is inside a placement group with the bundles [{'CPU': 1}, {'CPU': 0.5}], of which 0 CPUs, 0.5 CPUs are free "
        "for actors: ray.actors=2 needs 2 actors of 1 CPUs each, but only 0 fit; set ray.num_cpus_per_actor=0.25"
    )
    assert "give the group 2 more bundles of {'CPU': 1}" in sentence

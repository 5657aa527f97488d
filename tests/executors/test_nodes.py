"""Queries to every node of a cluster: answers, errors and silence are distinguished, within a deadline."""

import time

import pytest

from fedsim.core.errors import ResourceError
from fedsim.executors.cluster.nodes import NoAnswer, ask_every_node, cluster_nodes, joined
from fedsim.executors.config import RayConfig
from fedsim.planning.machine import this_machine


def of_this_test():
    """Fails on every node: this module does not exist there."""


def test_each_node_answers_fails_or_is_late(session_ray):
    nodes = cluster_nodes()
    (node,) = nodes
    assert node.store_bytes == 300 * 2**20 and node.memory_bytes > 0
    (machine,) = ask_every_node(nodes, this_machine, 60)
    assert machine.host == this_machine().host and machine.shared_bytes == this_machine().shared_bytes
    (failed,) = ask_every_node(nodes, of_this_test, 60)
    assert isinstance(failed, NoAnswer) and failed.reason.startswith(
        "ModuleNotFoundError: No module named 'test_nodes'"
    )
    assert ask_every_node(nodes, lambda: time.sleep(60), 1) == [NoAnswer("no answer within 1 s")]


def test_a_cluster_that_was_joined_already_is_left_joined(session_ray):
    with joined(RayConfig(address="auto")):
        assert len(cluster_nodes()) == 1
    assert session_ray.is_initialized()


def test_an_address_of_ray_clients_is_refused():
    with (
        pytest.raises(ResourceError, match=r"ray://127.0.0.1:10001 is a Ray Client address"),
        joined(RayConfig(address="ray://127.0.0.1:10001")),
    ):
        pass

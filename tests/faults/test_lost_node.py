"""Real nodes on this machine, one of which is lost during a round."""

import json
import os
import subprocess
import sys

import pytest
from support import ROOT, sweep

CASES = {
    "synchronous": (3, ["--clients=100", "--rounds=12"]),
    "buffered": (2, ["--clients=200", "--buffer=100", "--rounds=12"]),
}
"""Nodes, and options: rounds enough that the loss is noticed before the end."""


@pytest.mark.parametrize("case", sweep(CASES, ("synchronous",)))
def test_a_lost_node_changes_nothing(case):
    """In a separate process: this one may be connected to Ray already."""
    nodes, options = CASES[case]
    command = [sys.executable, "-m", "benchmarks.cluster", f"--nodes={nodes}", *options, "--join=0", "--json"]
    environment = {key: value for key, value in os.environ.items() if key != "RAY_ADDRESS"}
    ended = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=240)
    assert ended.returncode == 0, ended.stderr
    found = json.loads(ended.stdout.splitlines()[-1])
    assert found["same bytes"]
    assert found["actors by node"] == [1] * nodes  # by plan
    assert found["nodes with frozen weights"] == nodes  # one copy on each
    assert (
        found["adders of block sums"] == nodes and found["groups a round"] > 16
    )  # sums of each block added on one node
    assert (found["actors at the end"], found["nodes at the end"]) == (nodes - 1, nodes - 1)
    assert (found["stalest client"] > 0) == (case == "buffered")
    # Its successor may have been sent to the node before that was known to be gone.
    assert found["actors replaced"] in (1, 2)
    assert found["client updates"] == "1200 ok, 0 failed"

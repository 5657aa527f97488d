"""The configs for clusters: each resolves, joins the cluster of its job, and leaves no actor idle on what it is meant for."""

import re

import pytest
from support import ROOT

from fedsim.configuration.schema import read_config
from fedsim.executors.cluster.sizing import NodeResources
from fedsim.planning.plan import PlanNode, make_plan

FOLDER = ROOT / "configs" / "cluster"
CONFIGS = sorted(path for path in FOLDER.glob("*.yaml") if path.name != "rayjob.yaml")
NODES = {"quickstart": [(4, 0)], "gpu": [(8, 1), (8, 1)]}
"""CPUs and GPUs of the nodes that each is meant for."""


def test_there_is_a_cluster_for_every_config():
    assert {path.stem for path in CONFIGS} == set(NODES)


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.stem)
def test_a_config_joins_its_jobs_cluster_and_uses_all_of_it(path):
    config = read_config(path)
    assert config.executor == "ray" and config.ray.address == "auto" and config.ray.actors == "pool"
    nodes = [PlanNode(str(number), NodeResources(*free)) for number, free in enumerate(NODES[path.stem])]
    plan = make_plan(config, nodes, None)
    assert not plan.warnings
    assert plan.actors.count == sum(gpus * 4 if gpus else cpus for cpus, gpus in NODES[path.stem])


@pytest.mark.parametrize("path", [*CONFIGS, FOLDER / "slurm.sbatch"], ids=lambda path: path.name)
def test_the_commands_in_a_files_head_name_files_that_are_there(path):
    named = re.findall(r"configs/cluster/[\w.]+", path.read_text())
    assert f"configs/cluster/{path.name}" in named
    assert all((ROOT / name).is_file() for name in named)

"""The manifest for KubeRay: valid by the operator's own schema, and one with the configs and versions that it names."""

from __future__ import annotations

import copy
import gzip
import json
import re
import shlex
from pathlib import Path
from typing import Any

import pytest
import yaml
from jsonschema import Draft202012Validator
from support import ROOT

from fedsim.configuration.schema import read_config
from fedsim.executors.cluster.sizing import NodeResources, plan_actors

MANIFEST = ROOT / "configs" / "cluster" / "rayjob.yaml"


def closed(schema: Any) -> Any:
    """Return a schema that refuses fields it does not name; Kubernetes silently drops them."""
    if isinstance(schema, list):
        return [closed(part) for part in schema]
    if not isinstance(schema, dict):
        return schema
    result = {key: closed(value) for key, value in schema.items()}
    if isinstance(result.get("properties"), dict) and result.get("type") == "object":
        result.setdefault("additionalProperties", bool(result.get("x-kubernetes-preserve-unknown-fields")))
    return result


@pytest.fixture(scope="module")
def validator():
    packed = (Path(__file__).parent / "rayjob_v1_schema.json.gz").read_bytes()
    return Draft202012Validator(closed(json.loads(gzip.decompress(packed))))


@pytest.fixture
def manifest():
    return yaml.safe_load(MANIFEST.read_text())


def test_the_manifest_is_valid(validator, manifest):
    assert not [error.message for error in validator.iter_errors(manifest)]
    assert (manifest["apiVersion"], manifest["kind"]) == ("ray.io/v1", "RayJob")


MISTAKES = {
    "a field that there is not": (("spec", "shutdownAfterJobFinished"), True, "shutdownAfterJobFinished"),
    "one further down": (("spec", "rayClusterSpec", "workerGroupSpecs", 0, "template", "spec", "volume"), [], "volume"),
    "a word for a number": (("spec", "backoffLimit"), "none", "'none' is not of type 'integer'"),
    "a number for a word": (("spec", "rayClusterSpec", "rayVersion"), 2.6, "is not of type 'string'"),
    "nothing to start a head from": (
        ("spec", "rayClusterSpec", "headGroupSpec"),
        {},
        "'template' is a required property",
    ),
}


@pytest.mark.parametrize("name", MISTAKES)
def test_a_mistake_in_it_would_be_found(validator, manifest, name):
    path, value, expected = MISTAKES[name]
    changed = copy.deepcopy(manifest)
    place = changed
    for key in path[:-1]:
        place = place[key]
    place[path[-1]] = value
    assert any(expected in error.message for error in validator.iter_errors(changed))


def test_what_it_runs_fits_the_pods_that_it_asks_for(manifest):
    cluster = manifest["spec"]["rayClusterSpec"]
    program = shlex.split(manifest["spec"]["entrypoint"])
    assert program[:4] == ["python", "-m", "fedsim", "run"] and program[-1] == "--resume"
    config = read_config(ROOT / Path(program[4]).relative_to("/home/ray/fedsim"), program[5:-1])
    (workers,) = cluster["workerGroupSpecs"]
    limits = workers["template"]["spec"]["containers"][0]["resources"]["limits"]
    node = NodeResources(float(limits["cpu"]), float(limits["nvidia.com/gpu"]))
    plan = plan_actors(config.ray, config.client.threads, config.partition.clients, [node] * workers["replicas"])
    groups = -(-config.sampling.clients_per_round // config.group_size)
    assert plan.count == 4 * workers["replicas"] == groups  # all of a GPU is used, and nobody is idle


def test_its_pods_hold_one_version_of_ray_which_is_that_of_the_tests(manifest):
    cluster = manifest["spec"]["rayClusterSpec"]
    pods = [cluster["headGroupSpec"], *cluster["workerGroupSpecs"]]
    images = {container["image"] for pod in pods for container in pod["template"]["spec"]["containers"]}
    (tested,) = re.findall(r"^ray==(\S+)$", (ROOT / "constraints.txt").read_text(), re.MULTILINE)
    assert cluster["rayVersion"] == tested
    assert [re.search(r":(\d+\.\d+\.\d+)", image)[1] for image in images] == [tested]
    for pod in pods:
        (volume,) = [each for each in pod["template"]["spec"]["volumes"] if each["name"] == "shm"]
        assert volume["emptyDir"]["medium"] == "Memory"

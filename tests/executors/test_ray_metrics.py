"""What a run shows of itself on a cluster: its metrics, their dashboard and their documentation, and its actors' names."""

import json
import re
import time

import pytest
from support import ROOT, make_tiny

import fedsim
from fedsim.core.errors import ResourceError
from fedsim.executors.about import JOB_VARIABLE, About, submission
from fedsim.executors.config import RayConfig
from fedsim.executors.ray import metrics
from fedsim.executors.ray.appearance import Appearance

DASHBOARD = ROOT / "fedsim" / "assets" / "grafana" / "fedsim.json"
HISTOGRAM = ("bucket", "count", "sum")


def exported() -> dict[str, tuple[str, ...]]:
    """Return every series that is exported, and its tags."""
    found = {}
    for each in metrics.ALL:
        names = [f"{each.exported}_{part}" for part in HISTOGRAM] if each.kind == "histogram" else [each.exported]
        found |= dict.fromkeys(names, (*metrics.RUN_TAGS, *each.tags))
    return found


def expressions() -> list[str]:
    content = json.loads(DASHBOARD.read_text())
    panels = [target["expr"] for panel in content["panels"] for target in panel["targets"]]
    return panels + [each["definition"] for each in content["templating"]["list"] if each["type"] == "query"]


def test_the_dashboard_asks_for_what_is_exported_and_for_all_of_it():
    asked = {name for expression in expressions() for name in re.findall(r"\bray_fedsim_\w+", expression)}
    assert asked <= exported().keys()
    assert {each.exported for each in metrics.ALL} <= {re.sub(r"_(bucket|count)$", "", name) for name in asked}
    of_ray = {"SessionName", "le"}
    for expression in expressions():
        labels = set(re.findall(r'(\w+)=~?"', expression))
        for by in re.findall(r"(?:by|on) \(([^)]*)\)", expression):
            labels |= set(re.split(r",\s*", by))
        tags = set().union(*(exported()[name] for name in re.findall(r"\bray_fedsim_\w+", expression)))
        assert labels <= tags | of_ray, expression


def test_every_panel_follows_the_data_source_that_is_chosen():
    content = json.loads(DASHBOARD.read_text())
    assert content["templating"]["list"][0]["name"] == "datasource"
    for panel in content["panels"]:
        sources = [panel["datasource"], *(target["datasource"] for target in panel["targets"])]
        assert {source["uid"] for source in sources} == {"${datasource}"}


def test_the_documentation_has_every_metric_with_its_tags():
    lines = (ROOT / "docs" / "operations.md").read_text().splitlines()
    rows = [
        [cell.strip() for cell in line.strip("|").split("|")] for line in lines if line.startswith("| `ray_fedsim_")
    ]
    documented = {row[0].strip("`"): (row[1], tuple(re.findall(r"`(\w+)`", row[2]))) for row in rows}
    assert documented == {each.exported: (each.kind, each.tags) for each in metrics.ALL}


def test_two_runs_of_a_name_keep_apart_and_replaced_actors_are_numbered_anew():
    runs = [Appearance(RayConfig(address="auto"), About("quick", model="roberta")) for _ in range(2)]
    named = [[run.client(0, 1.0, 0.25) for _ in range(3)] for run in runs]
    names = [[options["name"] for options, _ in each] for each in named]
    assert names == 2 * [["fedsim/quick/client-0", "fedsim/quick/client-0.2", "fedsim/quick/client-0.3"]]
    spaces = [{options["namespace"] for options, _ in each} for each in named]
    assert [len(space) for space in spaces] == [1, 1] and spaces[0] != spaces[1]
    assert named[0][1][1] == {"label": "fedsim/quick/client-0.2: roberta, 1 CPU, 0.25 GPU", "metrics": None}


def test_actors_of_a_ray_of_ones_own_have_labels_alone():
    options, arguments = Appearance(RayConfig(), About("quick")).actor("server")
    assert options == {} and arguments["label"] == "fedsim/quick/server"


@pytest.mark.parametrize(
    ("told", "found"),
    [
        (None, None),
        ('{"metadata": {"job_submission_id": "a"}}', "a"),
        ('{"metadata": {}}', None),
        ("[]", None),
        ("{", None),
    ],
)
def test_a_submitted_job_knows_its_id(monkeypatch, told, found):
    monkeypatch.delenv(JOB_VARIABLE, raising=False)
    if told is not None:
        monkeypatch.setenv(JOB_VARIABLE, told)
    assert submission() == found


def test_metrics_are_refused_where_ray_exports_none(session_ray, tmp_path):
    if metrics.endpoints():
        pytest.skip("this version of Ray keeps its own agent, which exports metrics (fedsim/executors/cluster/lean.py)")
    config = make_tiny(output=str(tmp_path / "run"), ray={"address": "auto", "actors": 1, "metrics": True})
    with pytest.raises(
        ResourceError, match=r"^ray.metrics=true, but this Ray exports no metrics: .* set ray.metrics=auto"
    ):
        fedsim.run(config, progress=False)


def test_a_named_run_leaves_its_names_free(session_ray_run, session_ray):
    """Its actors were named; none is detached, so that with the run they are gone."""
    deadline = time.monotonic() + 20
    while left := [name for name in named(session_ray) if name.startswith("fedsim/")]:
        assert time.monotonic() < deadline, left
        time.sleep(0.1)  # actors of the tests before are on their way out


def named(ray):
    return [each["name"] for each in ray.util.list_named_actors(all_namespaces=True)]

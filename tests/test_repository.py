"""What GitHub, citation tools and newcomers read: valid, in step with pyproject.toml, and without made-up addresses."""

import re
import tomllib

import pytest
import yaml
from support import ROOT

import fedsim

PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
FORMS = sorted(path for path in (ROOT / ".github" / "ISSUE_TEMPLATE").glob("*.yml") if path.stem != "config")
VERSIONS = [name.rpartition(" ")[2] for name in PROJECT["classifiers"] if re.search(r"Python :: 3\.\d+$", name)]


def read(*parts):
    return yaml.safe_load(ROOT.joinpath(*parts).read_text())


def test_the_workflow_calls_what_runs_here_on_the_oldest_and_the_newest_python():
    workflow = read(".github", "workflows", "ci.yml")
    job = workflow["jobs"]["test"]
    assert (ROOT / ".ci" / "run").stat().st_mode & 0o111
    assert [step["run"] for step in job["steps"] if "run" in step] == [".ci/run"]
    assert job["strategy"]["matrix"]["python"] == [VERSIONS[0], VERSIONS[-1]]
    assert PROJECT["requires-python"] == f">={VERSIONS[0]}"
    assert workflow["permissions"] == {"contents": "read"}


@pytest.mark.parametrize("path", FORMS, ids=lambda path: path.stem)
def test_an_issue_form_is_one_that_github_accepts(path):
    form = read(path)
    assert {"name", "description", "body"} <= form.keys()
    inputs = [part for part in form["body"] if part["type"] != "markdown"]
    assert inputs and {part["type"] for part in inputs} <= {"textarea", "input", "dropdown", "checkboxes"}
    assert len({part["id"] for part in inputs}) == len(inputs)
    assert all(part["attributes"]["label"] for part in inputs)
    assert all(isinstance(option, str) for part in inputs for option in part["attributes"].get("options", []))


def test_the_citation_is_of_this_version():
    citation = read("CITATION.cff")
    assert {"cff-version", "message", "title", "authors"} <= citation.keys()
    assert (citation["version"], citation["license"]) == (fedsim.__version__, PROJECT["license"])


def test_no_address_is_made_up():
    for path in (
        *FORMS,
        *(ROOT / name for name in ("CITATION.cff", "SECURITY.md", "CONTRIBUTING.md", "pyproject.toml")),
    ):
        text = path.read_text()
        assert not re.search(r"[\w.]+@[\w-]+\.\w+|example\.(com|org)|TODO|FIXME|your-?(name|org)", text), path

"""Files shipped with a job, packed by Ray's own functions: everything a run needs, and little else."""

from __future__ import annotations

import inspect
import json
import re
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import numpy as np
import pytest
from ray._private.runtime_env.packaging import create_package
from ray._private.runtime_env.working_dir import upload_working_dir_if_needed
from support import ROOT

from fedsim.executors.cluster.connect import _excludes

LIMIT_BYTES = 5 * 10**6
PACKAGES = ("fedsim", "clients", "server", "partitions")
# Before 2.53, Ray always looks at .gitignore and has no such parameter; it does not know .rayignore.
KNOWS_RAYIGNORE = "include_gitignore" in inspect.signature(create_package).parameters
_GITIGNORE = {"include_gitignore": True} if KNOWS_RAYIGNORE else {}


@pytest.fixture(scope="module")
def checkout(tmp_path_factory):
    """Return a copy of this checkout with what gathers in one: results anywhere, a virtual environment, a history."""
    folder = tmp_path_factory.mktemp("checkout") / "fedsim"
    ignored = shutil.ignore_patterns(".*_cache", "__pycache__", "runs", ".venv*", ".git", "*.egg-info", ".bench")
    shutil.copytree(ROOT, folder, ignore=ignored)
    noise = np.random.default_rng(0).bytes(6 * 10**6)  # does not get smaller by packing
    for name in (
        "runs/sst2/checkpoints/round-1.safetensors",
        "my_run/checkpoints/round-1.safetensors",
        ".venv/lib/torch.so",
        ".git/objects/pack/one.pack",
        "fedsim.log",
    ):
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(noise)
    (folder / "mine.yaml").write_text("rounds: 2\n")
    (folder / "mine.py").write_text("import fedsim\n")
    return folder


def submit_option(folder: Path) -> list[str]:
    """Return the patterns that the option of docs/clusters.md hands to a ``ray job submit`` before 2.53."""
    (code,) = re.findall(
        r"""--runtime-env-json "\$\(python -c '([^']+)'\)\"""", (ROOT / "docs" / "clusters.md").read_text()
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=folder, capture_output=True, text=True, check=True)
    environment = json.loads(done.stdout)
    assert environment["working_dir"] == "."
    return environment["excludes"]


def packed(folder: Path, target: Path, excludes: list[str]) -> zipfile.ZipFile:
    """Return the archive that Ray would upload; ``ray job submit`` and ``ray.init`` both go this way."""

    def pack(path, excludes, *more, **options):
        create_package(path, target, excludes=excludes, **_GITIGNORE)

    environment = {"working_dir": str(folder), "excludes": excludes}
    # Where the package goes is up to the function handed in; what is left out is up to Ray.
    upload_working_dir_if_needed(environment, scratch_dir=str(target.parent), upload_fn=pack, **_GITIGNORE)
    return zipfile.ZipFile(target)


WAYS = {"ray job submit": lambda folder: [], "its option": submit_option, "a driver that joins": _excludes}


@pytest.mark.parametrize("way", WAYS)
def test_a_checkout_travels_with_all_that_a_run_needs_in_less_than_5_megabytes(checkout, tmp_path, way):
    target = tmp_path / "package.zip"
    names = set(packed(checkout, target, WAYS[way](checkout)).namelist())
    needed = {
        path.relative_to(checkout).as_posix()
        for folder in (*PACKAGES, "configs", "examples")
        for path in (checkout / folder).rglob("*")
        if path.is_file()
    }
    needed |= {"mine.yaml", "mine.py"}
    assert {"fedsim/assets/backbone/model.safetensors", "configs/cluster/quickstart.yaml"} <= needed <= names
    if not KNOWS_RAYIGNORE and way == "ray job submit":
        # All but what .gitignore leaves out, as docs/clusters.md says.
        assert {"tests", "my_run", ".git"} <= {name.partition("/")[0] for name in names}
        return
    assert target.stat().st_size < LIMIT_BYTES
    tops = {name.partition("/")[0] for name in names if "/" in name}
    assert tops == {*PACKAGES, "configs", "examples"}


@pytest.mark.parametrize("way", ["its option", "a driver that joins"])
def test_the_patterns_of_rayignore_do_for_a_ray_that_does_not_read_it(checkout, tmp_path, way):
    """On this Ray too, whichever it is: in a copy without the file, and with what a driver alone leaves here."""
    excludes = WAYS[way](checkout)
    folder = tmp_path / "copy"
    for name in (
        "fedsim/__pycache__/one.pyc",
        "fedsim/__init__.py",
        "tests/one.py",
        ".git/one.pack",
        "mine.yaml",
        "one.png",
    ):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).touch()
    names = {name for name in packed(folder, tmp_path / "package.zip", excludes).namelist() if not name.endswith("/")}
    compiled = {"fedsim/__pycache__/one.pyc"} if way == "its option" else set()
    assert names == {"fedsim/__init__.py", "mine.yaml"} | compiled


def test_what_was_packed_runs(checkout, tmp_path):
    """In a folder that holds nothing else."""
    packed(checkout, tmp_path / "package.zip", _excludes(checkout)).extractall(tmp_path / "job")
    done = subprocess.run(
        [sys.executable, "-m", "fedsim", "config", "configs/cluster/quickstart.yaml"],
        cwd=tmp_path / "job",
        env={"PATH": "/usr/bin:/bin"},
        capture_output=True,
        text=True,
    )
    assert (done.returncode, done.stderr) == (0, "")
    assert "clients_per_round: 10" in done.stdout


def test_what_gitignore_leaves_out_stays_at_home_whatever_rayignore_takes_back(tmp_path):
    """As docs/clusters.md says; should Ray change that, the page has to."""
    folder = tmp_path / "checkout"
    shutil.copytree(
        ROOT, folder, ignore=lambda path, names: [n for n in names if n not in (".rayignore", "pyproject.toml")]
    )
    (folder / "mine").mkdir()
    for name in ("train.csv", "train.jsonl"):
        (folder / "mine" / name).write_text("text,label\n")
    with (folder / ".rayignore").open("a") as file:
        file.write("!/mine\n!/mine/**\n")
    (folder / ".gitignore").write_text("*.csv\n")
    excludes = _excludes(folder)
    assert set(packed(folder, tmp_path / "with.zip", excludes).namelist()) >= {"mine/train.jsonl", "pyproject.toml"}
    assert "mine/train.csv" not in packed(folder, tmp_path / "again.zip", excludes).namelist()
    (folder / ".gitignore").unlink()
    assert "mine/train.csv" in packed(folder, tmp_path / "without.zip", excludes).namelist()

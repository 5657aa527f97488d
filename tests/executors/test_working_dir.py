"""Files shipped with a job, packed by Ray's own functions: everything a run needs, and little else."""

from __future__ import annotations

import inspect
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

from fedsim.executors.cluster.connect import _EXCLUDES

LIMIT_BYTES = 5 * 10**6
PACKAGES = ("fedsim", "clients", "server", "partitions")
# Older Rays always look at .gitignore, and have no such parameter.
_GITIGNORE = {"include_gitignore": True} if "include_gitignore" in inspect.signature(create_package).parameters else {}


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


def packed(folder: Path, target: Path, excludes: list[str]) -> zipfile.ZipFile:
    """Return the archive that Ray would upload; ``ray job submit`` and ``ray.init`` both go this way."""

    def pack(path, excludes, *more, **options):
        create_package(path, target, excludes=excludes, **_GITIGNORE)

    environment = {"working_dir": str(folder), "excludes": excludes}
    # Where the package goes is up to the function handed in; what is left out is up to Ray.
    upload_working_dir_if_needed(environment, scratch_dir=str(target.parent), upload_fn=pack, **_GITIGNORE)
    return zipfile.ZipFile(target)


@pytest.mark.parametrize("excludes", [[], _EXCLUDES], ids=["ray job submit", "a driver that joins"])
def test_a_checkout_travels_with_all_that_a_run_needs_in_less_than_5_megabytes(checkout, tmp_path, excludes):
    target = tmp_path / "package.zip"
    names = set(packed(checkout, target, excludes).namelist())
    assert target.stat().st_size < LIMIT_BYTES
    needed = {
        path.relative_to(checkout).as_posix()
        for folder in (*PACKAGES, "configs", "examples")
        for path in (checkout / folder).rglob("*")
        if path.is_file()
    }
    needed |= {"mine.yaml", "mine.py"}
    assert {"fedsim/assets/backbone/model.safetensors", "configs/cluster/quickstart.yaml"} <= needed <= names
    tops = {name.partition("/")[0] for name in names if "/" in name}
    assert tops == {*PACKAGES, "configs", "examples"}


def test_what_was_packed_runs(checkout, tmp_path):
    """In a folder that holds nothing else."""
    packed(checkout, tmp_path / "package.zip", []).extractall(tmp_path / "job")
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
    assert set(packed(folder, tmp_path / "with.zip", []).namelist()) >= {"mine/train.jsonl", "pyproject.toml"}
    assert "mine/train.csv" not in packed(folder, tmp_path / "again.zip", []).namelist()
    (folder / ".gitignore").unlink()
    assert "mine/train.csv" in packed(folder, tmp_path / "without.zip", []).namelist()

"""What is installed: wheel and sdist hold all of the packages and nothing else, and the presets are read from there."""

import os
import shutil
import subprocess
import sys
import tarfile
import tomllib
import zipfile
from email.parser import Parser
from pathlib import Path

import pytest
from support import ROOT

import fedsim

PACKAGES = ("fedsim", "clients", "server", "partitions")
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
BUILD = "from setuptools import build_meta; import sys; build_meta.build_{}(sys.argv[1])"


def files(folder, *names):
    """Return the files of folders, by their path, without what Python leaves behind."""
    found = (path for name in names for path in (folder / name).rglob("*") if path.is_file())
    return {path.relative_to(folder).as_posix() for path in found if "__pycache__" not in path.parts}


def build(kind, source, out):
    done = subprocess.run([sys.executable, "-c", BUILD.format(kind), out], cwd=source, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "_Warning" not in done.stderr  # setuptools' deprecations


@pytest.fixture(scope="module")
def built(tmp_path_factory):
    """Return an sdist of the checkout, with rubbish in it, and a wheel built from what the sdist unpacks to."""
    pytest.importorskip("setuptools", "77", reason="what builds packages is not installed")
    tmp_path = tmp_path_factory.mktemp("packages")
    source = tmp_path / "source"
    for name in (*PACKAGES, "configs"):
        shutil.copytree(ROOT / name, source / name, ignore=shutil.ignore_patterns("__pycache__"))
    for path in ROOT.iterdir():
        if path.is_file():
            shutil.copy(path, source / path.name)
    for rubbish in ("fedsim/core/__pycache__/old.cpython-311.pyc", "server/old.pyc", "tests/test_it.py", "runs/a/x.py"):
        (source / rubbish).parent.mkdir(parents=True, exist_ok=True)
        (source / rubbish).write_text("")
    build("sdist", source, tmp_path)
    (sdist,) = tmp_path.glob("*.tar.gz")
    with tarfile.open(sdist) as archive:
        archive.extractall(tmp_path, filter="data")
    unpacked = tmp_path / sdist.name.removesuffix(".tar.gz")
    build("wheel", unpacked, tmp_path)
    (wheel,) = tmp_path.glob("*.whl")
    return unpacked, wheel


def test_the_wheel_holds_the_packages_with_all_their_files_and_the_presets(built):
    with zipfile.ZipFile(built[1]) as archive:
        held = {name for name in archive.namelist() if ".dist-info/" not in name}
    presets = {f"fedsim/presets/{name}" for name in files(ROOT / "configs", ".") if name.endswith(".yaml")}
    assert len(presets) > 30
    assert held == files(ROOT, *PACKAGES) | presets


def test_the_wheel_says_what_pyproject_says_and_carries_the_licence(built):
    with zipfile.ZipFile(built[1]) as archive:
        home = f"fedsim-{fedsim.__version__}.dist-info"
        said = Parser().parsestr(archive.read(f"{home}/METADATA").decode())
        assert archive.read(f"{home}/licenses/LICENSE") == (ROOT / "LICENSE").read_bytes()
        assert "fedsim = fedsim.__main__:main" in archive.read(f"{home}/entry_points.txt").decode()
    assert said["Version"] == fedsim.__version__ and said["License-Expression"] == "Apache-2.0"
    assert set(said.get_all("Provides-Extra")) == set(PROJECT["optional-dependencies"])
    assert said.get_all("Classifier") == PROJECT["classifiers"]
    urls = said.get_all("Project-URL") or []
    assert not any("example.com" in url or "TODO" in url for url in urls)


def test_the_sdist_holds_the_sources_and_no_tests(built):
    held = files(built[0], ".")
    assert files(ROOT, *PACKAGES) | {"pyproject.toml", "setup.py", "LICENSE", "README.md", "CITATION.cff"} <= held
    assert not {name for name in held if name.startswith(("tests/", "runs/")) or name.endswith(".pyc")}


def test_presets_are_read_from_an_installed_wheel(built, tmp_path):
    site = tmp_path / "site"
    with zipfile.ZipFile(built[1]) as archive:
        archive.extractall(site)
    code = (
        "import fedsim, json; from fedsim.study.cells import read_study\n"
        "study = read_study('quickstart')\n"
        "print(json.dumps([fedsim.__file__, str(study.path), fedsim.Config.read('quickstart').name, len(study.cells())]))"
    )
    environment = os.environ | {"PYTHONPATH": str(site)}
    done = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    package, study, name, cells = eval(done.stdout)
    assert Path(package).is_relative_to(site)
    assert study == str(site / "fedsim/presets/studies/quickstart.yaml")
    assert (name, cells) == ("quickstart", 9)

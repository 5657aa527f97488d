"""Packages of general names: ours are found wherever a user's files lie, and what cannot work says so in one sentence."""

import shutil
import subprocess
import sys

import pytest
from support import ROOT


def python(folder, code, *paths):
    """Run a script in ``folder`` that imports fedsim from ``paths``, or else from the checkout."""
    script = folder / "script.py"
    script.write_text(f"import sys\nsys.path[1:1] = {[str(path) for path in paths or (ROOT,)]}\n{code}")
    command = [sys.executable, "-E", "-S", str(script)]
    return subprocess.run(command, cwd=folder, capture_output=True, text=True)


@pytest.mark.parametrize("name", ["server.py", "clients/__init__.py"])
def test_a_users_own_module_does_not_shadow_ours(tmp_path, name):
    (tmp_path / name).parent.mkdir(exist_ok=True)
    (tmp_path / name).write_text("raise SystemExit('the wrong one')")
    package = name.partition("/")[0].removesuffix(".py")
    code = f"import fedsim\nexec('import {package}', {{'__name__': 'fedsim.core'}})\nprint(sys.modules[{package!r}].__file__)"
    assert python(tmp_path, code).stdout.strip() == str(ROOT / package / "__init__.py")


def test_a_script_that_wants_its_own_module_is_told_that_it_would_get_ours(tmp_path):
    (tmp_path / "server.py").write_text("mine = True")
    done = python(tmp_path, "import fedsim\nimport server")
    assert done.returncode == 1
    assert f"ImportError: {tmp_path / 'server.py'} has the name of a package of fedsim" in done.stderr
    assert python(tmp_path, "import fedsim\nimport clients").returncode == 0


def test_a_module_that_is_loaded_already_is_named(tmp_path):
    (tmp_path / "server.py").write_text("mine = True")
    done = python(tmp_path, "import server\nimport fedsim")
    assert f"is loaded already, from {tmp_path / 'server.py'}" in done.stderr


@pytest.mark.parametrize("damage", ["installed over", "removed"])
def test_another_distributions_package_in_place_of_ours_is_named(tmp_path, damage):
    site = tmp_path / "site"
    for package in ("fedsim/core", "clients", "server", "partitions"):
        (site / package).mkdir(parents=True)
    for file in ("fedsim/__init__.py", "fedsim/core/__init__.py", "fedsim/core/siblings.py"):
        shutil.copy(ROOT / file, site / file)
    for package in ("clients", "server", "partitions"):
        for file in ("__init__.py", "config.py"):
            shutil.copy(ROOT / package / file, site / package / file)
    assert python(tmp_path, "import fedsim", site).stderr == ""
    if damage == "removed":
        shutil.rmtree(site / "server")
    else:
        (site / "server" / "__init__.py").write_text("class WebServer: ...")
    done = python(tmp_path, "import fedsim", site)
    assert f"the package 'server' beside fedsim, {site / 'server'}, is not fedsim's" in done.stderr

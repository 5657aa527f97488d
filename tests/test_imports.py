"""What starting costs: a command and an actor import no package that they do not need."""

import gc
import subprocess
import sys

import pytest
from support import ROOT

from fedsim.core.imports import import_ahead, large_imports

FOREIGN = {"matplotlib", "datasets", "peft", "pandas", "sklearn", "scipy", "tensorboard", "torchvision"}
COMMAND_LINE = {"typer", "rich", "pyarrow"}


def modules_after(code: str) -> set[str]:
    """Return the top-level packages that a fresh process has imported after ``code``."""
    printed = subprocess.run(
        [sys.executable, "-c", f"{code}\nimport sys; print('\\n', *{{m.partition('.')[0] for m in sys.modules}})"],
        cwd=ROOT,
        check=True,
        capture_output=True,
        text=True,
    ).stdout
    return set(printed.splitlines()[-1].split())


def test_an_actor_imports_the_backbone_and_little_else():
    imported = modules_after("import clients.actor, clients.worker, transformers.models.roberta.modeling_roberta")
    assert {"torch", "transformers", "ray"} <= imported
    assert not imported & (FOREIGN | COMMAND_LINE)


def test_the_server_actor_imports_no_torch():
    imported = modules_after("import server.aggregator")
    assert "ray" in imported
    assert not imported & (FOREIGN | COMMAND_LINE | {"torch", "transformers"})


@pytest.mark.parametrize("arguments", [["--help"], ["run", "--help"], ["config", "configs/quickstart.yaml"]])
def test_a_command_that_needs_no_model_imports_none(arguments):
    imported = modules_after(
        f"import sys; sys.argv = ['fedsim', *{arguments}]\n"
        "from fedsim.cli import main\n"
        "try:\n    main()\nexcept SystemExit as end:\n    assert not end.code"
    )
    assert "typer" in imported
    assert not imported & (FOREIGN | {"torch", "transformers", "ray", "pyarrow"})


def test_the_driver_reads_config_and_data_before_it_imports_torch():
    imported = modules_after(
        "from fedsim.configuration.schema import read_config\n"
        "import fedsim.simulation.run\n"
        "from fedsim.simulation.preparation import partition_data\n"
        "config = read_config('configs/quickstart.yaml')\n"
        "fedsim.executors.make.make_executor(config, lambda: None, print)\n"
        "partition_data(config)"
    )
    assert "ray" in imported
    assert not imported & (FOREIGN | {"torch", "transformers"})


def test_the_collector_is_still_while_large_packages_are_imported_and_then_as_before():
    with large_imports():
        assert not gc.isenabled()
    assert gc.isenabled()
    gc.disable()
    try:
        with large_imports():
            pass
        assert not gc.isenabled()
    finally:
        gc.enable()


def test_a_module_that_is_not_there_is_left_to_whoever_needs_it():
    import_ahead(["transformers.models.no_such.modeling_no_such", "fedsim.core.seeds"])
    assert "fedsim.core.seeds" in sys.modules
    assert gc.isenabled()

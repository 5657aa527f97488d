"""What starting costs: a command and an actor import no package that they do not need."""

import gc
import json
import subprocess
import sys

import pytest
from support import ROOT

from fedsim.core.imports import import_ahead, large_imports

FOREIGN = {"matplotlib", "datasets", "peft", "pandas", "sklearn", "scipy", "tensorboard", "torchvision"}


def python(code: str) -> str:
    """Return what a fresh process prints."""
    return subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=True, capture_output=True, text=True).stdout


def modules_after(code: str) -> set[str]:
    """Return the top-level packages that a fresh process has imported after ``code``."""
    printed = python(f"{code}\nimport sys; print('\\n', *{{m.partition('.')[0] for m in sys.modules}})")
    return set(printed.splitlines()[-1].split())


@pytest.fixture(scope="module")
def run() -> dict[str, set[str]]:
    """What each process of a run on Ray has imported after a round, by package, and the processes of its cluster."""
    return {name: set(found) for name, found in json.loads(python(_RUN).splitlines()[-1]).items()}


_RUN = """
import json, sys, tempfile
import psutil
import fedsim

def imported(_):
    import sys
    return sorted(name for name, module in sys.modules.items() if "__file__" in vars(module))

changes = {"rounds": 1, "data": {"train_examples": 60, "validation_examples": 20}, "partition": {"clients": 4}}
changes |= {"tracking": {"plots": False}, "ray": {"num_cpus": 2, "actors": 2}, "sampling": {"clients_per_round": 2}}
with tempfile.TemporaryDirectory() as folder:
    with fedsim.Run(fedsim.Config.read("configs/quickstart.yaml", output=f"{folder}/run", **changes)) as run:
        assert next(run).round == 1
        import ray
        executor = run._open.context.executor
        actors = [*executor._workers.pool.ready.values(), executor.server.actor]
        *workers, server = ray.get([actor.__ray_call__.remote(imported) for actor in actors])
        children = psutil.Process().children(recursive=True)
        processes = [word for child in children for word in child.cmdline()[:3]]
    found = {"driver": imported(None), "first worker": workers[0], "worker": workers[1], "server": server}
    print(json.dumps({**found, "processes": processes}))
"""
UNUSED = {"torch._dynamo.utils", "torch.distributed.tensor", "torch.distributed.fsdp", "accelerate", "sympy"}
"""Large packages that transformers' models import and that no worker uses."""


def test_the_driver_of_a_run_imports_no_torch(run):
    assert {"ray", "clients.spec", "fedsim.simulation.loop"} <= run["driver"]
    assert not run["driver"] & ((FOREIGN - {"pandas"}) | UNUSED | {"torch", "transformers", "tokenizers", "aiohttp"})


@pytest.mark.parametrize("worker", ["first worker", "worker"])
def test_a_worker_imports_its_model_and_little_else(run, worker):
    assert {"torch", "transformers", "ray", "transformers.models.roberta.modeling_roberta"} <= run[worker]
    assert not run[worker] & (FOREIGN | UNUSED | {"transformers.models.bert.modeling_bert"})


def test_only_the_worker_that_reads_the_model_imports_what_reads_it(run):
    assert "fedsim.simulation.preparation" in run["first worker"]
    assert not run["worker"] & {"rich", "typer", "fedsim.simulation.preparation", "fedsim.configuration.schema"}


def test_the_server_imports_no_torch(run):
    assert {"ray", "server.core"} <= run["server"]
    assert not run["server"] & (FOREIGN | UNUSED | {"rich", "typer", "torch", "transformers", "clients.spec"})


def test_a_local_cluster_has_no_process_that_no_run_uses(run):
    assert any("raylet" in word for word in run["processes"])
    assert not [word for word in run["processes"] if word.endswith(("dashboard.py", "monitor.py", "DashboardAgent"))]


def test_what_waits_in_a_worker_is_loaded_when_it_is_asked_for():
    assert python(_LATE).split() == ["OnDemand", "module", "disable", "2.0"]


_LATE = """
from clients.actor import _import_lean
_import_lean(("transformers.models.roberta.modeling_roberta",))
import torch
print(type(torch._dynamo).__name__)
doubled = torch.compile(lambda x: 2 * x, backend="eager")(torch.ones(()))
import torch._dynamo.eval_frame
print(type(torch._dynamo).__name__, torch._dynamo.disable.__name__, float(doubled))
"""


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

"""Modules that wait until they are used."""

import subprocess
import sys

from support import ROOT

from fedsim.core.deferred import deferred, import_deferred

CODE = """
import sys
from clients.tuners import lora
from fedsim.core.deferred import import_deferred
print("torch" in sys.modules, lora.torch.float32, "torch" in sys.modules, lora.torch is sys.modules["torch"])
import_deferred("clients")
print(lora.torch is sys.modules["torch"], lora.nn is sys.modules["torch.nn"])
"""


def test_a_stand_in_imports_its_module_on_first_use_and_gives_way_to_it():
    printed = subprocess.run([sys.executable, "-c", CODE], cwd=ROOT, check=True, capture_output=True, text=True).stdout
    assert printed.split() == ["False", "torch.float32", "True", "False", "True", "True"]


def test_a_module_that_is_imported_needs_no_stand_in():
    assert deferred("subprocess") is subprocess
    import_deferred("clients")

#!/usr/bin/env bash
# A text model of transformers imports SciPy's optimizers if SciPy is installed, for whatever else: every model's base class imports
# all losses, those of object detection too, and these import scipy.optimize where they find it. Adding SciPy to an
# environment, for statistics say, costs every process that holds a model about 320 modules, 25 to 35 MB and some tenths of a second.
# Seen with transformers 5.23.0, torch 2.13.0, scipy 1.17.1: without SciPy 0 modules of it, with it 321 (on Linux, Python 3.11).
# Exit status 0: still so; 1: it has changed.
set -euo pipefail
work=$(mktemp -d); trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/venv"
"$work/venv/bin/python" -m pip install --quiet torch==2.13.0 transformers==5.23.0
cat > "$work/look.py" <<'PYTHON'
import sys
import time

begun = time.process_time()
from transformers.models.roberta import modeling_roberta  # noqa

took = time.process_time() - begun
with open("/proc/self/smaps_rollup") as lines:
    memory = next(int(line.split()[1]) // 1024 for line in lines if line.startswith("Pss:"))
modules = sum(name.split(".")[0] == "scipy" for name in sys.modules)
print(f"{modules} modules of SciPy, {memory} MB, {took:.2f} s of CPU time", file=sys.stderr)
print(modules)
PYTHON
echo "without SciPy:"
without=$("$work/venv/bin/python" "$work/look.py")
"$work/venv/bin/python" -m pip install --quiet scipy==1.17.1
"$work/venv/bin/python" "$work/look.py" > /dev/null 2>&1  # its files are compiled
echo "with SciPy installed:"
with=$("$work/venv/bin/python" "$work/look.py")
if [ "$without" -eq 0 ] && [ "$with" -gt 100 ]; then echo "still so"; else echo "it has changed"; exit 1; fi

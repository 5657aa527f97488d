"""Runs the cells of a notebook without Jupyter, in a process of its own."""

import json
import os
import subprocess
import sys

from support import ROOT

KERNEL = """
import ast, json, sys
import matplotlib
matplotlib.use("Agg")

drawn = []

class Page:
    def __init__(self, figure):
        self.update(figure)

    def update(self, figure):
        drawn.append([len(line.get_xdata()) for axes in figure.axes for line in axes.lines])
        figure.savefig("figure.png")

def display(figure, display_id):
    return Page(figure)

names = {"__name__": "__main__", "display": display}
shown = []
for source in json.load(sys.stdin):
    tree = ast.parse(source)
    last = tree.body.pop() if isinstance(tree.body[-1], ast.Expr) else None
    exec(compile(tree, "cell", "exec"), names)
    value = eval(compile(ast.Expression(last.value), "cell", "eval"), names) if last else None
    if value is not None:
        hows = [each for each in ("_repr_html_", "_repr_png_", "__repr__") if hasattr(value, each)]
        how = next(each for each in hows if getattr(value, each)() is not None)
        shown.append(f"{type(value).__name__} {how} {len(getattr(value, how)()) > 0}")
print(json.dumps({"drawn": drawn, "shown": shown}))
"""
"""As much of a notebook's kernel as its cells need: ``display``, and the value of a cell's last line."""


def cells(path):
    """Return the cells of a notebook."""
    notebook = json.loads(path.read_text())
    assert (notebook["nbformat"], notebook["nbformat_minor"]) == (4, 5)
    return notebook["cells"]


def code(path):
    """Return the source of each cell of code."""
    return ["".join(cell["source"]) for cell in cells(path) if cell["cell_type"] == "code"]


def has_no_outputs(path):
    """Whether a notebook is stored as it has to be: each cell with a name of its own, and nothing of a run."""
    found = cells(path)
    of_code = [cell for cell in found if cell["cell_type"] == "code"]
    without = all(cell["outputs"] == [] and cell["execution_count"] is None for cell in of_code)
    return bool(of_code) and without and len({cell["id"] for cell in found}) == len(found)


def run_cells(sources, folder):
    """Run cells in a folder; return what was drawn, and what the cells showed."""
    done = subprocess.run(
        [sys.executable, "-c", KERNEL],
        input=json.dumps(sources),
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        cwd=folder,
        capture_output=True,
        text=True,
        timeout=200,
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout.splitlines()[-1])  # after a line on each run's page

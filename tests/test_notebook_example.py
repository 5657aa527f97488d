"""The notebook: valid, without outputs, and its cells run from top to bottom and draw."""

import json
import os
import subprocess
import sys

from support import ROOT

NOTEBOOK = ROOT / "examples" / "rounds.ipynb"
SMALLER = {
    "rounds=10,": 'rounds=3, data={"train_examples": 240, "validation_examples": 60}, prompt={"length": 4},',
    '"clients": 50': '"clients": 12',
}
"""Changes to the config's cell that make seconds of a minute."""
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
        how = next(each for each in ("_repr_html_", "_repr_png_", "__repr__") if hasattr(value, each))
        shown.append(f"{type(value).__name__} {how} {len(getattr(value, how)()) > 0}")
print(json.dumps({"drawn": drawn, "shown": shown}))
"""
"""As much of a notebook's kernel as its cells need: ``display``, and the value of a cell's last line."""


def cells():
    notebook = json.loads(NOTEBOOK.read_text())
    assert (notebook["nbformat"], notebook["nbformat_minor"]) == (4, 5)
    return notebook["cells"]


def test_it_is_a_notebook_without_outputs():
    assert len({cell["id"] for cell in cells()}) == len(cells())
    code = [cell for cell in cells() if cell["cell_type"] == "code"]
    assert code and all(cell["outputs"] == [] and cell["execution_count"] is None for cell in code)


def test_its_cells_run_and_draw_as_the_run_goes(tmp_path):
    sources = ["".join(cell["source"]) for cell in cells() if cell["cell_type"] == "code"]
    for given, smaller in SMALLER.items():
        assert given in sources[0]
        sources[0] = sources[0].replace(given, smaller)
    done = subprocess.run(
        [sys.executable, "-c", KERNEL],
        input=json.dumps(sources),
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=200,
    )
    assert done.returncode == 0, done.stderr
    said = json.loads(done.stdout.splitlines()[-1])  # after a line on each run's page
    assert said["drawn"] == [[], [1], [2], [3]]
    assert said["shown"] == [
        "Config __repr__ True",
        "RecordedRun _repr_html_ True",
        "DataFrame _repr_html_ True",
        "Picture _repr_png_ True",
        "tuple __repr__ True",
    ]
    assert (tmp_path / "figure.png").read_bytes().startswith(b"\x89PNG")
    assert {path.name for path in (tmp_path / "runs").iterdir()} == {"rounds", "settled"}

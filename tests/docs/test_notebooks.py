"""The notebooks: stored without outputs, and their cells run from top to bottom, without Jupyter and, where it is, with it."""

import json

import pytest
from notebook_kernel import code, has_no_outputs, run_cells
from support import ROOT, sweep

FOLDER = ROOT / "examples" / "notebooks"
SHOWN = {
    "own_method": ["str __repr__ True", "DataFrame _repr_html_ True"],
    "results": [
        "RecordedRun _repr_html_ True",
        "DataFrame _repr_html_ True",
        "Figure __repr__ True",
        "DataFrame _repr_html_ True",
        "DataFrame _repr_html_ True",
        "Series __repr__ True",
    ],
}
"""What the cells of notebooks that import nothing of Jupyter's end with."""
IN_JUPYTER = sorted(path.stem for path in FOLDER.glob("*.ipynb"))


@pytest.mark.parametrize("name", IN_JUPYTER)
def test_it_is_stored_without_outputs(name):
    assert has_no_outputs(FOLDER / f"{name}.ipynb")


@pytest.mark.parametrize("name", sweep(SHOWN, ("results",)))
def test_its_cells_run(name, tmp_path):
    assert run_cells(code(FOLDER / f"{name}.ipynb"), tmp_path)["shown"] == SHOWN[name]


@pytest.mark.parametrize("name", sweep(IN_JUPYTER, ("first_run",)))
def test_it_runs_in_jupyter(name, tmp_path, monkeypatch):
    nbclient = pytest.importorskip("nbclient", reason="the extra docs brings Jupyter's client and kernel")
    nbformat = pytest.importorskip("nbformat")
    pytest.importorskip("ipykernel")
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    notebook = nbformat.read(FOLDER / f"{name}.ipynb", as_version=4)
    nbclient.NotebookClient(notebook, timeout=200, resources={"metadata": {"path": str(tmp_path)}}).execute()
    said = json.dumps([cell.get("outputs", []) for cell in notebook.cells])
    assert '"error"' not in said
    if name == "first_run":
        assert "round 4/4" in said and "report.html" in said and "<pre" in said

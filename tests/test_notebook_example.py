"""The notebook: valid, without outputs, and its cells run from top to bottom and draw."""

import pytest
from notebook_kernel import code, has_no_outputs, run_cells
from support import ROOT

NOTEBOOK = ROOT / "examples" / "rounds.ipynb"
SMALLER = {
    "rounds=10,": 'rounds=3, data={"train_examples": 240, "validation_examples": 60}, prompt={"length": 4},',
    '"clients": 50': '"clients": 12',
}
"""Changes to the config's cell that make seconds of a minute."""


def test_it_is_a_notebook_without_outputs():
    assert has_no_outputs(NOTEBOOK)


@pytest.mark.wide(alone="10 s: tests/docs runs another notebook in the same way")
def test_its_cells_run_and_draw_as_the_run_goes(tmp_path):
    sources = code(NOTEBOOK)
    for given, smaller in SMALLER.items():
        assert given in sources[0]
        sources[0] = sources[0].replace(given, smaller)
    said = run_cells(sources, tmp_path)
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

"""Every block of code in README and docs is run, checked, or says why not; what a tutorial shows is what comes out."""

import pytest
from doc_blocks import ALL, DEEDS, blocks
from doc_marks import MARKS
from doc_runs import PageRun, shape
from support import ROOT, sweep

from fedsim.configuration.schema import build_config, read_config
from fedsim.configuration.yaml_text import load

QUICK = ("docs/tutorials/pandas.md",)
"""Pages whose blocks every `make test` runs."""
RUN = sorted({block.page for block in ALL if block.deed in ("run", "run small")})


def test_every_block_is_run_or_says_why_not():
    for block in ALL:
        assert block.deed or block.kind == "text", (
            f"{block}: put <!-- run -->, or another comment of doc_blocks.py, above it"
        )
        assert block.deed in (*DEEDS, None), f"{block}: there is no {block.deed!r}; see doc_blocks.py"
        assert block.about or block.deed not in ("not run", "file"), f"{block}: {block.deed} needs its words"
        assert block.deed != "output" or block.kind == "text", f"{block}: output is of type text"


def test_every_mark_is_of_a_block():
    starts = [(block.page, block.text) for block in ALL]
    lost = [key for key in MARKS if not any(key[0] == page and text.startswith(key[1]) for page, text in starts)]
    assert not lost


@pytest.mark.parametrize("page", sweep(RUN, QUICK))
def test_what_a_page_says_to_run_runs(page, tmp_path, monkeypatch):
    run = PageRun(tmp_path, monkeypatch)
    for block in blocks(ROOT / page):
        if block.deed == "output":
            missing = [line for line in shape(block.text) if line not in (*shape(run.printed), "...")]
            assert not missing, f"{block} shows what was not printed; printed was:\n{run.printed}"
        else:
            run.do(block)


@pytest.mark.parametrize("block", [block for block in ALL if block.deed == "config"], ids=str)
def test_what_a_page_shows_of_a_config_is_valid(block):
    from fedsim.configuration.values import merged

    quickstart = read_config(ROOT / "configs" / "quickstart.yaml").model_dump(mode="json", exclude_unset=True)
    build_config(merged({} if block.about == "alone" else quickstart, load(block.text)))


def test_what_is_run_but_for_a_comment_is_found(tmp_path, monkeypatch):
    page = ROOT / "docs" / "tutorials" / "own_data.md"
    deeds = [block.deed for block in blocks(page)]
    assert "file" in deeds and "run" in deeds and "output" in deeds
    assert shape("accuracy   0.51 -> 0.9633\n") == shape("accuracy  0.4 -> 0.95") != shape("loss 0.4 -> 0.95")

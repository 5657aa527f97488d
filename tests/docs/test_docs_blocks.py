"""Every block of code in README and docs is run, checked, or says why not; what a tutorial shows is what comes out."""

import re
import shlex

import commands
import config_keys
import pytest
from doc_blocks import ALL, DEEDS, Block, blocks
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


@pytest.fixture
def page_run(tmp_path, monkeypatch):
    run = PageRun(tmp_path, monkeypatch)
    yield run
    run.close()


@pytest.mark.parametrize("page", sweep(RUN, QUICK))
def test_what_a_page_says_to_run_runs(page, page_run):
    for block in blocks(ROOT / page):
        if block.deed == "output":
            missing = [line for line in shape(block.text) if line not in (*shape(page_run.printed), "...")]
            assert not missing, f"{block} shows what was not printed; printed was:\n{page_run.printed}"
        else:
            page_run.do(block)


@pytest.mark.parametrize("block", [block for block in ALL if block.deed == "config"], ids=str)
def test_what_a_page_shows_of_a_config_is_valid(block):
    from fedsim.configuration.values import merged

    quickstart = read_config(ROOT / "configs" / "quickstart.yaml").model_dump(mode="json", exclude_unset=True)
    build_config(merged({} if block.about == "alone" else quickstart, load(block.text)))


COMMANDS, KEYS = dict(commands.walked()), set(config_keys.keys())
OPEN = ("params", "data.task", "data.columns", "data.label_of_file")
"""Keys that hold names of the user's."""


def complaints(words):
    """Yield what is wrong with a command, whether it is run or not: its name, an option, a config, a key."""
    name = next((" ".join(words[:n]) for n in (3, 2) if " ".join(words[:n]) in COMMANDS), None)
    if name is None:
        yield f"there is no {' '.join(words[:2])}"
        return
    options = {option: parameter for parameter in COMMANDS[name].params for option in parameter.opts}
    rest = iter(words[len(name.split()) :])
    for word in rest:
        key = word.strip("[].").partition("=")[0]
        if key.startswith("--"):
            if key not in options:
                yield f"{name} has no option {key}"
            elif not options[key].is_flag:
                next(rest, None)
        elif re.fullmatch(r"[a-z_]+(\.[a-z_0-9]+)*", key) and "=" in word and "--load" not in words:
            if key not in KEYS and not key.startswith(tuple(f"{group}." for group in OPEN)):
                yield f"there is no key {key}"
        elif word.startswith("configs/") and not (ROOT / word).is_file():
            yield f"there is no {word}"


@pytest.mark.parametrize("page", sorted({block.page for block in ALL}))
def test_every_command_has_its_name_its_options_and_its_keys(page):
    for block in blocks(ROOT / page):
        for line in block.lines if block.kind != "python" else ():
            command = line.partition("python -m ")[2] or line
            if command.startswith("fedsim "):
                assert not list(complaints(shlex.split(command))), f"{block}: {line}"


def test_a_command_that_is_not_there_is_found():
    wrong = "fedsim fly x", "fedsim run x --fast", "fedsim run x rounds.all=5", "fedsim plan configs/none.yaml"
    assert all(list(complaints(line.split())) for line in wrong)
    assert not list(complaints(["fedsim", "cache", "list", "--folder", "rounds.all=5"]))


def test_what_a_command_prints_may_go_into_a_file(page_run, tmp_path):
    line = "fedsim config configs/quickstart.yaml rounds=7 --plain > written.yaml\n"
    page_run.do(Block("page", 1, "bash", line, "run", ""))
    assert "rounds: 7\n" in (tmp_path / "written.yaml").read_text() and not page_run.printed


def test_comments_and_outputs_are_told_apart():
    deeds = [block.deed for block in blocks(ROOT / "docs" / "tutorials" / "own_data.md")]
    assert "file" in deeds and "run" in deeds and "output" in deeds
    assert shape("accuracy   0.51 -> 0.9633\n") == shape("accuracy  0.4 -> 0.95") != shape("loss 0.4 -> 0.95")

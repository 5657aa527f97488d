"""README and docs: every file, module, link and heading that they name exists."""

import importlib.util
import re
from functools import cache
from pathlib import Path

import generated
import pytest
import sources
from support import ROOT

from fedsim.configuration.schema import build_config
from fedsim.configuration.yaml_text import load

PAGES = sorted([*(ROOT / name for name in sources.PAGES), *(ROOT / "docs").rglob("*.md")])
PACKAGES = "fedsim|clients|server|partitions|benchmarks"
FOLDERS = f"{PACKAGES}|tests|configs|docs|examples"
FILE = re.compile(rf"(?<![\w/.-])(?:{FOLDERS})/[\w/.-]*\.(?:py|yaml|sbatch)\b")
TEST_FILE = re.compile(r"(?<![\w/])test_\w+\.py\b")
DOTTED = re.compile(rf"`((?:{PACKAGES})(?:\.\w+)+)")
DATA_FILES = (".parquet", ".py")
COMMAND = re.compile(r"python -m ((?:fedsim|benchmarks)[\w.]*)")


def is_server_key(name: str) -> bool:
    """Whether some schema has a field of this name, as the config's section ``server`` and the package share theirs."""
    files = [*(ROOT / "server").glob("*.py"), *(ROOT / "fedsim").glob("methods/*.py")]
    return any(re.search(rf"^ +{name}: ", file.read_text(), re.M) for file in files)


def exists(dotted: str) -> bool:
    """Whether a dotted name is a module, or a name in the file of one; nothing is imported."""
    parts = dotted.split(".")
    if dotted.endswith(DATA_FILES) or (parts[0] == "server" and len(parts) == 2 and is_server_key(parts[1])):
        return True
    for length in range(len(parts), 0, -1):
        path = ROOT.joinpath(*parts[:length])
        file = path / "__init__.py" if path.is_dir() else path.with_suffix(".py")
        if file.is_file():
            code = file.read_text()
            return all(re.search(rf"\b{name}\b", code) for name in parts[length:])
    return False


@cache
def anchors(page: Path) -> set[str]:
    """Return the anchors that GitHub and the site give to a page's headings, those of what is made from the code too."""
    text = generated.filled(page.read_text())
    parts = "".join(text[start:end] for start, end in sources.outside(text))
    headings = re.findall(r"^#+ (.+)$", parts, re.M)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("page", [p for p in PAGES if p.name != "CHANGELOG.md"], ids=lambda page: page.name)
def test_every_file_and_module_that_a_page_names_exists(page):
    text = page.read_text()
    missing = [file for file in FILE.findall(text) if not (ROOT / file).is_file()]
    missing += [name for name in TEST_FILE.findall(text) if not list((ROOT / "tests").rglob(name))]
    missing += [
        name for name in DOTTED.findall(text) if not (ROOT / name.replace(".", "/")).exists() and not exists(name)
    ]
    missing += [name for name in COMMAND.findall(text) if importlib.util.find_spec(name) is None]
    assert not missing


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_every_link_of_a_page_leads_somewhere(page):
    broken = []
    for link in sources.links(page.read_text()):
        if link.startswith(("http:", "https:")):
            continue
        target, _, anchor = link.partition("#")
        file = (page.parent / target).resolve() if target else page
        if not file.exists() or (anchor and anchor not in anchors(file)):
            broken.append(link)
    assert not broken


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_no_word_of_a_page_is_taken_for_html(page):
    """A reader would not see ``<eos>``, unless it is code."""
    text = page.read_text()
    prose = [re.sub(r"(`+)[^`]*\1|<!--.*?-->", "", text[a:b], flags=re.S) for a, b in sources.outside(text)]
    assert not re.findall(r"<[a-zA-Z/][^>\n]*>", "".join(prose))


def test_what_is_missing_is_found():
    assert exists("fedsim.core.seeds.stream") and exists("clients.tuners.prefix")
    assert exists("server.kind") and not exists("server.reach")
    assert not exists("fedsim.mirror") and not exists("fedsim.core.seeds.nothing_of_the_kind")


def test_the_config_of_the_page_on_robustness_is_valid():
    (block,) = re.findall(r"```yaml\n(.*?)```", (ROOT / "docs" / "robustness.md").read_text(), re.DOTALL)
    config = build_config(load(block))
    assert config.server.rule() is not None and config.attack.kind != "none"

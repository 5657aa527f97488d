"""The docs site: its navigation and what is made from the code are whole; built, it loads nothing from elsewhere."""

import importlib
import os
import re
import subprocess
import sys
from html.parser import HTMLParser

import commands
import config_keys
import generated
import pytest
import sources
import words
import yaml
from support import ROOT

import fedsim
from fedsim.configuration.errors import dotted_keys
from fedsim.configuration.schema import Config
from fedsim.core.plugins import REGISTRIES

DOCS = ROOT / "docs"
PAGES = {path.relative_to(DOCS).as_posix(): path.read_text() for path in DOCS.rglob("*.md")}


class Settings(yaml.SafeLoader):
    """Reads mkdocs.yml, whose tag names a function."""


Settings.add_multi_constructor("tag:yaml.org,2002:python/", lambda loader, suffix, node: suffix)
SETTINGS = yaml.load((ROOT / "mkdocs.yml").read_text(), Settings)


def leaves(nav):
    """Return the pages of a navigation."""
    if isinstance(nav, str):
        return [nav]
    return [page for entry in (nav.values() if isinstance(nav, dict) else nav) for page in leaves(entry)]


def test_the_navigation_has_every_page_once():
    elsewhere = set(sources.PAGES.values()) - {"index.md"}
    assert sorted(leaves(SETTINGS["nav"])) == sorted([*PAGES, *elsewhere])
    assert elsewhere.isdisjoint(PAGES)


def test_the_page_of_keys_has_all_keys():
    text = config_keys.markdown()
    named = re.findall(r"^#+ `([\w.]+)`$", text, re.M)
    assert {name for name, _ in dotted_keys(Config)} | set(config_keys.keys()) == set(named)
    assert "server.momentum" in named and "with server.kind: " in text and "default `0.04`" in text


def test_the_page_of_commands_has_all_commands_and_options():
    text = commands.markdown()
    for name, command in commands.walked():
        part = text.split(f"## `{name}`\n")[1].split("\n## ")[0]
        options = [option for parameter in command.params for option in parameter.opts if option.startswith("--")]
        assert all(f"`{option}`" in part for option in options), name
    assert {"fedsim run", "fedsim cache list"} < {name for name, _ in commands.walked()}


def test_the_page_of_python_has_every_public_name_and_no_other():
    named = re.findall(r"^::: ([\w.]+)$", PAGES["reference/python.md"], re.M)
    assert {f"fedsim.{name}" for name in fedsim.__all__ if name != "__version__"} <= set(named)
    for name in named:
        module, _, thing = name.rpartition(".")
        assert getattr(importlib.import_module(module), thing).__doc__, name
    base = {"method", "correction", "partitioner", "robust_rule", "attack", "codec", "family"} & set(REGISTRIES)
    assert base <= {re.sub(r"(?<!^)(?=[A-Z])", "_", name.rpartition(".")[2]).lower() for name in named}


def test_every_part_made_from_the_code_stands_on_one_page():
    marks = [mark for text in PAGES.values() for mark in generated.MARK.findall(text)]
    assert sorted(marks) == sorted(generated.MAKERS)


def test_a_link_out_of_docs_leads_to_a_page_of_the_file():
    text = "[a](../examples/my_attack.py) [b](guide.md#x) [c](../README.md) [d](https://a.b/c)\n```\n[e](../f)\n```\n"
    found = sources.rewritten(text, "docs/guide.md")
    assert found == text.replace("../examples/my_attack.py", "source/examples/my_attack.py.md").replace(
        "../README", "index"
    )
    assert "source/docs" not in sources.rewritten("[a](docs/guide.md)", "CONTRIBUTING.md")
    assert "my_attack" in sources.source_page("examples") and "class " in sources.source_page("examples/my_attack.py")


def test_parameters_that_share_a_description_stand_apart():
    text = "Do.\n\nParameters\n----------\na, b\n    See :class:`~x.Y`.\n\nRaises\n------\nC, D\n    Not these.\n"
    assert words.readable(text) == (
        "Do.\n\nParameters\n----------\na\n    See `x.Y`.\nb\n    See `x.Y`.\n\nRaises\n------\nC, D\n    Not these.\n"
    )


def test_addresses_elsewhere_are_https():
    everywhere = {**PAGES, **{name: (ROOT / name).read_text() for name in sources.PAGES}}
    found = sources.external(everywhere)
    assert found and all(link.startswith("https://") for link in found)


class Page(HTMLParser):
    """What a page of the site loads, where it leads to, and the names of its places."""

    def __init__(self, path):
        super().__init__()
        self.loads, self.links, self.ids = [], [], set()
        self.feed(path.read_text())

    def handle_starttag(self, tag, attributes):
        given = dict(attributes)
        self.ids |= {given[name] for name in ("id", "name") if given.get(name)}
        if tag == "a" and given.get("href"):
            self.links.append(given["href"])
        elif tag == "link" and given.get("rel") not in ("canonical", "prev", "next"):
            self.loads.append(given["href"])
        elif given.get("src"):
            self.loads.append(given["src"])


def test_the_site_is_built_whole_and_loads_nothing_from_elsewhere(tmp_path):
    pytest.importorskip("mkdocs", reason="the extra docs brings the builder of the site")
    environment = {**os.environ, "NO_MKDOCS_2_WARNING": "1", "PYTHONPATH": str(ROOT)}
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--quiet", "--site-dir", tmp_path]
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=280)
    assert done.returncode == 0, done.stderr
    pages = {path: Page(path) for path in tmp_path.rglob("*.html") if "pages" not in path.parts}
    for path, page in pages.items():
        for link in [*page.loads, *page.links]:
            outside = re.match(r"[a-z]+:", link)
            assert not (outside and link in page.loads and not link.startswith("data:")), f"{path.name} loads {link}"
            if outside or path.name == "404.html":
                continue
            file, _, anchor = link.partition("#")
            there = (path.parent / file.partition("?")[0]).resolve() if file else path
            assert there.exists(), f"{path.name}: {link}"
            assert not anchor or there not in pages or anchor in pages[there].ids, f"{path.name}: {link}"
    assert (tmp_path / "search" / "search_index.json").stat().st_size > 100_000
    assert all(link.startswith("https://") for link in (tmp_path / "external-links.txt").read_text().splitlines())
    assert not any(str(ROOT) in path.read_text() for path in pages)

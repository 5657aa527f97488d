"""``fedsim cache`` and ``--no-cache``, as a user types them."""

import re

import pytest
import yaml
from support import tiny_values

from fedsim.kept.store import Record, Store, entries


@pytest.fixture
def cache(tmp_path):
    store = Store(tmp_path / "cache", 10**6)
    store.write("tokens", "a" * 64, Record(), "reviews, 7 examples")
    store.write("fuse", "b" * 64, Record(), "reviews, 3 clients")
    (tmp_path / "cache" / "notes.txt").write_text("mine")
    return tmp_path / "cache"


def test_list_shows_and_clear_removes_entries_and_nothing_else(fedsim, cache, monkeypatch):
    status, out, err = fedsim("cache", "list", "--folder", cache)
    assert (status, err) == (0, "") and "reviews, 7 examples" in out and "2 entries" in out
    assert re.search(r"answer of a fuse trial +reviews, 3 clients +\d+ B +\d{4}-\d\d-\d\d \d\d:\d\d", out)
    monkeypatch.setenv("FEDSIM_CACHE", str(cache))
    status, out, _ = fedsim("cache", "clear")
    assert status == 0 and out.startswith("removed 2 entries")
    assert [path.name for path in cache.iterdir()] == ["notes.txt"]
    assert fedsim("cache", "list")[1].startswith("0 entries")
    assert fedsim("cache", "list", "--folder", cache / "nowhere")[:2] == (
        0,
        f"0 entries, 0 B, in {cache / 'nowhere'}\n",
    )


def test_a_cache_that_is_off_or_no_folder_is_told_in_one_sentence(fedsim, cache):
    status, out, err = fedsim("cache", "list")
    assert (status, out) == (2, "") and err.startswith("error: there is no cache: FEDSIM_CACHE is off")
    for command in ("list", "clear"):
        status, _, err = fedsim("cache", command, "--folder", cache / "notes.txt")
        assert status == 3 and len(err.splitlines()) == 1 and "notes.txt" in err


def test_no_cache_wins_over_the_config(fedsim, tmp_path):
    config = tmp_path / "tiny.yaml"
    section = {"folder": str(tmp_path / "cache"), "max_gigabytes": 0.5}
    config.write_text(yaml.safe_dump(tiny_values({"executor": "local", "rounds": 1, "cache": section})))
    assert fedsim("run", config, "--no-cache", "--quiet", "output=plain")[0] == 0
    assert fedsim("layers", config, "--no-cache")[0] == 0
    assert not (tmp_path / "cache").exists()
    assert fedsim("layers", config)[0] == 0
    assert {entry.kind for entry in entries(tmp_path / "cache")} == {"tokens", "scores"}
    assert yaml.safe_load((tmp_path / "plain" / "config.yaml").read_text())["cache"] == {"enabled": False}

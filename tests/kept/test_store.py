"""The cache's folder: what is read is what was written or nothing, whatever happens to files, disk and other processes."""

import os
import subprocess
import sys
from pathlib import Path

import hypothesis.strategies as st
import numpy as np
import pytest
from hypothesis import given, settings
from support import ROOT, limited_files

from fedsim.kept.config import CacheConfig, folder_of
from fedsim.kept.store import Record, Store, entries, leftovers

KEY, OTHER = "a" * 64, "b" * 64
RECORD = Record({"number": 3, "text": "é"}, {"ids": np.arange(40, dtype=np.int32), "none": np.empty((0, 2))})


def same(one, other):
    return (
        one is not None
        and one.values == other.values
        and set(one.arrays) == set(other.arrays)
        and all(one.arrays[name].dtype == other.arrays[name].dtype for name in one.arrays)
        and all(np.array_equal(one.arrays[name], other.arrays[name]) for name in one.arrays)
    )


@pytest.fixture
def notes():
    return []


@pytest.fixture
def store(tmp_path, notes):
    return Store(tmp_path / "new" / "cache", 10**6, notes.append)


def test_an_entry_is_read_as_it_was_written_and_under_its_own_key_alone(store, tmp_path, notes):
    assert store.read("tokens", KEY) is None
    store.write("tokens", KEY, RECORD, "reviews")
    store.write("fuse", OTHER, Record({"number": 1.5}), "reviews")
    assert same(store.read("tokens", KEY), RECORD)
    assert store.read("fuse", OTHER).values == {"number": 1.5}
    assert store.read("tokens", OTHER) is None and store.read("scores", KEY) is None
    assert {entry.about for entry in entries(tmp_path / "new" / "cache")} == {"reviews"}
    assert notes == []


@settings(max_examples=40)
@given(data=st.data())
def test_a_damaged_entry_is_told_once_and_never_read(tmp_path_factory, data):
    notes = []
    folder = tmp_path_factory.mktemp("cache")
    store = Store(folder, 10**6, notes.append)
    store.write("tokens", KEY, RECORD, "reviews")
    (path,) = folder.iterdir()
    whole = path.read_bytes()
    at = data.draw(st.integers(0, len(whole) - 1))
    if data.draw(st.booleans()):
        path.write_bytes(whole[:at])
    else:
        path.write_bytes(whole[:at] + bytes([whole[at] ^ data.draw(st.integers(1, 255))]) + whole[at + 1 :])
    assert store.read("tokens", KEY) is None
    assert len(notes) == 1 and "tokens of a data set" in notes[0] and "made again" in notes[0]
    # A list reads the heads of entries alone, so that a damaged one may show what is not true.
    assert [entry.kind for entry in entries(folder)] == ["tokens"] and isinstance(entries(folder)[0].about, str)
    store.write("tokens", KEY, RECORD, "reviews")
    assert same(store.read("tokens", KEY), RECORD) and len(notes) == 1


def test_an_entry_under_the_name_of_another_is_not_read(store, tmp_path, notes):
    store.write("tokens", KEY, RECORD, "reviews")
    (path,) = (tmp_path / "new" / "cache").iterdir()
    path.rename(path.with_name(path.name.replace(KEY, OTHER)))
    assert store.read("tokens", OTHER) is None and "another one's" in notes[0]


@settings(max_examples=25)
@given(st.lists(st.tuples(st.booleans(), st.integers(0, 7)), max_size=20), st.integers(1, 6))
def test_the_folder_holds_what_was_used_last_within_its_limit(tmp_path_factory, acts, room):
    folder = tmp_path_factory.mktemp("cache")
    record = Record(arrays={"numbers": np.zeros(100)})
    Store(folder, 10**6).write("scores", "0" * 64, record, "")
    (first,) = folder.iterdir()
    size = first.stat().st_size
    first.unlink()
    store, used, clock = Store(folder, room * size), [], 0
    for writes, number in acts:
        key = f"{number:064x}"
        if writes:
            store.write("scores", key, record, "")
        found = store.read("scores", key)
        assert (found is not None) == (writes or key in used)
        if found is not None:
            used = [*(other for other in used if other != key), key][-room:]
            clock += 1  # files carry the time of their last use, which two uses in a row may share
            os.utime(folder / f"scores-{key}.kept", (clock, clock))
        assert {entry.path.name for entry in entries(folder)} == {f"scores-{key}.kept" for key in used}


def test_one_that_is_larger_than_the_limit_is_not_kept(tmp_path, notes):
    store = Store(tmp_path, 200, notes.append)
    store.write("tokens", KEY, RECORD, "reviews")
    assert entries(tmp_path) == [] and "cache.max_gigabytes" in notes[0]


def test_a_folder_that_cannot_be_written_costs_one_note(tmp_path, notes):
    (tmp_path / "file").write_text("")
    store = Store(tmp_path / "file" / "cache", 10**6, notes.append)
    for _ in range(2):
        assert store.read("tokens", KEY) is None
        store.write("tokens", KEY, RECORD, "reviews")
    assert len(notes) == 1 and "goes on" in notes[0]


def test_a_full_disk_costs_one_note_and_leaves_nothing_half_written(tmp_path, notes):
    store = Store(tmp_path, 10**6, notes.append)
    with limited_files(100):
        store.write("tokens", KEY, RECORD, "reviews")
        store.write("tokens", OTHER, RECORD, "reviews")
    assert list(tmp_path.iterdir()) == [] and len(notes) == 1


def test_what_a_killed_writer_left_goes_when_it_is_old(tmp_path):
    for name, age in ((".part-old", 10**6), (".part-new", 0)):
        (tmp_path / name).write_bytes(b"half")
        written = (tmp_path / name).stat().st_mtime - age
        os.utime(tmp_path / name, (written, written))
    Store(tmp_path, 10**6).write("tokens", KEY, RECORD, "reviews")
    assert [path.name for path in leftovers(tmp_path)] == [".part-new"]


WRITER = """
import sys
import numpy as np
from pathlib import Path
from fedsim.kept.store import Record, Store
store = Store(Path(sys.argv[1]), 10**6, print)
for size in range(300):
    store.write("tokens", "a" * 64, Record({"size": size}, {"ones": np.ones(size * 50)}), "two at once")
"""


def test_two_processes_that_write_one_entry_leave_a_whole_one_at_every_moment(tmp_path, notes):
    command = [sys.executable, "-c", WRITER, str(tmp_path)]
    writers = [subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True) for _ in range(2)]
    store, seen = Store(tmp_path, 10**6, notes.append), 0
    while any(writer.poll() is None for writer in writers):
        record = store.read("tokens", KEY)
        if record is not None:
            seen += 1
            assert np.array_equal(record.arrays["ones"], np.ones(record.values["size"] * 50))
    assert [writer.communicate()[0] for writer in writers] == ["", ""]
    assert [writer.returncode for writer in writers] == [0, 0]
    assert seen and notes == [] and leftovers(tmp_path) == []
    assert store.read("tokens", KEY).values == {"size": 299}


def test_which_folder_is_meant(monkeypatch, tmp_path):
    named = tmp_path / "named"
    assert CacheConfig().path is None  # the tests' own FEDSIM_CACHE=off
    assert CacheConfig(folder=str(named)).path == named
    assert CacheConfig(enabled=False).path is None
    monkeypatch.setenv("FEDSIM_CACHE", str(tmp_path / "of-env"))
    assert (folder_of(), folder_of(named)) == (tmp_path / "of-env", named)
    monkeypatch.delenv("FEDSIM_CACHE")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))
    assert CacheConfig().path == tmp_path / "xdg" / "fedsim"
    monkeypatch.setenv("XDG_CACHE_HOME", "relative")
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    assert CacheConfig().path == tmp_path / "home" / ".cache" / "fedsim"
    with pytest.raises(ValueError, match="local folder"):
        CacheConfig(folder="s3://bucket/cache")
    assert not Path("relative").exists()

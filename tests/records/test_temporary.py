"""Temporary folders: what a killed process has left is found by a later one, and nothing else is touched."""

import signal
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor

import pytest
from support import ROOT

from fedsim.records.temporary import OwnedFolder, sweep

PREFIX = "fedsim-test-"
OWNER = f"""
import sys, time
from pathlib import Path
from fedsim.records.temporary import OwnedFolder
print(OwnedFolder({PREFIX!r}, Path(sys.argv[1])).path, flush=True)
time.sleep(600)
"""


@pytest.fixture
def owner(tmp_path):
    """A process that owns a folder: return both."""
    process = subprocess.Popen(
        [sys.executable, "-c", OWNER, str(tmp_path)], stdout=subprocess.PIPE, text=True, cwd=ROOT
    )
    yield process, tmp_path / process.stdout.readline().strip()
    process.kill()
    process.communicate()


def test_a_folder_is_swept_when_its_owner_has_been_killed_and_not_before(owner, tmp_path):
    process, folder = owner
    (folder / "inside").mkdir()
    (folder / "inside" / "file").write_text("text")
    assert str(process.pid) in folder.name
    assert sweep(PREFIX, tmp_path) == []
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert sweep(PREFIX, tmp_path) == [folder]
    assert not folder.exists()


def test_sweeps_at_once_do_not_disturb_each_other_or_new_owners(tmp_path):
    lost = [OwnedFolder(PREFIX, tmp_path) for _ in range(20)]
    for folder in lost:
        folder._release()  # as the system does when a process ends
    with ThreadPoolExecutor(8) as pool:
        sweeps = [pool.submit(sweep, PREFIX, tmp_path) for _ in range(8)]
        made = [pool.submit(OwnedFolder, PREFIX, tmp_path) for _ in range(8)]
        folders = [each.result() for each in made]
        swept = [path for each in sweeps for path in each.result()]
    assert len(swept) == len(set(swept)) and {folder.path for folder in lost} <= set(swept)
    assert {path for path in tmp_path.iterdir() if path.is_dir()} == {folder.path for folder in folders}
    for folder in folders:
        folder.remove()
    assert list(tmp_path.iterdir()) == []


def test_what_is_not_ours_or_kept_for_the_user_stays(tmp_path):
    kept = OwnedFolder(PREFIX, tmp_path)
    kept.keep()
    (tmp_path / f"{PREFIX}other").mkdir()
    (tmp_path / f"{PREFIX}1-file").write_text("text")
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    (elsewhere / "owner.lock").write_text("")
    (tmp_path / f"{PREFIX}1-link").symlink_to(elsewhere)
    before = sorted(tmp_path.iterdir())
    assert sweep(PREFIX, tmp_path) == []
    assert sorted(tmp_path.iterdir()) == before
    assert (elsewhere / "owner.lock").exists()

"""A folder of traces that was asked for is taken, or fails with a sentence."""

from __future__ import annotations

import pytest
from trace_folders import HERE, folder_of


def test_a_folder_with_a_readme_is_taken(tmp_path):
    (tmp_path / "README.md").write_text("Traces")
    assert folder_of("golden", {"FEDSIM_GOLDEN": str(tmp_path)}) == tmp_path
    assert folder_of("own", {"FEDSIM_GOLDEN": str(tmp_path)}) == HERE / "fixtures"


@pytest.mark.parametrize(("name", "what"), [("", "has no README.md"), ("gone", "is no folder")])
def test_a_folder_that_is_not_taken_fails_and_skips_nothing(tmp_path, name, what):
    with pytest.raises(pytest.fail.Exception, match=f"FEDSIM_GOLDEN={tmp_path / name} {what}; give a folder of traces"):
        folder_of("golden", {"FEDSIM_GOLDEN": str(tmp_path / name)})


def test_without_one_that_was_asked_for_they_are_skipped_where_they_are_not(monkeypatch, tmp_path):
    monkeypatch.setattr("trace_folders.HERE", tmp_path / "checkout" / "tests" / "parity")
    for environment in ({}, {"FEDSIM_GOLDEN": ""}):
        with pytest.raises(pytest.skip.Exception, match="no traces of the published code here"):
            folder_of("golden", environment)

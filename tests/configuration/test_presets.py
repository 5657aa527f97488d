"""Presets by name: every one is found, says what it is, and is read as the file that it is."""

import pytest

from fedsim.configuration.presets import SCALING, STUDIES, located, presets
from fedsim.configuration.schema import read_config

KNOWN = {preset.name: preset for preset in presets()}


@pytest.mark.parametrize("name", KNOWN)
def test_every_preset_is_valid_and_says_what_it_is(name):
    assert located(name) == KNOWN[name].path and KNOWN[name].path.is_file()
    assert 5 < len(KNOWN[name].headline) < 250 and "fedsim run" not in KNOWN[name].headline
    if name.startswith(f"{STUDIES}/"):
        assert located(name.removeprefix(f"{STUDIES}/"), STUDIES) == KNOWN[name].path
    else:
        assert read_config(name).name == name.rpartition("/")[2]


def test_a_file_of_the_working_folder_wins_and_a_folder_or_nothing_does_not(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    ours = KNOWN["quickstart"].path
    assert located("quickstart") == ours
    (tmp_path / "quickstart").mkdir()
    assert located("quickstart") == ours
    (tmp_path / "methods").mkdir()
    (tmp_path / "methods" / "fedit").write_text("rounds: 3")
    assert located("methods/fedit").read_text() == "rounds: 3"
    assert str(located("quickstart.yaml")) == "quickstart.yaml"  # a file that does not exist


def test_each_command_looks_through_its_own_folder_first():
    assert located("quickstart", STUDIES) == KNOWN["studies/quickstart"].path
    assert located("quickstart", SCALING) == KNOWN["scaling/quickstart"].path
    assert located("methods/fedit", STUDIES) == KNOWN["methods/fedit"].path

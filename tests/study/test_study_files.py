"""The studies of ``configs/studies``: each is read, and each cell is a valid config of its own."""

import re
from functools import cache

import pytest
from support import ROOT

from benchmarks.kinds import kind_of, names
from fedsim.core.method import METHODS
from fedsim.study.cells import read_study
from fedsim.study.search import check_search, trials

STUDIES = sorted((ROOT / "configs" / "studies").glob("*.yaml"))
SEARCHES = [path for path in STUDIES if "\nsearch:" in path.read_text(encoding="utf-8")]


@cache
def cells(name):
    return read_study(ROOT / "configs" / "studies" / f"{name}.yaml").cells()


@pytest.mark.parametrize("path", STUDIES, ids=lambda path: path.stem)
def test_every_cell_is_a_config_of_its_own_and_the_file_says_how_many_there_are(path):
    found = cells(path.stem)
    assert len({cell.config.identity for cell in found}) == len(found)
    assert f"{len(found)} runs" in path.read_text(encoding="utf-8")


@pytest.mark.parametrize("path", STUDIES, ids=lambda path: path.stem)
def test_arms_of_a_data_set_have_the_same_data_partition_and_cohorts(path):
    shared = {}
    for cell in cells(path.stem):
        config = cell.config
        visits = config.rounds * config.clients_per_step
        same = (config.data, config.partition, config.sampling, visits, config.client.epochs, config.evaluation)
        shared.setdefault((cell.dataset, cell.seed), same)
        assert shared[cell.dataset, cell.seed] == same


@pytest.mark.parametrize("path", SEARCHES, ids=lambda path: path.stem)
def test_every_trial_of_a_search_is_a_config_of_its_own_and_every_arm_has_as_many(path):
    study = read_study(path)
    check_search(study)
    found = trials(study)
    assert len({cell.config.identity for cell in found}) == len(found)
    assert f"search has {len(found)} of half the rounds" in " ".join(path.read_text(encoding="utf-8").split("\n# "))
    assert {2 * cell.config.rounds for cell in found} == {cell.config.rounds for cell in cells(path.stem)}


@pytest.mark.parametrize("path", STUDIES, ids=lambda path: path.stem)
def test_the_command_in_the_file_reads_it(path):
    """Data folders and models come from the command line."""
    commands = re.findall(
        r"fedsim compare (configs/studies/\S+\.yaml)((?: \S+=\S*)*)", path.read_text(encoding="utf-8")
    )
    assert commands
    for file, overrides in commands:
        assert ROOT / file == path
        for cell in read_study(path, overrides.split()).cells():
            for override in overrides.split():
                key, _, value = override.partition("=")
                section, name = key.split(".")
                assert getattr(getattr(cell.config, section), name) == (value or None)


def test_all_methods_and_all_kinds_of_tuners_are_compared():
    # FedBPT has no gradients and no layers to choose: docs/tuners.md has what it reaches.
    assert {cell.config.server.kind for cell in cells("methods")} == set(METHODS) - {"fedbpt"}
    assert {cell.config.tuner.kind for cell in cells("tuners")} == set(names())


def test_the_table_of_tuners_has_the_learning_rates_of_the_methods_configs():
    for cell in cells("tuners"):
        assert cell.config.client.optimizer.lr == kind_of(cell.config.tuner.kind).lr


def test_the_table_of_methods_has_the_defaults_of_each():
    for cell in cells("methods"):
        assert cell.config.server == type(cell.config.server)(kind=cell.config.server.kind)


def test_only_attacks_have_attackers_and_each_rule_meets_each_attack():
    pairs = {(cell.config.server.aggregation, cell.config.attack.kind) for cell in cells("robustness")}
    rules, attacks = zip(*pairs, strict=True)
    assert (
        len(pairs) == len(set(rules)) * len(set(attacks)) and {"mean", "multi_krum"} < set(rules) and "none" in attacks
    )

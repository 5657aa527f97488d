"""The benchmark of attacks: arms that resolve, a table that adds up, and the config that the documentation shows."""

import re

import pytest
from rich.console import Console
from support import ROOT

from benchmarks.attacks import ATTACKS, BASE, CONFIG, RULES, table
from benchmarks.studies import Records
from fedsim.configuration.schema import build_config, read_config
from fedsim.configuration.yaml_text import load


@pytest.mark.parametrize("rule", RULES, ids=lambda arm: arm.name)
def test_every_rule_and_attack_is_a_config_of_its_own(rule):
    many = {attack.name: ["attack.clients=20"] if attack.overrides else [] for attack in ATTACKS}
    runs = {
        read_config(ROOT / CONFIG, [*BASE, *many[attack.name], *other.overrides, *attack.overrides]).identity: (
            other.name,
            attack.name,
        )
        for other in RULES
        for attack in ATTACKS
    }
    assert len(runs) == len(RULES) * len(ATTACKS)
    config = read_config(ROOT / CONFIG, [*BASE, *rule.overrides])
    assert runs[config.identity] == (rule.name, "none")
    assert (config.server.aggregation == "mean") == (rule is RULES[0])


def test_the_table_holds_means_over_the_chosen_seeds(tmp_path):
    records = Records(tmp_path / "records.jsonl")
    for seed, value in enumerate((0.6, 0.7, 0.9, 0.1)):
        records.add({"case": "median; label flip", "seed": seed, "attackers": 20, "value": value})
    records.add({"case": "median; label flip", "seed": 0, "attackers": 10, "value": 0.2})
    console = Console(width=180, record=True)
    console.print(table(records, (0, 1, 2), 20))
    assert "0.733 (0.600 to 0.900)" in console.export_text()


def test_the_documented_config_is_valid():
    text = (ROOT / "docs" / "robustness.md").read_text(encoding="utf-8")
    (block,) = re.findall(r"```yaml\n(.*?)```", text, re.DOTALL)
    config = build_config(load(block))
    assert config.server.rule() is not None and config.attack.kind != "none"

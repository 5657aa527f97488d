"""The first comparison of methods: arms that differ, a table that compares seed by seed."""

from rich.console import Console
from support import ROOT

from benchmarks.methods import ARMS, BASE, table, works
from benchmarks.studies import Records
from fedsim.configuration.schema import read_config

CONFIG = ROOT / "configs" / "quickstart.yaml"


def test_every_method_is_a_config_of_its_own_with_the_defaults_of_its_kind():
    planned = works(CONFIG, ["rounds=2"], [0])
    configs = [read_config(work.config, [*work.base, *work.overrides]) for work in planned]
    assert len({config.identity for config in configs}) == len(ARMS) == len(planned)
    assert all(
        config.rounds == 2 and config.server == type(config.server)(kind=config.server.kind) for config in configs
    )


def test_methods_are_compared_seed_by_seed_and_sorted(tmp_path):
    records = Records(tmp_path / "records.jsonl")
    planned = works(CONFIG, [], [0, 1])
    for work in planned:
        seed, case = work.fields["seed"], work.fields["case"]
        value = 0.5 + 0.1 * seed + (0.2 if case == "scaffold" else 0.0)
        records.add({**work.fields, "value": value, "personalised": value, "megabytes_up": 1.0, "megabytes_down": 2.0})
    console = Console(width=140, record=True)
    console.print(table(records, planned[0].fields["study"], [0, 1]))
    lines = console.export_text().splitlines()
    first = next(line for line in lines if "0.750" in line)
    assert "scaffold" in first and "+0.200 ± 0.000" in first and lines.index(first) == 3
    assert any(BASE in line and "+0.000 ± 0.000" in line for line in lines)

"""The table of tuners: every kind of the schema is a run that it can do; rounds to a target, what is exchanged."""

from pathlib import Path

import pytest
import typer
from rich.console import Console

from benchmarks import studies
from benchmarks.kinds import KINDS, kind_of, names
from benchmarks.local_sides import sides
from benchmarks.local_training import Share, check_same, configs
from benchmarks.peers.work import Work
from benchmarks.products import APART, BFLOAT16, FLOAT32, of_fedsim
from benchmarks.studies import Records
from benchmarks.tuners import TARGET, chosen_kinds, rounds_to, table, works
from fedsim.configuration.schema import read_config
from fedsim.simulation.preparation import prepare


def test_every_kind_is_a_run_of_a_hundred_clients_with_its_own_learning_rate():
    assert KINDS.keys() <= set(names())
    planned = works(names(), [0, 1], 40)
    found = [read_config(work.config, [*work.base, *work.overrides]) for work in planned]
    assert len({config.identity for config in found}) == 2 * len(names())
    for config in found:
        assert (config.partition.clients, config.rounds, config.evaluation.every) == (100, 40, 1)
        assert config.client.optimizer.lr == kind_of(config.tuner.kind).lr


def test_a_run_records_its_course_and_what_it_exchanges():
    small = [
        "data.train_examples=240",
        "data.validation_examples=40",
        "partition.clients=12",
        "sampling.clients_per_round=4",
    ]
    (work,) = works(["lora"], [0], 2, small)
    row = studies.run("tuners", work)
    assert len(row["course"]) == 3 and row["course"][-1] == row["value"]
    # A and B of rank 8 on query and value, in 4 layers of width 64
    assert row["parameters"] == 4 * 2 * 2 * 8 * 64
    assert row["megabytes_up"] * 1e6 == 2 * 4 * row["parameters"] * 4


def test_the_table_shows_spread_rounds_and_bytes(tmp_path):
    records, kinds = Records(tmp_path / "records.jsonl"), ("prefix", "lora")
    planned = works(kinds, [0, 1], 4)
    for work in planned:
        slow = work.fields["kind"] == "lora"
        course = [0.5, 0.6, 0.84, 0.84 if slow else 0.85, 0.9] if work.fields["seed"] == 0 or not slow else [0.5] * 5
        figures = {"parameters": 4096, "megabytes_up": 0.04, "megabytes_down": 0.08}
        records.add({**work.fields, "value": course[-1], "course": course, **figures})
    console = Console(width=140, record=True)
    console.print(table(records, planned[0].fields["study"], kinds, [0, 1], TARGET))
    rows = {line.split()[1]: " ".join(line.split()) for line in console.export_text().splitlines() if "4,096" in line}
    assert "0.900 ± 0.000 │ 3 │ 4,096 │ 10 kB │ 20 kB" in rows["prefix"]
    assert "0.700 ± 0.283 │ 4 (1 never) │" in rows["lora"]


def test_a_target_is_reached_in_the_first_round_that_has_it():
    assert [rounds_to([0.5, 0.9, 0.8], target) for target in (0.5, 0.85, 0.95)] == [0, 1, None]


def test_a_kind_that_there_is_not_is_refused():
    assert chosen_kinds(None) == names()
    for refuse in (lambda: chosen_kinds("prefix,loira"), lambda: configs(["tiny"], None, "loira")):
        with pytest.raises(typer.BadParameter, match=r"loira is not one of prefix, "):
            refuse()


@pytest.mark.parametrize("kind", names())
def test_all_sides_of_local_training_do_the_same_work(tmp_path, kind):
    """The bare loop of each kind and every way of fedsim, as the benchmark checks it."""
    import pickle
    from dataclasses import replace
    from itertools import product

    config = configs(["tiny"], None, kind)["tiny"].replace(data={"train_examples": 600, "validation_examples": 40})
    spec = prepare(config).spec
    Work.of(config, 1)[0].save(tmp_path)
    for cached, products in product((False, True), of_fedsim()):
        rounded = replace(spec, weights=spec.weights.rounded(products))
        (tmp_path / f"spec-{cached}-{products}.pickle").write_bytes(pickle.dumps(rounded))
    clients = [0, 1, 2]
    share = Share(str(tmp_path), clients)
    measured = [side for side in sides(kind) if side.threads == 1]
    results = {side.name: share.run(side, clients)[0] for side in measured}
    examples = sum(len(spec.shards.train(client)) for client in clients)
    starts = {upper: examples * share.start(upper) for upper in (False, True)}
    for side in measured:
        assert abs(results[side.name] - starts[side.upper]).max() > 1e-3 * examples
    apart = check_same(results, measured, starts)
    assert apart[FLOAT32] < 1e-4 and 0 < apart[BFLOAT16] < APART


def test_learning_rates_are_those_of_the_configs_of_methods():
    found = [read_config(path) for path in Path("configs/methods").glob("*.yaml")]
    adam = [config for config in found if config.client.optimizer.kind == "adamw"]
    assert {config.tuner.kind for config in adam} >= {"prefix", "lora", "adapter", "soft_prompt"}
    for config in adam:
        assert config.client.optimizer.lr == kind_of(config.tuner.kind).lr

"""The ablation's bookkeeping: arms that resolve, tuning rows that are not reported, records that are not made twice."""

import json
from dataclasses import asdict

import pytest
from rich.console import Console
from support import ROOT

from benchmarks.ablation import Job, best_lr, table, tuning_folder
from benchmarks.ablation_arms import ARMS, BASE, CONFIG, LEARNING_RATES
from benchmarks.studies import Records
from fedsim.configuration.schema import read_config


@pytest.mark.parametrize("arm", ARMS, ids=lambda arm: arm.name)
def test_every_arm_is_a_config_of_its_own(arm):
    identities = {
        read_config(ROOT / CONFIG, [*BASE, "data.path=x", *other.overrides]).identity: other.name for other in ARMS
    }
    assert identities[read_config(ROOT / CONFIG, [*BASE, "data.path=x", *arm.overrides]).identity] == arm.name


def test_tuning_rows_come_from_the_training_file_and_leave_it(tmp_path):
    rows = [json.dumps({"text": f"text {number}", "label": number % 2}) for number in range(60)]
    (tmp_path / "data" / "sst2").mkdir(parents=True)
    (tmp_path / "data" / "sst2" / "train.jsonl").write_text("\n".join(rows) + "\n")
    folder = tuning_folder(tmp_path / "data", "sst2", tmp_path / "work")
    train, held = ((folder / f"{name}.jsonl").read_text().splitlines() for name in ("train", "validation"))
    assert len(held) == 10 and sorted(train + held) == sorted(rows)


def record(arm, stage, lr, seed, value, loss=0.5):
    job = Job(arm.name, "sst2", stage, lr, seed)
    return {**asdict(job), "value": value, "loss": loss, "layers": [1, 2]}


def test_records_are_kept_and_the_best_learning_rate_is_read_from_them(tmp_path):
    first, low, high = ARMS[0], *LEARNING_RATES
    records = Records(tmp_path / "records.jsonl")
    records.add(record(first, "tune", low, 1000, 0.7, loss=0.6))
    records.add(record(first, "tune", high, 1000, 0.7, loss=0.4))
    again = Records(tmp_path / "records.jsonl")
    assert again.rows == records.rows and best_lr(again, first) == high
    assert again.find(case=first.name, lr=low) == records.rows[:1] and not again.find(case=first.name, seed=0)


def test_the_table_compares_seed_by_seed(tmp_path):
    records = Records(tmp_path / "records.jsonl")
    for seed, value in enumerate((0.7, 0.8, 0.9)):
        records.add(record(ARMS[0], "report", 0.03, seed, value))
        records.add(record(ARMS[1], "report", 0.03, seed, value - 0.1))
    console = Console(width=180, record=True)
    console.print(table(records, "sst2", (0, 1, 2)))
    text = console.export_text()
    assert "0.800 ± 0.100" in text and "-0.100 ± 0.000" in text

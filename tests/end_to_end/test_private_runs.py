"""Private runs: the same bytes on any actors and after a resume, rounds without clients, epsilon on record, and a stop."""

import hashlib

import pyarrow.parquet as pq
import pytest
from support import make_tiny, merged, sweep

import fedsim
from fedsim.core.errors import ConfigError

pytest.importorskip("dp_accounting")

PRIVATE = {
    "rounds": 3,
    "server": {"kind": "fedavg", "weighting": "uniform"},
    "layers": {"choose": "fixed", "fixed": [2, 3]},
    "prompt": {"length": 2},
    "partition": {"holdout_fraction": 0.0},
    "client": {"fuse": 2},
    "privacy": {"clip_norm": 0.5, "noise_multiplier": 1.0},
}
SHARES = {"privacy": {"noise": "clients", "adaptive": {"bit_noise": 2.0}}}
EMPTY = {"sampling": {"draw": "poisson", "clients_per_round": 1}, "seed": 2, "server": {"kind": "fedadam"}}
CASES = {"fixed, shares": SHARES, "poisson, empty": EMPTY}


def run(path, resume=False, **changes):
    keys = merged(merged({"executor": "local", "output": str(path)}, PRIVATE), changes)
    summary = fedsim.run(make_tiny(**keys), resume=resume, progress=False)
    file = path / "prompt" / "global.safetensors"
    return (
        hashlib.sha256(file.read_bytes()).hexdigest(),
        summary,
        pq.read_table(path / "rounds.parquet").to_pylist()[1:],
    )


@pytest.fixture(scope="module")
def local(tmp_path_factory):
    return {name: run(tmp_path_factory.mktemp("local") / "run", **changes) for name, changes in CASES.items()}


@pytest.mark.parametrize(
    ("case", "actors"),
    sweep(
        [("fixed, shares", 1), ("fixed, shares", 3), ("poisson, empty", 3)],
        [("fixed, shares", 3), ("poisson, empty", 3)],
    ),
)
def test_actors_give_the_same_bytes(session_ray, local, tmp_path, case, actors):
    ray = {"address": "auto", "actors": actors}
    digest, summary, rows = run(tmp_path / "run", executor="ray", ray=ray, **CASES[case])
    assert digest == local[case][0] and summary["privacy"] == local[case][1]["privacy"]
    assert [row["clip_norm"] for row in rows] == [row["clip_norm"] for row in local[case][2]]


@pytest.mark.parametrize("case", CASES)
def test_a_resumed_run_ends_with_the_same_bytes(local, tmp_path, case):
    run(tmp_path / "run", **merged(CASES[case], {"rounds": 2}))
    digest, summary, rows = run(tmp_path / "run", resume=True, **CASES[case])
    assert digest == local[case][0] and summary["privacy"] == local[case][1]["privacy"]
    assert [(row["epsilon"], row["clip_norm"]) for row in rows] == [
        (row["epsilon"], row["clip_norm"]) for row in local[case][2]
    ]


def test_a_round_without_clients_is_recorded_and_spends_as_well(local):
    _, summary, rows = local["poisson, empty"]
    empty = [row for row in rows if row["clients_ok"] == 0]
    assert empty and len(empty) < len(rows)
    for row in empty:
        assert row["train_loss_last"] is None and row["clip_share"] is None and row["bytes_up"] == 0
    spent = [row["epsilon"] for row in rows]
    assert spent == sorted(set(spent)) and summary["privacy"]["epsilon"] == spent[-1]
    assert summary["privacy"]["relation"] == "add_or_remove_one" and summary["sums_are_enough"]


def test_records_say_what_was_clipped(local):
    _, summary, rows = local["fixed, shares"]
    assert len({row["clip_norm"] for row in rows}) == len(rows)  # it adapts
    assert all(0 <= row["clip_share"] <= 1 for row in rows)
    assert summary["privacy"]["sensitivity_norms"] == 2 and len(summary["privacy"]["assumptions"]) == 5


def test_a_run_stops_before_the_round_that_would_spend_too_much(local, tmp_path):
    spent = [row["epsilon"] for row in local["fixed, shares"][2]]
    limit = (spent[1] + spent[2]) / 2
    _, summary, rows = run(tmp_path / "run", **SHARES, stop={"epsilon": limit})
    assert summary["stopped"]["rule"] == "epsilon" and summary["rounds"] == len(rows) == 2
    assert summary["privacy"]["epsilon"] == spent[1] < limit
    with pytest.raises(ConfigError, match=r"stop\.epsilon=0\.01 is less than a single round spends"):
        run(tmp_path / "none", **SHARES, stop={"epsilon": 0.01})
    assert not (tmp_path / "none").exists()

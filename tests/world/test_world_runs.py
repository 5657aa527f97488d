"""Runs on simulated devices: the same events and bytes wherever they run, and visits that cost what was really done."""

import json

import numpy as np
import pyarrow.parquet as pq
import pytest
from support import make_tiny

import fedsim
from fedsim.core.errors import CheckpointError, ConfigError
from fedsim.display.page.run_page import run_page
from fedsim.study.devices import DevicesConfig
from fedsim.study.reading import read_figures

SMALL = {"data": {"train_examples": 60, "validation_examples": 10}}
WORLD = {
    **SMALL,
    "rounds": 3,
    "group_size": 2,
    "client": {"fuse": 2},
    "sampling": {"kind": "oort", "clients_per_round": 4, "dropout": 0.2},
    "world": {
        "devices": {"availability": {"share": 0.3}, "slow_share": 0.2},
        "over_selection": 0.5,
        "deadline_seconds": 60.0,
    },
}
CLOCK = ("clock_seconds", "seconds_simulated", "seconds_waited", "clients_absent", "clients_late", "clients_too_small")
VISIT = ("round", "client", "began_seconds", "arrived_seconds", "version", "loss_last")
EVENTS = ("too_small", "absent", "late")


def what_is_left(folder):
    """Return the prompt's bytes, what the tables say of the clock, and who was left out."""
    rounds, clients = (pq.read_table(folder / f"{name}.parquet") for name in ("rounds", "clients"))
    events = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    left_out = [(each["event"], each["round"], each["clients"]) for each in events if each["event"] in EVENTS]
    prompt = (folder / "prompt" / "global.safetensors").read_bytes()
    return prompt, rounds.select(CLOCK).to_pylist(), clients.select(VISIT).to_pylist(), left_out


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    folder = tmp_path_factory.mktemp("world") / "run"
    fedsim.run(make_tiny(output=str(folder), executor="local", **WORLD), progress=False)
    return folder


@pytest.mark.parametrize("actors", [1, 3])
def test_actors_give_the_same_events_and_bytes(session_ray, whole, tmp_path, actors):
    ray = {"address": "auto", "actors": actors}
    fedsim.run(make_tiny(output=str(tmp_path / "run"), executor="ray", ray=ray, **WORLD), progress=False)
    assert what_is_left(tmp_path / "run") == what_is_left(whole)


def test_a_resumed_run_goes_on_with_the_same_events_and_bytes(whole, tmp_path):
    for rounds, resume in ((2, False), (3, True)):
        config = make_tiny(output=str(tmp_path / "run"), executor="local", **{**WORLD, "rounds": rounds})
        fedsim.run(config, progress=False, resume=resume)
    assert what_is_left(tmp_path / "run") == what_is_left(whole)


def test_time_to_target_is_that_of_the_virtual_clock_and_shares_of_visits_add_up(whole):
    rounds, summary = (
        pq.read_table(whole / "rounds.parquet").to_pylist(),
        json.loads((whole / "summary.json").read_text()),
    )
    figures = read_figures(whole, "data", "arm", 0, target=rounds[2]["global_metric"] - 1e-9)
    assert figures.target_seconds_modelled == pytest.approx(rounds[figures.target_round]["clock_seconds"] or 0.0)
    assert figures.seconds_modelled == pytest.approx(rounds[-1]["clock_seconds"])
    assert summary["seconds_simulated"] == rounds[-1]["clock_seconds"]
    assert sum(summary["participation_by_speed"]) == pytest.approx(1.0)
    assert 0 < summary["device_utilisation"] < 1
    with pytest.raises(
        ConfigError, match=r"has a clock of its own \(world\.devices\), and the study models devices, too"
    ):
        read_figures(whole, "data", "arm", 0, devices=DevicesConfig())


def test_every_visit_is_on_record_and_ends_as_the_rounds_say(whole):
    visits, devices, rounds = (
        pq.read_table(whole / f"{name}.parquet").to_pandas() for name in ("visits", "devices", "rounds")
    )
    clients, events = pq.read_table(whole / "clients.parquet").to_pandas(), what_is_left(whole)[3]
    taken = visits[visits["outcome"] == "taken"]
    same = ["round", "client", "version", "began_seconds"]
    assert sorted(taken[same].to_numpy().tolist()) == sorted(clients[same].to_numpy().tolist())
    for outcome in ("late", "absent"):
        on_record = visits[visits["outcome"] == outcome][["round", "client"]].itertuples(index=False, name=None)
        assert {(r, c) for kind, r, ids in events if kind == outcome for c in ids} <= set(on_record)
    whole_ones = visits.dropna()
    columns = ["drawn_seconds", "began_seconds", "received_seconds", "trained_seconds", "ended_seconds"]
    assert (np.diff(whole_ones[columns].to_numpy(), axis=1) >= -1e-9).all() and len(whole_ones) >= len(taken)
    assert (
        set(devices["drawable"]) <= {"yes", "memory", "reach", "examples"} and devices["client"].is_monotonic_increasing
    )
    assert taken["ended_seconds"].max() <= rounds["clock_seconds"].max()


def test_the_page_has_the_pictures_of_the_simulated_world(whole):
    page = run_page(fedsim.load_run(whole))
    for name in ("by-round", "by-clock", "timeline", "at-work", "by-speed", "by-label"):
        assert f'id="{name}-title"' in page
    assert 'id="staleness-title"' not in page and "The slowest fifth of the clients has" in page


def test_traces_may_move_but_not_change(tmp_path):
    def traced(path, until, **more):
        path.write_text("device,available_from,available_until,trace_seconds\n" + f"a,0,{until},90000\n")
        devices = {"availability": {"kind": "trace", "file": str(path)}}
        return make_tiny(output=str(tmp_path / "run"), executor="local", world={"devices": devices}, **SMALL, **more)

    fedsim.run(traced(tmp_path / "a.csv", 80000, rounds=1), progress=False)
    with pytest.raises(CheckpointError, match=r"was made with other traces of availability than this run would have"):
        fedsim.run(traced(tmp_path / "a.csv", 80001, rounds=2), progress=False, resume=True)
    (tmp_path / "elsewhere").mkdir()
    assert (
        fedsim.run(traced(tmp_path / "elsewhere" / "b.csv", 80000, rounds=2), progress=False, resume=True)["rounds"]
        == 2
    )


TUNED = {
    "upper layers, kept states": ({"layers": {"choose": "fixed", "fixed": [3]}, "server": {"kind": "scaffold"}}, 1 / 4, 3 / 8),
    "upper layers, no cache": (
        {"layers": {"choose": "fixed", "fixed": [3]}, "model": {"trunk_cache": {"dtype": "off"}}}, 5 / 8, 0.0,
    ),
    "all layers, in turn": (
        {"tuner": {"kind": "lora", "rank": 2, "train": "alternate"}, "server": {"kind": "fedavg"}, "layers": {"choose": "all"}},
        1.0, 0.0,
    ),
    "generated": ({"tuner": {"kind": "generated_prompt", "length": 3, "terms": 4}, "server": {"kind": "fedavg"}}, 0.0, 1 / 2),
    "without gradients": (
        {"server": {"kind": "fedbpt"}, "tuner": {"kind": "soft_prompt", "length": 3, "projection": 9},
         "client": {"optimizer": {"kind": "cma_es", "population": 6}}}, 1 / 2, 0.0,
    ),
    "compressed, kept states": (
        {"layers": {"choose": "fixed", "fixed": [3]}, "server": {"kind": "scaffold"},
         "compression": {"up": {"kind": "int4"}, "down": {"kind": "sign"}}}, 1 / 4, 3 / 8,
    ),
    "compressed gains": (
        {"layers": {"choose": "fixed", "fixed": [3]}, "compression": {"up": {"kind": "bfloat16"}}}, 1 / 4, 3 / 8,
    ),
    "compressed, in turn": (
        {"tuner": {"kind": "lora", "rank": 2, "train": "alternate"}, "server": {"kind": "fedavg"}, "layers": {"choose": "all"},
         "compression": {"up": {"kind": "random_k"}, "down": {"kind": "int8", "block": "layer"}}}, 1.0, 0.0,
    ),
    "compressed, without gradients": (
        {"server": {"kind": "fedbpt"}, "tuner": {"kind": "soft_prompt", "length": 3, "projection": 9},
         "client": {"optimizer": {"kind": "cma_es", "population": 6}},
         "compression": {"up": {"kind": "int8"}, "down": {"kind": "int4"}}}, 1 / 2, 0.0,
    ),
}  # fmt: skip
"""Changes, what a token costs, and what it costs more in a first visit, of all passes through 4 layers and back."""


@pytest.mark.parametrize("case", TUNED)
def test_a_visit_costs_what_its_report_says_was_done(tmp_path, case):
    """Tokens and bytes are foreseen from config and data; the reports count them."""
    changes, share, filling = TUNED[case]
    devices = {
        "tokens_per_second": 100.0, "downlink_megabits": 8.0, "uplink_megabits": 0.8, "latency_seconds": 0.5,
        "gigabytes": 64.0, "availability": {"kind": "always"},
    }  # fmt: skip
    config = make_tiny(output=str(tmp_path), executor="local", rounds=3, world={"devices": devices}, **SMALL, **changes)
    fedsim.run(config, progress=False)
    seen = set()
    rows = pq.read_table(tmp_path / "clients.parquet").to_pylist()
    for row in rows:
        tokens = row["num_tokens"] * (share + (filling if row["client"] not in seen else 0.0))
        seen.add(row["client"])
        expected = 1.0 + row["bytes_down"] / 1e6 + row["bytes_up"] / 1e5 + tokens / 100.0
        assert row["arrived_seconds"] - row["began_seconds"] == pytest.approx(expected, rel=1e-9)
    assert len(seen) < len(rows)

"""What a plan foresees of simulated devices is what the run does; what cannot be is refused before anything is loaded."""

import io
import json

import numpy as np
import pyarrow.parquet as pq
import pytest
from rich.console import Console
from support import make_tiny

import fedsim
from fedsim.core.errors import ConfigError
from fedsim.display.page.run_page import run_page
from fedsim.planning.command import print_plan
from fedsim.planning.fleet_forecast import forecast
from fedsim.planning.memory import estimate_memory
from fedsim.planning.model_shape import model_shape
from fedsim.simulation.preparation import partition_data

SMALL = {"executor": "local", "rounds": 3, "data": {"train_examples": 60, "validation_examples": 10}}
TOP = {"layers": {"choose": "top", "share": 0.5}}
REACH = {"share": 0.4, "cycle_hours": 0.05}
RUNS = {
    "deadline": {
        "sampling": {"clients_per_round": 4},
        "world": {
            "devices": {"tokens_per_second": 50.0, "availability": REACH}, "deadline_seconds": 20.0, "over_selection": 0.5,
        },
        "compression": {"down": {"kind": "int8"}},
        **TOP,
    },
    "buffered": {
        "server": {"kind": "fedavg"},
        "sampling": {},
        "buffer": {"size": 2, "concurrency": 4},
        "world": {"devices": {"tokens_per_second": {"median": 50.0, "sigma": 0.9}, "availability": REACH}},
        **TOP,
    },
}  # fmt: skip


def foreseen(config):
    data, shape = partition_data(config), model_shape(config.model)
    memory = estimate_memory(config, shape, len(data.dataset.train), len(data.task.labels))
    return forecast(config, data, shape, memory)


@pytest.mark.parametrize("name", RUNS)
def test_the_steps_of_a_plan_are_those_of_the_run(tmp_path, name):
    config = make_tiny(output=str(tmp_path / "run"), **SMALL, **RUNS[name])
    found = foreseen(config)
    fedsim.run(config, progress=False)
    rounds, clients = (
        pq.read_table(tmp_path / "run" / f"{each}.parquet").to_pandas() for each in ("rounds", "clients")
    )
    assert found.exact
    assert np.cumsum(found.lengths()) == pytest.approx(rounds["clock_seconds"].dropna().to_numpy(), rel=1e-12)
    visits = {(step.number + 1, visit.client, visit.arrived_seconds) for step in found.steps for visit in step.visits}
    assert visits == set(clients[["round", "client", "arrived_seconds"]].itertuples(index=False, name=None))
    assert found.traffic() == (rounds["bytes_down"].sum(), rounds["bytes_up"].sum())
    if name == "buffered":
        assert sorted(found.staleness().tolist()) == sorted(clients["staleness"].tolist())
        assert 'id="staleness-title"' in run_page(fedsim.load_run(tmp_path / "run"))


def test_times_are_the_most_that_they_may_be_where_scores_choose_layers(tmp_path):
    changes = {
        **SMALL,
        "sampling": {"clients_per_round": 4},
        "world": {"devices": {"availability": {"kind": "always"}}},
    }
    config = make_tiny(output=str(tmp_path / "run"), **changes)
    found = foreseen(config)
    fedsim.run(config, progress=False)
    clock = pq.read_table(tmp_path / "run" / "rounds.parquet")["clock_seconds"].drop_null().to_numpy()
    assert not found.exact and (np.cumsum(found.lengths()) >= clock).all()


def test_a_plan_tells_who_can_be_drawn_and_how_long_it_takes():
    gigabytes = {"median": 2.0, "sigma": 1.0}
    world = {"devices": {"gigabytes": gigabytes, "needed_gigabytes": 2.0, "availability": {"kind": "always"}}}
    printed = io.StringIO()
    config = make_tiny(**SMALL, **TOP, sampling={"clients_per_round": 2}, world=world | {"deadline_seconds": 0.01})
    print_plan(config, Console(file=printed, width=200))
    text = printed.getvalue()
    for words in ("cannot hold the model, which needs 2 GB", "all in reach", "median visit", "slowest visit", "simulated time",
                  "warning: world.deadline_seconds=0.01 leaves 1 of a round's 2 clients"):  # fmt: skip
        assert words in text, text


def test_a_model_that_too_few_devices_hold_is_refused_as_the_config_is_read():
    with pytest.raises(
        ConfigError, match=r"none can be drawn: the devices of \d+ cannot hold .* needs 1,000 GB"
    ) as refused:
        make_tiny(world={"devices": {"needed_gigabytes": 1000.0}})
    assert str(refused.value).endswith("; give other devices")
    with pytest.raises(ConfigError, match=r"buffer\.concurrency is 4, but of the \d+ .* none can be drawn"):
        make_tiny(**{**RUNS["buffered"], "world": {"devices": {"needed_gigabytes": 1000.0}}})
    with pytest.raises(ConfigError, match=r"slow_share=0\.001 of partition\.clients=\d+ is nobody; set"):
        make_tiny(world={"devices": {"slow_share": 0.001}})


EARLY = {
    "memory": (
        "device,gigabytes\na,1\n",
        {"needed_gigabytes": 2.0},
        {},
        r"none can be drawn.*largest device spares 1 GB",
    ),
    "a client without a row": ("client,gigabytes\n0,1\n", {}, {}, r"no row for client 1"),
    "tiers": ("device,gigabytes\na,1\n", {}, {"kind": "tiers", "tiers": 9}, r"sampling\.tiers=9 makes tiers of"),
}


@pytest.mark.parametrize("name", EARLY)
def test_devices_that_cannot_do_it_are_refused_before_the_model_is_read(tmp_path, name):
    rows, devices, sampling, sentence = EARLY[name]
    (tmp_path / "devices.csv").write_text(rows)
    for file in ("config.json", "model.safetensors"):
        (tmp_path / file).write_text("no model")
    changes = {
        "world": {"devices": {"file": str(tmp_path / "devices.csv"), **devices}},
        "model": {"path": str(tmp_path)},
    }
    with pytest.raises(fedsim.FedsimError, match=sentence):
        fedsim.run(make_tiny(output=str(tmp_path / "run"), **SMALL, sampling=sampling, **changes), progress=False)


def test_devices_too_small_for_the_weights_are_refused_before_layers_are_scored(tmp_path):
    config = make_tiny(output=str(tmp_path / "run"), **SMALL, world={"devices": {"gigabytes": 1e-6}})
    with pytest.raises(ConfigError, match=r"none can be drawn: the devices of \d+ cannot hold the model"):
        fedsim.run(config, progress=False)
    events = [json.loads(line)["event"] for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    assert "layers" not in events


def test_a_deadline_that_leaves_a_robust_rule_too_few_clients_is_known_before_it_happens(tmp_path):
    rule = {
        "server": {"kind": "fedavg", "aggregation": "multi_krum", "assumed_attackers": 1},
        "sampling": {"clients_per_round": 6},
    }
    devices = {"tokens_per_second": {"median": 50.0, "sigma": 1.5}, "availability": {"kind": "always"}}
    world = {"devices": devices, "deadline_seconds": 0.01}
    with pytest.raises(
        ConfigError, match=r"round 1 will have 1 client in time of 6 drawn, but .*needs 2 f \+ 3 = 5 clients"
    ):
        fedsim.run(
            make_tiny(output=str(tmp_path / "run"), **SMALL, **rule, **TOP, world=world),
            progress=False,
        )

"""What buffered rounds refuse, each in a sentence that names the key and what would be right."""

import pytest
from support import make_tiny

from fedsim.core.errors import ConfigError

FEDAVG = {"server": {"kind": "fedavg"}}
BUFFER = {"buffer": {"size": 2, "concurrency": 4}}
LORA = {"tuner": {"kind": "lora", "rank": 2, "train": "alternate"}}
REFUSED = {
    "smaller than a step": ({"buffer": {"size": 3, "concurrency": 2}}, "concurrency=2 is less than size=3"),
    "more than clients": ({"buffer": {"size": 3, "concurrency": 13}}, "concurrency=13 is more than partition.clients=12"),
    "default method": ({"server": {"kind": "fedpeptao"}}, "server.kind=fedpeptao also needs control"),
    "scaffold": ({"server": {"kind": "scaffold"}}, "server.kind=scaffold also needs control"),
    "feddyn": ({"server": {"kind": "feddyn"}}, "server.kind=feddyn also needs"),
    "chained": (
        {"server": {"kind": "fedpeptao_published", "control": False}},
        "clients step one after another",
    ),
    "common metric": ({"client": {"correction": "preconditioner"}}, "client.correction=preconditioner also needs"),
    "robust": ({"server": {"kind": "fedavg", "aggregation": "median"}}, "server.aggregation=mean"),
    "in turn": (LORA, "set tuner.train=both"),
    "exact": ({"tuner": {"kind": "lora", "rank": 2, "exact": True}}, "set tuner.exact=false"),
    "dropout": ({"sampling": {"dropout": 0.1}}, "set sampling.dropout=0"),
    "delay's deadline": (
        {"sampling": {"delay": {"seconds_per_example": 1.0, "deadline_seconds": 2.0}}},
        "no step waits for a client",
    ),
    "deadline": ({"world": {"devices": {}, "deadline_seconds": 2.0}}, "world.deadline_seconds: no step waits"),
    "over-selection": ({"world": {"devices": {}, "over_selection": 0.3}}, "world.over_selection: no step waits"),
    "tiers": ({"world": {"devices": {}}, "sampling": {"kind": "tiers"}}, "set sampling.kind=uniform"),
    "compressed downloads": ({"compression": {"down": {"kind": "int8"}}}, "set compression.down.kind=none"),
    "packed downloads": (
        {"compression": {"up": {"kind": "int8"}, "lossless": "zstd"}},
        "compression.lossless=zstd, which also packs what devices receive",
    ),
    "dropping the only one": (
        {"buffer": {"size": 1, "concurrency": 2}, "client": {"on_failure": "drop"}},
        "set buffer.size=2 or more",
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", REFUSED)
def test_what_is_not_defined_is_refused(name):
    changes, words = REFUSED[name]
    with pytest.raises(ConfigError) as caught:
        make_tiny(**{**FEDAVG, **BUFFER, **changes})
    assert words in str(caught.value) and "\n" not in str(caught.value)


@pytest.mark.parametrize("kind", ["fedavg", "fedavgm", "fedadam", "fedyogi", "fedadagrad", "fedprox"])
def test_methods_that_read_the_mean_alone_are_taken(kind):
    config = make_tiny(server={"kind": kind}, **BUFFER)
    assert (config.clients_per_step, config.buffer_size) == (2, 2)


def test_what_clients_send_may_be_compressed():
    assert make_tiny(**FEDAVG, **BUFFER, compression={"up": {"kind": "int8"}}).downlink is None


def test_fedpeptao_without_control_and_metric_reads_the_mean_alone():
    make_tiny(server={"kind": "fedpeptao", "control": False}, client={"correction": "none"}, **BUFFER)


def test_a_run_without_a_buffer_is_the_run_that_it_was():
    assert "buffer" not in make_tiny(**FEDAVG).identity_values
    stale = make_tiny(**FEDAVG, **BUFFER)
    assert stale.identity_values["buffer"]["size"] == 2 and stale.identity != make_tiny(**FEDAVG).identity

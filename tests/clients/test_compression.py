"""Compression: what is summed and kept is made of what was read, and what was lost comes with a later change."""

from dataclasses import replace

import numpy as np
import pyarrow.parquet as pq
import pytest
from support import make_tiny, merged

import fedsim
from clients.sending.compressing import compressed, stream_of, unsent
from clients.training.group import GroupTraining
from clients.worker import ClientWorker
from fedsim.core.compression.codec import CODECS
from fedsim.core.compression.config import CompressionConfig
from fedsim.core.compression.links import uplink
from fedsim.core.compression.message import Packer
from fedsim.core.errors import ConfigError
from fedsim.core.layout import LayerArrays, VectorLayout
from fedsim.core.messages import VECTOR, ClientState, WorkGroup
from fedsim.core.method import ClientRound
from fedsim.methods.control import CONTROL
from fedsim.methods.preconditioner import Preconditioner
from fedsim.planning.memory import estimate_memory
from fedsim.planning.model_shape import model_shape
from fedsim.planning.traffic import bytes_received, bytes_sent
from fedsim.records.checkpoint import load_latest
from fedsim.simulation.preparation import prepare, training_spec
from server.core import Server

LAYERS = (1, 3)
LOCAL = {"executor": "local", "client": {"fuse": 2}}


class Devices:
    """A backbone, made once; compression and method change from case to case."""

    def __init__(self):
        self.spec = prepare(make_tiny(**LOCAL)).spec
        self.worker = ClientWorker(self.spec)

    def train(self, clients=(3, 5), states=(), **changes):
        """Return what one round of a config's clients gives, and the state that they start from."""
        config = make_tiny(**merged(LOCAL, changes))
        training = training_spec(config, len(self.spec.train))
        size = self.worker._full.exchanged(LAYERS).size
        start_F = np.random.default_rng(0).normal(0.0, 0.02, size).astype(config.model.exchange_dtype)
        state = Server(config.method, start_F, LAYERS, 5 / 12).global_state()
        known = {old.client: old for old in states}
        olds = [known.get(client, ClientState(client)) for client in clients]
        group = GroupTraining(replace(self.spec, training=training), self.worker._backbone, self.worker._full)
        return group.train(WorkGroup(0, 0, clients, fuse=2), state, olds, {}), state


@pytest.fixture(scope="module")
def devices():
    return Devices()


@pytest.fixture
def read(monkeypatch):
    """Return a list of all that is read from messages, in order, with the length of each."""
    found, pack = [], Packer.pack

    def watched(self, array_F, blocks, rng):
        message = pack(self, array_F, blocks, rng)
        found.append((self.unpack(message, blocks), len(message)))
        return message

    monkeypatch.setattr(Packer, "pack", watched)
    return found


WAYS = {
    # compression.up, client, messages of a client
    "common metric": ({"kind": "int8"}, {}, 3),
    "common metric, int4": ({"kind": "int4", "block": "layer"}, {}, 3),
    "without weight decay": ({"kind": "bfloat16"}, {"optimizer": {"weight_decay": 0.0}}, 2),
    "SGD, the largest": (
        {"kind": "top_k"}, {"optimizer": {"kind": "sgd", "lr": 0.03, "weight_decay": 0.0}, "correction": "preconditioner"}, 1,
    ),
    "no correction, signs": ({"kind": "sign"}, {"correction": "none"}, 1),
}  # fmt: skip


@pytest.mark.parametrize("name", WAYS)
def test_sums_and_what_clients_keep_are_made_of_what_the_server_reads(devices, read, name):
    up, client, messages = WAYS[name]
    done, state = devices.train(compression={"up": up}, client=client)
    sums, start_F = dict.fromkeys(done.update.sums, 0.0), state.vector_F.astype(np.float64)
    for number, (report, new) in enumerate(zip(done.reports, done.states, strict=True)):
        own = read[number * messages : (number + 1) * messages]
        assert report.failure is None and report.bytes_up == sum(length for _, length in own)
        moved_F, weight = own[0][0].astype(np.float64), report.num_examples
        vector_F = start_F + moved_F
        terms = {VECTOR: vector_F, CONTROL: np.zeros_like(vector_F), "control_change": -moved_F}
        if "metric" in sums:
            # The order of Preconditioner.up: gain, steps.
            stepped_F = own[2][0].astype(np.float64) if messages == 3 else -moved_F
            gain_F = own[1][0].astype(np.float64) if messages > 1 else None
            terms[VECTOR] = vector_F + stepped_F
            if gain_F is not None:
                terms |= {"metric": 1 / gain_F, "metric_step": stepped_F / gain_F}
        for name_ in terms:
            sums[name_] = sums[name_] + weight * terms[name_]
        np.testing.assert_allclose(new.arrays[CONTROL], -moved_F, rtol=0, atol=1e-8)  # of a float32 vector
    for field, sum_F in done.update.sums.items():
        if np.ndim(sums[field]):
            np.testing.assert_allclose(sum_F, sums[field], rtol=2e-6, atol=1e-6 * np.abs(sum_F).max(), err_msg=field)
    assert len(read) == 2 * messages


DEFAULT = {"top_k", "random_k", "sign"}
"""Kinds that the default method refuses, since it divides by every entry of the clients' gains."""


@pytest.mark.parametrize("kind", CODECS)
def test_every_codec_goes_with_the_default_method_or_is_refused_with_a_way_out(devices, kind):
    if kind not in DEFAULT:
        assert all(report.failure is None for report in devices.train(compression={"up": {"kind": kind}})[0].reports)
        return
    with pytest.raises(ConfigError, match=rf"compression.up.kind={kind} does not send .*gain.*client.correction=none"):
        make_tiny(compression={"up": {"kind": kind}})
    done, _ = devices.train(compression={"up": {"kind": kind}}, client={"correction": "none"})
    assert all(
        report.failure is None and unsent(VECTOR) in new.arrays
        for report, new in zip(done.reports, done.states, strict=True)
    )


def test_other_ways_that_cannot_be_are_refused():
    with pytest.raises(
        ConfigError, match=r"down.kind=sign does not send .* deviations; use compression.down.kind=int8"
    ):
        make_tiny(
            server={"kind": "fedbpt"}, tuner={"kind": "soft_prompt", "projection": 9},
            client={"optimizer": {"kind": "cma_es"}}, compression={"down": {"kind": "sign"}},
        )  # fmt: skip
    with pytest.raises(ConfigError, match=r"tuner.exact=true gives every device .* set compression.down.kind=none"):
        make_tiny(
            server={"kind": "fedavg"}, tuner={"kind": "lora", "exact": True}, compression={"down": {"kind": "int8"}}
        )


def test_a_result_that_is_not_finite_is_not_sent(devices, monkeypatch):
    as_sent = GroupTraining._as_sent

    def broken(self, parts, round, job, result):
        result = as_sent(self, parts, round, job, result)
        return replace(result, vector_A=result.vector_A * np.float32("inf")) if job.client == 5 else result

    monkeypatch.setattr(GroupTraining, "_as_sent", broken)
    for kind in ("int8", "float16", "bfloat16"):
        (good, bad), (_, kept) = (lambda done: (done.reports, done.states))(
            devices.train(compression={"up": {"kind": kind}})[0]
        )
        assert good.failure is None and bad.failure.kind == "non_finite" and (bad.bytes_up, kept) == (0, ClientState(5))


def test_a_change_that_a_format_cannot_hold_fails_its_client(devices, monkeypatch):
    as_sent = GroupTraining._as_sent
    monkeypatch.setattr(
        GroupTraining, "_as_sent",
        lambda self, *given: replace(made := as_sent(self, *given), vector_A=made.vector_A + np.float32(1e5)),
    )  # fmt: skip
    done, _ = devices.train(compression={"up": {"kind": "float16"}})
    assert {report.failure.kind for report in done.reports} == {"non_finite"}


LAYOUT = VectorLayout(LayerArrays(3, (("a", (7,)), ("b", (3, 11)))), (0, 2), (("bias", (2,)),))


@pytest.mark.parametrize("kind", [kind for kind in CODECS if kind != "none"])
def test_what_is_read_and_what_is_left_add_up_to_all_that_was_to_be_sent(kind):
    link = uplink(CompressionConfig(up={"kind": kind}, error_feedback=True))
    rng, config = np.random.default_rng(0), make_tiny(client={"optimizer": {"weight_decay": 0.1}}).client
    start_F, old = np.zeros(LAYOUT.size, np.float32), {}
    correction = (Preconditioner(),) if link.scales else ()
    wanted, sent = {"vector": 0.0, "stepped": 0.0}, {"vector": 0.0, "stepped": 0.0}
    for round in range(30):
        change_F, stepped_F = rng.standard_normal((2, LAYOUT.size)).astype(np.float32)
        gain_F = np.exp(rng.standard_normal(LAYOUT.size)).astype(np.float32)
        client = ClientRound(config, 1, 1, start_F, {}, old, start_F + change_F, {"stepped": stepped_F, "gain": gain_F})
        done = compressed(link, correction, client, LAYOUT, stream_of(0, round, 4))
        old = dict(done.kept)
        assert set(old) == ({unsent("vector"), unsent("stepped")} if correction else {unsent("vector")})
        for name, array_F, read_F in (
            ("vector", change_F, done.client.trained_F - start_F), ("stepped", stepped_F, done.client.tallies["stepped"]),
        ):  # fmt: skip
            wanted[name], sent[name] = wanted[name] + array_F.astype(np.float64), sent[name] + read_F.astype(np.float64)
    for name in sent if correction else ("vector",):
        np.testing.assert_allclose(sent[name] + old[unsent(name)], wanted[name], rtol=0, atol=1e-4)
        assert np.abs(old[unsent(name)]).max() < 30 * np.abs(wanted[name]).max()  # no kind runs away


def run(path, **changes):
    summary = fedsim.run(make_tiny(**merged(LOCAL, changes), output=str(path)), progress=False)
    checkpoint, _ = load_latest(path / "checkpoints")
    return summary, checkpoint


def test_all_entries_sent_are_no_compression(tmp_path):
    none = {"client": {"correction": "none"}, "rounds": 2}
    plain, whole, exact = (
        run(tmp_path / name, **none, **changes)
        for name, changes in {
            "plain": {},
            "whole": {"compression": {"up": {"kind": "top_k", "share": 1.0}, "down": {"kind": "top_k", "share": 1.0}}},
            "exact": {"compression": {"lossless": "zstd"}},
        }.items()
    )
    np.testing.assert_allclose(whole[1].server[VECTOR], plain[1].server[VECTOR], rtol=0, atol=2e-5)  # Adam divides
    assert exact[1].server[VECTOR].tobytes() == plain[1].server[VECTOR].tobytes()
    assert exact[0]["bytes_up"] < plain[0]["bytes_up"] < whole[0]["bytes_up"]


def test_a_resumed_run_ends_with_the_bytes_of_a_straight_one_and_its_figures_are_those_of_the_plan(tmp_path):
    changes = {
        "client": {"correction": "control"},
        "compression": {"up": {"kind": "sign"}, "down": {"kind": "int8"}},
        "layers": {"choose": "fixed", "fixed": [1, 3], "unselected": "local"},
    }
    summary, straight = run(tmp_path / "straight", rounds=4, **changes)
    run(tmp_path / "parts", rounds=2, **changes)
    config = make_tiny(**merged(LOCAL, merged(changes, {"rounds": 4})), output=str(tmp_path / "parts"))
    again = fedsim.run(config, resume=True, progress=False)
    resumed, _ = load_latest(tmp_path / "parts" / "checkpoints")
    assert (again["bytes_up"], again["bytes_down"]) == (summary["bytes_up"], summary["bytes_down"])
    assert straight.server.keys() == resumed.server.keys() and "broadcasts/unsent" in straight.server
    for name, array in straight.server.items():
        assert array.tobytes() == resumed.server[name].tobytes(), name
    for one, other in zip(straight.clients, resumed.clients, strict=True):
        assert {name: array.tobytes() for name, array in one.arrays.items()} == {
            name: array.tobytes() for name, array in other.arrays.items()
        }
        assert unsent(VECTOR) in one.arrays and one.last_round == other.last_round >= 0

    memory = estimate_memory(config, model_shape(config.model), 300, 2)
    (sent,), (whole, change) = (
        bytes_sent(config, memory, config.uplink),
        bytes_received(config, memory, config.downlink),
    )
    size = memory.exchanged // 4
    assert sent == 10 + 4 * -(-size // 256) + -(-size // 8) and whole == 2 * (10 + 4 * size)
    assert change == 2 * (10 + 4 * -(-size // 256) + size)
    kept = {client.client: sum(array.nbytes for array in client.arrays.values()) for client in straight.clients}
    assert set(kept.values()) == {memory.client_states // min(12, 4 * 5)}
    rows = pq.read_table(tmp_path / "straight" / "clients.parquet").select(
        ["round", "client", "bytes_down", "bytes_up"]
    )
    last, seen = {}, set()
    for row in sorted(rows.to_pylist(), key=lambda row: row["round"]):
        missed = row["round"] - last[row["client"]] if row["client"] in last else None
        assert (
            row["bytes_down"] == (whole if missed is None else min(whole, missed * change)) and row["bytes_up"] == sent
        )
        last[row["client"]] = row["round"]
        seen.add(missed)
    assert {None, 1, 2} <= seen


COMPOSED = {
    "halves in turn": {
        "server": {"kind": "fedavg"}, "tuner": {"kind": "lora", "train": "alternate"},
        "compression": {"up": {"kind": "random_k", "share": 0.3}, "down": {"kind": "sign", "block": "layer"}},
    },
    "a common metric of LoRA": {"tuner": {"kind": "lora"}, "compression": {"up": {"kind": "int4", "block": "layer"}}},
    "robust, attacked": {
        "server": {"kind": "fedavg", "aggregation": "median"}, "attack": {"kind": "sign_flip", "clients": 3},
        "compression": {"up": {"kind": "top_k"}, "error_feedback": False},
    },
    "without gradients": {
        "server": {"kind": "fedbpt"}, "tuner": {"kind": "soft_prompt", "length": 3, "projection": 9},
        "client": {"optimizer": {"kind": "cma_es", "population": 6}},
        "compression": {"up": {"kind": "int8"}, "down": {"kind": "float16"}, "lossless": "zstd"},
    },
    "share by density": {
        "server": {"kind": "fedavg"}, "layers": {"share_rule": "density", "spectrum": {"warmup_rounds": 1, "lanczos_steps": 3}},
        "compression": {"up": {"kind": "int8"}, "down": {"kind": "int8"}},
    },
}  # fmt: skip


@pytest.mark.parametrize("name", COMPOSED)
def test_it_goes_with(name, tmp_path):
    summary, checkpoint = run(tmp_path / "run", **COMPOSED[name])
    assert summary["clients_failed"] == 0 and np.isfinite(checkpoint.server[VECTOR]).all()
    plain = summary["client_updates"] * len(summary["vectors_up"]) * 4 * summary["exchanged_parameters"]
    assert 0 < summary["bytes_up"] < plain or name == "without gradients"  # a vector of nine numbers
    lost = [client for client in checkpoint.clients if unsent(VECTOR) in client.arrays]
    assert bool(lost) == (name == "halves in turn")
    if lost:
        whole = {len(client.arrays[unsent(VECTOR)]) for client in lost}
        assert whole == {len(checkpoint.server[VECTOR])}

"""What travels: enough for a server that sees each device's vectors, no more than the device uses, and what all figures say."""

from dataclasses import replace
from itertools import product

import numpy as np
import pytest
import torch
from support import ROOT, make_tiny, merged

from clients.optimizer_config import OptimizerConfig
from clients.training.group import GroupTraining
from clients.training.optimizers import decay_and_step
from clients.tuners.words import trained_words
from clients.worker import ClientWorker
from fedsim.core.errors import ConfigError
from fedsim.core.messages import VECTOR, ClientState, WorkGroup
from fedsim.core.method import CORRECTIONS
from fedsim.core.traffic import PROMPT, round_traffic
from fedsim.methods.control import AFTER, CHANGE, CONTROL, client_control
from fedsim.planning.memory import estimate_memory
from fedsim.planning.model_shape import model_shape
from fedsim.simulation.preparation import prepare, training_spec
from server.aggregation import population_weight
from server.core import Server

LAYERS = (1, 3)
VARIATE, GAIN, STEPS = "control variate", "gain", "steps"


class Devices:
    """Backbones of some kind, made once; methods change from case to case."""

    def __init__(self, **model):
        self.base = {"executor": "local", "model": model, "client": {"fuse": 2}}
        self.spec = prepare(make_tiny(**self.base)).spec
        self.worker = ClientWorker(self.spec)

    def config(self, **changes):
        return make_tiny(**merged(self.base, changes))

    def training(self, config):
        training = training_spec(config, len(self.spec.train))
        return GroupTraining(replace(self.spec, training=training), self.worker._backbone, self.worker._full)

    def server(self, config):
        size = self.worker._full.exchanged(LAYERS).size
        start_F = np.random.default_rng(0).normal(0.0, 0.02, size).astype(config.model.exchange_dtype)
        weight = population_weight(config.server.weighting, self.spec.shards.train_sizes)
        return Server(config.method, start_F, LAYERS, 5 / 12, weight, config.server.rule())


@pytest.fixture(scope="module")
def exact():
    return Devices(dtype="float64")


ADAM, PUBLISHED_ADAM, SGD = ({"kind": kind, "lr": 0.03} for kind in ("adamw", "adamw_published", "sgd"))
SGD["momentum"] = 0.9
PEPTAO, AVERAGE = {"kind": "fedpeptao"}, {"kind": "fedavg"}
NO_DECAY = {"weight_decay": 0.0}
METHODS = {
    # server, client, vectors down and up
    "fedavg": (AVERAGE, {}, 1, 1),
    "fedadam": ({"kind": "fedadam"}, {}, 1, 1),
    "fedprox": ({"kind": "fedprox"}, {}, 1, 1),
    "feddyn": ({"kind": "feddyn"}, {}, 1, 1),
    "scaffold": ({"kind": "scaffold"}, {}, 2, 1),
    "scaffold in displacements": ({"kind": "scaffold", "control_form": "displacement"}, {"optimizer": SGD}, 2, 1),
    "fedpeptao": (PEPTAO, {}, 1, 3),
    "fedpeptao without weight decay": (PEPTAO, {"optimizer": NO_DECAY}, 1, 2),
    "… and the published Adam": (PEPTAO, {"optimizer": PUBLISHED_ADAM | NO_DECAY}, 1, 2),
    "… with weight decay": (PEPTAO, {"optimizer": PUBLISHED_ADAM}, 1, 3),
    "… and moments kept": (
        PEPTAO, {"optimizer": ADAM | NO_DECAY | {"moments": "keep"}, "schedule": {"kind": "linear", "total_steps": 9}}, 1, 2,
    ),
    "a common metric of SGD": (PEPTAO, {"optimizer": SGD | NO_DECAY}, 1, 1),
    "… with weight decay and clipping": (PEPTAO, {"optimizer": SGD | {"clip_norm": 0.01}}, 1, 2),
    "fedpeptao without control variates": ({**PEPTAO, "control": False}, {"optimizer": NO_DECAY}, 1, 2),
    "fedavg in a common metric": (AVERAGE, {"correction": "preconditioner"}, 1, 3),
    "fedpeptao without correction": (PEPTAO, {"correction": "none"}, 1, 1),
    "fedpeptao with control": (PEPTAO, {"correction": "control"}, 2, 1),
    "fedpeptao with steps": ({**PEPTAO, "control_mean": "steps"}, {"correction": "proximal"}, 1, 1),
    "fedpeptao_published": ({"kind": "fedpeptao_published"}, {}, 1, 1),
    "robust": ({**PEPTAO, "aggregation": "median"}, {"correction": "none"}, 1, 1),
    "robust with control": ({**PEPTAO, "aggregation": "norm_clipping"}, {"correction": "control"}, 2, 1),
}  # fmt: skip


class RealServer:
    """Knows what a real server knows: the config, P_t, c, T_i, n_i, and the vectors that it was sent; keeps every c_i."""

    def __init__(self, config):
        self.config, self.controls = config, {}

    def sums(self, state, messages):
        """Return terms of sums and what is looked at client by client, made of ``messages``: client, n_i, T_i, vectors and
        numbers by name.
        """
        config, server, optimizer = self.config, self.config.server, self.config.client.optimizer
        start_F, sums, each = state.vector_F, [], []
        for client, examples, steps, sent, numbers in messages:
            weight = examples if server.weighting == "examples" else 1
            local_F = sent[PROMPT]
            term, single = {VECTOR: weight * local_F}, {VECTOR: local_F}
            if config.correction == "preconditioner":
                stepped_F = sent[STEPS] if STEPS in sent else start_F - local_F
                metric_F = 1.0 / (sent[GAIN] if GAIN in sent else np.full_like(start_F, numbers[GAIN]))
                term[VECTOR] = weight * (local_F + stepped_F)
                term |= {"metric": weight * metric_F, "metric_step": weight * metric_F * stepped_F}
            if CONTROL in config.method.serves:
                before_F = self.controls.get(client, np.zeros_like(start_F))
                after_F = self.controls[client] = client_control(
                    before_F, state.arrays[CONTROL], start_F, local_F, steps, optimizer.lr,
                    form=server.control_form, drift_applied=config.correction == "control",
                )  # fmt: skip
                share = steps if server.control_mean == "steps" else weight
                used_F = before_F if getattr(server, "control_timing", "after") == "before" else after_F
                term |= {CHANGE: share * (after_F - before_F), CONTROL: weight * used_F}
                single |= {CONTROL: used_F, AFTER: after_F}
            sums.append(term)
            each.append(single)
        return sums, each


def job(devices, config, training, state, clients, states, round, monkeypatch):
    """Train clients; return their reports, the group's update, their states, and what each would send by name."""
    results, as_sent = {}, training._as_sent

    def watched(parts, round, job, result):
        results[job.client] = result, parts.exchanged_F
        return as_sent(parts, round, job, result)

    monkeypatch.setattr(training, "_as_sent", watched)
    olds = [states.get(client, ClientState(client)) for client in clients]
    trained = training.train(WorkGroup(round, 0, clients, fuse=2), state, olds, {})
    monkeypatch.undo()
    assert all(report.failure is None for report in trained.reports)
    messages = []
    for report in trained.reports:
        result, exchanged_F = results[report.client]
        vectors = {PROMPT: result.vector_A, GAIN: result.tallies.get("gain"), STEPS: result.tallies.get("stepped")}
        sent = {name: vectors[name][exchanged_F] for name in config.traffic.up}
        numbers = {}
        if config.correction == "preconditioner" and GAIN not in sent:
            gain_F = result.tallies["gain"][exchanged_F]
            assert np.ptp(gain_F) <= 1e-12 * gain_F.max()  # a vector of one number
            numbers[GAIN] = gain_F[0]
        messages.append((report.client, report.num_examples, report.num_steps, sent, numbers))
    return trained, messages


@pytest.mark.parametrize("name", METHODS)
def test_what_is_sent_is_all_that_the_server_needs(exact, name, monkeypatch):
    """From it and what it knows a server makes every sum that it steps with, and every client's control variate."""
    server_keys, client_keys, down, up = METHODS[name]
    config = exact.config(server=server_keys, client=client_keys)
    assert (len(config.traffic.down), len(config.traffic.up)) == (down, up)
    server, real, states = exact.server(config), RealServer(config), {}
    training = exact.training(config)
    for round, clients in enumerate([(0, 3, 5), (3, 5, 7)]):
        state = server.global_state()
        trained, messages = job(exact, config, training, state, clients, states, round, monkeypatch)
        sums, each = real.sums(state, messages)
        pairs = [(field, np.sum([term[field] for term in sums], axis=0), a) for field, a in trained.update.sums.items()]
        pairs += [(field, np.stack([one[field] for one in each]), a) for field, a in trained.update.each.items()]
        for field, made, array in pairs:
            np.testing.assert_allclose(made, array, rtol=1e-9, atol=1e-11 * np.abs(array).max(), err_msg=field)
        for new in trained.states:
            states[new.client] = new
            assert (CONTROL in new.arrays) == (new.client in real.controls) == (CONTROL in config.method.serves)
            if CONTROL in new.arrays:
                np.testing.assert_allclose(real.controls[new.client], new.arrays[CONTROL], rtol=1e-12, atol=1e-15)
        for report in trained.reports:
            assert report.bytes_down == down * state.vector_F.nbytes
            assert report.bytes_up == up * state.vector_F.nbytes
        server.apply(round, clients, trained.update)


@pytest.mark.parametrize("name", METHODS)
def test_a_device_uses_the_servers_control_variate_only_where_it_is_sent(exact, name, monkeypatch):
    server_keys, client_keys, *_ = METHODS[name]
    config = exact.config(server=server_keys, client=client_keys)
    state, training = exact.server(config).global_state(), exact.training(config)
    if CONTROL not in state.arrays:
        assert VARIATE not in config.traffic.down
        return
    other = replace(state, arrays={CONTROL: state.arrays[CONTROL] + 0.01})
    ((_, _, _, sent, _),), ((_, _, _, moved, _),) = (
        job(exact, config, training, each, (3,), {}, 0, monkeypatch)[1] for each in (state, other)
    )
    same = all(np.array_equal(sent[vector], moved[vector]) for vector in sent)
    assert same == (VARIATE not in config.traffic.down)


def test_with_weight_decay_steps_do_not_follow_from_the_prompt():
    """Two visits from one point to one point, with one gain, whose steps are not the same."""
    config = OptimizerConfig(kind="sgd", lr=0.1, weight_decay=0.5)
    kept = 1.0 - 0.1 * 0.5
    first, second = torch.tensor([[1.0, 2.0]], dtype=torch.float64), torch.tensor([[3.0, -1.0]], dtype=torch.float64)
    ends = []
    for shift in (0.0, 0.7):
        steps = [first + shift, second - kept * shift]
        vector = torch.tensor([[0.3, 0.4]], dtype=torch.float64)
        for step in steps:
            decay_and_step(config, vector, step, np.array([0.1]))
        ends.append((vector, 0.1 * sum(steps)))
    (one, stepped), (other, stepped_otherwise) = ends
    torch.testing.assert_close(one, other, rtol=1e-14, atol=0.0)
    assert (stepped - stepped_otherwise).abs().min() > 1e-3


# -- secure aggregation, where a server sees sums alone ----------------------------------------------------------------

SUMS = {
    "feddyn": ("P",),
    # the method, and the sums of vectors by which docs/method.md says that a server would do
    "fedavg": ("P",),
    "scaffold": ("P", "dc"),
    "fedpeptao": ("P", "D", "DS", "c", "S"),
    "fedpeptao without weight decay": ("P", "D", "DS", "c"),
    "fedpeptao without control variates": ("D", "DS"),  # its weight decay is 0
    "fedpeptao without correction": ("P", "c"),
    "fedpeptao with control": ("P", "c"),
}


@pytest.mark.parametrize("name", SUMS)
def test_sums_that_secure_aggregation_would_need(exact, name, monkeypatch):
    server_keys, client_keys, *_ = METHODS[name]
    config = exact.config(server=server_keys, client=client_keys)
    server, states, training = exact.server(config), {}, exact.training(config)
    for round, clients in enumerate([(0, 3, 5), (3, 5, 7)]):
        state, olds = server.global_state(), dict(states)
        trained, messages = job(exact, config, training, state, clients, states, round, monkeypatch)
        states |= {new.client: new for new in trained.states}
        total = dict.fromkeys(SUMS[name], 0.0)
        for client, weight, _, sent, _ in messages:
            before_F = olds[client].arrays.get(CONTROL) if client in olds else np.zeros_like(state.vector_F)
            stepped_F = sent.get(STEPS, state.vector_F - sent[PROMPT])
            terms = {"P": sent[PROMPT], "c": before_F, "S": stepped_F}
            if GAIN in sent:
                terms |= {"D": 1.0 / sent[GAIN], "DS": stepped_F / sent[GAIN]}
            if CONTROL in config.method.serves:
                terms["dc"] = states[client].arrays[CONTROL] - before_F
            for kind in total:
                total[kind] = total[kind] + weight * terms[kind]
        weight, update = trained.update.weight_sum, trained.update
        start_F = weight * state.vector_F
        made = {VECTOR: total["P"] + total["S"] if "S" in total else start_F if "D" in total else total["P"]}
        if "D" in total:
            made |= {"metric": total["D"], "metric_step": total["DS"]}
        if "dc" in total:
            made[CHANGE] = total["dc"]
        elif "c" in total:
            moved_F = start_F - total["P"]
            corrected = config.correction == "control"  # c_i+ = P_t - P_i + c_i - c, else P_t - P_i
            made[CHANGE] = moved_F - (weight * state.arrays[CONTROL] if corrected else total["c"])
            made[CONTROL] = total["c"]
        for field, array in made.items():
            scale = np.abs(update.sums[field]).max()
            np.testing.assert_allclose(array, update.sums[field], rtol=1e-9, atol=1e-11 * scale, err_msg=field)
        server.apply(round, clients, update)


# -- one source --------------------------------------------------------------------------------------------------------

KINDS = (
    "fedpeptao",
    "fedpeptao_published",
    "fedavg",
    "fedavgm",
    "fedadam",
    "fedyogi",
    "fedadagrad",
    "scaffold",
    "fedprox",
    "feddyn",
)
CHOSEN = ("auto", "none", "control", "preconditioner", "proximal")


@pytest.mark.parametrize(
    "dtype, head", [*product(("float32", "float64"), ("verbalizer", "classifier")), ("bfloat16", "classifier")]
)
def test_the_plan_is_what_a_run_records(dtype, head):
    devices = Devices(dtype=dtype, head={"kind": head})
    layers, client = {"choose": "fixed", "fixed": list(LAYERS)}, {"epochs": None, "steps": 1}
    seen = set()
    for kind, correction, decay in product(KINDS, CHOSEN, (0.0, 0.1)):
        optimizer = {"weight_decay": decay}
        changes = {"server": {"kind": kind}, "layers": layers}
        try:
            config = devices.config(
                **changes, client={**client, "correction": correction, "fuse": 2, "optimizer": optimizer}
            )
        except ConfigError:
            continue  # no method
        if not decay and config.correction != "preconditioner":
            continue
        memory = estimate_memory(config, model_shape(config.model), 300, 2)
        state = devices.server(config).global_state()
        (report,) = devices.training(config).train(WorkGroup(0, 0, (3,)), state, [ClientState(3)], {}).reports
        assert report.failure is None
        assert report.bytes_down == config.traffic.bytes_down(memory.exchanged), (kind, correction)
        assert report.bytes_up == config.traffic.bytes_up(memory.exchanged), (kind, correction)
        seen.add((kind, config.correction))
    # All but scaffold, fedprox and feddyn with none, preconditioner, proximal; control.
    assert len(seen) == 7 * 3 + 3 * 1 + 2


def test_where_the_server_has_no_control_variate_none_is_sent():
    config = make_tiny(server={"kind": "scaffold"})
    chosen = [CORRECTIONS["control"].of(config.client)]
    everything, nothing = round_traffic(chosen, config.client, (CONTROL,)), round_traffic(chosen, config.client, ())
    assert everything == round_traffic(chosen, config.client) and everything.down == (PROMPT, VARIATE)
    assert nothing.down == (PROMPT,) and nothing.up == everything.up


ROWS = {
    "`fedavg`, `fedavgm`, `fedadam`, `fedyogi`, `fedadagrad`": "fedavg",
    "`fedprox`": "fedprox",
    "`scaffold`": "scaffold",
    "`feddyn`": "feddyn",
    "`fedpeptao`, weight decay 0": "fedpeptao without weight decay",
    "`fedpeptao`, weight decay > 0 (default)": "fedpeptao",
    "`fedpeptao`, `control=false`, weight decay 0": "fedpeptao without control variates",
    "`fedpeptao`, `correction=none` or `proximal`": "fedpeptao without correction",
    "`fedpeptao`, `correction=control`": "fedpeptao with control",
    "`fedpeptao_published`": "fedpeptao_published",
}
SYMBOLS = {
    (PROMPT, "down"): "P_t",
    (PROMPT, "up"): "P_i",
    (VARIATE, "down"): "c",
    (GAIN, "up"): "G_i",
    (STEPS, "up"): "S_i",
}


def test_the_table_of_the_docs_is_from_the_source():
    text = (ROOT / "docs" / "method.md").read_text(encoding="utf-8")
    section = text.split("## Communication\n")[1].split("\n## ")[0]
    rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in section.splitlines() if line[:1] == "|"]
    named = {row[0]: row for row in rows[2:]}
    assert set(named) == set(ROWS)
    for row, name in ROWS.items():
        server_keys, client_keys, *_ = METHODS[name]
        traffic = make_tiny(server=server_keys, client=client_keys).traffic
        for cell, way, vectors in ((1, "down", traffic.down), (2, "up", traffic.up)):
            symbols = ", ".join(SYMBOLS[vector, way] for vector in vectors)
            assert named[row][cell] == f"{len(vectors)}: {symbols}", row
        if name in SUMS:
            assert named[row][5].split(":")[0] == str(len(SUMS[name])), row


def test_the_trained_vector_has_the_name_that_its_tuner_gives_it():
    config = make_tiny(tuner={"kind": "lora"}, server={"kind": "fedavg"})
    assert config.traffic.down == config.traffic.up == ("LoRA matrices",)
    assert make_tiny(server={"kind": "fedavg"}).traffic.down == (PROMPT,)


@pytest.mark.parametrize(
    ("trained", "head", "words"),
    [((1, 3), "verbalizer", "X in 2 of 4 layers"), (range(4), "classifier", "X in all 4 layers, and a classifier")],
)
def test_what_is_trained_is_told_with_its_layers(trained, head, words):
    assert trained_words("X", trained, 4, head) == words

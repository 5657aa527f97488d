"""Estimates against what is really stored, and against what workers go by."""

import json
import shutil

import numpy as np
import pytest
import torch
from support import make_tiny, merged

import fedsim
from clients.backbone.loading import load_shared_weights
from clients.backbone.location import locate
from clients.backbone.placement import Placement
from clients.config import ModelConfig
from clients.worker import ClientWorker
from fedsim.core.messages import ClientState, WorkGroup
from fedsim.executors.local import LocalExecutor
from fedsim.planning.memory import estimate_memory
from fedsim.planning.model_shape import model_shape
from fedsim.records.checkpoint import load_latest
from fedsim.simulation.preparation import prepare
from server.core import Server
from server.selection import choose_layers


def test_the_shape_is_that_of_the_embedded_model():
    shape = model_shape(ModelConfig())
    assert (shape.num_layers, shape.num_heads, shape.num_kv_heads, shape.head_dim) == (4, 4, 4, 16)
    assert (shape.hidden_size, shape.feed_forward_size, shape.gated, shape.vocab_size) == (64, 128, False, 1299)


def test_a_model_that_was_never_fetched_has_no_shape(tmp_path, monkeypatch):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    assert model_shape(ModelConfig(path="nobody/nothing")) is None


@pytest.mark.parametrize("value", [None, [], {}, "x", float("inf"), float("nan"), 0])
def test_a_configuration_that_tells_no_sizes_has_no_shape(tmp_path, value):
    folder = tmp_path / "model"
    shutil.copytree(locate(ModelConfig()), folder)
    values = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(values | {"num_attention_heads": value}))
    assert model_shape(ModelConfig(path=str(folder))) is None


CONFIGS = {
    "as it is": {},
    "float64": {"model": {"dtype": "float64"}},
    "personal prompts and moments": {"layers": {"unselected": "local"}, "client": {"optimizer": {"moments": "keep"}}},
    "adapters, some personal": {"tuner": {"kind": "adapter", "bottleneck": 3}, "layers": {"unselected": "local"}},
    "ia3": {"tuner": {"kind": "ia3"}},
    "classifier without control": {"model": {"head": {"kind": "classifier"}}, "server": {"kind": "fedavg"}},
}


@pytest.mark.parametrize("changes", CONFIGS.values(), ids=CONFIGS)
def test_what_is_stored_is_within_its_bounds_and_near_them(tiny_config, changes):
    config = tiny_config(executor="local", **changes)
    spec = prepare(config).spec
    memory = estimate_memory(
        config, model_shape(config.model), len(spec.train) + len(spec.validation), spec.num_classes
    )
    # A checkpoint holds an LM head, which a classifier does not load.
    assert 0.9 * memory.weights <= spec.weights.nbytes <= 1.01 * memory.weights
    assert spec.train.nbytes + spec.validation.nbytes + spec.shards.nbytes <= memory.tokens
    assert spec._most_cached_bytes() <= memory.caches


@pytest.mark.parametrize("changes", CONFIGS.values(), ids=CONFIGS)
def test_what_clients_keep_and_send_is_what_is_planned(tiny_config, changes, tmp_path):
    folder = tmp_path / "run"
    base = {"executor": "local", "rounds": 1, "output": str(folder), "tracking": {"plots": False}}
    config = tiny_config(**base, partition={"clients": 5}, **changes)
    summary = fedsim.run(config, progress=False)
    checkpoint, _ = load_latest(folder / "checkpoints")
    memory = estimate_memory(config, model_shape(config.model), 300, 2)
    assert len(checkpoint.clients) == 5
    kept = [value for state in checkpoint.clients for value in state.arrays.values()]
    assert sum(array.nbytes for array in kept) == memory.client_states
    assert summary["exchanged_parameters"] * np.dtype(config.model.exchange_dtype).itemsize == memory.exchanged
    assert summary["bytes_down"] == 5 * config.traffic.bytes_down(memory.exchanged)
    assert summary["bytes_up"] == 5 * config.traffic.bytes_up(memory.exchanged)


def memory(**changes):
    config = make_tiny(**changes)
    return estimate_memory(config, model_shape(config.model), 300, 2)


@pytest.mark.parametrize(
    ("layers", "kept"),
    [
        ({}, True),
        ({"choose": "top"}, True),
        ({"choose": "fixed", "fixed": [1, 3]}, True),
        ({"choose": "fixed", "fixed": [3, 0]}, False),
        ({"choose": "bottom"}, False),
        ({"choose": "all"}, False),
        ({"choose": "top", "share": 0.8}, False),
        ({"share": 0.8}, False),
    ],
)
def test_a_cache_is_planned_only_if_layers_can_be_frozen_below_the_lowest_prompted_one(layers, kept):
    config = make_tiny(layers=layers)
    assert (memory(layers=layers).caches > 0) == kept
    chosen = choose_layers(config.layers, 4, np.arange(4.0), 0)
    assert (min(chosen) > 0) == kept, "as in a run"


SUMS = {
    "common metric": ({}, 5, 0),
    "without control variates": ({"server": {"control": False}}, 3, 0),
    "fedavg": ({"server": {"kind": "fedavg"}}, 1, 0),
    "scaffold": ({"server": {"kind": "scaffold"}}, 3, 0),
    "published": ({"server": {"kind": "fedpeptao_published"}}, 3, 1),
    "robust": ({"server": {"kind": "fedavg", "aggregation": "median"}}, 1, 1),
    "robust, of before": ({"server": {"aggregation": "median"}, "client": {"correction": "none"}}, 3, 3),
    "robust, of after": ({"server": {"kind": "scaffold", "aggregation": "median"}}, 3, 2),
    "robust, float64": (
        {"server": {"aggregation": "median"}, "client": {"correction": "none"}, "model": {"dtype": "float64"}}, 3, 3,
    ),
}  # fmt: skip


@pytest.mark.parametrize("changes, sums, each", SUMS.values(), ids=SUMS)
def test_what_groups_send_to_the_server_is_what_is_planned(tiny_config, changes, sums, each):
    config = tiny_config(**merged({"executor": "local", "layers": {"choose": "fixed", "fixed": [1, 3]}}, changes))
    spec = prepare(config).spec
    worker = ClientWorker(spec)
    size, dtype = worker.info().full.exchanged((1, 3)).size, np.dtype(config.model.exchange_dtype)
    server = Server(config.method, np.zeros(size, dtype), (1, 3), 5 / 12)
    groups = [WorkGroup(0, number, clients) for number, clients in enumerate([(0, 2), (3, 5), (7,)])]
    state = server.global_state()
    updates = [worker.train(group, state, *map(ClientState, group.clients)).update for group in groups]
    taken = sum(array.nbytes for update in updates for array in (*update.sums.values(), *update.each.values()))
    planned = estimate_memory(config, model_shape(config.model), 300, 2).sums
    assert planned == taken == (3 * sums * 8 + 5 * each * dtype.itemsize) * size


KEPT = {"client": {"optimizer": {"moments": "keep"}}}


def test_states_are_stored_for_each_client_that_is_taking_part_and_twice_for_a_cohort():
    taking_part = {"partition": {"clients": 40}, "sampling": {"clients_per_round": 10}, **KEPT}
    one = memory(rounds=1, **taking_part)
    assert one.client_states == one.new_states > 0
    assert memory(rounds=3, **taking_part).client_states == 3 * one.client_states
    all_of_them = memory(rounds=100, **taking_part)
    assert all_of_them.client_states == 4 * one.client_states
    assert all_of_them.stored - one.stored == 3 * one.client_states


def test_on_a_cluster_states_are_with_the_actors_that_return_them():
    estimate = memory(**KEPT)
    alone, half, none = (estimate.stored_beside(actors, 4) for actors in (4, 2, 0))
    assert alone == estimate.stored
    assert none < half < alone
    assert alone - none == estimate.client_states + estimate.new_states + estimate.sums
    assert none == estimate.weights + estimate.tokens + estimate.caches


def test_a_run_makes_room_for_what_is_planned():
    told = []

    class Recording(LocalExecutor):
        def begin(self, spec_nbytes, modules=(), config_hash=""):
            told.append(spec_nbytes)

    config = make_tiny(**KEPT)
    spec = prepare(config, executor=Recording(lambda: None)).spec
    planned = estimate_memory(
        config, model_shape(config.model), len(spec.train) + len(spec.validation), spec.num_classes
    )
    assert told == [planned.stored]
    assert planned.stored >= spec.nbytes + planned.client_states + planned.new_states


@pytest.mark.parametrize("kind", ["int8", "int4"])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_quantised_weights_take_what_is_foretold(kind, dtype):
    """Bytes of the shared arrays against the plan, for the difference to the model as it is as well."""
    stored, estimated = {}, {}
    for quantize in ("none", kind):
        config = make_tiny(model={"quantize": quantize, "dtype": dtype})
        estimate = estimate_memory(config, model_shape(config.model), 10, 2)
        stored[quantize], estimated[quantize] = prepare(config).spec.weights.nbytes, estimate.weights
        assert estimate.loading == (0 if quantize == "none" else estimated["none"])
        assert 0.95 * stored[quantize] < estimated[quantize] < 1.05 * stored[quantize]
    saved = stored["none"] - stored[kind]
    assert saved > 0 and estimated["none"] - estimated[kind] == saved


def test_layers_that_are_run_twice_need_less_for_a_pass():
    """What a pass keeps of each layer is one hidden state for every token."""
    shape = model_shape(ModelConfig())
    plain, checkpointed = (memory(model={"gradient_checkpointing": on}).activations for on in (False, True))
    assert checkpointed < 0.65 * plain
    assert memory(model={"quantize": "int8"}).activations - plain == 4 * shape.hidden_size * shape.feed_forward_size


def test_matrices_rounded_for_products_take_less():
    stored, estimated = {}, {}
    for products in ("float32", "bfloat16"):
        config = make_tiny(model={"products": products})
        shape = model_shape(config.model)
        assert shape is not None
        stored[products] = prepare(config).spec.weights.nbytes
        estimated[products] = estimate_memory(config, shape, 10, 2).weights
    saved = stored["float32"] - stored["bfloat16"]  # with biases, which the estimate leaves out
    assert 0.9 * saved < estimated["float32"] - estimated["bfloat16"] <= saved


def test_what_writes_keeps_keys_and_values_of_its_pass():
    generation = {"model": {"head": {"kind": "generation"}}, "data": {"max_length": 16}}
    batch = {"batch_size": 2}
    before = memory(**generation, evaluation=batch).activations
    writes = {"generate": {"examples": 9, "max_new_tokens": 10}}
    # 2 texts of 4 prompts, 16 tokens and 10 new ones; 4 layers of 4 heads of 16 numbers, for keys and for values; scores twice.
    kept, scores = 2 * (4 + 16 + 10) * 2 * 4 * 4 * 16 * 4, 2 * 1299 * 8
    assert memory(**generation, evaluation={**batch, **writes}).activations - before == kept + scores


def test_each_gpu_of_an_actor_holds_a_part_of_the_weights_that_a_worker_puts_there(tiny_config):
    """As many layers as the backbone's placement gives it; the estimate tells no norms from word embeddings."""
    config = tiny_config(ray={"num_gpus_per_actor": 2})
    foretold = memory(ray={"num_gpus_per_actor": 2})
    weights = load_shared_weights(config.model)
    placed = Placement.over([torch.device("cuda", 0), torch.device("cuda", 1)], weights)
    held = dict.fromkeys(placed.devices, 0)
    for name, array in weights.arrays.items():
        held[placed.of_array(weights.layer_of(name))] += array.nbytes
    assert foretold.gpus == 2 and sum(foretold.gpu_weights) == foretold.weights
    assert foretold.gpu_weights == pytest.approx(tuple(held.values()), rel=0.1)
    assert foretold.actor_gpu < memory(ray={"num_gpus_per_actor": 1}).actor_gpu

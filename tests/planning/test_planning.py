"""Plans made before a run: where actors go, what binds them, what is refused; every remedy that is named works."""

import re
import subprocess
import sys
from dataclasses import replace

import pytest
from support import ROOT, make_tiny, merged

from fedsim import cli
from fedsim.configuration.schema import read_config
from fedsim.core.errors import ResourceError
from fedsim.executors.cluster.local_cluster import store_bytes
from fedsim.executors.cluster.sizing import NodeResources
from fedsim.planning.command import _own_node
from fedsim.planning.memory import MemoryEstimate, estimate_memory
from fedsim.planning.model_notes import model_notes
from fedsim.planning.model_shape import model_shape
from fedsim.planning.plan import PlanNode, make_plan

GB = 10**9
SMALL = MemoryEstimate(GB, GB // 100, 0, 0, 10**5, GB // 10, 10**6, on_gpu=False)
ON_GPU = MemoryEstimate(2 * GB, GB // 100, 0, 0, 10**5, 10 * GB, 10**6, on_gpu=True)


def node(cpus=2, gpus=0, memory=None, store=None, gpu=None, id="a"):
    return PlanNode("here", NodeResources(cpus, gpus), memory, store, gpu, id)


def plan(nodes, memory=SMALL, *, ray=None, **changes):
    base = {"sampling": {"clients_per_round": 10}, "partition": {"clients": 100}, "group_size": 5}
    return make_plan(make_tiny(**merged(base, {**changes, "ray": ray or {}})), nodes, memory)


PLANS = [
    # nodes, config, actors on each node, groups, waves, what binds them
    ([node(2)], {}, (2,), 2, 1, "CPUs: room for 2"),
    ([node(2), node(3, id="b")], {"group_size": 1}, (2, 3), 10, 2, "CPUs: room for 5"),
    ([node(64)], {"partition": {"clients": 10}, "group_size": 1}, (10,), 10, 1, "clients: "),
    ([node(8)], {"ray": {"actors": 2}}, (2,), 2, 1, "ray.actors=2"),
    ([node(64, 2)], {"ray": {"num_gpus_per_actor": 0.25}, "group_size": 1}, (8,), 10, 2, "GPUs: room for 8"),
    ([node(2, 2)], {"ray": {"num_gpus_per_actor": 0.25}}, (2,), 2, 1, "CPUs: room for 2"),
    (
        [node(8, 3), node(8, 4, id="b")],
        {"ray": {"num_gpus_per_actor": 2}, "group_size": 1},
        (1, 2),
        10,
        4,
        "GPUs: room for 3 actors of 2",
    ),
    ([node(4)], {"client": {"threads": 2}}, (2,), 2, 1, "CPUs: room for 2 actors of 2 CPUs"),
    (
        [node(100), node(2, id="b")],
        {"ray": {"actors": "per_client"}, "partition": {"clients": 12}},
        (10, 2),
        10,
        1,
        "ray.actors=per_client: one for each of 12",
    ),
]


@pytest.mark.parametrize(("nodes", "changes", "placed", "groups", "waves", "limit"), PLANS)
def test_plans(nodes, changes, placed, groups, waves, limit):
    made = plan(nodes, None, **changes)
    assert (made.placed, made.groups, made.waves) == (placed, groups, waves)
    assert made.limit.startswith(limit)
    assert not made.warnings


def test_idle_actors_are_told_with_a_group_size_that_leaves_none_idle():
    (sentence,) = plan([node(4)]).warnings
    assert "a round has 2 work groups (10 clients in groups of 5), so 2 of 4 actors stay idle" in sentence
    size, actors = re.search(r"group_size=(\d+) .*ray.actors=(\d+)", sentence).groups()
    assert not plan([node(4)], group_size=int(size)).warnings
    assert not plan([node(4)], ray={"actors": int(actors)}).warnings


def test_the_plan_of_a_cluster_in_use_is_of_an_empty_one_and_says_so():
    busy = replace(node(0), whole=NodeResources(4, 0), unreserved_bytes=10 * GB)
    found = plan([busy], ray={"address": "auto"})
    assert found.actors.count == 4 and found.reserved_bytes == 0
    assert found.warnings[0].startswith(
        "a run would wait until others leave room, and this plan is of an empty cluster: "
    )
    with pytest.raises(ResourceError, match="none is free"):
        plan([busy], ray={"address": "auto", "placement": "none"})
    with pytest.raises(ResourceError, match="only 4 fit"):
        plan([busy], ray={"address": "auto", "actors": 5, "num_cpus_per_actor": 1})


def test_the_plan_says_what_actors_reserve_of_the_memory():
    free = replace(node(2), whole=NodeResources(2, 0), unreserved_bytes=10 * GB)
    assert plan([free], ray={"address": "auto"}).reserved_bytes == SMALL.actor
    assert plan([free], ray={"address": "auto", "memory": "none"}).reserved_bytes == 0
    short = plan([replace(free, unreserved_bytes=GB // 10)], ray={"address": "auto"})
    assert short.reserved_bytes == GB // 20
    assert any("reserve 50 MB (ray.memory)" in warning for warning in short.warnings)


def test_too_little_memory_is_told_with_a_number_of_actors_that_fits():
    nodes = [node(10, memory=6 * GB, store=2 * GB)]
    (sentence,) = plan(nodes, group_size=1).warnings
    assert "10 actors are expected to need" in sentence
    actors = int(re.search(r"set ray.actors=(\d+)", sentence)[1])
    assert not plan(nodes, group_size=1, ray={"actors": actors}).warnings
    assert plan(nodes, group_size=1, ray={"actors": actors + 1}).warnings


def test_too_little_shared_memory_is_told():
    (sentence,) = plan([node(store=64 * 2**20)]).warnings
    assert "up to 1.01 GB will be stored, but the object store has room for 67.1 MB" in sentence
    assert sentence.endswith("docker run --shm-size)")
    (sentence,) = plan([node(store=64 * 2**20)], ray={"address": "auto"}).warnings
    assert "ray start --object-store-memory" in sentence


def test_a_store_that_would_be_filled_above_what_ray_keeps_in_it_is_told():
    (sentence,) = plan([node(store=int(1.2 * GB))]).warnings
    assert "Ray spills to disk above 80% of it" in sentence
    assert not plan([node(store=int(1.3 * GB))]).warnings


def test_trunks_fill_no_more_than_half_of_the_stores():
    memory = replace(SMALL, caches=10 * GB)
    assert plan([node(store=3 * GB), node(store=3 * GB, id="b")], memory).memory.caches == 3 * GB
    assert plan([node(store=3 * GB), node(id="b")], memory).memory.caches == 10 * GB


def test_weights_larger_than_the_memory_are_refused():
    with pytest.raises(ResourceError, match=r"take 1 GB in float32, but here has 600 MB of memory; set model.dtype=bf"):
        plan([node(memory=600 * 10**6)])
    with pytest.raises(ResourceError, match=r"1 GB are needed on every node, or set model.quantize=int8 or int4$"):
        plan([node(memory=400 * 10**6)])


def test_a_share_of_a_gpu_that_does_not_hold_the_model_is_refused_with_one_that_does():
    nodes = [node(64, 1, gpu=16 * GB)]
    with pytest.raises(ResourceError, match=r"does not hold the 2\.81 GB that an actor takes") as refused:
        plan(nodes, ON_GPU, ray={"num_gpus_per_actor": 1 / 8}, group_size=1)
    parts = int(re.search(r"ray.num_gpus_per_actor=1/(\d+)", str(refused.value))[1])
    (sentence,) = plan(nodes, ON_GPU, ray={"num_gpus_per_actor": 1 / parts}, group_size=1).warnings
    assert "is expected to need 12.8 GB of its GPU share of 3.2 GB" in sentence
    assert "set ray.num_gpus_per_actor=1/1, or" in sentence
    assert not plan(nodes, ON_GPU, ray={"num_gpus_per_actor": 1.0}, group_size=1).warnings


def test_a_larger_share_of_a_gpu_is_named_with_the_actors_that_then_fit():
    nodes = [node(64, 1, gpu=16 * GB), node(64, 1, gpu=12 * GB, id="b")]
    with pytest.raises(ResourceError) as refused:
        plan(nodes, ON_GPU, ray={"num_gpus_per_actor": 1 / 8, "actors": 16}, group_size=1)
    assert str(refused.value).endswith("; set ray.num_gpus_per_actor=1/4 and ray.actors=8")
    plan(nodes, ON_GPU, ray={"num_gpus_per_actor": 1 / 4, "actors": 8}, group_size=1)


LARGE = replace(ON_GPU, weights=22 * GB, layers=(10, 2 * GB), activations=3 * GB, in_layers=2 * GB)
"""2 GB are in no layer, and ten layers are 20."""


def test_weights_that_one_gpu_does_not_hold_are_refused_with_the_fewest_gpus_that_do():
    with pytest.raises(ResourceError, match=r"does not hold the 22\.8 GB .*; set ray\.num_gpus_per_actor=3, or choose"):
        plan([node(64, 4, gpu=10 * GB)], LARGE, ray={"num_gpus_per_actor": 1, "actors": 1}, group_size=10)
    with pytest.raises(ResourceError, match=r"does not hold the 22\.8 GB [^;]*; choose a smaller model"):
        plan([node(64, 2, gpu=10 * GB)], LARGE, ray={"num_gpus_per_actor": 1, "actors": 1}, group_size=10)
    over = replace(LARGE, gpus=3)
    assert over.gpu_weights == (8 * GB, 6 * GB, 8 * GB) or sorted(over.gpu_weights) == [6 * GB, 8 * GB, 8 * GB]
    assert not plan(
        [node(64, 4, gpu=12 * GB)], over, ray={"num_gpus_per_actor": 3, "actors": 1}, group_size=10
    ).warnings
    assert LARGE.actor_gpu - over.actor_gpu > 13 * GB


def test_layers_that_rest_in_main_memory_are_planned_there():
    offloaded = replace(LARGE, offload=True)
    assert offloaded.gpu_weights == (6 * GB,), "what is in no layer, the layer that runs and the one before"
    assert offloaded.actor - LARGE.actor == 20 * GB and LARGE.actor_gpu - offloaded.actor_gpu == 16 * GB
    with pytest.raises(
        ResourceError, match=r"; choose a smaller model or a shorter model\.dtype, or set model\.offload=true$"
    ):
        plan([node(64, 1, gpu=10 * GB)], LARGE, ray={"num_gpus_per_actor": 1}, group_size=10)
    plan([node(64, 1, gpu=10 * GB)], offloaded, ray={"num_gpus_per_actor": 1}, group_size=10)
    (sentence,) = plan(
        [node(64, 1, 40 * GB, gpu=12 * GB)], offloaded, ray={"num_gpus_per_actor": 1}, group_size=10
    ).warnings
    assert "1 actors are expected to need" in sentence


@pytest.mark.parametrize(
    ("model", "gpus", "gpu", "remedy"),
    [
        ({"compile": True}, 4, 10 * GB, ""),
        ({"autocast": "bfloat16"}, 1, 10 * GB, ""),
        ({"autocast": "bfloat16"}, 4, 10 * GB, "set ray.num_gpus_per_actor=3, or "),
        ({}, 1, 5 * GB, ""),  # what is in no layer, and two layers, are 6 GB
    ],
)
def test_no_remedy_is_named_that_is_refused_or_does_not_do(model, gpus, gpu, remedy):
    """Compiled layers are neither spread nor offloaded, autocast is not offloaded, and offload may not be enough."""
    with pytest.raises(ResourceError) as refused:
        plan([node(64, gpus, gpu=gpu)], LARGE, ray={"num_gpus_per_actor": 1, "actors": 1}, group_size=10, model=model)
    assert str(refused.value).endswith(f"; {remedy}choose a smaller model or a shorter model.dtype")


@pytest.fixture
def printed(monkeypatch, capsys):
    """Return a function that runs ``fedsim ARGUMENTS`` and returns (status, out, err)."""
    monkeypatch.setenv("COLUMNS", "200")

    def call(*arguments):
        monkeypatch.setattr(sys, "argv", ["fedsim", *arguments])
        try:
            cli.main()
            status = 0
        except SystemExit as ended:
            status = ended.code or 0
        return status, *capsys.readouterr()

    return call


QUICK = str(ROOT / "configs" / "quickstart.yaml")


def test_plan_prints_what_runs_where_and_starts_nothing(printed):
    import ray

    connected = ray.is_initialized()
    status, out, err = printed("plan", QUICK, "ray.num_cpus=3", "ray.actors=3", "group_size=2")
    assert (status, err) == (0, "")
    assert re.search(r"actors +3, 1 CPUs each, 1 thread", out)
    assert re.search(r"a round +10 clients in 5 work groups: 2 waves on 3 actors", out)
    assert re.search(r"this machine +3 +0 +3 ", out)
    assert re.search(r"frozen weights +941 kB, once on each node", out)
    assert re.search(r"a client receives +8\.19 kB a round \(prompt\)", out)
    assert re.search(r"a client sends +24\.6 kB a round \(prompt, gain, steps\)", out)
    assert ray.is_initialized() == connected


MANY_STATES = [
    "partition.kind=iid", "partition.clients=400", "sampling.clients_per_round=400", "prompt.length=100",
    "client.optimizer.moments=keep", "layers.unselected=local",
]  # fmt: skip


def test_a_store_too_small_for_the_clients_states_is_told_with_one_that_is_not(printed):
    status, out, _ = printed("plan", QUICK, *MANY_STATES, "ray.object_store_mb=100")
    assert status == 0
    assert "object store has room for 105 MB" in out
    size = re.search(r"set ray.object_store_mb=(\d+)", out)[1]
    assert "warning" not in printed("plan", QUICK, *MANY_STATES, f"ray.object_store_mb={size}")[1]
    assert "warning" in printed("plan", QUICK, *MANY_STATES, f"ray.object_store_mb={int(size) - 1}")[1]


def test_the_room_that_is_printed_is_the_store_that_a_run_makes(monkeypatch):
    config = read_config(QUICK, MANY_STATES)
    memory = estimate_memory(config, model_shape(config.model), 5100, 2)
    (own,) = _own_node(config, memory)
    assert own.store_bytes == store_bytes(config.ray, memory.stored)
    assert _own_node(config, None)[0].store_bytes is None
    megabytes = 256 + 2 * memory.stored // 2**20
    monkeypatch.setattr("fedsim.executors.cluster.local_cluster._SHARED_MEMORY", "/no/such")
    assert _own_node(config, memory)[0].store_bytes == megabytes * 2**20
    (given,) = _own_node(read_config(QUICK, ["ray.object_store_mb=100"]), memory)
    assert given.store_bytes == 100 * 2**20


def test_plan_tells_what_each_gpu_of_an_actor_holds_and_what_rests_in_main_memory(printed):
    words = [QUICK, "ray.num_gpus=4", "ray.num_cpus=8", "ray.num_gpus_per_actor=2"]
    status, out, err = printed("plan", *words)
    assert (status, err) == (0, "")
    assert re.search(r"actors +2, 1 CPUs and 2 GPUs each", out)
    whole = re.search(
        r"an actor's GPU memory +about \d+ MB \(estimate: of 2 GPUs the fullest, (\d+) kB of the weights\)", out
    )
    part = re.search(
        r"of 2 GPUs the fullest, (\d+) kB of the weights", printed("plan", *words, "model.offload=true")[1]
    )
    assert 941 > int(whole[1]) >= int(part[1]) > 0


def test_plan_of_a_local_run_has_no_actors(printed):
    status, out, _ = printed("plan", QUICK, "executor=local", "layers.share_rule=density", "server.kind=fedavg")
    assert status == 0 and "one process, 1 thread, no actors" in out
    assert re.search(r"a client sends +at most 16\.4 kB a round \(prompt\)", out)  # spectra say how many of 4 layers


REFUSED = {
    "more actors than CPUs": (["ray.num_cpus=2", "ray.actors=4", "ray.num_cpus_per_actor=1"], "set ray.actors=2"),
    "more GPUs for an actor than a node has": (
        ["ray.num_gpus=2", "ray.num_gpus_per_actor=4"],
        "set ray.num_gpus_per_actor=2",
    ),
    "more GPUs than layers": (
        ["ray.num_gpus=8", "ray.num_gpus_per_actor=8"],
        "a model of 4 layers cannot be over 8 GPUs, each of which holds whole layers; set ray.num_gpus_per_actor=4",
    ),
    "offload without a GPU": (
        ["model.offload=true"],
        "brings layers to an actor's GPU, but ray.num_gpus_per_actor is 0",
    ),
    "a GPU where there is none": (["ray.num_gpus=0", "ray.num_gpus_per_actor=1/2"], "ray.num_gpus_per_actor=0.5"),
    "cuda without a share of a GPU": (["model.device=cuda"], "model.device=cuda needs a share of a GPU for each actor"),
    "more threads than CPUs": (["ray.num_cpus=2", "client.threads=64"], "set client.threads=2"),
    "a cohort larger than the population": (
        ["sampling.clients_per_round=200"],
        "partition.clients=100; set sampling.clients_per_round=100 or less",
    ),
    "a share that is not 1/n": (["ray.num_gpus_per_actor=0.4"], "the nearest is 1/2 = 0.5"),
    "more clients than examples": (["partition.clients=5000"], "partition.clients=4200 or less"),
    "no model": (["model.path=./no/such"], "./no/such is not a folder"),
    "a client's address": (["ray.address=ray://127.0.0.1:10001"], "submit a job with ray job submit"),
    "no cluster": (["ray.address=127.0.0.1:1"], "no Ray cluster answers at ray.address=127.0.0.1:1"),
}

NOT_HERE = (
    "more actors than CPUs",
    "a GPU where there is none",
    "more threads than CPUs",
    "a client's address",
    "no cluster",
    "more GPUs for an actor than a node has",
)
"""What another machine or cluster may have."""


@pytest.mark.parametrize("name", REFUSED)
def test_what_cannot_be_is_answered_with_one_sentence(printed, name):
    import ray

    overrides, expected = REFUSED[name]
    if name == "no cluster" and ray.is_initialized():
        pytest.skip("this process has joined the session's Ray")
    status, out, err = printed("plan", QUICK, *overrides)
    assert status == (3 if name in NOT_HERE else 2), out
    assert err.startswith("error: ") and err.count("\n") == 1
    assert expected in err


def test_a_cohort_of_clients_without_examples_is_refused(printed, tmp_path):
    rows = "".join(f'{{"text": "words {i}", "label": {i % 2}, "who": {i % 3}}}\n' for i in range(12))
    for name in ("train", "validation"):
        (tmp_path / f"{name}.jsonl").write_text(rows)
    task = (
        'data.task={name: own, fields: [text], labels: ["0", "1"], label_words: [bad, good], template: "{text} <mask>"}'
    )
    overrides = [task, f"data.path={tmp_path}", "partition.kind=by_column", "partition.column=who"]
    status, _, err = printed("plan", QUICK, *overrides, "partition.clients=3", "sampling.clients_per_round=3")
    assert (status, err) == (0, "")
    status, _, err = printed("plan", QUICK, *overrides, "partition.clients=4", "sampling.clients_per_round=3")
    assert status == 2 and "partition.clients" in err
    status, _, err = printed("plan", QUICK, *overrides, "partition.clients=null", "sampling.clients_per_round=3")
    assert (status, err) == (0, "")
    status, _, err = printed("plan", QUICK, *overrides, "partition.clients=null", "sampling.clients_per_round=4")
    assert status == 2
    assert (
        "partition.column 'who' gives 3 clients: sampling.clients_per_round=4 is more than partition.clients=3" in err
    )
    hub = ("data.source=hub", "data.task=sst2", "partition.kind=by_column", "partition.column=idx")
    status, _, err = printed("plan", QUICK, *hub, "partition.clients=null")
    assert status == 2 and "the hub's data are not on this machine, so the plan needs partition.clients" in err


def test_the_plan_needs_neither_torch_nor_transformers():
    code = (
        f"import sys; sys.argv = ['fedsim', 'plan', {QUICK!r}]\n"
        "from fedsim.cli import main\ntry:\n    main()\nexcept SystemExit as end:\n    assert not end.code\n"
        "print('\\n', *{name.partition('.')[0] for name in sys.modules})"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=True, capture_output=True, text=True)
    imported = set(done.stdout.splitlines()[-1].split())
    assert "rich" in imported
    assert not imported & {"torch", "transformers", "datasets"}


NO_GPUS = [
    # keys of a run in this process, GPUs here, what is said; None for nothing
    ({"model": {"offload": True}}, 0, "model.offload=true needs 1 GPU .* lists 0 here: a run is refused"),
    ({"model": {"device": "cuda"}}, 0, "model.device=cuda needs 1 GPU .* a run is refused"),
    ({"ray": {"num_gpus_per_actor": 2}}, 1, "ray.num_gpus_per_actor=2 needs 2 GPUs .* lists 1 here: a run is refused"),
    ({"ray": {"num_gpus_per_actor": 2}}, 0, "needs 2 GPUs .* a run computes on the CPU alone"),
    ({"ray": {"num_gpus_per_actor": 2}}, 2, None),
    ({"model": {"offload": True}}, 1, None),
    ({"ray": {"num_gpus_per_actor": 2}, "model": {"device": "cpu"}}, 0, None),
    ({"ray": {"num_gpus_per_actor": 0.5}}, 0, None),
    ({"ray": {"num_gpus_per_actor": 1}, "model": {"offload": True}, "executor": "ray"}, 0, None),
]


@pytest.mark.parametrize(("keys", "here", "said"), NO_GPUS)
def test_a_run_in_this_process_without_its_gpus_is_noted(monkeypatch, keys, here, said):
    monkeypatch.setattr("fedsim.planning.model_notes.visible_gpus", lambda: ("a GPU",) * here)
    notes = model_notes(make_tiny(**{"executor": "local", **keys}))
    assert len(notes) == (said is not None)
    assert said is None or re.search(said, notes[0])

"""Keys of what workers compute: equal keys never stand for different values, and what is no part of them does not matter."""

import dataclasses

import numpy as np
import pytest
from support import UPPER, make_tiny, merged

from clients.spec import WorkerInfo
from fedsim.core.layout import PromptGeometry, VectorLayout
from fedsim.core.messages import ClientFailure, Evaluation, FuseTrial, GlobalState, ScoreReport
from fedsim.executors.local import LocalExecutor
from fedsim.kept.computed import (
    Computed,
    evaluation_of,
    evaluation_record,
    scores_of,
    scores_record,
    trial_of,
    trial_record,
)
from fedsim.kept.config import CacheConfig
from fedsim.kept.kept import Kept
from fedsim.kept.store import Record
from fedsim.simulation.evaluations import Evaluations
from fedsim.simulation.layer_choice import score
from fedsim.simulation.preparation import prepare

BASE = {
    **UPPER,
    "data": {"train_examples": 60, "validation_examples": 24},
    "partition": {"clients": 4},
    "sampling": {"clients_per_round": 3},
}
CHANGES = [
    {},
    {"seed": 1},
    {"rounds": 1, "group_size": 1, "client": {"optimizer": {"lr": 0.5}}},
    {"client": {"epochs": 2, "batch_size": 3, "fuse": 2}},
    {"client": {"threads": 2}},
    {"client": {"dropout": True}},
    {"client": {"micro_batch_tokens": 40}},
    {"server": {"kind": "scaffold"}},
    {"server": {"kind": "fedavg", "aggregation": "median"}},
    {"attack": {"kind": "label_flip", "clients": 1}, "server": {"kind": "fedavg"}},
    {"evaluation": {"batch_size": 5}},
    {"evaluation": {"shard_size": 7}},
    {"data": {"train_examples": 50}},
    {"data": {"validation_examples": 20}},
    {"data": {"max_length": 10}},
    {"partition": {"kind": "iid"}},
    {"sampling": {"clients_per_round": 2}},
    {"prompt": {"length": 3}},
    {"prompt": {"init_std": 0.5}},
    {"prompt": {"dropout": 0.5}},
    {"prompt": {"position_offset": "paper"}},
    {"tuner": {"kind": "lora"}},
    {"tuner": {"kind": "lora", "rank": 2}},
    {"tuner": {"kind": "lora", "train": "b"}},
    {"model": {"head": {"kind": "classifier"}}},
    {"model": {"head": {"kind": "classifier", "pooling": "mean"}}},
    {"model": {"head": {"loss": "vocabulary"}}},
    {"model": {"dtype": "float64"}},
    {"model": {"autocast": "bfloat16"}},
    {"model": {"attention": "eager"}},
    {"model": {"trunk_cache": {"dtype": "bfloat16"}}},
    {"model": {"trunk_cache": {"dtype": "off"}}},
    {"model": {"trunk_cache": {"memory_mb": 1}}},
    {"layers": {"unselected": "local"}},
    {"layers": {"fixed": [1, 3]}},
    {"layers": {"choose": "score", "fixed": None, "score_batch_size": 5}},
    {"layers": {"choose": "score", "fixed": None, "score_batch_size": 5, "score": "l1"}},
    {"layers": {"choose": "score", "fixed": None, "score_batch_size": 5, "score_last": False}},
    {"layers": {"choose": "score", "fixed": None, "score_batch_size": 5, "score_padding": "keep"}},
    {"layers": {"choose": "score", "fixed": None, "score_batch_size": 5, "score_clients": 2}},
]


def work(change, folder):
    """Return keys and values of a config's layer scores and of the evaluation of its start."""
    config = make_tiny(executor="local", **merged(BASE, change))
    prepared, executor = prepare(config), LocalExecutor(lambda: None)
    try:
        workers = executor.start(prepared.spec)
        computed = Computed(Kept.of(CacheConfig(folder=str(folder))), config, prepared, workers)
        full, spec, size = workers[0].full, prepared.spec, config.evaluation.shard_size
        seen = []
        keys = Noting(computed, seen)
        scores_L, spread_2L = score(config, executor, full, spec.initial_vector, computed=keys)
        layout = spec.exchanged(full, config.layers.fixed or (2, 3))
        state = GlobalState(0, layout.layers, spec.initial_vector(layout))
        total = len(spec.validation)
        shards = [(start, min(start + size, total)) for start in range(0, total, size)]
        parts = executor.evaluate(state, shards)
        start = (sum(part.confusion_CC for part in parts), float(sum(part.loss_sum for part in parts)))
        seen.append(computed.start(lambda: state, shards).key)
        return (
            seen[0],
            scores_L.tobytes() + spread_2L.tobytes(),
            seen[1],
            start[0].tobytes() + np.float64(start[1]).tobytes(),
        )
    finally:
        executor.close()


class Noting:
    """The slots of a run, which notes keys and takes nothing."""

    def __init__(self, computed, seen):
        self._computed, self._seen = computed, seen

    def scores(self, state, clients):
        slot = self._computed.scores(state, clients)
        self._seen.append(slot.key)
        return dataclasses.replace(slot, store=None)


@pytest.fixture(scope="module")
def works(tmp_path_factory):
    folder = tmp_path_factory.mktemp("cache")
    return [work(change, folder) for change in CHANGES]


@pytest.mark.parametrize("kind", [0, 2], ids=["scores", "start"])
def test_equal_keys_stand_for_equal_bits(works, kind):
    values = {}
    for change, found in zip(CHANGES, works, strict=True):
        key, value = found[kind : kind + 2]
        known, first = values.setdefault(key, (value, change))
        assert known == value, f"{change} has the key of {first}, and another value"
    assert len(values) < len(CHANGES)


@pytest.mark.parametrize(
    ("change", "kinds"),
    [
        (CHANGES[2], (0, 2)),
        (CHANGES[3], (0, 2)),
        ({"server": {"kind": "scaffold"}}, (0, 2)),
        ({"evaluation": {"batch_size": 5}}, (0,)),
        ({"data": {"validation_examples": 20}}, (0,)),
        ({"model": {"trunk_cache": {"memory_mb": 1}}}, (0, 2)),
        ({"sampling": {"clients_per_round": 2}}, (0, 2)),
    ],
)
def test_what_a_value_does_not_read_leaves_its_key(works, change, kinds):
    found, base = works[CHANGES.index(change)], works[0]
    assert all(found[kind] == base[kind] for kind in kinds)


# -- fuse trials -------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def computed(tmp_path_factory):
    config = make_tiny(executor="local", **BASE)
    prepared = prepare(config)
    kept = Kept.of(CacheConfig(folder=str(tmp_path_factory.mktemp("cache"))))
    workers = [WorkerInfo("node", 1, "cpu", 1, None, 512, processor="a processor")]
    return Computed(kept, config, prepared, workers)


def test_processor_threads_actors_weights_and_layers_change_keys(computed):
    state = GlobalState(0, (1,), np.zeros(3, np.float32))
    other_weights = dataclasses.replace(
        computed.prepared, contents={**computed.prepared.contents, "weights": "other weights"}
    )
    others = [
        dataclasses.replace(computed, workers=[dataclasses.replace(computed.workers[0], **change)])
        for change in ({"processor": "another"}, {"threads": 2}, {"device": "cuda:0"})
    ]
    keys = [one.start(lambda: state, [(0, 24)]).key for one in (computed, *others)]
    keys.append(dataclasses.replace(computed, prepared=other_weights).start(lambda: state, [(0, 24)]).key)
    moved = dataclasses.replace(state, vector_F=np.ones(3, np.float32))
    keys += [computed.start(lambda: moved, [(0, 24)]).key, computed.start(lambda: state, [(0, 12), (12, 24)]).key]
    assert len(set(keys)) == len(keys)
    fuse = [one.fuse((1,), 3).key for one in (computed, *others)]
    fuse += [computed.fuse((1, 2), 3).key, computed.fuse((1,), 2).key]
    fuse.append(dataclasses.replace(computed, workers=list(computed.workers) * 2).fuse((1,), 3).key)
    assert len(set(fuse)) == len(fuse)
    elsewhere = dataclasses.replace(computed.workers[0], node="elsewhere", pid=7)
    assert dataclasses.replace(computed, workers=[elsewhere]).fuse((1,), 3).key == fuse[0]


def test_what_a_plug_in_has_a_part_in_is_not_kept(computed, monkeypatch):
    from clients.backbone.families import FAMILIES

    name = computed.prepared.spec.weights.family.name
    monkeypatch.setitem(FAMILIES._origins, name, "their_family.py")
    state = GlobalState(0, (1,), np.zeros(3, np.float32))
    assert computed.scores(state, [0]).store is computed.fuse((1,), 2).store is None
    assert computed.start(lambda: state, [(0, 24)]).store is None


def test_records_hold_values_to_the_bit():
    scores_L = np.array([0.1, np.pi, -1e-300])
    spread_2L = np.stack([scores_L - 1, scores_L + 1])
    held = scores_of(scores_record(scores_L, spread_2L), 3)
    assert [each.tobytes() for each in held] == [scores_L.tobytes(), spread_2L.tobytes()]
    assert scores_of(Record(arrays={"scores_L": scores_L}), 3)[1] is None  # of an earlier version
    evaluation = Evaluation(np.array([[3, 1], [0, 2]]), 0.1 + 0.2)
    back = evaluation_of(evaluation_record(evaluation), 2)
    assert np.array_equal(back.confusion_CC, evaluation.confusion_CC) and back.loss_sum == evaluation.loss_sum
    trial = FuseTrial(4, 0.1, 0.3, 100, None)
    assert trial_of(trial_record(trial)) == trial
    for refused in (
        lambda: scores_of(scores_record(scores_L, spread_2L), 2),
        lambda: evaluation_of(evaluation_record(evaluation), 3),
    ):
        with pytest.raises(ValueError, match=r"another|other"):
            refused()


# -- what is not kept --------------------------------------------------------------------------------------------------


class Answers:
    """An executor that answers a call for each of its answers, and then no more."""

    per_client = False

    def __init__(self, *answers):
        self._answers = iter(answers)

    def put(self, value):
        return value

    def get(self, handles):
        return handles

    def score(self, state, groups):
        return next(self._answers)

    def evaluate(self, state, shards):
        return next(self._answers)


def report(client, failure=None):
    return ScoreReport(client, 5 + client, np.full(4, float(client)), failure)


def test_scores_without_a_client_that_failed_are_not_kept(computed):
    config = computed.config.model_copy(
        update={"client": computed.config.client.model_copy(update={"on_failure": "drop"})}
    )
    full = VectorLayout.full(PromptGeometry(4, 1, 1, 1), ())
    failed = report(3, ClientFailure("error", "ValueError: no", ""))
    whole = [report(client) for client in range(4)]
    executor = Answers([*whole[:3], failed], whole)

    def scores():
        return score(config, executor, full, lambda layout: np.zeros(layout.size), computed=computed)[0]

    without, with_all = scores(), scores()
    assert not np.array_equal(without, with_all)
    assert np.array_equal(scores(), with_all)  # the executor has no further answer


def test_an_evaluation_that_memory_has_split_is_not_kept(computed):
    one, other = Evaluation(np.eye(2, dtype=np.int64), 0.1, memory_splits=1), Evaluation(np.eye(2, dtype=np.int64), 0.2)
    evaluations = Evaluations(computed.config, computed.prepared.spec, Answers([one], [other]), None, lambda text: None)
    state = GlobalState(0, (1,), np.zeros(3, np.float32))
    losses = []
    for _ in range(3):
        evaluation = evaluations.kept_start(state, computed)
        if evaluation is None:
            evaluation = evaluations.of_state(state, 0)
            evaluations.keep_start(evaluation)
        losses.append(evaluation.loss_sum)
    assert losses == [0.1, 0.2, 0.2]

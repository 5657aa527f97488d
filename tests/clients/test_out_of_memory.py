"""A pass that does not fit into memory is split in two: same results, and a note to the user.

The backbone here is a real one that raises what PyTorch raises, at a number of tokens instead of at the end of a GPU.
"""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from support import make_tiny
from tiny_models import LABEL_WORDS, save, tiny_model
from tiny_work import jobs_of, parts_of, token_table, train

from clients.backbone.frozen_states import compute_states
from clients.backbone.loading import load_shared_weights
from clients.backbone.model import Backbone
from clients.backbone.passes import PassLimit, run_passes
from clients.config import ModelConfig, PromptConfig
from clients.evaluation import evaluate
from clients.spec import WorkerSpec
from clients.training.group import GroupTraining
from clients.tuners.initial import initial_vector
from clients.tuners.prefix_tuner import PrefixTuner
from clients.worker import ClientWorker
from fedsim.core.errors import ClientError, ResourceError
from fedsim.core.messages import ClientState, GlobalState, WorkGroup
from fedsim.display.progress import Progress
from fedsim.executors.local import LocalExecutor
from fedsim.records.run_folder import RunFolder
from fedsim.simulation.context import RunContext
from fedsim.simulation.loop import run_through
from fedsim.simulation.preparation import prepare

SIZES = (5, 7, 4)


class SmallMemory(Backbone):
    """A backbone with room for a given number of tokens per pass."""

    room = 10**9
    passes: list[int]

    def read(self, tokens, *arguments, **keywords):
        self._take(tokens)
        result = super().read(tokens, *arguments, **keywords)
        self.passes.append(len(tokens.ids_Z))
        return result

    def cached(self, tokens, layers):
        self._take(tokens)
        return super().cached(tokens, layers)

    def _take(self, tokens):
        if len(tokens.ids_Z) > self.room:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 1.00 GiB.")


class SmallWorker(ClientWorker):
    """A worker on such a backbone."""

    def __init__(self, spec: WorkerSpec, room: int) -> None:
        super().__init__(spec)
        words = spec.label_word_ids_C
        self._backbone = SmallMemory.build(spec.weights, spec.model, spec.tuner, spec.num_classes, words, "cpu")
        self._backbone.room, self._backbone.passes = room, []
        self._training = GroupTraining(spec, self._backbone, self._full)


class SmallSpec(WorkerSpec):
    """Builds such workers."""

    room = 10**9

    def build(self, device: str) -> SmallWorker:
        return SmallWorker(self, self.room)


@pytest.fixture(scope="module")
def weights(tmp_path_factory: pytest.TempPathFactory):
    return load_shared_weights(ModelConfig(path=save(tiny_model("roberta"), tmp_path_factory.mktemp("model"))))


def small(weights, room: int) -> SmallMemory:
    model = SmallMemory.build(
        weights, ModelConfig(path="x"), PrefixTuner(PromptConfig(length=4)), 3, LABEL_WORDS, "cpu"
    )
    model.room, model.passes = room, []
    return model


def close(one: np.ndarray, other: np.ndarray) -> bool:
    return np.linalg.norm(one - other) <= 1e-5 * np.linalg.norm(other)


@given(st.lists(st.integers(1, 30), min_size=1, max_size=20), st.integers(30, 200), st.integers(1, 8))
def test_every_example_runs_once_and_in_order_in_passes_that_fit(lengths, room, size):
    lengths_B = np.array(lengths)
    ran: list[int] = []
    limit = PassLimit()

    def run(examples: slice) -> None:
        if lengths_B[examples].sum() > room:
            raise torch.OutOfMemoryError("full")
        ran.extend(range(examples.start, examples.stop))

    pieces = [slice(start, min(start + size, len(lengths))) for start in range(0, len(lengths), size)]
    run_passes(lengths_B, pieces, limit, run)
    assert ran == list(range(len(lengths)))
    # Once a limit was found, no pass runs into the end of memory again without need: it halves at every split.
    assert limit.splits <= max(1.0, np.ceil(np.log2(lengths_B.sum() / room)) + 1) and (limit.splits > 0) == any(
        lengths_B[piece].sum() > room for piece in pieces
    )


def test_a_limit_in_force_needs_no_failure():
    limit, passes = PassLimit(10), []
    run_passes(np.full(8, 4), [slice(0, 8)], limit, lambda examples: passes.append(examples.stop - examples.start))
    assert passes == [2, 2, 2, 2] and limit == PassLimit(10, splits=0)


@pytest.mark.parametrize("room", [20, 37, 80])
@pytest.mark.parametrize("head_max_tokens", [None, 60])
def test_training_in_little_memory_ends_where_training_in_much_does(weights, room, head_max_tokens):
    table, limit = token_table(sum(SIZES)), PassLimit(head_max_tokens)
    model, free = small(weights, room), small(weights, 10**9)
    parts = parts_of(model)
    jobs = jobs_of(parts, SIZES)
    cut, whole = train(model, table, parts, jobs, limit), train(free, table, parts, jobs, head_max_tokens)
    for one, other, job in zip(cut, whole, jobs, strict=True):
        assert close(one.vector_A - job.start_A, other.vector_A - job.start_A)
        assert one.loss_first == pytest.approx(other.loss_first, rel=1e-5)
        assert (one.num_tokens, one.num_steps) == (other.num_tokens, other.num_steps)
    fits = head_max_tokens is not None and head_max_tokens <= room
    assert (limit.splits == 0) == fits
    assert max(model.passes) <= room and len(model.passes) > (0 if fits else len(free.passes))


def test_the_limit_found_holds_for_all_later_steps(weights):
    table, limit, model = token_table(sum(SIZES)), PassLimit(), small(weights, 40)
    parts = parts_of(model)
    train(model, table, parts, jobs_of(parts, SIZES), limit, epochs=10)
    assert 1 <= limit.splits <= 4 and limit.tokens <= 2 * 40


@pytest.mark.parametrize("room", [20, 50])
def test_evaluation_in_little_memory_counts_the_same(weights, room):
    table = token_table(24)
    model, free = small(weights, room), small(weights, 10**9)
    parts = parts_of(model)
    vectors = np.stack([job.start_A for job in jobs_of(parts, (12, 12))])
    arguments = (table, [np.arange(12), np.arange(12, 24)], parts.trained, vectors, 3, 24)
    cut, whole = evaluate(model, *arguments), evaluate(free, *arguments)
    for one, other in zip(cut, whole, strict=True):
        np.testing.assert_array_equal(one.confusion_CC, other.confusion_CC)
        assert one.loss_sum == pytest.approx(other.loss_sum, rel=1e-5)
    assert cut[0].memory_splits > 0 and (cut[0] + cut[1]).memory_splits == cut[0].memory_splits
    assert max(model.passes) <= room and whole[0].memory_splits == 0


def test_a_trunk_in_little_memory_is_the_same(weights):
    table, limit = token_table(12), PassLimit(1000)
    cut = compute_states(small(weights, 30), table, np.arange(12), (1, 2), "float32", limit)
    whole = compute_states(small(weights, 10**9), table, np.arange(12), (1, 2), "float32", 1000)
    assert limit.splits > 0
    torch.testing.assert_close(cut.tensor(), whole.tensor(), rtol=1e-5, atol=1e-6)


def test_an_example_that_does_not_fit_is_one_sentence(weights):
    model, table = small(weights, 15), token_table(sum(SIZES))
    parts = parts_of(model)
    with pytest.raises(
        ResourceError, match=r"^a single example of \d+ tokens does not fit into the GPU's memory; lower"
    ):
        train(model, table, parts, jobs_of(parts, SIZES))


# -- workers and runs --------------------------------------------------------------------------------------------------


def group_training(room: int, group: tuple[int, ...] = (0, 1, 2), fuse: int = 3, **keys):
    spec = prepare(make_tiny(executor="local", **keys)).spec
    worker = SmallWorker(spec, room)
    start_F = initial_vector(worker.info().full.exchanged((0, 1)), spec.tuner, spec.model.head, seed=0)
    state = GlobalState(0, (0, 1), start_F)
    return worker.train(WorkGroup(0, 0, group, fuse=fuse), state, *map(ClientState, group)).pack()


def test_a_work_group_reports_what_memory_did_to_it():
    free, whole, *_ = group_training(10**9)
    reports, update, *_ = group_training(60)
    assert close(update.sums["vector"], whole.sums["vector"])
    assert reports[0].memory_splits > 0 and 0 < reports[0].memory_tokens <= 2 * 60
    assert [report.memory_splits for report in reports[1:]] == [0, 0]
    assert [(report.memory_splits, report.memory_tokens) for report in free] == [(0, 0)] * 3
    # With the number that the report names, memory is enough.
    tokens = {"client": {"micro_batch_tokens": reports[0].memory_tokens}}
    again, *_ = group_training(60, **tokens)
    assert all(report.memory_splits == 0 for report in again)


def test_a_client_with_too_long_an_example_fails_alone_and_in_one_sentence():
    spec = prepare(make_tiny(executor="local")).spec
    longest = [int(spec.train.lengths_N[spec.shards.train(client)].max()) for client in range(12)]
    group = tuple(sorted({int(np.argmax(longest)), int(np.argmin(longest))}))
    assert max(longest) > min(longest)
    reports, update, *_ = group_training(max(longest) - 1, group, fuse=2)
    failed = [report for report in reports if report.failure is not None]
    assert [longest[report.client] for report in failed] == [max(longest)] and update is not None
    assert (failed[0].failure.kind, failed[0].failure.traceback) == ("error", "")
    assert failed[0].failure.message.startswith(f"a single example of {max(longest)} tokens does not fit")


def simulate(tmp_path, room: int, **keys):
    config = make_tiny(executor="local", rounds=1, layers={"choose": "all"}, **keys)
    prepared = prepare(config)
    fields = {field.name: getattr(prepared.spec, field.name) for field in dataclasses.fields(WorkerSpec)}
    spec = SmallSpec(**fields)
    object.__setattr__(spec, "room", room)
    executor = LocalExecutor(lambda: None)
    with RunFolder.create(tmp_path / "run") as folder, Progress(1, "accuracy") as progress:
        try:
            prepared = dataclasses.replace(prepared, spec=spec)
            return run_through(RunContext(config, prepared, executor, folder, progress))
        finally:
            executor.close()


def test_the_user_is_told_once_a_round_and_what_to_set(tmp_path, capsys):
    result = simulate(tmp_path, room=60)
    assert result.totals.client_failures == 0
    said = " ".join(capsys.readouterr().out.split())
    assert said.count("warning: round 1: a pass through the backbone did not fit in GPU memory") == 1
    assert "set client.micro_batch_tokens=" in said and "the same bits in a repeat" in said
    assert "warning: evaluation after round 1: a pass through the backbone" in said
    assert "set evaluation.batch_size to less than 64" in said


def test_a_run_that_can_not_go_on_ends_in_one_sentence(tmp_path):
    with pytest.raises((ClientError, ResourceError)) as caught:
        simulate(tmp_path, room=3)
    assert "Traceback" not in str(caught.value) and "does not fit into the GPU's memory; lower" in str(caught.value)

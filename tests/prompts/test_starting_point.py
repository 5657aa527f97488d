"""Runs that start from an adapter, an earlier run or a prompt file: the same bits, everywhere a run begins."""

from __future__ import annotations

import dataclasses
import io
import json
import shutil
from pathlib import Path

import numpy as np
import peft
import pyarrow.parquet
import pytest
import torch
import transformers
from rich.console import Console
from safetensors import safe_open
from safetensors.numpy import load_file, save_file
from support import make_tiny, merged
from tiny_models import UNCACHED
from tiny_prompts import (
    ALL_LAYERS,
    LABEL_WORDS,
    PROMPT_LENGTH,
    ROTARY,
    TASK,
    TURNED,
    Prompt,
    backbone,
    batch,
    change_array,
    families,
    of_peft,
    partial,
    save,
    tiny_model,
)

import fedsim
from clients.backbone.loading import load_shared_weights, locate
from clients.config import HeadConfig, ModelConfig
from clients.tuners.initial import initial_vector
from clients.tuners.make import make_tuner
from clients.tuners.prefix_tuner import PrefixTuner
from clients.worker import ClientWorker, WorkerSpec
from fedsim.core.errors import CheckpointError, ModelError
from fedsim.core.layout import VectorLayout
from fedsim.core.messages import ClientState, GlobalState
from fedsim.core.shards import Shards
from fedsim.core.tokens import TokenTable
from fedsim.data.examples import Examples
from fedsim.data.label_words import label_words
from fedsim.data.tokenize import tokenize
from fedsim.prompts.peft_adapter import export_peft
from fedsim.prompts.prompt_file import read_prompt, save_personal_prompts, save_prompt
from fedsim.prompts.prompted_model import load_prompt
from fedsim.prompts.starting_point import check_start, load_start
from fedsim.simulation.layer_choice import select_layers
from fedsim.simulation.preparation import analysis_spec, training_spec


def starting_point(prompt: Prompt, source: Path, layers=None, length=PROMPT_LENGTH, position_offset="paper"):
    """Return what a run on the prompt's model reads from a source, and its config."""
    config = make_tiny(
        model={"path": prompt.model, "head": prompt.head_config.model_dump()},
        prompt={"length": length, "position_offset": position_offset, "start_from": str(source)},
        layers={"choose": "all"} if layers is None else layers,
    )
    weights = load_shared_weights(config.model)
    return load_start(config, weights, make_tuner(config.tuner, config.prompt, weights.family)), config


@pytest.mark.parametrize("head", ["verbalizer", "classifier"])
@families
def test_an_adapter_and_a_prompt_file_start_a_run_with_the_same_bits(tmp_path, family, head):
    """Families without a cache of keys and values have no such adapter."""
    prompt = Prompt(tmp_path, family, HeadConfig(kind=head))
    if family in UNCACHED:
        with pytest.raises(ModelError, match="has no cache of keys and values in transformers, so PEFT would"):
            export_peft(prompt.path, tmp_path / "adapter")
    adapters = [] if family in UNCACHED else [export_peft(prompt.path, tmp_path / "adapter")]
    for source in (*adapters, prompt.path, tmp_path / "run"):
        start, config = starting_point(prompt, source)
        vector_F = initial_vector(prompt.layout, PrefixTuner(config.prompt), config.model.head, 0, start)
        assert vector_F.dtype == np.float32 and np.array_equal(vector_F, prompt.vector_F)
        check_start(config, start, VectorLayout.full(prompt.backbone.geometry, prompt.backbone.head_shapes))
    other = prompt.layout.exchanged((0, 2))
    part_F = initial_vector(other, PrefixTuner(config.prompt), config.model.head, 0, start)
    assert np.array_equal(part_F, prompt.vector_F[prompt.layout.positions(other)])


def test_the_fingerprint_follows_the_numbers_not_the_place(tmp_path):
    prompt = Prompt(tmp_path, "roberta", HeadConfig(kind="classifier"))
    adapter = export_peft(prompt.path, tmp_path / "adapter")
    one, two = (starting_point(prompt, source)[0].fingerprint() for source in (adapter, prompt.path))
    assert one == two
    change_array(adapter, lambda arrays: {name: array * 1.0001 for name, array in arrays.items()})
    assert starting_point(prompt, adapter)[0].fingerprint() != one


@pytest.mark.parametrize("family", ROTARY)
@pytest.mark.parametrize("offsets", [("paper", "none"), ("none", "paper")], ids=lambda pair: f"{pair[0]} to {pair[1]}")
def test_a_rotary_prompt_starts_a_run_that_numbers_texts_otherwise(tmp_path, family, offsets):
    trained, wanted = offsets
    prompt = Prompt(tmp_path, family, position_offset=trained)
    expected = prompt.scores(batch())
    start, _ = starting_point(prompt, prompt.path, position_offset=wanted)
    prompt.backbone = backbone(prompt.model, position_offset=wanted)
    prompt.vector_F = start.tuned_LX.reshape(-1)
    torch.testing.assert_close(prompt.scores(batch()), expected, **TURNED)


def test_a_head_of_another_shape_is_drawn_and_said_to_be(tmp_path):
    prompt = Prompt(tmp_path, "bert", HeadConfig(kind="classifier"))
    start, config = starting_point(prompt, prompt.path)
    shapes = (("head.weight", (2, 32)), ("head.bias", (2,)))
    layout = VectorLayout.full(prompt.backbone.geometry, shapes)
    assert "no head of this shape; the head is initialised at random" in check_start(config, start, layout)
    drawn, own = (initial_vector(layout, PrefixTuner(config.prompt), config.model.head, 0, s) for s in (None, start))
    assert np.array_equal(own[: layout.tuned_size], prompt.vector_F[: layout.tuned_size])
    assert np.array_equal(own[layout.tuned_size :], drawn[layout.tuned_size :])


BAD_STARTS = {
    "length": ({"length": 7}, r"prompts of 4 virtual tokens, but prompt.length is 7; set prompt.length=4"),
    "learned positions": (
        {"position_offset": "none"},
        "position_offset=paper, this run has none.* has learned positions.* set prompt.position_offset=paper",
    ),
    "layers to score": ({"layers": {"choose": "score"}}, r"no prompt for layer 1, only for \[0, 2\].*layers.fixed=\[0, 2\]"),
    "layers to exchange": ({"layers": {"choose": "fixed", "fixed": [0, 1]}}, "no prompt for layer 1"),
    "layers that stay": (
        {"layers": {"choose": "fixed", "fixed": [0, 2], "unselected": "local"}},
        "no prompt for layer 1.*layers.unselected=none",
    ),
    "layers to warm up": (
        {"layers": {"choose": "bottom", "share_rule": "density"}},
        "no prompt for layer 1",
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", BAD_STARTS)
def test_a_start_that_does_not_fit_is_refused_before_anything_starts(tmp_path, name):
    prompt = partial(tmp_path)
    arguments, expected = BAD_STARTS[name]
    with pytest.raises(ModelError, match=expected):
        starting_point(prompt, prompt.path, **{"layers": {"choose": "fixed", "fixed": [0, 2]}, **arguments})


def test_a_start_of_another_model_is_refused(tmp_path):
    (tmp_path / "other").mkdir()
    bert, llama = Prompt(tmp_path, "bert"), Prompt(tmp_path / "other", "llama")
    start, config = starting_point(bert, llama.path)
    with pytest.raises(
        ModelError, match=r"made for 3 layers with 2 key/value heads.* has 3 layers with 4 key/value heads"
    ):
        check_start(config, start, VectorLayout.full(bert.backbone.geometry))
    deeper = save(tiny_model("bert", num_hidden_layers=5), tmp_path / "deeper")
    bert.model = deeper
    with pytest.raises(ModelError, match=r"made for 3 layers.* has 5 layers; start from a prompt of the same model"):
        starting_point(bert, llama.path)


def test_a_source_that_is_not_there_or_no_prompt_is_named(tmp_path):
    prompt = partial(tmp_path)
    prompt.save_personal()
    (tmp_path / "empty").mkdir()
    for source, expected in (
        (tmp_path / "gone", "gone does not exist; give the folder"),
        (tmp_path / "empty", "holds neither adapter_config.json"),
        (Path(prompt.model) / "config.json", "is not a prompt file of a run"),
        (prompt.path.with_name("personal.safetensors"), "holds personal prompts"),
    ):
        with pytest.raises(ModelError, match=expected):
            starting_point(prompt, source)


def damaged_prompt(path, key, value):
    """Set an entry of a prompt file's metadata; None takes it out."""
    with safe_open(path, framework="numpy") as file:
        metadata = json.loads(file.metadata()["fedsim"])
    metadata[key] = value
    if value is None:
        del metadata[key]
    save_file(load_file(path), path, metadata={"fedsim": json.dumps(metadata)})


@pytest.mark.parametrize(
    ("key", "value", "expected"),
    [
        ("max_length", None, "it lacks 'max_length'"),
        ("max_length", "x", "its metadata are damaged at max_length"),
        ("model", {"dtype": "int8"}, "its metadata are damaged at model.dtype"),
        ("task", 3, "its metadata are damaged at task"),
        (
            "geometry",
            {"num_layers": 3, "num_kv_heads": 1, "prompt_length": 4, "head_dim": 8},
            "array prompt.0 has shape",
        ),
        ("layers", "x", "is not a prompt file of a run"),
    ],
)
def test_a_damaged_prompt_file_is_refused(tmp_path, key, value, expected):
    prompt = partial(tmp_path)
    damaged_prompt(prompt.path, key, value)
    with pytest.raises(ModelError, match=expected) as caught:
        read_prompt(prompt.path)
    assert "\n" not in str(caught.value)


def test_a_prompt_that_cannot_be_written_is_one_sentence(tmp_path):
    (tmp_path / "personal.safetensors").mkdir()
    with pytest.raises(ModelError, match=r"personal.safetensors cannot be written: .*continue with --resume"):
        save_personal_prompts(tmp_path / "personal.safetensors", [1], np.zeros((1, 2), np.float32), [0])


def test_layers_that_stay_on_the_devices_start_there_too(tmp_path):
    prompt = Prompt(tmp_path, "roberta")
    start, config = starting_point(prompt, prompt.path)
    assert start is not None
    ids = np.arange(3, 93, dtype=np.int32)
    table = TokenTable(ids, np.arange(0, 91, 9), np.zeros(10, np.int32), np.arange(10) % 3, pad_id=1)
    shards = Shards(np.arange(10), np.array([0, 10]), np.array([5]))
    weights, training = load_shared_weights(config.model), training_spec(config, len(table))
    spec = WorkerSpec(
        weights, config.model, PrefixTuner(config.prompt), 3, LABEL_WORDS, training, analysis_spec(config), table, table,
        shards, start,
    )  # fmt: skip
    worker = ClientWorker(dataclasses.replace(spec, training=dataclasses.replace(spec.training, keep_local=True)))
    everything = GlobalState(0, ALL_LAYERS, prompt.vector_F)
    part = prompt.layout.exchanged((1,))
    shared = GlobalState(0, (1,), prompt.vector_F[prompt.layout.positions(part)])
    (whole,), (own,) = (worker.evaluate_clients(state, ClientState(0)) for state in (everything, shared))
    assert own.num_examples == 5 and own.loss_sum == whole.loss_sum
    worker._spec = dataclasses.replace(worker._spec, start=None)
    assert worker.evaluate_clients(shared, ClientState(0))[0].loss_sum != whole.loss_sum


# -- whole runs --------------------------------------------------------------------------------------------------------

RUN = {
    "executor": "local",
    "rounds": 1,
    "prompt": {"length": 4, "position_offset": "paper"},
    "layers": {"choose": "all"},
    "tracking": {"plots": False},
}


@pytest.fixture(scope="module")
def first_run(tmp_path_factory):
    """Return the folder of a run on the embedded model (a RoBERTa) that exchanges all layers, and its exported adapter."""
    folder = tmp_path_factory.mktemp("first")
    fedsim.run(make_tiny(**merged(RUN, {"rounds": 2, "output": str(folder / "run")})), progress=False)
    return folder / "run", export_peft(folder / "run", folder / "adapter")


def rounds_of(folder: Path) -> list[dict]:
    return pyarrow.parquet.read_table(folder / "rounds.parquet").to_pylist()


@pytest.mark.parametrize("head", ["verbalizer", "classifier"])
def test_a_run_goes_on_where_the_exported_run_ended(first_run, tmp_path, head):
    earlier, adapter = first_run
    more = {"model": {"head": {"kind": head}}}
    if head == "classifier":
        earlier = tmp_path / "earlier"
        fedsim.run(make_tiny(**merged(RUN, {**more, "output": str(earlier)})), progress=False)
        adapter = export_peft(earlier, tmp_path / "adapter")
    end = rounds_of(earlier)[-1]
    for name, source in (("from_adapter", adapter), ("from_run", earlier)):
        keys = {**more, "prompt": {"start_from": str(source)}, "output": str(tmp_path / name)}
        summary = fedsim.run(make_tiny(**merged(RUN, keys)), progress=False)
        start = rounds_of(tmp_path / name)[0]
        assert start["round"] == 0
        assert (start["global_metric"], start["global_loss"]) == (end["global_metric"], end["global_loss"])
        assert summary["first_global_metric"] == end["global_metric"]
    assert end["global_loss"] != rounds_of(earlier)[0]["global_loss"]


def test_the_exported_adapter_of_a_run_predicts_what_the_run_predicts(first_run):
    earlier, adapter = first_run
    model = load_prompt(earlier)
    texts = ["the soup was cold and bland", "a wonderful evening , and the staff was kind"]
    examples = Examples([(text,) for text in texts], np.zeros(2, np.int64), {}, "texts", 0, {})
    table = tokenize(examples, model.task, model.tokenizer, head_kind="verbalizer", causal=False, max_length=128)
    data = table.batch(np.arange(2))
    base = transformers.AutoModelForMaskedLM.from_pretrained(locate(ModelConfig()), dtype=torch.float32)
    output = of_peft(peft.PeftModel.from_pretrained(base, str(adapter)).eval(), data)
    words = label_words(model.task, model.tokenizer, False).single_C
    scores = output.logits[torch.arange(2), torch.from_numpy(data.read_positions_B)][:, words]
    np.testing.assert_allclose(scores.numpy(), model.scores(texts), rtol=0, atol=1e-5)


@pytest.fixture(scope="module")
def drawn_start(tmp_path_factory, first_run) -> Path:
    """Return a prompt file that holds what a run would have drawn at random."""
    config, layout = make_tiny(**RUN), read_prompt(first_run[0]).layout
    path = tmp_path_factory.mktemp("drawn") / "drawn.safetensors"
    vector_F = initial_vector(layout, PrefixTuner(config.prompt), config.model.head, config.seed)
    save_prompt(path, vector_F, layout, config, TASK)
    return path


def choices(layers: dict, *sources) -> list:
    configs = [make_tiny(**merged(RUN, {"layers": layers, "prompt": {"start_from": source}})) for source in sources]
    return [select_layers(config, Console(file=io.StringIO())) for config in configs]


def test_layers_are_scored_at_the_start(first_run, drawn_start):
    random, drawn, trained = choices({"choose": "score"}, None, str(drawn_start), str(first_run[1]))
    assert np.array_equal(drawn.scores_L, random.scores_L)
    assert not np.allclose(trained.scores_L, random.scores_L, rtol=1e-6)


def test_the_warm_up_of_a_share_begins_at_the_start(first_run, drawn_start):
    spectrum = {"warmup_rounds": 1, "clients": 1, "lanczos_steps": 4}
    layers = {"choose": "bottom", "share_rule": "density", "spectrum": spectrum}
    values = [
        choice.estimate.reports[0].values_RK for choice in choices(layers, None, str(drawn_start), str(first_run[1]))
    ]
    assert np.array_equal(values[0], values[1])
    assert not np.allclose(values[0], values[2], rtol=1e-6)


def test_a_run_is_not_resumed_from_another_start(first_run, tmp_path):
    _, adapter = first_run
    copy = tmp_path / "adapter"
    shutil.copytree(adapter, copy)
    keys = merged(RUN, {"prompt": {"start_from": str(copy)}, "output": str(tmp_path / "run")})
    fedsim.run(make_tiny(**keys), progress=False)
    change_array(copy, lambda arrays: {name: array * 1.5 for name, array in arrays.items()})
    with pytest.raises(CheckpointError):
        fedsim.run(make_tiny(**merged(keys, {"rounds": 2})), resume=True, progress=False)
    shutil.rmtree(copy)
    shutil.copytree(adapter, copy)
    assert fedsim.run(make_tiny(**merged(keys, {"rounds": 2})), resume=True, progress=False)["rounds"] == 2


def test_equal_results_are_equal_prompt_files_wherever_they_started(first_run, tmp_path):
    earlier, adapter = first_run
    files = []
    for name, source in (("one", adapter), ("two", earlier)):
        keys = merged(RUN, {"prompt": {"start_from": str(source)}, "output": str(tmp_path / name)})
        fedsim.run(make_tiny(**keys), progress=False)
        files.append((tmp_path / name / "prompt" / "global.safetensors").read_bytes())
    assert files[0] == files[1]

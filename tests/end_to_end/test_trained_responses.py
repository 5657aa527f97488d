"""Runs that learn to write responses: their figures are those of transformers with the exported adapter."""

from __future__ import annotations

import json
import math
import re

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
import transformers
from peft import PeftModel
from support import make_tiny, merged

import fedsim
from clients.backbone.loading import load_tokenizer
from clients.config import ModelConfig
from fedsim.core.errors import ConfigError, ModelError
from fedsim.data.sources import load_dataset
from fedsim.data.tokenize import tokenize
from fedsim.prompts.peft_adapter import export_peft

LORA = {"tuner": {"kind": "lora", "rank": 4}, "client": {"optimizer": {"lr": 0.02}, "fuse": 2}}
PREFIX = {
    "prompt": {"length": 3, "position_offset": "paper", "init_std": 0.5},
    "client": {"optimizer": {"lr": 0.1}, "fuse": 2},
}
ALL = {"layers": {"choose": "all"}, "server": {"kind": "fedavg"}}


@pytest.fixture(scope="module")
def decoder(tmp_path_factory: pytest.TempPathFactory) -> str:
    """Return the folder of a tiny random LLaMA with the embedded model's tokenizer."""
    folder = tmp_path_factory.mktemp("decoder")
    tokenizer = load_tokenizer(ModelConfig())
    config = transformers.LlamaConfig(
        vocab_size=len(tokenizer), hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=4,
        num_key_value_heads=2, max_position_embeddings=128, pad_token_id=tokenizer.pad_token_id, bos_token_id=0,
        eos_token_id=2,
    )  # fmt: skip
    with torch.random.fork_rng():
        torch.manual_seed(1)
        model = transformers.LlamaForCausalLM(config)
        for parameter in model.parameters():
            parameter.data.add_(0.1 * torch.randn_like(parameter))
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return str(folder)


def config_of(decoder: str, output, **changes):
    base = {
        "output": str(output),
        "executor": "local",
        "model": {"path": decoder, "head": {"kind": "generation"}},
        "data": {"task": "questions"},
        **ALL,
    }
    return make_tiny(**merged(base, changes))


@pytest.fixture(scope="module", params=[LORA, PREFIX], ids=["lora", "prefix"])
def run(request: pytest.FixtureRequest, decoder: str, tmp_path_factory: pytest.TempPathFactory):
    """Return a run's config, folder and summary."""
    folder = tmp_path_factory.mktemp("responses") / "run"
    evaluation = {"keep_predictions": True}
    config = config_of(decoder, folder, evaluation=evaluation, tracking={"plots": True}, **request.param)
    return config, folder, fedsim.run(config, progress=False)


def test_loss_and_metric_are_those_of_transformers_with_the_exported_adapter(run, tmp_path):
    """Row by row: the mean over all response tokens of the validation examples, and how many are the most likely ones."""
    config, folder, summary = run
    dataset = load_dataset(config.data, config.seed)
    tokenizer = load_tokenizer(config.model)
    table = tokenize(
        dataset.validation,
        dataset.task,
        tokenizer,
        head_kind="generation",
        causal=True,
        max_length=config.data.max_length,
    )
    base = transformers.AutoModelForCausalLM.from_pretrained(config.model.path, dtype=torch.float32)
    adapter = export_peft(folder, tmp_path / "adapter")
    assert json.loads((adapter / "adapter_config.json").read_text())["task_type"] == "CAUSAL_LM"
    model = PeftModel.from_pretrained(base, str(adapter)).eval()
    losses, hits, whole = [], [], []
    with torch.no_grad():
        for row, start in enumerate(table.response_starts_N.tolist()):
            ids = torch.from_numpy(table.batch(np.array([row])).input_ids_BT)
            labels = ids.clone()
            labels[0, :start] = -100
            output = model(input_ids=ids, attention_mask=torch.ones_like(ids), labels=labels)
            right = output.logits[0, -ids.shape[1] :][start - 1 : -1].argmax(1) == ids[0, start:]
            losses.append(float(output.loss))
            hits.append(int(right.sum()))
            whole.append(int(right.all()))
    tokens_N = table.responses_N
    loss = float((np.array(losses) * tokens_N).sum() / tokens_N.sum())
    assert summary["global_perplexity"] == pytest.approx(math.exp(loss), rel=1e-4)
    assert summary["global_metric"] == pytest.approx(sum(hits) / tokens_N.sum())
    predictions = pq.read_table(folder / "predictions.parquet").to_pydict()
    np.testing.assert_allclose(predictions["loss"], losses, rtol=1e-3)
    assert predictions["prediction"] == whole and set(predictions["label"]) == {1}


def test_training_lowers_the_perplexity_that_the_records_have(run):
    _, folder, summary = run
    losses = pq.read_table(folder / "rounds.parquet").to_pydict()["global_loss"]
    assert summary["first_global_perplexity"] == pytest.approx(math.exp(losses[0]))
    assert summary["global_perplexity"] == pytest.approx(math.exp(losses[-1]))
    assert summary["global_perplexity"] < 0.9 * summary["first_global_perplexity"]
    assert summary["metric_name"] == "token_accuracy" and summary["num_classes"] == 2


def test_each_client_is_evaluated_on_the_examples_that_it_holds_out(run):
    _, folder, summary = run
    personal = pq.read_table(folder / "personal.parquet").to_pydict()
    counts = np.array(personal["confusion"])
    assert (counts[:, :2] == 0).all()
    tokens = counts.sum(1)
    assert (tokens > np.array(personal["examples"])).all()
    loss = (np.array(personal["loss"]) * tokens).sum() / tokens.sum()
    assert summary["personalised_perplexity"] == pytest.approx(math.exp(loss))
    assert summary["personalised_metric"] == pytest.approx(counts[:, 3].sum() / tokens.sum())


def test_the_page_and_the_card_speak_of_responses_not_of_classes(run, tmp_path):
    _, folder, _ = run
    page = re.sub(r"<(script|style|svg).*?</\1>", "", (folder / "report.html").read_text(), flags=re.S)
    words = re.sub(r"<[^>]*>", " ", page).lower()
    assert "perplexity" in words and "label mix of each client" in words
    card = (export_peft(folder, tmp_path / "adapter") / "README.md").read_text()
    assert "pipeline_tag: text-generation" in card and "The prompt is:\n\n    {text} ." in card
    for text in (words, card.lower()):
        assert not re.search(r"\bclass|\bchance", text)


def test_responses_have_no_labels_to_predict(run):
    _, folder, _ = run
    with pytest.raises(
        ModelError, match=r"^task 'questions' is one of responses, which have no class scores; use generate"
    ):
        fedsim.load_adapter(folder).predict([("a", "b", "c")])


def test_actors_give_the_same_bytes(session_ray, decoder, tmp_path):
    files = []
    for executor, more in (("local", {}), ("ray", {"ray": {"address": "auto", "actors": 2}})):
        folder = tmp_path / executor
        fedsim.run(config_of(decoder, folder, rounds=2, executor=executor, **LORA, **more), progress=False)
        rounds = pq.read_table(folder / "rounds.parquet").select(["global_metric", "global_loss", "personalised_loss"])
        files.append(((folder / "prompt" / "global.safetensors").read_bytes(), rounds.to_pydict()))
    assert files[0] == files[1]


def test_the_frozen_cache_changes_no_figure(decoder, tmp_path):
    """Layer 0 has no adapter, so its output is kept."""
    figures = []
    for cache in ("auto", "off"):
        config = config_of(
            decoder, tmp_path / cache, rounds=2, model={"dtype": "float64", "trunk_cache": {"dtype": cache}}, **LORA,
            layers={"choose": "fixed", "fixed": [1], "unselected": "none"},
        )  # fmt: skip
        summary = fedsim.run(config, progress=False)
        assert (summary["trunk_cache"]["misses"] > 0) == (cache == "auto")
        figures.append((summary["global_perplexity"], summary["personalised_perplexity"], summary["global_metric"]))
    np.testing.assert_allclose(*figures, rtol=1e-10)


def test_a_task_and_a_head_that_do_not_fit_are_refused(decoder, tmp_path):
    with pytest.raises(ConfigError, match=r"'questions' is one of responses, .*; set model\.head\.kind=generation$"):
        fedsim.run(config_of(decoder, tmp_path / "a", model={"head": {"kind": "verbalizer"}}), progress=False)
    with pytest.raises(
        ConfigError, match=r"'reviews' is one of classes, .*; give data\.task\.response, the text to write"
    ):
        fedsim.run(config_of(decoder, tmp_path / "b", data={"task": "reviews"}), progress=False)
    with pytest.raises(ModelError, match=r"^model\.head\.kind=generation needs a decoder, .* fills in masked ones$"):
        fedsim.run(config_of(decoder, tmp_path / "c", model={"path": "embedded"}), progress=False)
    dialogue = {"name": "t", "fields": ["m"], "dialogue": True, "chat": True, "learn": "all_answers"}
    for changes, words in (
        (
            {"tuner": {"kind": "generated_prompt", "length": 2}, "data": {"task": dialogue, "path": "x"}},
            r"makes its prompt of the last question, which earlier answers would see; with data\.task\.learn=all_answers",
        ),
        ({"attack": {"kind": "label_flip", "clients": 1}}, r"attack\.kind=label_flip changes labels"),
        ({"tuner": {"kind": "soft_prompt", "length": 2, "start": "label_words"}}, "there are none; set tuner.start"),
        ({"tuner": {"kind": "prompt_mixture", "length": 2, "random_sources": 2}}, "makes its prompt of a whole text"),
        ({"tuner": {"kind": "late_prompt", "length": 2, "generator": "mppg"}}, "makes its prompt of a whole text"),
    ):
        with pytest.raises(ConfigError, match=words):
            make_tiny(executor="local", model={"path": decoder, "head": {"kind": "generation"}}, **changes)

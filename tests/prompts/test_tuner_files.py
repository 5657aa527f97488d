"""Files of every kind of tuner: they load as models that score as the run did. A new kind is one row of ``TUNERS``."""

import json

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file
from support import make_tiny

import fedsim
from clients.tuners.config import ONE_PLACE
from fedsim.core.errors import ModelError
from fedsim.prompts.peft_adapter import export_peft
from fedsim.prompts.prompt_file import read_prompt
from fedsim.simulation.preparation import partition_data

TUNERS = {
    "lora": {"kind": "lora", "rank": 2, "targets": ["query", "value", "intermediate.dense"]},
    "ia3": {"kind": "ia3"},
    "adapter": {"kind": "adapter", "bottleneck": 3},
    "projected_prefix": {"kind": "projected_prefix", "length": 3, "bottleneck": 5},
    "soft_prompt": {"kind": "soft_prompt", "length": 3},
    "late_prompt": {"kind": "late_prompt", "length": 3, "bottleneck": 4, "generator": "mppg"},
    "generated_prompt": {"kind": "generated_prompt", "length": 3, "terms": 4},
    "prompt_mixture": {"kind": "prompt_mixture", "length": 3, "bottleneck": 4, "random_sources": 2},
}


def changes(kind):
    client = {"fuse": 2, "optimizer": {"lr": 0.01}}
    layers = {} if kind in ONE_PLACE else {"layers": {"choose": "score"}}
    return {"executor": "local", "rounds": 1, "tuner": TUNERS[kind], "client": client, **layers}


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """Return a function that gives the folder and summary of a kind's run, which runs once."""
    root, done = tmp_path_factory.mktemp("runs"), {}

    def run(kind):
        if kind not in done:
            folder = root / kind
            done[kind] = folder, fedsim.run(make_tiny(output=str(folder), **changes(kind)), progress=False)
        return done[kind]

    return run


@pytest.mark.parametrize("kind", TUNERS)
def test_a_loaded_run_predicts_what_the_run_did(runs, kind):
    folder, summary = runs(kind)
    model = fedsim.load_adapter(folder)
    assert model.layers == tuple(summary["layers"]) and len(model.layers) < 4
    examples = partition_data(make_tiny(**changes(kind))).dataset.validation
    predicted = [model.task.labels.index(label) for label in model.predict(examples.texts)]
    assert (np.array(predicted) == examples.labels_N).mean() == pytest.approx(summary["global_metric"])
    arrays = load_file(folder / "prompt/global.safetensors")
    assert all(name.startswith(f"{kind}.") for name in arrays)
    sent = {name: array for name, array in arrays.items() if not name.endswith(".sources")}
    assert summary["transferred_parameters"] == sum(array.size for array in sent.values())


def test_sources_of_a_mixture_are_what_earlier_runs_trained(runs, tmp_path):
    sources = [str(runs("soft_prompt")[0])] * 2
    tuner = {"kind": "prompt_mixture", "length": 3, "bottleneck": 4, "sources": sources}
    summary = fedsim.run(
        make_tiny(executor="local", rounds=1, tuner=tuner, output=str(tmp_path / "run")), progress=False
    )
    assert summary["trained"] == "prompt of 3 tokens mixed with 2 others"
    arrays = load_file(tmp_path / "run/prompt/global.safetensors")
    trained = load_file(runs("soft_prompt")[0] / "prompt/global.safetensors")["soft_prompt.0.prompt"]
    np.testing.assert_array_equal(arrays["prompt_mixture.0.sources"], np.stack([trained] * 2))
    assert fedsim.load_adapter(tmp_path / "run").predict(["a good film"])


@pytest.mark.parametrize(
    ("kind", "length", "words"),
    [
        ("ia3", 3, r"was trained with tuner.kind=ia3; sources must be soft prompts"),
        ("soft_prompt", 4, r"holds 3 virtual tokens of size 64, but this run mixes tuner.length=4 of size 64"),
    ],
)
def test_sources_of_another_kind_or_length_are_refused(runs, tmp_path, kind, length, words):
    tuner = {"kind": "prompt_mixture", "length": length, "sources": [str(runs(kind)[0])]}
    with pytest.raises(ModelError, match=words):
        fedsim.run(make_tiny(executor="local", tuner=tuner, output=str(tmp_path / "run")), progress=False)


def test_a_file_of_ia3_holds_the_vectors_of_which_the_difference_from_one_was_trained(runs):
    folder, _ = runs("ia3")
    arrays = load_file(folder / "prompt/global.safetensors")
    assert {name.rpartition(".")[2] for name in arrays} == {"ia3_l"}
    assert all(0 < np.abs(array - 1).max() < 0.5 for array in arrays.values())
    file = read_prompt(folder)
    for layer, tuned_X in zip(file.layout.layers, file.tuned_LX, strict=True):
        for name, array in file.layout.geometry.split(tuned_X).items():
            np.testing.assert_array_equal(1 + array, arrays[f"ia3.{layer}.{name}"])


def test_the_prefix_that_a_network_makes_is_exported_as_a_prefix(runs, tmp_path):
    """Its scores as a prefix are the run's, so the adapter is that of a prefix run with the same scores."""
    folder, summary = runs("projected_prefix")
    export_peft(folder, tmp_path / "adapter")
    start = {"start_from": str(tmp_path / "adapter"), "length": 3, "position_offset": "paper"}
    again = fedsim.run(
        make_tiny(executor="local", rounds=1, prompt=start, layers={"choose": "all"}, output=str(tmp_path / "run")),
        progress=False,
    )
    assert again["first_global_metric"] == pytest.approx(summary["global_metric"])


def test_a_kind_that_peft_lacks_is_not_exported(runs, tmp_path):
    with pytest.raises(ModelError, match=r"was trained with tuner.kind=adapter, for which PEFT has no adapter$"):
        export_peft(runs("adapter")[0], tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_sources_of_another_model_are_refused(runs, tmp_path):
    path = tmp_path / "moved"
    folder = runs("soft_prompt")[0]
    arrays, metadata = load_file(folder / "prompt/global.safetensors"), read_prompt(folder).metadata
    other = metadata | {"model": metadata["model"] | {"path": "models/other"}}
    path.mkdir()
    save_file(arrays, path / "other.safetensors", metadata={"fedsim": json.dumps(other)})
    tuner = {"kind": "prompt_mixture", "length": 3, "sources": [str(path / "other.safetensors")]}
    with pytest.raises(ModelError, match=r"was trained on model models/other, but this run's is embedded"):
        fedsim.run(make_tiny(executor="local", tuner=tuner, output=str(tmp_path / "run")), progress=False)


def test_a_lora_whose_b_stayed_on_the_clients_is_exported_for_a_client_only(tmp_path):
    tuner = {"kind": "lora", "rank": 2, "exchange": "a"}
    folder = tmp_path / "run"
    fedsim.run(make_tiny(executor="local", rounds=1, tuner=tuner, output=str(folder)), progress=False)
    with pytest.raises(
        ModelError, match=r"changes nothing by itself, as the clients kept B to themselves; .* --client"
    ):
        export_peft(folder, tmp_path / "out")
    owner = int(load_file(folder / "prompt/personal.safetensors")["clients"][0])
    export_peft(folder, tmp_path / "out", client=owner)
    weights = load_file(tmp_path / "out/adapter_model.safetensors")
    assert all(array.any() for name, array in weights.items() if "lora_B" in name)

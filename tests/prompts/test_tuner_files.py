"""Files of every kind of tuner: they load as models that score as the run did. A new kind is one row of ``TUNERS``."""

import numpy as np
import pytest
from safetensors.numpy import load_file
from support import make_tiny

import fedsim
from fedsim.core.errors import ModelError
from fedsim.prompts.peft_adapter import export_peft
from fedsim.prompts.prompted_model import read_prompt
from fedsim.simulation.preparation import partition_data

TUNERS = {
    "lora": {"kind": "lora", "rank": 2, "targets": ["query", "value", "intermediate.dense"]},
    "ia3": {"kind": "ia3"},
    "adapter": {"kind": "adapter", "bottleneck": 3},
}


def changes(kind):
    client = {"fuse": 2, "optimizer": {"lr": 0.01}}
    return {"executor": "local", "rounds": 1, "tuner": TUNERS[kind], "client": client, "layers": {"choose": "score"}}


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
    assert summary["transferred_parameters"] == sum(array.size for array in arrays.values())


def test_a_file_of_ia3_holds_the_vectors_of_which_the_difference_from_one_was_trained(runs):
    folder, _ = runs("ia3")
    arrays = load_file(folder / "prompt/global.safetensors")
    assert {name.rpartition(".")[2] for name in arrays} == {"ia3_l"}
    assert all(0 < np.abs(array - 1).max() < 0.5 for array in arrays.values())
    file = read_prompt(folder)
    for layer, tuned_X in zip(file.layout.layers, file.tuned_LX, strict=True):
        for name, array in file.layout.geometry.split(tuned_X).items():
            np.testing.assert_array_equal(1 + array, arrays[f"ia3.{layer}.{name}"])


def test_a_kind_that_peft_lacks_is_not_exported(runs, tmp_path):
    with pytest.raises(ModelError, match=r"was trained with tuner.kind=adapter, for which PEFT has no adapter$"):
        export_peft(runs("adapter")[0], tmp_path / "out")
    assert not (tmp_path / "out").exists()

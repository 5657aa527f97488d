"""When the executor may begin to start: only after the quick mistakes have been answered, and with room enough."""

import importlib.util
import json

import pytest

from clients.config import ModelConfig
from clients.loading import load_shared_weights
from clients.location import locate, modeling_module, num_parameters
from fedsim.core.errors import DataError, ModelError
from fedsim.executors.local import LocalExecutor
from fedsim.preparation import prepare


class Recording(LocalExecutor):
    """Writes down what it is told at the beginning."""

    def __init__(self):
        super().__init__(lambda: None)
        self.begun = []

    def begin(self, spec_nbytes, modules=()):
        self.begun.append((spec_nbytes, modules))


def test_it_begins_once_and_is_told_enough_room_and_what_will_be_imported(tiny_config):
    executor = Recording()
    config = tiny_config(data={"max_length": 16}, model={"trunk_cache": {"memory_mb": 0}})
    spec = prepare(config, executor=executor).spec
    [(nbytes, modules)] = executor.begun
    assert spec.nbytes <= nbytes <= 2 * spec.nbytes
    assert modules == ("clients.worker", "transformers.models.roberta.modeling_roberta")


@pytest.mark.parametrize(
    ("change", "error"),
    [
        ({"data": {"source": "files", "path": "no/such/folder"}}, DataError),
        ({"partition": {"kind": "by_column", "column": "shop"}}, DataError),
        ({"model": {"path": "./no/such/model"}}, ModelError),
    ],
    ids=["data", "column", "model"],
)
def test_a_mistake_is_answered_before_anything_is_started(tiny_config, change, error):
    executor = Recording()
    with pytest.raises(error):
        prepare(tiny_config(**change), executor=executor)
    assert executor.begun == []


def test_the_look_at_a_folder_agrees_with_the_loaded_model():
    config = ModelConfig()
    weights = load_shared_weights(config)
    # The checkpoint holds every parameter once; buffers that are computed are none of its numbers.
    parameters = sum(a.size for name, a in weights.arrays.items() if not name.endswith(("position_ids", "type_ids")))
    assert num_parameters(locate(config)) == parameters
    assert importlib.util.find_spec(modeling_module(locate(config))) is not None


@pytest.mark.parametrize("model_type", ["bert", "xlm-roberta", "gpt2", "llama", "qwen3"])
def test_every_family_has_its_module_where_the_hint_says(tmp_path, model_type):
    (tmp_path / "config.json").write_text(json.dumps({"model_type": model_type}))
    assert importlib.util.find_spec(modeling_module(str(tmp_path))) is not None


def test_a_look_at_what_is_no_model_tells_nothing(tmp_path):
    assert modeling_module("some/hub-name") is None
    assert num_parameters("some/hub-name") is None
    for text in ("{", "[]", '{"model_type": "a.b c"}', '{"model_type": null}'):
        (tmp_path / "config.json").write_text(text)
        assert modeling_module(str(tmp_path)) in (None, "transformers.models.None.modeling_None")
    for data in (
        b"",
        b"abc",
        (2**60).to_bytes(8, "little"),
        (4).to_bytes(8, "little") + b"[{]}",
        b"\2" + b"\0" * 7 + b"[]",
    ):
        (tmp_path / "model.safetensors").write_bytes(data)
        assert num_parameters(str(tmp_path)) is None

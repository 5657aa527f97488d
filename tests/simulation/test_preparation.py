"""When the executor may begin to start: only after the quick mistakes have been answered, and with room enough."""

import importlib.util
import json

import pytest

from clients.backbone.loading import load_shared_weights
from clients.backbone.location import locate, modeling_module, num_parameters
from clients.config import ModelConfig
from fedsim.configuration.schema import build_config, read_config
from fedsim.core.errors import ConfigError, DataError, FedsimError, ModelError
from fedsim.executors.local import LocalExecutor
from fedsim.simulation.preparation import partition_data, prepare, settled


class Recording(LocalExecutor):
    """Writes down what it is told at the beginning."""

    def __init__(self):
        super().__init__(lambda: None)
        self.begun = []

    def begin(self, spec_nbytes, modules=(), config_hash=""):
        self.begun.append((spec_nbytes, modules, config_hash))


def test_it_begins_once_and_is_told_enough_room_and_what_will_be_imported(tiny_config):
    executor = Recording()
    config = tiny_config(data={"max_length": 16}, model={"trunk_cache": {"memory_mb": 0}})
    spec = prepare(config, executor=executor).spec
    [(nbytes, modules, config_hash)] = executor.begun
    assert spec.nbytes <= nbytes <= 2 * spec.nbytes
    assert modules == ("clients.worker", "transformers.models.roberta.modeling_roberta")
    # What is shown on a cluster is what the summary will say, which knows how products are computed.
    assert config_hash == config.model_copy(update={"model": spec.model}).identity != config.identity


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


NATURAL = {"kind": "by_column", "column": "author"}


def test_without_a_number_of_clients_all_values_of_the_column_are_clients(tiny_config):
    config, data = settled(tiny_config(partition={**NATURAL, "clients": None}))
    assert config.partition.population == data.shards.num_clients == len(set(data.dataset.train.columns["author"]))
    many = data.shards.num_clients
    assert data.notes == (
        f"partition.clients is not given: all {many} values of partition.column 'author' are clients",
    )
    given = tiny_config(partition={**NATURAL, "clients": many})
    assert given.identity == config.identity
    again = partition_data(given)
    assert again.notes == ()
    assert (again.shards.indices_N == data.shards.indices_N).all()
    assert settled(given) == (given, None)


def test_examples_of_one_class_alone_are_warned_of(tmp_path, tiny_config):
    for name, labels in (("train", (1, 1, 1)), ("validation", (0, 1))):
        rows = "".join(f"a fine film,{label}\n" for label in labels)
        (tmp_path / f"{name}.csv").write_text("text,label\n" + rows)
    data = {"path": str(tmp_path), "task": "sst2", "train_examples": None, "validation_examples": None}
    changes = {"partition": {"clients": 2}, "sampling": {"clients_per_round": 2}}
    assert (
        "warning: all 3 training examples are of the class '1'"
        in partition_data(tiny_config(data=data, **changes)).notes
    )
    assert not any("of the class" in note for note in partition_data(tiny_config()).notes)


def test_by_column_says_what_it_leaves_out(tiny_config):
    data = partition_data(tiny_config(partition={**NATURAL, "clients": 7}))
    used = len(data.shards.indices_N)
    many = len(set(data.dataset.train.columns["author"]))
    left = f"the examples of the others, {240 - used} of 240, are not used"
    sentence = f"7 of the {many} values of partition.column 'author' are clients; {left}"
    assert data.notes == (sentence,)
    (note,) = settled(tiny_config(partition={**NATURAL, "clients": None, "min_size": 3}))[1].notes
    assert "values of partition.column 'author' are clients; the examples of the others" in note


def test_a_number_of_clients_that_does_not_fit_the_rest_is_answered_when_it_is_known(tiny_config, tmp_path):
    for name in ("train", "dev"):
        rows = [{"text": f"text {i}", "label": i % 2, "user": float(i % 3)} for i in range(12)]
        (tmp_path / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    values = {
        "data": {"path": str(tmp_path), "task": "sst2"},
        "partition": {"kind": "by_column", "column": "user"},
        "sampling": {"clients_per_round": 3},
    }
    config, data = settled(build_config(values))
    assert config.partition.clients == 3
    assert [list(map(int, data.shards.train(client) % 3)) for client in range(3)] == [[0] * 4, [1] * 4, [2] * 4]
    with pytest.raises(
        ConfigError, match=r"^partition\.column 'user' gives 3 clients: sampling\.clients_per_round=10 is more"
    ):
        settled(build_config({**values, "sampling": {}}))
    with pytest.raises(ConfigError, match=r"attack\.clients names client 3, but partition\.clients=3"):
        settled(build_config({**values, "attack": {"kind": "sign_flip", "clients": [3]}}))
    with pytest.raises(
        FedsimError, match=r"^column 'user' has only 0 values with 9 or more examples; lower partition\.min"
    ):
        settled(build_config({**values, "partition": {**values["partition"], "min_size": 9}}))


def test_the_number_of_clients_is_given_or_a_hundred_where_the_data_do_not_say_it(tmp_path):
    assert build_config({}).partition.clients == build_config({"partition": {"clients": None}}).partition.clients == 100
    assert build_config({"partition": {**NATURAL}}).partition.clients is None
    (tmp_path / "c.yaml").write_text(
        "partition: {kind: by_column, column: author, clients: 7}\nsampling: {clients_per_round: 5}"
    )
    assert read_config(tmp_path / "c.yaml").partition.clients == 7
    assert read_config(tmp_path / "c.yaml", ["partition.clients=null"]).partition.clients is None


def test_a_run_with_all_values_is_recorded_with_their_number_and_resumed(tiny_config, tmp_path):
    import fedsim

    tiny = {
        "partition": {**NATURAL, "clients": None}, "executor": "local", "output": str(tmp_path / "run"), "rounds": 1,
        "layers": {"choose": "all"}, "client": {"epochs": None, "steps": 1, "fuse": "off"},
    }  # fmt: skip
    summary = fedsim.run(tiny_config(**tiny), progress=False)
    assert read_config(tmp_path / "run" / "config.yaml").partition.clients == summary["clients"] > 12
    more = fedsim.run(tiny_config(**{**tiny, "rounds": 2}), progress=False, resume=True)
    assert (more["clients"], more["rounds"]) == (summary["clients"], 2)

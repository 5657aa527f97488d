import re
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from support import useless_keys

from fedsim.configuration.errors import dotted_keys
from fedsim.configuration.schema import Config, build_config, read_config
from fedsim.configuration.text import config_text
from fedsim.configuration.yaml_text import load
from fedsim.core.errors import ConfigError, FedsimError

CONFIGS = [
    path
    for path in sorted((Path(__file__).parents[2] / "configs").rglob("*.yaml"))
    if "apiVersion" not in load(path.read_text())  # a manifest of Kubernetes
    and "studies" not in path.parts
]


USELESS = useless_keys(Config())


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.stem)
def test_shipped_configs_are_valid_and_their_resolved_text_reads_back_to_the_same_config(path, tmp_path):
    config = read_config(path)
    resolved = tmp_path / path.name
    resolved.write_text(config_text(config))
    assert read_config(resolved) == config


def test_every_key_has_a_meaning_and_the_resolved_text_names_every_key():
    text = config_text(Config())
    for name, field in dotted_keys(Config):
        assert field.description, f"{name} has no docstring"
        if not name.startswith("data.task.") and name not in USELESS:
            assert re.search(rf"(^[ #]*|[{{,] ?){name.rpartition('.')[2]}:", text, re.MULTILINE), name


def test_overrides_are_yaml_and_reach_any_depth(tmp_path):
    path = tmp_path / "run.yaml"
    path.write_text("rounds: 3\n")
    config = read_config(
        path, ["client.optimizer.lr=1e-3", "layers.choose=fixed", "layers.fixed=[0, 2]", "output=null"]
    )
    assert (config.rounds, config.client.optimizer.lr, config.layers.fixed, config.name) == (3, 1e-3, (0, 2), "run")


TEXTS = [
    "exp #2", "2024", "1e3", "a: b", "[x] y", "{a}", "true", "~nothing", "- x", "'q'", "x\t#", "日本 😀", "*a", "Null", "%",
]  # fmt: skip


@pytest.mark.parametrize("text", TEXTS)
def test_a_text_given_as_an_override_is_taken_to_the_character_and_read_back(tmp_path, text):
    path = tmp_path / "run.yaml"
    path.write_text("rounds: 3\n")
    keys = ["data.hub_name", "model.package", "data.train_split"]
    if not text.startswith("{"):  # a task may be defined there
        keys += ["data.task"]
    if text != "~nothing":  # there is no such user
        keys += ["output", "model.path", "data.path", "prompt.start_from"]
    of_hub = [key for key in keys if key != "data.path"]
    of_files = [key for key in keys if key not in ("data.hub_name", "data.train_split")]
    for source, some in {"hub": of_hub, "files": of_files}.items():
        config = read_config(
            path, ["data.path=x" if source == "files" else "data.source=hub", *(f"{key}={text}" for key in some)]
        )
        for key in some:
            section, _, name = key.rpartition(".")
            assert getattr(getattr(config, section) if section else config, name) == text
        for escaped in (False, True):
            (tmp_path / "again.yaml").write_text(config_text(config, escaped=escaped))
            assert read_config(tmp_path / "again.yaml", ["name=run"]) == config
        assert (tmp_path / "again.yaml").read_text().isascii()


def test_no_text_is_no_value_and_other_types_are_yaml(tmp_path):
    path = tmp_path / "run.yaml"
    path.write_text("output: x\nlayers: {choose: fixed, fixed: [0]}\n")
    words = [
        "layers.fixed=[0, 1]",
        "data.keep_columns=[a, b]",
        "ray.actors=2",
        "client.fuse=off",
        "attack.clients=null",
    ]
    config = read_config(path, ["output=", "ray.address=null", *words, "ray.num_gpus_per_actor=1/4", "rounds= 64 "])
    assert (config.output, config.ray.address, config.rounds) == (None, None, 64)
    assert (config.layers.fixed, config.data.keep_columns, config.client.fuse) == ((0, 1), ("a", "b"), "off")
    assert (config.ray.actors, config.ray.num_gpus_per_actor) == (2, 0.25)
    task = "{name: x, fields: [t], labels: [a, b], template: '{t} : <mask>'}"
    config = read_config(path, [f"data.task={task}", "data.task.template=<mask> # {t}"])
    assert config.data.task.template == "<mask> # {t}"
    with pytest.raises(ConfigError, match=r"client\.fuse is null, but must be "):
        read_config(path, ["client.fuse="])


@pytest.mark.parametrize("stem", ["exp #2 (copy)", "a=b", "[x]", "日本"])
def test_any_name_of_a_config_file_makes_a_name_of_a_run(tmp_path, stem):
    path = tmp_path / f"{stem}.yaml"
    path.write_text("rounds: 3\n")
    assert read_config(path).name == re.sub(r"[^\w.-]", "_", stem)


def test_gpu_shares_are_snapped_to_one_nth():
    for given_share in ("1/12", 0.0833, 1 / 12):
        assert build_config({"ray": {"num_gpus_per_actor": given_share}}).ray.num_gpus_per_actor == 1 / 12
    for given_number in (2, "2", 2.0, "4/2"):
        assert build_config({"ray": {"num_gpus_per_actor": given_number}}).ray.num_gpus_per_actor == 2


def test_server_defaults_follow_the_kind_and_published_choices_are_fixed():
    assert build_config({"server": {"kind": "fedavg"}}).server.lr == 1.0
    published = build_config({"server": {"kind": "fedpeptao_published"}}).server
    assert (published.coupling, published.momentum_form) == ("chained", "control_in_velocity")
    assert build_config({"server": {"kind": "scaffold"}}).correction == "control"
    assert build_config({"server": {"kind": "fedprox"}}).correction == "proximal"


def test_identity_ignores_where_a_run_takes_place_and_nothing_else():
    base = build_config({}).identity
    for same in (
        {"executor": "local"},
        {"ray": {"actors": 3}},
        {"rounds": 99},
        {"output": "x"},
        {
            "evaluation": {"keep_predictions": True, "personalised_start": True}
        },  # a finished run can still be given them
        {"model": {"device": "cpu"}},
        {"model": {"path": "/elsewhere"}},
        {"data": {"path": "/elsewhere", "train_file": "t.csv"}},
    ):
        assert build_config(same).identity == base, same
    start = {"prompt": {"start_from": "/here"}}
    assert build_config(start).identity == build_config({"prompt": {"start_from": "/elsewhere"}}).identity
    for other in ({"seed": 1}, {"group_size": 2}, {"client": {"optimizer": {"lr": 0.1}}}, {"prompt": {"length": 9}},
                  {"data": {"task": "topics"}}, {"data": {"max_length": 64}}, {"data": {"train_examples": 10}}):  # fmt: skip
        assert build_config(other).identity != base, other


def test_words_that_look_like_numbers_read_back_as_words(tmp_path):
    columns = {"no": "yes", "1e3": "1e3", "a": 2}
    task = {"name": "own", "fields": ["no"], "labels": ["1e3", "0.50", "null"]}
    config = build_config({"data": {"path": "x", "columns": columns, "task": task, "label_of_file": {"*.pos": True}}})
    (tmp_path / "config.yaml").write_text(config_text(config))
    again = read_config(tmp_path / "config.yaml")
    assert again.data == config.data
    assert again.data.columns == columns


def test_yaml_words_and_numbers_are_what_people_mean():
    assert load("[No, yes, on, 1e-3, .5, 3, true, 2024-01-01, null]") == [
        "No", "yes", "on", 1e-3, 0.5, 3, True, "2024-01-01", None,
    ]  # fmt: skip


MISTAKES = [
    ("rounds: [", "line"),
    ("rounds: 3\nrounds: 4", "'rounds' is given here and in line 1"),
    ("- rounds", "must hold keys and values"),
    ("3: 4", "is not a word"),
    ("roudns: 3", "no key 'roudns' (did you mean 'rounds'?)"),
    ("lr: 0.1", "did you mean 'client.optimizer.lr'?"),
    ("client:\n  optimiser:\n    lr: 1", "no key 'client.optimiser' (did you mean 'client.optimizer'?)"),
    ("seed: 1\nrounds: 0", "line 2: rounds is 0, but must be more than 0"),
    ("rounds: three", 'rounds is "three", but must be a whole number'),
    ("rounds: true", "rounds is true, but must be a whole number"),
    ("rounds: 2.5", "rounds is 2.5, but must be a whole number"),
    ("rounds: '5'", "must be a whole number"),
    ("seed: -1", "seed is -1, but must be at least 0"),
    ("executor: dask", "must be one of ray, local"),
    ("server:\n  kind: fedavgg", "(did you mean 'fedavg'?)"),
    ("server:\n  kind: fedpeptao_published\n  coupling: independent", "fixes coupling to 'chained'"),
    ("server:\n  momentum: 1.0", "server.momentum is 1.0, but must be less than 1"),
    ("client:\n  optimizer:\n    lr: fast", 'client.optimizer.lr is "fast", but must be a number'),
    ("client:\n  optimizer:\n    lr: .nan", "must be a finite number"),
    ("client:\n  optimizer:\n    lr: 0", "must be more than 0"),
    ("client:\n  epochs: null", "give epochs or steps"),
    ("client:\n  batch_size: 0", "client.batch_size is 0, but must be more than 0"),
    ("client:\n  optimizer: {moments: keep}\n  schedule: {kind: linear}", "needs client.schedule.total_steps"),
    ("client:\n  correction: control\nserver:\n  kind: fedavg", "control variates, which server.kind=fedavg does not keep"),
    ("client:\n  correction: none\nserver:\n  kind: scaffold", "server.kind=scaffold needs client.correction=control"),
    ("client:\n  correction: none\nserver:\n  kind: fedprox", "server.kind=fedprox needs client.correction=proximal"),
    ("model: bert", "model is \"bert\", but must be a group of keys"),
    ("model:\n  dtype: int8", "must be one of float32, bfloat16, float16"),
    ("model:\n  head:\n    kind: regression", "must be one of verbalizer, classifier"),
    ("prompt:\n  length: 0", "prompt.length is 0, but must be more than 0"),
    ("layers:\n  share: 0", "layers.share is 0, but must be more than 0"),
    ("layers:\n  share: 1.5", "layers.share is 1.5, but must be at most 1"),
    ("layers:\n  choose: fixed", "needs the key fixed"),
    ("layers:\n  fixed: [0]", "layers.fixed has no use with layers.choose=score; it is a key of fixed"),
    ("layers:\n  choose: fixed\n  fixed: [1, 1]", "must name each layer once"),
    ("partition:\n  clients: 5", "sampling.clients_per_round=10 is more than partition.clients=5"),
    ("partition:\n  kind: by_column", "needs partition.column"),
    ("partition:\n  kind: dirichlet", "must be one of iid"),
    ("partition:\n  alpha: 0", "partition.alpha is 0, but must be more than 0"),
    ("partition:\n  holdout_fraction: 1.0", "must be less than 1"),
    ("data:\n  source: files", "data.source=files needs data.path"),
    ("data:\n  source: embedded\n  path: x", "has no use with data.source=embedded"),
    ("data:\n  task: {name: x}", "the key 'data.task.fields' is missing"),
    ("data:\n  task: {name: x, fields: [t], labels: [a, a]}", "list a label twice"),
    ("data:\n  task: {name: x, fields: [t], labels: [a, b], label_words: [c]}", "1 label_words for 2 labels"),
    ("data:\n  task: {name: x, fields: [t], labels: [a, b], template: 'It is <mask>'}", "template lacks {t}"),
    ("data:\n  task: {name: x, fields: [t], labels: [a, b], template: '{t}'}", "<mask> exactly once"),
    ("data:\n  task: {name: x, fields: [t], labels: [null, a]}", "data.task.labels.0 is null, but must be a word or text"),
    ("data:\n  task: {name: x, fields: [t], labels: [1, {}]}", "data.task.labels.1 is a group of keys, but must be a word"),
    ("data:\n  task: {name: x, fields: [t], labels: [1, .nan]}", "data.task.labels.1: nan is not a label"),
    ("data:\n  task: {name: x, fields: [t], labels: [1, 1.0]}", "list a label twice"),
    ("data:\n  task: {name: x, fields: [t], labels: [1]}", "data.task.labels is [1], but must be a list of at least 2"),
    ("data:\n  task: {name: x, fields: [], labels: [1, 2]}", "data.task.fields is [], but must be a list of at least 1"),
    ("data:\n  columns: text", 'data.columns is "text", but must be a group of keys'),
    ("data:\n  columns: {text: -1}", "data.columns.text is -1, but must be a word or text or at least 0"),
    ("data:\n  header: maybe", 'data.header is "maybe", but must be true or false or auto'),
    ("data:\n  delimiter: ab", "data.delimiter: the delimiter must be one character, or tab"),
    ("data:\n  encoding: utf-9", "data.encoding: Python knows no encoding 'utf-9'; usual ones are utf-8, latin-1"),
    ("data:\n  encoding: base64", "data.encoding: Python knows no encoding 'base64'"),
    ("data:\n  holdout: 1", "data.holdout is 1, but must be less than 1"),
    ("data:\n  path: x\n  holdout: 0.1\n  validation_file: dev.csv", "drop one of the two keys"),
    ("data:\n  max_length: 2", "data.max_length is 2, but must be at least 8"),
    ("ray:\n  actors: many", "must be a whole number or one of pool, per_client"),
    ("ray:\n  num_gpus_per_actor: 0.3", "the nearest is 1/3"),
    ("ray:\n  num_gpus_per_actor: 1.5", "1.5 is neither a share of one GPU nor a whole number of them up to 64; give 0, 1/n"),
    ("ray:\n  num_gpus_per_actor: half", "neither a number nor a fraction"),
    ("name: a/b", "must be made of letters"),
    ("output: 3", "output is 3, but must be a word or text"),
    ("a0: &a0 [x, x]\n" + "".join(f"a{i}: &a{i} [*a{i - 1}, *a{i - 1}]\n" for i in range(1, 25)), "more than 20000 values"),
    ("name: &a [*a]", "line 1 is not valid YAML: an alias is inside the value that it refers to"),
    ("name: " + "[" * 2000, "it is nested more than 20 deep"),
    ("- " * 2000, "it is nested more than 20 deep"),
    ("name: x\n" + "#" * 140_000, "it has 140008 characters, but a config may have at most 131072"),
    ("seed: 1\nrounds: !!int x", "line 2 is not valid YAML: 'x' is not a whole number"),
    ("model: {compile: !!bool maybe}", "'maybe' is not true or false"),
    ("name: !!set {a, b}", "line 1 is not valid YAML"),
    ("name: !!python/object/apply:os.system ['true']", "line 1 is not valid YAML"),
    ("seed: 0x" + "f" * 5000, "is not a whole number"),
    ('name: "\\ud800"', "is not text"),
    ("rounds: 1\nname: \x00", "line 2 is not valid YAML: the character '\\x00' is not allowed in YAML"),
    ('output: "a\\0b"', "output: the text contains a NUL character"),
    ("name: " + "x" * 201, "must be at most 200 characters long"),
    ("seed: 9223372036854775808", "seed: the number must be at most 9223372036854775807"),
    ("k" * 900 + ": 1", "there is no key 'kkk"),
    ("int: 1", "there is no key 'int'"),
    ("prompt: {length: 1000000000}", "prompt.length is 1000000000, but must be at most 8192"),
    ("data: {max_length: 1000000000000}", "must be at most 131072"),
    ("ray: {num_cpus_per_actor: 1.0e-9}", "must be at least 0.0001"),
    ("ray: {num_gpus_per_actor: 5.0e-324}", "is less than Ray counts; give 0, or 1/10000 or more"),
    ("ray: {num_gpus_per_actor: 65}", "65 is neither a share of one GPU nor a whole number of them up to 64"),
    ("ray: {num_gpus_per_actor: -1}", "-1 is neither a share of one GPU"),
    ("ray: {num_gpus_per_actor: .inf}", "neither a share of one GPU"),
    ("model: {offload: true}", "model.offload=true brings layers to an actor's GPU, but ray.num_gpus_per_actor is 0; set ray"),
    ("model: {offload: true, device: cpu}", "model.offload has no use with model.device=cpu; it brings weights from main"),
    ("executor: local\nmodel: {offload: true, compile: true}", "model.offload has no use with model.compile=true; it has not"),
    ("executor: local\nmodel: {offload: true, autocast: bfloat16}", "autocast keeps a copy of each weight; give a half-prec"),
    ("ray: {num_gpus_per_actor: 2}\nmodel: {compile: true}", "num_gpus_per_actor=2 spreads the layers over GPUs"),
    ("model: {path: " + "a" * 300 + "}", "model.path: the path has 300 bytes, its longest name 300; at most"),
    ("data: {path: " + "a/" * 3000 + "}", "data.path: the path has 6000 bytes"),
    ("prompt: {start_from: ~nobody.such/run}", "prompt.start_from: the path begins with ~, but there is no such user"),
    ("ray: {group_timeout_seconds: 1.0e+300}", "must be at most 1000000000"),
    ("layers: {choose: all, score: naswot}", "layers.score has no use with layers.choose=all; it is a key of score"),
]  # fmt: skip


@pytest.mark.parametrize(("text", "expected"), MISTAKES, ids=[text.replace("\n", " ")[:50] for text, _ in MISTAKES])
def test_a_mistake_is_answered_with_one_sentence_that_names_the_file(tmp_path, text, expected):
    path = tmp_path / "bad.yaml"
    path.write_text(text)
    with pytest.raises(ConfigError) as caught:
        read_config(path)
    sentence = str(caught.value)
    assert expected in sentence
    assert str(path) in sentence
    assert "\n" not in sentence
    assert len(sentence) < 600


OVERRIDE_MISTAKES = [
    ("rounds", "must look like key=value"),
    ("=3", "must look like key=value"),
    ("rounds=[", "is not valid YAML"),
    ("rounds.x=3", "sets a key inside rounds"),
    ("client.optimizer.lrr=3", "did you mean 'client.optimizer.lr'?"),
    ("rounds=" + "[" * 2000, "it is nested more than 20 deep"),
    ("rounds=\x00", "is not allowed in YAML"),
    ("output=\udce9", "is not valid text in this system's encoding"),
    ("executor=local #2", "(did you mean 'local'?)"),
    ("roudns=[", "did you mean 'rounds'?"),
    ("data.task={name: x", "is not valid YAML"),
    ("partition.clients=5", "override 'partition.clients=5': sampling.clients_per_round=10"),
]


@pytest.mark.parametrize(("override", "expected"), OVERRIDE_MISTAKES)
def test_a_mistake_in_an_override_names_the_override(tmp_path, override, expected):
    path = tmp_path / "good.yaml"
    path.write_text("rounds: 3\nsampling: {clients_per_round: 10}")
    with pytest.raises(ConfigError) as caught:
        read_config(path, [override])
    assert expected in str(caught.value)
    assert repr(override)[:70] in str(caught.value)
    assert len(str(caught.value)) < 600


OWN = "data.task={name: mood, fields: [text], labels: [sad, glad], label_words: [terrible, great]}"
GROUP_MISTAKES = [
    (["data.path=here", OWN, "data.holdout=0.2", "data.validation_file=dev.csv"], {2, 3}),
    (["data.path=here", OWN, "data.task.labels=[0, 0.0]"], {2}),
    (["data.path=here", OWN, "data.task.label_words=[terrible]"], {2}),
]


@pytest.mark.parametrize(("overrides", "guilty"), GROUP_MISTAKES)
def test_a_mistake_of_keys_together_is_not_blamed_on_another_key_of_their_section(tmp_path, overrides, guilty):
    path = tmp_path / "good.yaml"
    path.write_text("rounds: 3\n")
    with pytest.raises(ConfigError) as caught:
        read_config(path, overrides)
    assert any(str(caught.value).startswith(f"override {overrides[number]!r}") for number in guilty)


@pytest.mark.parametrize(("given", "quoted"), [("true", '"true"'), ("1e3", '"1000.0"')])
def test_a_word_that_yaml_takes_for_something_else_is_told_to_be_quoted(tmp_path, given, quoted):
    path = tmp_path / "words.yaml"
    path.write_text(f"data:\n  task: {{name: x, fields: [t], labels: [a, b], label_words: [{given}, c]}}\n")
    with pytest.raises(ConfigError, match="must be a word or text or a list; to make it text, quote it: ") as caught:
        read_config(path)
    assert quoted in str(caught.value).replace("\\", "")


@pytest.mark.parametrize(
    ("asked", "meant"),
    [
        ("quickstrat.yaml", "quickstart.yaml"),
        ("quickstart.yml", "quickstart.yaml"),
        ("fedits.yaml", "methods/fedit"),
        ("folder/quickstrat.yaml", "quickstart"),
        ("configs/quickstart.yaml", "quickstart"),
        ("folder/st.yaml", None),
        ("zzz.yaml", None),
    ],
)
def test_a_missing_file_names_the_nearest_of_its_folder_or_else_a_preset(tmp_path, monkeypatch, asked, meant):
    """By the names alone: that paths share their folders and their endings says nothing."""
    for name in ("quickstart.yaml", "folder/other.yaml"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).touch()
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ConfigError) as caught:
        read_config(asked)
    hint = f" (did you mean {meant!r}?)" if meant else ""
    assert str(caught.value) == f"there is no config file {asked}{hint}"


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3),
    max_leaves=6,
)


@given(st.dictionaries(st.sampled_from([name for name, _ in dotted_keys(Config)]), json_values, max_size=3))
def test_any_values_at_all_give_a_config_or_one_sentence(values):
    nested = {}
    for name, value in values.items():
        target = nested
        *parents, last = name.split(".")
        for parent in parents:
            if not isinstance(target.get(parent), dict):
                target[parent] = {}
            target = target[parent]
        target[last] = value
    try:
        build_config(nested)
    except FedsimError as error:
        assert "\n" not in str(error)


def test_sections_without_effect_are_no_part_of_a_runs_identity():
    """So a run of before there was such a section is continued, and a study finds its runs."""
    values = Config().identity_values
    assert not {"privacy", "buffer", "world", "compression"} & values.keys()
    assert Config(world={"devices": None}).identity == Config(compression={"up": {"kind": "none"}}).identity
    changed = [
        {"world": {"devices": {"slow_share": 0.5}}},
        {"compression": {"up": {"kind": "int8"}, "down": {"kind": "int8"}}},
    ]
    assert len({Config().identity, *(Config(server={"kind": "fedavg"}, **each).identity for each in changed)}) == 3

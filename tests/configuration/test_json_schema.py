"""The JSON Schema of configs and studies accepts what fedsim accepts, and refuses what it names wrong, at the same key."""

import json
import random

import jsonschema
import pytest
from support import ROOT
from test_uses import CASES

from benchmarks.fuzzing.configs import change_keys, one_key_cases
from benchmarks.fuzzing.values import group_at
from fedsim import register
from fedsim.configuration.json_schema import config_schema
from fedsim.configuration.overrides import parse_override
from fedsim.configuration.schema import Config, build_config
from fedsim.configuration.yaml_text import load
from fedsim.core import plugins
from fedsim.core.correction import Correction
from fedsim.core.errors import ConfigError, FedsimError
from fedsim.core.method import CORRECTIONS
from fedsim.core.schema import Schema
from fedsim.study.cells import read_study
from fedsim.study.json_schema import study_schema

STUDIES = sorted((ROOT / "configs" / "studies").glob("*.yaml"))
CONFIGS = sorted(
    set((ROOT / "configs").rglob("*.yaml")) - set(STUDIES) - {ROOT / "configs" / "cluster" / "rayjob.yaml"}
)


def validator(schema):
    jsonschema.Draft202012Validator.check_schema(schema)
    return jsonschema.Draft202012Validator(schema)


@pytest.fixture(scope="module")
def of_configs():
    return validator(config_schema())


@pytest.fixture(scope="module")
def of_studies():
    return validator(study_schema())


def complaints(check, values):
    return [".".join(map(str, error.absolute_path)) for error in check.iter_errors(values)]


def accepted(values):
    try:
        build_config(values)
    except FedsimError:
        return False
    return True


def test_every_shipped_file_passes(of_configs, of_studies):
    files = [(path, of_configs) for path in CONFIGS] + [(path, of_studies) for path in STUDIES]
    found = {path.name: complaints(check, load(path.read_text())) for path, check in files}
    assert len(found) > 25 and not {name: places for name, places in found.items() if places}


DAMAGED = {
    "roundz: 3": "",
    "client: {optimizer: {rate: 1}}": "client.optimizer",
    "rounds: 0": "rounds",
    "rounds: many": "rounds",
    "rounds: true": "rounds",
    "seed: -1": "seed",
    "executor: dask": "executor",
    "server: {kind: fedsgd}": "server.kind",
    "server: {kind: fedavg, beta2: 0.9}": "server.beta2",
    "server: {kind: fedadam, beta2: 1.5}": "server.beta2",
    "server: {trim_share: 0.1}": "server.trim_share",
    "client: {correction: none_such}": "client.correction",
    "client: {on_failure: retry}": "client.on_failure",
    "layers: {fixed: [1]}": "layers.fixed",
    "layers: {choose: fixed, fixed: [one]}": "layers.fixed",
    "privacy: {clip_norm: 0, noise_multiplier: 1}": "privacy.clip_norm",
    "tuner: {rank: 4}": "tuner.rank",
    "tuner: {kind: lora, rank: 0}": "tuner.rank",
    "tuner: {kind: lora}\nprompt: {length: 3}": "prompt.length",
    "compression: {up: {kind: zip}}": "compression.up.kind",
    "sampling: {draw: poisson}": "sampling.draw",
    "data: {task: {name: mine}}": "data.task",
    "partition: {kind: by_hand}": "partition.kind",
    "attack: {kind: noise, scale: 2}": "attack.scale",
    "ray: {num_gpus_per_actor: half}": "ray.num_gpus_per_actor",
    "params: {none_such: {x: 1}}": "params",
    "callbacks: print": "callbacks",
}


@pytest.mark.parametrize("text", DAMAGED)
def test_a_damaged_config_is_refused_by_both_at_its_key(of_configs, text):
    values = load(text)
    assert not accepted(values)
    assert complaints(of_configs, values) == [DAMAGED[text]]


@pytest.mark.parametrize(
    ("change", "place"),
    [
        ({"seeds": "three"}, "seeds"),
        ({"set": {"client.optimizer.lrr": 1}}, "set"),
        ({"set": {"rounds": 0}}, "set.rounds"),
        ({"arms": {"a": {"server.kind": "fedsgd"}}}, "arms.a"),
        ({"armz": {}}, ""),
    ],
)
def test_a_damaged_study_is_refused_by_both(of_studies, tmp_path, change, place):
    values = {"base": str(ROOT / "configs" / "quickstart.yaml"), "arms": {"a": None}, "seeds": 2}
    assert not complaints(of_studies, values)
    (tmp_path / "study.yaml").write_text(json.dumps({**values, **change}))
    with pytest.raises(ConfigError):
        read_study(tmp_path / "study.yaml").cells()
    assert complaints(of_studies, {**values, **change}) == [place]


def agreement(check, cases):
    """Count what both accept and refuse, and return what the schema refuses although fedsim accepts it."""
    counts, alarms = {True: 0, False: 0}, []
    for values in cases:
        try:
            values = json.loads(json.dumps(values, allow_nan=False))
        except (ValueError, TypeError, RecursionError):
            continue
        fine = accepted(values)
        counts[fine] += 1
        if fine and (places := complaints(check, values)):
            alarms.append((values, places))
    return counts, alarms


def single(name, value):
    values = {}
    *above, last = name.split(".")
    group_at(values, above)[last] = value
    return values


def drawn(number):
    rng = random.Random(number)
    return change_keys(load(rng.choice(CONFIGS).read_text()) if rng.random() < 0.5 else {}, rng)


@pytest.mark.parametrize("step", [pytest.param(1, marks=pytest.mark.wide), 47])
def test_what_fedsim_accepts_the_schema_accepts(of_configs, step):
    cases = [single(name, value) for name, value in one_key_cases()[::step]]
    odd = ({"": None}, {"server": {"": None}}, {"params": {"": None}})
    counts, alarms = agreement(of_configs, [*cases, *map(drawn, range(40))])
    assert counts[True] > 30 and counts[False] > 100
    assert not [alarm for alarm in alarms if alarm[0] not in odd and "1e400" not in str(alarm[0])]


def test_keys_without_a_use_are_refused_where_one_file_tells(of_configs):
    def values_of(overrides):
        values = {}
        for override in overrides:
            (*above, last), value = parse_override(override, Config)
            group_at(values, above)[last] = value
        return values

    told, alarms = 0, []
    for key, (gives, takes, value) in CASES.items():
        fine, useless = values_of([*gives, f"{key}={value}"]), values_of([*takes, f"{key}={value}"])
        alarms += complaints(of_configs, fine) if accepted(fine) else []
        told += bool(complaints(of_configs, useless))
    assert not alarms and told > 0.7 * len(CASES)


def test_a_plug_in_is_a_choice_with_its_keys():
    class Own(Correction):
        class Config(Schema):
            strength: float = 1.0
            """How much."""

    register("correction", "own_drift")(Own)
    try:
        check = validator(config_schema())
        values = {"client": {"correction": "own_drift"}, "params": {"own_drift": {"strength": 2}}}
        assert not complaints(check, values)
        values["params"]["own_drift"] = {"strenght": 2}
        assert len(complaints(check, values)) == 1
    finally:
        CORRECTIONS.discard("own_drift")
        plugins._loaded.pop("test_json_schema.py", None)

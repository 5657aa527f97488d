"""Configs made in Python: the same sentences as for files, and a text that reads back."""

import pickle
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from support import ROOT

from fedsim import Config
from fedsim.core.errors import ConfigError

CONFIGS = sorted(path for path in (ROOT / "configs").rglob("*.yaml") if "studies" not in path.parts)
QUICKSTART = ROOT / "configs" / "quickstart.yaml"


def readable() -> list[Path]:
    def is_config(path: Path) -> bool:
        return "rounds:" in path.read_text() and "kind: RayCluster" not in path.read_text()

    return [path for path in CONFIGS if is_config(path)]


@pytest.mark.parametrize("path", readable(), ids=lambda path: path.name)
def test_a_config_reads_back_from_its_text_and_its_repr(path):
    config = Config.read(path)
    assert Config.from_yaml(config.to_yaml()) == config
    assert Config.from_yaml(config.to_yaml(meanings=True)) == config
    assert eval(repr(config)) == config == pickle.loads(pickle.dumps(config))
    assert config.replace() == config
    assert Config.from_yaml(config.to_yaml()).identity == config.identity


def test_keywords_are_what_a_file_would_hold(tmp_path):
    path = tmp_path / "run.yaml"
    path.write_text("name: run\nrounds: 5\nclient: {optimizer: {lr: 0.01}}\nlayers: {choose: fixed, fixed: [1, 2]}\n")
    optimizer = {"lr": np.float64(0.01)}
    made = Config(
        name="run", rounds=np.int64(5), client={"optimizer": optimizer}, layers={"choose": "fixed", "fixed": (1, 2)}
    )
    assert made == Config.read(path)
    assert repr(made) == (
        "Config(name='run', rounds=5, layers={'choose': 'fixed', 'fixed': [1, 2]}, client={'optimizer': {'lr': 0.01}})"
    )
    assert Config(client=made.client, output=tmp_path) == Config(
        client={"optimizer": {"lr": 0.01}}, output=str(tmp_path)
    )


@given(st.integers(1, 9), st.integers(1, 9), st.floats(0.001, 1))
@settings(max_examples=10)
def test_changes_stand_in_place_of_overrides_and_those_of_the_file(rounds, epochs, lr):
    config = Config.read(QUICKSTART, ["rounds=77", "client.epochs=78"], rounds=rounds, client={"optimizer": {"lr": lr}})
    assert (config.rounds, config.client.epochs, config.client.optimizer.lr) == (rounds, 78, lr)
    other = config.replace(client={"epochs": epochs})
    assert (other.rounds, other.client.epochs, other.client.optimizer.lr) == (rounds, epochs, lr)
    assert config.client.epochs == 78 and config.name == "quickstart"


CIRCLE: list = []
CIRCLE.append(CIRCLE)


@pytest.mark.parametrize(
    ("make", "sentence"),
    [
        (lambda: Config(round=5), r"^Config: there is no key 'round' \(did you mean 'rounds'\?\)$"),
        (lambda: Config(rounds="5"), r'^Config: rounds is "5", but must be a whole number$'),
        (lambda: Config(client={"epochs": 0}), r"^Config: client.epochs is 0, but must be more than 0$"),
        (lambda: Config(client=3), r"^Config: client is 3, but must be a group of keys$"),
        (lambda: Config(rounds=CIRCLE), r"^Config: a config cannot hold these values"),
        (lambda: Config().replace(rounds=0), r"^Config.replace: rounds is 0, but must be more than 0$"),
        (lambda: Config().replace(rounds=CIRCLE), r"cannot hold these values"),
        (lambda: Config.read(QUICKSTART, rounds=0), r"^override 'rounds=0': rounds is 0, but must be more than 0$"),
        (lambda: Config.read(QUICKSTART, server={"kindd": "x"}), r"^override 'server.kindd=x': there is no key"),
        (lambda: Config.from_yaml("rounds: 0"), r"^config: rounds is 0"),
        (lambda: Config.from_yaml("- 1"), r"^the YAML text must hold keys and values"),
        (lambda: Config.from_yaml("a: [\n"), r"^the YAML text, line 2 is not valid YAML"),
        (
            lambda: Config(layers={"fixed": [1]}),
            r"^Config: layers.fixed has no use with layers.choose=score; it is a key of fixed",
        ),
    ],
)
def test_a_mistake_in_python_is_one_sentence_as_well(make, sentence):
    with pytest.raises(ConfigError, match=sentence) as caught:
        make()
    assert caught.value.__cause__ is None and "\n" not in str(caught.value)

"""Section ``server``: each kind has keys of its own, and no others."""

import pickle

import pytest

from fedsim.configuration.schema import build_config, read_config
from fedsim.configuration.text import config_text
from fedsim.core.errors import ConfigError
from fedsim.core.method import METHODS
from server.config import ServerConfig

COMMON = set(ServerConfig.model_fields)
BESIDE = {
    "fedbpt": {"client": {"optimizer": {"kind": "cma_es"}}, "tuner": {"kind": "soft_prompt", "projection": 9}},
}
"""What a kind needs in other sections."""


def with_server(**server):
    return build_config({"server": server, **BESIDE.get(server["kind"], {})})


@pytest.mark.parametrize("kind", METHODS)
def test_a_kind_has_its_own_keys_with_a_meaning_each_and_reads_back(kind, tmp_path):
    config = with_server(kind=kind)
    own = set(METHODS[kind].Config.model_fields)
    assert set(type(config.server).model_fields) == COMMON | own and {"lr", "lr_decay", "lr_min"} <= own
    assert all(field.description for field in type(config.server).model_fields.values())
    assert set(config.identity_values["server"]) == (COMMON | own) - config.server.useless
    (tmp_path / "config.yaml").write_text(config_text(config))
    again = read_config(tmp_path / "config.yaml")
    assert again.server == config.server and again.identity == config.identity
    assert type(pickle.loads(pickle.dumps(config.server))) is type(config.server)


@pytest.mark.parametrize("kind", METHODS)
def test_a_key_that_a_kind_lacks_is_refused_and_null_counts_as_not_given(kind):
    others = sorted(set(ServerConfig.keys_of_kinds()) - set(METHODS[kind].Config.model_fields))
    assert others or kind.startswith("fedpeptao")
    for key in others:
        value = ServerConfig.keys_of_kinds()[key].default
        with pytest.raises(ConfigError, match=rf"server\.{key}"):
            with_server(kind=kind, **{key: value})
        assert with_server(kind=kind, **{key: None}) == with_server(kind=kind)


def test_the_kinds_that_have_a_key_are_known():
    key, kinds = ServerConfig.kinds_with("momentum")
    assert key == "kind"
    assert set(kinds) == {"fedavgm", "fedadam", "fedyogi", "fedadagrad", "fedpeptao", "fedpeptao_published"}
    assert ServerConfig.kinds_with("beta2") == ("kind", ["fedadam", "fedyogi"])
    assert ServerConfig.kinds_with("momentun") == ("kind", [])


@pytest.mark.parametrize("word, value", [("server.momentum=0.25", 0.25), ("server.tau=1e-2", 0.01)])
def test_an_override_of_a_kinds_own_key_is_read_as_its_type(tmp_path, word, value):
    (tmp_path / "run.yaml").write_text("server:\n  kind: fedadam\n")
    server = read_config(tmp_path / "run.yaml", [word]).server
    assert getattr(server, word.split("=")[0].rpartition(".")[2]) == value


@pytest.mark.parametrize(
    "values, sentence",
    [
        (
            {"server": {"kind": "fedavgg"}},
            r"there is no server method 'fedavgg'; known are fedavg.* \(did you mean 'fedavg",
        ),
        ({"server": {"aggregation": "medan"}}, r"there is no robust rule 'medan'.* \(did you mean 'median'\?\)"),
        ({"client": {"correction": "proximl"}}, r"no local correction 'proximl'.* \(did you mean 'proximal'\?\)"),
        ({"attack": {"kind": "nois", "clients": 1}}, r"there is no attack 'nois'.* \(did you mean 'noise'\?\)"),
        ({"server": {"kind": "fedadam", "beta2": 1.5}}, r"server.beta2 is 1.5, but must be less than 1"),
    ],
)
def test_a_kind_that_there_is_not_is_answered_with_those_that_there_are(values, sentence):
    with pytest.raises(ConfigError, match=sentence):
        build_config(values)

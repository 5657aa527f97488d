"""Plug-ins that raise in a run, or return something else than they should: one sentence, wherever it happens."""

import pytest
from support import make_tiny, merged, sweep

import fedsim
from fedsim.core import plugins
from fedsim.core.errors import FedsimError

PLAIN = {"rounds": 1, "layers": {"choose": "all"}, "client": {"fuse": 2}, "server": {"kind": "fedavg"}}
LOCAL = {"executor": "local"}
FILE = """import fedsim
from fedsim.core.attack import Attack
from fedsim.core.correction import Correction
from fedsim.core.method import Method
from fedsim.core.robust import RobustRule

@fedsim.register("{kind}", "failing")
class Failing({base}):
    {body}
"""
USES = {
    "method": ("Method", {"server": {"kind": "failing"}}),
    "correction": ("Correction", {"client": {"correction": "failing"}}),
    "robust_rule": ("RobustRule", {"server": {"aggregation": "failing"}}),
    "attack": ("Attack", {"attack": {"kind": "failing", "clients": 12}}),
    "callback": ("fedsim.Callback", {"callbacks": ["failing"]}),
}
"""The base class of each kind, and what names it in a config."""
RAISED = r"the plug-in \S+failing\.py failed, line 9: "
CLIENT = r"^client \d+ failed in round 1 on \S+ "
CASES = {
    "a method raises": ("method", "def apply(self, state, combined): 1 / 0", f"^{RAISED}ZeroDivisionError: division by zero$"),
    "a method cannot start": ("method", "def init(self, vector_F): return vector_F.no", f"^{RAISED}AttributeError: "),
    "a method returns an array": ("method", "def apply(self, state, combined): return state.vector_F",
                                  r"^the server method Failing must return a ServerState of \d+ entries$"),
    "a correction raises": ("correction", "def gradient(self, local, gradient_CA): 1 / 0", f"{CLIENT}{RAISED}ZeroDivision"),
    "a rule raises": ("robust_rule", "def fit(self, vector_kF, weights_k, vector_F): return lambda v_kF, o_F: 1 / 0",
                      f"^{RAISED}ZeroDivisionError"),
    "a rule makes too few": ("robust_rule", "def fit(self, vector_kF, weights_k, vector_F): return lambda v_kF, o_F: o_F[1:]",
                                r"^the robust rule Failing must return one array of \d+ entries$"),
    "an attack raises": ("attack", "def labels(self, labels_N, num_classes): 1 / 0", f"^{RAISED}ZeroDivisionError"),
    "an attack sends nothing": ("attack", "def send(self, message, rng): pass",
                                CLIENT + r"the attack Failing must send a Message with \d+ entries$"),
    "a callback raises": ("callback", "def on_round(self, run, done): 1 / 0", f"^{RAISED}ZeroDivisionError"),
}  # fmt: skip


@pytest.fixture
def load(tmp_path):
    """Return a function that loads a case's plug-in and gives the config's values and the sentence."""

    def load(case):
        kind, body, sentence = CASES[case]
        base, values = USES[kind]
        path = tmp_path / "failing.py"
        path.write_text(FILE.format(kind=kind, base=base, body=body))
        plugins.load_plugin(path)
        return merged(PLAIN, values), sentence

    yield load
    plugins.unload("failing.py")


def check(values, sentence, folder):
    with pytest.raises(FedsimError, match=sentence) as caught:
        fedsim.run(make_tiny(**values, output=str(folder)), progress=False)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("case", CASES)
def test_it_is_one_sentence_in_this_process(load, tmp_path, case):
    values, sentence = load(case)
    check({**values, **LOCAL}, sentence, tmp_path / "run")


@pytest.mark.parametrize(
    "case", sweep(["a method raises", "a correction raises", "an attack raises"], ["a correction raises"])
)
def test_it_is_one_sentence_from_actors(session_ray, load, tmp_path, case):
    values, sentence = load(case)
    check({**values, "ray": {"address": "auto", "actors": 1}}, sentence, tmp_path / "run")

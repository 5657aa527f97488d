"""What would break the guarantee of a private run is refused, each by a sentence of its own."""

import pytest
from support import make_tiny, merged

from fedsim.core.errors import ConfigError

PRIVATE = {
    "privacy": {"clip_norm": 1.0, "noise_multiplier": 1.0},
    "server": {"kind": "fedavg", "weighting": "uniform"},
    "layers": {"choose": "all"},
    "partition": {"clients": 12, "holdout_fraction": 0.0},
}


def private(**changes):
    values = merged(PRIVATE, changes)
    if "projection" in values.get("tuner", {}):  # it trains at one place: there are no layers to choose
        del values["layers"]
    return make_tiny(**values)


SPECTRA = {"choose": "top", "share_rule": "density"}
BREAKS = {
    "control variates": ({"server": {"kind": "scaffold"}}, "correction=control also sums each client's control variate"),
    "common metric": ({"server": {"kind": "fedpeptao"}}, "averages them in a common metric"),
    "squared steps": (
        {"server": {"kind": "fedbpt"}, "client": {"optimizer": {"kind": "cma_es"}},
         "tuner": {"kind": "soft_prompt", "projection": 10}},
        r"server\.kind=fedbpt also sums each client's variance, squared steps; set",
    ),
    "nothing to be public": ({"privacy": {"public": ["start"]}}, r"names start, which has no use here: there is no start_from"),
    "one by one": ({"server": {"kind": "fedpeptao_published"}}, "takes clients one by one"),
    "exact LoRA": ({"tuner": {"kind": "lora", "exact": True}}, r"tuner\.exact=true needs each client's factors"),
    "robust rule": ({"server": {"aggregation": "median"}}, "aggregation=median reads each client's vector"),
    "example weights": ({"server": {"weighting": "examples"}}, r"set server\.weighting=uniform"),
    "attack": ({"attack": {"kind": "label_flip", "clients": 1}}, r"set attack\.kind=none"),
    "dropped clients": ({"client": {"on_failure": "drop"}}, r"set client\.on_failure=raise"),
    "draws by size": ({"sampling": {"kind": "by_size"}}, r"not by sampling\.kind=by_size"),
    "turns": ({"sampling": {"kind": "round_robin"}}, r"not by sampling\.kind=round_robin"),
    "deadline": ({"sampling": {"delay": {"seconds_per_example": 1.0, "deadline_seconds": 3.0}}}, "many examples is late"),
    "layer scores": ({"layers": {"choose": "score"}}, "computes scores from clients' examples"),
    "layer shares": ({"layers": SPECTRA}, "computes spectra of clients' losses"),
    "held-out examples": ({"partition": {"holdout_fraction": 0.1}}, r"set partition\.holdout_fraction=0"),
    "personalised metrics": ({"evaluation": {"personalised_every": 1}}, r"leave evaluation\.personalised_every out"),
    "personalised start": ({"evaluation": {"personalised_start": True}}, r"leave evaluation\.personalised_start out"),
    "stop by clients' examples": ({"evaluation": {"select_on": "holdout"}}, r"set evaluation\.select_on=validation"),
    "schedule over all data": (
        {"client": {"schedule": {"kind": "linear", "total_steps": "all_data"}}}, "how many examples all others have"
    ),
    "validation from clients": ({"data": {"validation_from_train": 0.2}}, r"privacy\.public=\[validation\]"),
    "start of unknown origin": ({"tuner": {"kind": "lora", "start_from": "x"}}, r"privacy\.public=\[start\]"),
    "shares of any number": (
        {"privacy": {"noise": "clients"}, "sampling": {"draw": "poisson"}}, "a cohort has any size"
    ),
    "devices": ({"world": {"devices": {"latency_seconds": 0.1}}}, "world.devices"),
    "shares behind a codec": (
        {"privacy": {"noise": "clients"}, "compression": {"up": {"kind": "int8"}}}, "would not travel compressed"
    ),
    "shares that do not come": ({"privacy": {"noise": "clients"}, "sampling": {"dropout": 0.1}}, "some do not come"),
    "bits that tell more": ({"privacy": {"adaptive": {"bit_noise": 0.5}}}, "the bits alone would tell more"),
    "no noise": ({"privacy": {"noise_multiplier": None}}, "needs noise_multiplier, or target_epsilon"),
}  # fmt: skip


@pytest.mark.parametrize("case", BREAKS)
def test_what_breaks_the_guarantee_is_refused_by_a_sentence(case):
    changes, sentence = BREAKS[case]
    with pytest.raises(ConfigError, match=sentence):
        private(**changes)


def test_the_same_runs_go_without_the_section():
    for case in ("control variates", "example weights", "held-out examples", "layer scores"):
        assert private(**BREAKS[case][0], privacy=None).privacy is None


@pytest.mark.parametrize(
    "changes",
    [
        *({"server": {"kind": kind}} for kind in ("fedavgm", "fedadam", "fedyogi", "fedadagrad", "fedprox", "feddyn")),
        {"layers": {"choose": "top", "unselected": "local"}},
        {"sampling": {"draw": "poisson", "dropout": 0.2}},
        {"privacy": {"noise": "clients"}},
        {"privacy": {"adaptive": {"bit_noise": 3.0}}},
        {"privacy": {"public": ["validation"]}, "data": {"validation_from_train": 0.2}},
        {"tuner": {"kind": "lora", "train": "alternate"}},
    ],
)
def test_what_does_not_break_it_goes(changes):
    assert private(**changes).sums_are_enough


def test_rounds_are_part_of_a_run_whose_noise_is_found_for_them():
    found = {"noise_multiplier": None, "target_epsilon": 8.0}
    assert private(rounds=2).identity == private(rounds=3).identity
    assert private(rounds=2, privacy=found).identity != private(rounds=3, privacy=found).identity

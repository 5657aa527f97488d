"""The share of layers that the clients ask for together, and which keys decide it."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from fedsim.configuration.schema import build_config
from fedsim.core.errors import ClientError, ConfigError
from fedsim.core.uses import EVERY_KEY
from server.config import LayersConfig
from server.selection import choose_layers, combine_shares, num_chosen


def test_shares_are_averaged_by_examples_or_plainly():
    assert combine_shares([0.2, 0.6], [30, 10], "examples") == pytest.approx(0.3)
    assert combine_shares([0.2, 0.6], [30, 10], "uniform") == pytest.approx(0.4)


SHARES = st.lists(st.tuples(st.floats(0, 1), st.integers(1, 500)), min_size=1, max_size=40)


@given(SHARES, st.sampled_from(["examples", "uniform"]))
def test_the_mean_lies_among_the_shares_and_chooses_at_least_one_layer(clients, weighting):
    shares, sizes = zip(*clients, strict=True)
    share = combine_shares(shares, sizes, weighting)
    assert min(shares) - 1e-12 <= share <= max(shares) + 1e-12 and 0.0 <= share <= 1.0
    assert 1 <= num_chosen(share, 24) <= 24


@pytest.mark.parametrize(
    ("shares", "sizes", "sentence"),
    [
        ([], [], "no client estimated its share"),
        ([0.5, np.nan], [1, 1], "of 1 of 2 clients"),
        ([1.2], [1], "from 0 to 1"),
    ],
)
def test_shares_that_cannot_be_combined(shares, sizes, sentence):
    with pytest.raises(ClientError, match=sentence):
        combine_shares(shares, sizes, "examples")


def test_shares_and_examples_must_fit():
    with pytest.raises(ValueError, match="do not fit"):
        combine_shares([0.5, 0.5], [1, 2, 3], "examples")


def test_an_estimated_share_takes_the_place_of_the_configured_one():
    scores_L = np.array([3.0, 9.0, 1.0, 9.0, 5.0, 0.0])
    config = LayersConfig.model_validate({"share": 1.0, "share_rule": "density"}, context=EVERY_KEY)
    assert choose_layers(config, 6, scores_L, 0, 0.34) == (1, 3, 4)
    assert choose_layers(config, 6, scores_L, 0, 0.0) == (1,)
    assert choose_layers(config, 6, scores_L, 0) == (0, 1, 2, 3, 4, 5)


@pytest.mark.parametrize("rule", ["density", "eigengap"])
@pytest.mark.parametrize("choose", [{"choose": "all"}, {"choose": "fixed", "fixed": [0, 1]}])
def test_a_rule_that_has_nothing_to_decide_is_refused(rule, choose):
    with pytest.raises(ConfigError, match=f"layers.share_rule has no use with layers.choose={choose['choose']}"):
        build_config({"layers": {"share_rule": rule, **choose}})


def test_spectrum_keys_are_checked():
    with pytest.raises(ConfigError, match=r"layers\.spectrum\.warmup_rounds is 0"):
        build_config({"layers": {"share_rule": "density", "spectrum": {"warmup_rounds": 0}}})
    with pytest.raises(ConfigError, match=r"share_rule.*must be one of fixed, density, eigengap"):
        build_config({"layers": {"share_rule": "densty"}})

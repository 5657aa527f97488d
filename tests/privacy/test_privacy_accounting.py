"""Epsilon against what the papers' formulas give."""

import math

import pytest

pytest.importorskip("dp_accounting")

from privacy.oracles import ORDERS, epsilon_of_divergences, fixed_divergences, poisson_divergence, poisson_epsilon

from fedsim.core.errors import ConfigError
from server.config import SamplingConfig
from server.privacy.accounting import Accounting, Draws
from server.privacy.config import PrivacyConfig
from server.privacy.plan import PrivacyPlan

DELTA = 1e-5
FIXED, POISSON = Draws(False, 10, 100), Draws(True, 10, 100)


@pytest.mark.parametrize(("multiplier", "known"), [(1.0, 83.937), (2.0, 14.054)])
def test_fixed_cohorts_by_renyi_divergences_of_what_a_replaced_client_changes(multiplier, known):
    """Noise by clipping norm, where a replaced client changes twice that norm: 83.9 for 1, and 14.05 for 1 by 2 C."""
    oracle = [100 * r for r in fixed_divergences(0.1, multiplier / 2, ORDERS)]
    epsilon = Accounting(FIXED, "rdp", multiplier, DELTA).epsilon(100)
    assert epsilon == pytest.approx(epsilon_of_divergences(oracle, ORDERS, DELTA), abs=1e-3)
    assert epsilon == pytest.approx(known, abs=1e-3)


def test_poisson_cohorts_by_renyi_divergences():
    """Exact at whole orders; between them dp-accounting adds terms that alternate as if all were positive: a bound as well."""
    accounting = Accounting(POISSON, "rdp", 1.0, DELTA)
    exact = {order: poisson_divergence(0.1, 1.0, order) for order in ORDERS}
    for order, divergence in zip(*accounting._divergences, strict=True):
        if order in exact and float(order).is_integer():
            assert divergence == pytest.approx(exact[order], rel=1e-6)
    least, most = (
        epsilon_of_divergences([100 * exact[order] for order in orders], orders, DELTA)
        for orders in (ORDERS, [order for order in ORDERS if float(order).is_integer()])
    )
    assert least <= accounting.epsilon(100) <= most and accounting.epsilon(100) < least + 0.01
    assert accounting.epsilon(100) == pytest.approx(7.904, abs=1e-3)


@pytest.mark.parametrize(("rounds", "known"), [(1, 1.685), (100, 7.047)])
def test_poisson_cohorts_by_privacy_loss_distributions(rounds, known):
    epsilon = Accounting(POISSON, "pld", 1.0, DELTA).epsilon(rounds)
    assert epsilon == pytest.approx(poisson_epsilon(0.1, 1.0, rounds, DELTA), abs=1e-3)
    assert epsilon == pytest.approx(known, abs=1e-3)


@pytest.mark.parametrize(("poisson", "sensitivity"), [(False, 2), (True, 1)])
def test_everybody_in_every_round_is_the_gaussian_itself(poisson, sensitivity):
    """Balle and Wang 2018, theorem 8."""

    def delta_of(epsilon, sigma):
        def cdf(x):
            return 0.5 * math.erfc(-x / math.sqrt(2))

        ahead = cdf(1 / (2 * sigma) - epsilon * sigma)
        return ahead - math.exp(epsilon) * cdf(-1 / (2 * sigma) - epsilon * sigma)

    draws = Draws(poisson, 10, 10)
    accounting = Accounting(draws, draws.accountant("auto"), 4.0, DELTA)
    assert delta_of(accounting.epsilon(9), 4.0 / sensitivity / 3.0) == pytest.approx(DELTA, rel=1e-3)


def test_epsilon_grows_with_rounds_and_falls_with_noise():
    for draws, kind in ((FIXED, "rdp"), (POISSON, "rdp"), (POISSON, "pld")):
        spent = [Accounting(draws, kind, 1.0, DELTA).epsilon(rounds) for rounds in (0, 1, 2, 30)]
        assert spent[0] == 0 and spent == sorted(spent) and len(set(spent)) == 4
        assert Accounting(draws, kind, 1.5, DELTA).epsilon(30) < spent[-1]


def plan(draw="fixed", population=100, rounds=100, **keys):
    privacy = PrivacyConfig(clip_norm=1.0, **keys)
    return PrivacyPlan.of(privacy, SamplingConfig(draw=draw, clients_per_round=10), population, rounds, 0)


@pytest.mark.parametrize(("draw", "adaptive"), [("fixed", {"bit_noise": 5.0}), ("poisson", None)])
def test_the_noise_that_is_found_is_the_least_for_its_target(draw, adaptive):
    found = plan(draw, target_epsilon=8.0, adaptive=adaptive)
    given = found.mechanism.noise_multiplier
    assert 7.99 < found.accounting.epsilon(100) <= 8.0
    again = plan(draw, noise_multiplier=given, adaptive=adaptive)
    assert again.accounting.epsilon(100) == found.accounting.epsilon(100)
    less = plan(draw, noise_multiplier=given * 0.999, adaptive=adaptive)
    assert less.accounting.epsilon(100) > 8.0


def test_bits_and_sum_together_tell_as_much_as_the_effective_noise():
    """Andrew et al. 2021, theorem 1: z_delta = (z^-2 - (2 s)^-2)^-1/2."""
    accounting = plan(noise_multiplier=1.5, adaptive={"bit_noise": 1.0}).accounting
    z = accounting.effective_multiplier
    assert (z**-2 - 2.0**-2) ** -0.5 == pytest.approx(1.5)
    assert accounting.epsilon(5) == pytest.approx(Accounting(FIXED, "rdp", z, DELTA).epsilon(5))


def test_what_an_accountant_cannot_do_is_said():
    with pytest.raises(ConfigError, match=r"privacy\.accountant=pld has no bound for cohorts of a fixed size"):
        plan(noise_multiplier=1.0, accountant="pld")
    with pytest.raises(ConfigError, match=r"bit_noise is 0\.5, but the noise asked for needs more than"):
        plan("poisson", target_epsilon=4.0, adaptive={})
    told = plan("poisson", target_epsilon=0.003, accountant="rdp")
    assert "Rényi accounting asks for far more noise" in told.notes[0] and "accountant=auto" in told.notes[0]
    tight = plan("poisson", target_epsilon=0.003)
    assert not tight.notes and tight.mechanism.noise_multiplier * 50 < told.mechanism.noise_multiplier
    assert "is not below 1 / 100 clients" in plan(noise_multiplier=1.0, delta=0.02).notes[0]


def test_without_the_package_a_sentence_says_what_to_install(monkeypatch):
    monkeypatch.setattr("server.privacy.accounting.find_spec", lambda name: None)
    with pytest.raises(ConfigError, match=r'pip install "fedsim\[privacy\]"'):
        plan(noise_multiplier=1.25)

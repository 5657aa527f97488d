"""A run's privacy: its plan from the config, and what it has spent."""

from __future__ import annotations

from fedsim.configuration.schema import Config
from fedsim.core.errors import ConfigError
from server.privacy.plan import PrivacyPlan


def privacy_plan(config: Config) -> PrivacyPlan | None:
    """Return what makes a run private, None if nothing does; quick when asked again.

    Parameters
    ----------
    config
        With its number of clients. Each of them holds examples, so each can be drawn: held-out ones are refused.

    Raises
    ------
    ConfigError
        If the noise cannot be found, a single round is above ``stop.epsilon``, or dp-accounting is not installed.
    """
    if config.privacy is None:
        return None
    plan = PrivacyPlan.of(config.privacy, config.sampling, config.partition.population, config.rounds, config.seed)
    limit, first = config.stop.epsilon, plan.accounting.epsilon(1)  # loads the library before the first round
    if limit is not None and first > limit:
        raise ConfigError(
            f"stop.epsilon={limit:g} is less than a single round spends, {first:.4g}; raise it, or privacy.noise_multiplier"
        )
    return plan

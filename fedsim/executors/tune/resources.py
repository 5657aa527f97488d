"""What a search has beside its trainable: callbacks, and what a trial reserves for its own process, or for its actors."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from fedsim.core.errors import ConfigError, FedsimError

if TYPE_CHECKING:
    from fedsim.configuration.schema import Config


def resources(config: Config | str | Path) -> Any:
    """Return the ``ray.tune.PlacementGroupFactory`` of a trial of this config.

    With ``executor=local`` or ``ray.actors=pool`` a trial is one process that does the whole run; with a number of actors it
    is a driver without resources and a bundle for each actor. Results have the same bits either way.

    Parameters
    ----------
    config
        A config, or the path of one.

    Raises
    ------
    FedsimError
        If Tune is not installed, or the number of actors is not known.
    """
    config = as_config(config)
    cpus = float(config.client.threads) if config.ray.num_cpus_per_actor is None else config.ray.num_cpus_per_actor
    bundle = {"CPU": cpus, **({"GPU": share} if (share := config.ray.num_gpus_per_actor) else {})}
    factory = imported_tune().PlacementGroupFactory
    actors = num_actors(config)
    selector = config.ray.selector
    # Tune leaves out an empty first bundle, so that labels are those of the others.
    labels = {"bundle_label_selector": [selector] * (actors or 1)} if selector else {}
    return factory([bundle], **labels) if actors is None else factory([{}] + [bundle] * actors, **labels)


def callbacks() -> list[Any]:
    """Return callbacks for the ``ray.tune.RunConfig`` of a search whose trials may start again.

    They keep rows that Tune would lose then: its logger goes on with a copy of its log that is ten seconds old or more.

    Raises
    ------
    FedsimError
        If Tune is not installed.
    """
    imported_tune()
    from fedsim.executors.tune.logs import WholeLogs

    return [WholeLogs()]


def num_actors(config: Config) -> int | None:
    """Return how many actors a trial has; None if its own process does the work."""
    if config.executor == "local" or config.ray.actors == "pool":
        return None
    if config.ray.actors != "per_client":
        return config.ray.actors
    if config.partition.clients is None:
        raise ConfigError(
            "how many actors a trial with ray.actors=per_client needs is not known before its data are read; set "
            "partition.clients, or ray.actors to a number"
        )
    return config.partition.population


def as_config(config: Config | str | Path) -> Config:
    """Return the config, read if a path is given."""
    from fedsim.configuration.schema import Config, read_config

    return config if isinstance(config, Config) else read_config(config)


def imported_tune() -> Any:
    """Return :mod:`ray.tune`.

    Raises
    ------
    FedsimError
        If it cannot be imported.
    """
    try:
        import ray.tune
    except ImportError as error:
        raise FedsimError(f'Ray Tune cannot be imported ({error}); pip install "fedsim[tune]"') from None
    return ray.tune

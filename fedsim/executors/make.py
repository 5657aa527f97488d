"""Create the executor for a config."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from typing import TYPE_CHECKING

from fedsim.executors.about import About
from fedsim.executors.base import Executor
from fedsim.executors.cluster import local_cluster

if TYPE_CHECKING:
    from fedsim.configuration.schema import Config

_NATIVE_HANDLERS_OFF = "RAY_DISABLE_FAILURE_SIGNAL_HANDLER"


def make_executor(config: Config, check: Callable[[], None], note: Callable[[str], None], done: int = 0) -> Executor:
    """Return the config's executor, not yet started; ``done`` rounds of the run are done."""
    if config.model.trust_remote_code:
        note(
            f"warning: model.trust_remote_code=true: Python code that comes with {config.model.location} is run on this "
            "machine if its tokenizer asks for it"
        )
    if config.executor == "local":
        from fedsim.executors.local import LocalExecutor

        return LocalExecutor(check, config.ray.num_gpus_per_actor)
    if config.ray.address is None and "ray" not in sys.modules:
        local_cluster.secure()
    _import_ray()
    from fedsim.executors.ray.executor import RayExecutor
    from fedsim.executors.ray.replaced import replaced_functions, warning

    if replaced := replaced_functions():
        note(warning(replaced))

    client, population = config.client, config.partition.population
    seen = About.of(config, done), config.name or "run", _actor_bytes(config)
    return RayExecutor(config.ray, client.threads, population, client.on_failure, check, note, *seen)


def _actor_bytes(config: Config) -> int | None:
    """Return the main memory that an actor is expected to need; None if the model's files do not tell, or nobody asks."""
    if config.ray.address is None or config.ray.memory == "none":
        return None
    from fedsim.data.tasks import resolve_task
    from fedsim.planning.memory import estimate_memory
    from fedsim.planning.model_shape import model_shape

    shape = model_shape(config.model)
    return (
        None
        if shape is None
        else estimate_memory(config, shape, None, resolve_task(config.data.task).num_classes).actor
    )


def _import_ray() -> None:
    """Import Ray without its native signal handlers, which would kill this process before it can save and stop.

    Ray reads the setting on import. Its actors keep their handlers: their output explains a crash.
    """
    if "ray" in sys.modules or _NATIVE_HANDLERS_OFF in os.environ:
        return
    os.environ[_NATIVE_HANDLERS_OFF] = "1"
    try:
        import ray  # noqa: F401
    finally:
        del os.environ[_NATIVE_HANDLERS_OFF]

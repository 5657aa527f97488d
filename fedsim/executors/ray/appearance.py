"""How a run appears to others on its cluster: names and labels of its actors, its metrics, and where it is found.

On a joined cluster actors have names in a namespace of the run: ``fedsim/RUN/client-0``, ``fedsim/RUN/server``. An actor that
takes the place of another is numbered anew (``client-0.2``), since Ray frees a name only some time after its actor's end. A
local cluster has neither dashboard nor guests, so actors there have no names: each would cost its start a round trip.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import ray

from fedsim.core.errors import ResourceError
from fedsim.executors.about import About, submission
from fedsim.executors.cluster.connect import connect
from fedsim.executors.config import RayConfig

if TYPE_CHECKING:
    from fedsim.executors.ray.metrics import RunMetrics


class Appearance:
    """Connects a run to Ray, and says what its actors are called there.

    Parameters
    ----------
    about
        The run.
    """

    def __init__(self, config: RayConfig, about: About) -> None:
        self._config = config
        self._about = about
        self._made: Counter[str] = Counter()
        self.metrics: RunMetrics | None = None
        """The driver's metrics, if Ray exports any."""
        self.found: dict[str, Any] | None = None
        """Where the run is found in Ray, for its summary; known once it has joined."""

    def identify(self, config_hash: str) -> None:
        """Give the run its configuration's hash; only before :meth:`join`."""
        self._about = replace(self._about, config_hash=config_hash)

    def join(self, data_bytes: int) -> bool:
        """Connect to Ray; return whether this process was connected here. See :func:`fedsim.executors.cluster.connect.connect`.

        Raises
        ------
        ResourceError
            Also if metrics are asked for and this Ray exports none.
        """
        connected = connect(self._config, data_bytes, self._about)
        wanted = self._config.metrics is True or (self._config.metrics == "auto" and self._named)
        try:
            exported = self._begin_metrics() if wanted else []
        except ResourceError:
            if connected:
                ray.shutdown()
            raise
        self.found = {
            "job_id": ray.get_runtime_context().get_job_id(),
            "submission_id": submission(),
            "namespace": self._about.namespace if self._named else None,
            "run_id": self._about.run_id,
            "metrics": exported,
        }
        return connected

    def _begin_metrics(self) -> list[str]:
        """Begin to export metrics if this Ray does; return where."""
        from fedsim.executors.ray.metrics import RunMetrics, endpoints  # most runs have a Ray of their own, and none

        exported = endpoints()
        if exported:
            self.metrics = RunMetrics(self._about.tags, self._about.rounds, self._about.done)
        elif self._config.metrics is True:
            raise ResourceError(
                "ray.metrics=true, but this Ray exports no metrics: no node has a metrics port; set ray.metrics=auto"
            )
        return exported

    def close(self) -> None:
        """Show nothing any more; call before this process leaves Ray."""
        if self.metrics is not None:
            self.metrics.close()
            self.metrics = None

    @property
    def _named(self) -> bool:
        return self._config.address is not None

    def actor(self, role: str, holds: str = "") -> tuple[dict[str, Any], dict[str, Any]]:
        """Return options and arguments that show what a new actor is.

        Parameters
        ----------
        role
            What it is within the run, such as ``client-0``; one that had this role before is gone.
        holds
            What it holds, in a few words.
        """
        self._made[role] += 1
        if self._made[role] > 1:
            role = f"{role}.{self._made[role]}"
        about = self._about
        options = {"name": f"{about.prefix}/{role}", "namespace": about.namespace} if self._named else {}
        label = f"{about.prefix}/{role}" + (f": {holds}" if holds else "")
        metrics = None if self.metrics is None else self.metrics.of_actor(role)
        return options, {"label": label, "metrics": metrics}

    def client(self, slot: int, num_cpus: float, num_gpus: float) -> tuple[dict[str, Any], dict[str, Any]]:
        """Return the same for the client actor in a slot."""
        needs = [f"{num_cpus:.4g} CPU"] + ([f"{num_gpus:.4g} GPU"] if num_gpus else [])
        return self.actor(f"client-{slot}", ", ".join(filter(None, [self._about.model, *needs])))

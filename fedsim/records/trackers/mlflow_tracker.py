"""MLflow: a tracking server, a database, or a folder."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from fedsim.core.errors import ConfigError
from fedsim.records.events import plain
from fedsim.records.trackers.base import Status, TrackedRun, Tracker, flat, needs, numbers, scalars
from fedsim.records.trackers.config import MlflowConfig

if TYPE_CHECKING:
    from mlflow import MlflowClient

_STATUS = {"finished": "FINISHED", "stopped": "KILLED", "failed": "FAILED"}
_LONGEST_PARAM = 500
_AT_ONCE = 100
"""Params that one request may hold."""

T = TypeVar("T")


class MlflowTracker(Tracker):
    """Logs by MLflow's client, without the active run that ``mlflow.start_run`` keeps for a whole process."""

    def __init__(self, config: MlflowConfig) -> None:
        super().__init__()
        self._config = config
        self._client: MlflowClient | None = None
        self._id = ""
        """The run's id in the store, once it has begun there."""
        self._steps: dict[str, int] = {}
        """Last step of each metric that the store already has."""

    @property
    def _uri(self) -> str:
        return self._config.uri or os.environ.get("MLFLOW_TRACKING_URI", "")

    def check(self) -> None:
        """Refuse to start without the package, or without a store."""
        needs("mlflow", "mlflow", "tracking.mlflow")
        if not self._uri:
            raise ConfigError(
                "tracking.mlflow.uri is missing, and MLFLOW_TRACKING_URI is not set; give a tracking server, such as "
                "http://localhost:5000, or a folder"
            )

    def start(self, run: TrackedRun, config: Mapping[str, Any], resumed: str | None) -> str:
        """Begin a run, or continue one by its id."""
        client = self._connected()
        if not self._id and resumed is None:
            tags = {f"fedsim.{key}": value for key, value in run.about.items()}
            tags |= {"fedsim.group": run.group} if run.group else {}
            created = client.create_run(self._experiment(client), run_name=run.name, tags=tags)
            self._id = str(created.info.run_id)
        elif not self._id and resumed is not None:
            client.update_run(resumed, status="RUNNING")
            self._id = resumed
        found = client.get_run(self._id).data
        self._steps = {name: self._last_step(client, name) for name in found.metrics}
        self._log_config(client, config, found.params)
        return self._id

    def _connected(self) -> MlflowClient:
        uri = self._uri
        if "://" not in uri and uri != "databricks":
            uri = Path(uri).expanduser().absolute().as_uri()
        if uri.startswith("file:"):
            # MLflow 3 refuses folders unless it is told that one is meant; the config says so.
            os.environ.setdefault("MLFLOW_ALLOW_FILE_STORE", "true")
        from mlflow import MlflowClient

        if self._client is None:
            self._client = MlflowClient(tracking_uri=uri)
        return self._client

    def _experiment(self, client: MlflowClient) -> str:
        from mlflow.exceptions import MlflowException

        name = self._config.experiment
        found = client.get_experiment_by_name(name)
        if found is not None:
            return str(found.experiment_id)
        try:
            return str(client.create_experiment(name))
        except MlflowException:  # by another run in the meantime
            found = client.get_experiment_by_name(name)
            if found is None:
                raise
            return str(found.experiment_id)

    def _last_step(self, client: MlflowClient, name: str) -> int:
        return max((metric.step for metric in client.get_metric_history(self._id, name)), default=-1)

    def _log_config(self, client: MlflowClient, config: Mapping[str, Any], known: Mapping[str, str]) -> None:
        from mlflow.entities import Param

        # MLflow never changes a param: what a resume changed, such as rounds, is in the file.
        params = [
            Param(key, (value if isinstance(value, str) else json.dumps(value))[:_LONGEST_PARAM])
            for key, value in flat(config)
            if key not in known
        ]
        for some in _portions(params, _AT_ONCE):
            client.log_batch(self._id, params=some)
        client.log_dict(self._id, dict(config), "config.yaml")

    def round(self, record: Mapping[str, Any]) -> None:
        """Log a round's numbers, those that the store does not have yet."""
        step = int(record["round"])
        self._log(scalars(record), step)

    def _log(self, values: Mapping[str, float], step: int) -> None:
        from mlflow.entities import Metric

        now = int(time.time() * 1000)
        new = {name: value for name, value in values.items() if step > self._steps.get(name, -1)}
        assert self._client is not None
        if new:
            self._client.log_batch(self._id, metrics=[Metric(name, value, now, step) for name, value in new.items()])
            self._steps |= dict.fromkeys(new, step)

    def picture(self, name: str, path: Path) -> None:
        """Log a picture."""
        self._file(path, "plots")

    def artifact(self, path: Path) -> None:
        """Log a file."""
        self._file(path, "prompt")

    def _file(self, path: Path, folder: str) -> None:
        assert self._client is not None
        self._client.log_artifact(self._id, str(path), folder)

    def finish(self, summary: Mapping[str, Any], status: Status) -> None:
        """Log the summary and end the run."""
        assert self._client is not None
        if summary:
            self._log(numbers(plain(summary)), int(summary.get("rounds") or 0))
            self._client.log_dict(self._id, plain(summary), "summary.json")
        self._client.set_tag(self._id, "fedsim.status", status)
        self._client.set_terminated(self._id, _STATUS[status])


def _portions(items: Sequence[T], size: int) -> Iterator[Sequence[T]]:
    for first in range(0, len(items), size):
        yield items[first : first + size]

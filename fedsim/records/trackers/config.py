"""The section ``tracking``: what a run records besides its events and tables, and who else is told of it."""

from __future__ import annotations

from typing import Annotated, ClassVar, Literal
from urllib.parse import urlsplit

from pydantic import AfterValidator, Field, PositiveFloat, field_validator

from fedsim.core.registry import known_name
from fedsim.core.schema import PathText, Schema
from fedsim.core.uses import Use, Uses


class WandbConfig(Schema):
    """Weights & Biases. Its API key comes from ``wandb login`` or WANDB_API_KEY, never from a config."""

    project: str = Field(default="fedsim", min_length=1, max_length=128)
    """Project that the run belongs to."""
    entity: str | None = None
    """User or team; if not given, the account's default."""
    mode: Literal["online", "offline"] | None = None
    """online, or offline (files in the run folder, for ``wandb sync``); if not given, WANDB_MODE, or else online."""
    tags: tuple[str, ...] = ()
    """Tags of the run."""


class MlflowConfig(Schema):
    """MLflow. Credentials come from MLFLOW_TRACKING_USERNAME and the like, never from a config."""

    uri: PathText | None = None
    """Tracking server (http://HOST:5000), database (sqlite:///mlflow.db, needs the whole package mlflow) or folder; if not
    given, MLFLOW_TRACKING_URI."""
    experiment: str = Field(default="fedsim", min_length=1, max_length=500)
    """Experiment that the run belongs to; made if there is none of that name."""

    @field_validator("uri")
    @classmethod
    def _no_password(cls, uri: str | None) -> str | None:
        try:
            password = urlsplit(uri or "").password
        except ValueError as error:
            raise ValueError(f"the URL is malformed: {error}") from None
        if password:
            raise ValueError(
                "the URL contains a password, which would be recorded with the run; set MLFLOW_TRACKING_USERNAME and "
                "MLFLOW_TRACKING_PASSWORD instead"
            )
        return uri


def _of_plugin(name: str) -> str:
    """Refuse trackers that are no plug-ins; imported late, since registries need plug-ins' modules only where one is named."""
    from fedsim.records.trackers.base import BUILT_IN

    if name in BUILT_IN:
        raise ValueError(f"trackers is for those of plug-ins; {name} has a key of its own, tracking.{name}")
    return name


class TrackingConfig(Schema):
    """What a run records besides ``metrics.jsonl``, ``rounds.parquet`` and ``summary.json``, and who else is told of it."""

    plots: bool = True
    """At the end of the run, draw plots (metric by round and by traffic, loss, label distribution, layer scores) and write the
    page ``report.html``."""
    page_every_seconds: Annotated[float, Field(ge=1.0, le=1e6)] | None = 30.0
    """Write the page while the run goes on too, at most this often, and let browsers load it again; null: at the end alone.
    Pages take at most 2 % of a run's time."""
    client_records: bool = True
    """Write ``clients.parquet``: one row for each client and round, and with simulated devices ``visits.parquet``."""
    tensorboard: bool = False
    """Write TensorBoard events to the run folder; needs ``pip install "fedsim[tensorboard]"``."""
    wandb: WandbConfig | None = None
    """Weights & Biases ({} for its defaults), or null; needs ``pip install "fedsim[wandb]"``."""
    mlflow: MlflowConfig | None = None
    """MLflow ({} for its defaults), or null; needs ``pip install "fedsim[mlflow]"``."""
    trackers: tuple[
        Annotated[str, AfterValidator(_of_plugin), known_name("fedsim.records.trackers.base:TRACKERS")], ...
    ] = ()
    """Trackers of plug-ins (docs/tracking.md), by name."""
    group: str | None = Field(default=None, min_length=1, max_length=128)
    """Name that trackers show several runs under; in a study, if not given, the name of the study."""
    flush_seconds: PositiveFloat = 60.0
    """How long the end of a run waits until trackers have everything."""

    uses: ClassVar[Uses] = {
        "page_every_seconds": (Use("plots", (True,), words="it is for runs with plots"),),
        **dict.fromkeys(
            ("group", "flush_seconds"),
            (
                Use(
                    "names",
                    test=bool,
                    by="trackers",
                    words="it is for runs that tensorboard, wandb, mlflow or a plug-in track",
                ),
            ),
        ),
    }

    @property
    def names(self) -> tuple[str, ...]:
        """Names of all trackers of the run."""
        own = {"tensorboard": self.tensorboard, "wandb": self.wandb is not None, "mlflow": self.mlflow is not None}
        return (*(name for name, used in own.items() if used), *dict.fromkeys(self.trackers))

"""Schema of the ``ray`` section."""

from __future__ import annotations

from typing import Annotated, Any, ClassVar, Literal

from pydantic import BeforeValidator, Field, WithJsonSchema

from fedsim.core.errors import shown
from fedsim.core.schema import Schema
from fedsim.core.uses import Use, Uses

MOST_GPUS = 64
"""GPUs that an actor can have: those of one machine."""


def _gpus_of_an_actor(value: Any) -> Any:
    """Round a GPU share to 0 or exactly 1/n, so that n actors fill one GPU; or return a whole number of GPUs."""
    if isinstance(value, str):
        top, slash, bottom = value.partition("/")
        try:
            value = float(top) / float(bottom) if slash else float(value)
        except (ValueError, ZeroDivisionError):
            raise ValueError(f"{value!r} is neither a number nor a fraction such as 1/4") from None
    if isinstance(value, bool) or not isinstance(value, int | float):
        return value
    if value == 0:
        return 0.0
    if not 0 < value <= MOST_GPUS or (value > 1 and value != int(value)):
        raise ValueError(
            f"{shown(value)} is neither a share of one GPU nor a whole number of them up to {MOST_GPUS}; give 0, 1/n such as "
            "1/4, or 1, 2, 3, ..."
        )
    if value > 1:
        return float(value)
    if value < 1e-4:
        raise ValueError(f"{value:g} is less than Ray counts; give 0, or 1/10000 or more")
    parts = round(1 / value)
    if abs(1 / value - parts) > 0.02 * parts:
        raise ValueError(
            f"{value:g} is not 1/n, so actors would not fill a GPU; the nearest is 1/{parts} = {1 / parts:.4g}"
        )
    return 1 / parts


MOST_SECONDS = 1e9
"""30 years: the longest wait that the operating system accepts."""
Seconds = Annotated[float, Field(gt=0.0, le=MOST_SECONDS)]
CpuShare = Annotated[float, Field(ge=1e-4)]
"""Ray's resource granularity is 1/10000."""
MachineCount = Annotated[int, Field(gt=0, le=100_000)]

GpuAmount = Annotated[
    float,
    BeforeValidator(_gpus_of_an_actor),
    WithJsonSchema(
        {
            "anyOf": [
                {"type": "number", "minimum": 0, "maximum": MOST_GPUS},
                {"type": "string", "pattern": "^[0-9./ ]+$"},
            ]
        }
    ),
]
_LABEL = r"^[A-Za-z0-9]([\w./-]*[A-Za-z0-9])?$"
_LABEL_VALUE = r"^!?(in\([\w.-]+(, *[\w.-]+)*\)|[\w.-]*)$"
LabelKey = Annotated[str, Field(pattern=_LABEL, max_length=317)]
LabelValue = Annotated[str, Field(pattern=_LABEL_VALUE, max_length=1000)]
"""What Ray calls a label selector."""


ACCELERATOR = "ray.io/accelerator-type"
"""The label that Ray gives a node with accelerators."""
_JOINED = Use(
    "address", test=lambda address: address is not None, words="it is for a cluster that a run joins, by ray.address"
)


class RayConfig(Schema):
    """Actors and the cluster they run on."""

    actors: MachineCount | Literal["pool", "per_client"] = "pool"
    """Number of actors; pool fits the number to the cluster's free CPUs and GPUs; per_client gives every client its own."""
    address: str | None = None
    """null starts a local Ray cluster; auto joins the one that this process is connected to (a notebook, a Ray task, a Tune
    trial), else the cluster that this machine or job belongs to; or host:port."""
    num_cpus_per_actor: CpuShare | None = None
    """CPUs reserved for an actor; if not given, ``client.threads``."""
    num_gpus_per_actor: GpuAmount = 0.0
    """GPUs of an actor: 0; a share of one, exactly 1/n, written 0.25 or 1/4; or a whole number of GPUs of one node. With two or
    more the layers of the model are spread over them, for models that one does not hold."""
    num_cpus: MachineCount | None = None
    """CPUs to declare for a local cluster; if not given, those of this machine."""
    num_gpus: int | None = Field(default=None, ge=0, le=100_000)
    """GPUs to declare for a local cluster; if not given, those of this machine."""
    object_store_mb: int | None = Field(default=None, gt=0, le=2**30)
    """Shared memory of a local cluster, in MB; if not given, sized to fit model and data."""
    placement: Literal["auto", "own", "none"] = "auto"
    """Where actors go on a joined cluster. auto: in the placement group that this process is in (a Tune trial, a Train
    worker), else in one of the run's own, for which a run waits while others use the cluster. own: always in one of its
    own. none: on whatever is free now, actor by actor."""
    memory: Literal["estimate", "none"] = "estimate"
    """Main memory that an actor reserves on a joined cluster: what ``fedsim plan`` estimates, or less where a node has less; or
    none."""
    labels: dict[LabelKey, LabelValue] = Field(default={})
    """Labels of the nodes on which actors may run, as Ray selects by them: ``{zone: eu}``, ``{zone: "in(eu, us)"}``,
    ``{zone: "!us"}``."""
    accelerator_type: str | None = Field(default=None, pattern=_LABEL, max_length=63)
    """Type of accelerator of the nodes on which actors may run, such as H100: the label ``ray.io/accelerator-type``."""
    start_timeout_seconds: Seconds = 180.0
    """Time limit for all actors to be ready."""
    wait_timeout_seconds: Seconds | None = None
    """Time limit for waiting until other users of a joined cluster leave room for the actors; null: none."""
    group_timeout_seconds: Seconds = 3600.0
    """Time limit for one work group, or for the server. ``client.on_failure`` decides what happens to the group."""
    round_timeout_seconds: Seconds | None = None
    """Time limit for all work groups of a round; null: only that per group applies. With ``client.on_failure: drop``
    clients that are not done by then are left out of the round, and which ones depends on the machine; otherwise the
    run stops."""
    max_replacements: int = Field(default=5, ge=0)
    """Lost actors (killed, out of memory, node gone) that one round may replace; also how often in a row a
    round may be repeated because state was lost with a node."""

    metrics: Literal["auto"] | bool = "auto"
    """Whether Ray exports the run's metrics: auto exports them on a joined cluster that has a metrics endpoint; true also has a
    local cluster start with one, and refuses a cluster without; false exports none."""

    uses: ClassVar[Uses] = {
        **dict.fromkeys(
            ("num_cpus", "num_gpus", "object_store_mb"),
            (Use("address", (None,), words="it is for a local Ray cluster, ray.address=null"),),
        ),
        **dict.fromkeys(("placement", "memory", "labels", "accelerator_type"), (_JOINED,)),
        "wait_timeout_seconds": (
            _JOINED,
            Use("placement", ("auto", "own"), words="without a placement group a run waits for nobody"),
        ),
    }

    @property
    def selector(self) -> dict[str, str]:
        """Labels of the nodes on which actors may run."""
        named = {} if self.accelerator_type is None else {ACCELERATOR: self.accelerator_type}
        return {**self.labels, **named}

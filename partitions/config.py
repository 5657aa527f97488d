"""Schema of the ``partition`` section."""

from __future__ import annotations

from typing import Annotated, Any

from pydantic import Field, PositiveFloat, PositiveInt, model_validator

from fedsim.core.registry import known_name
from fedsim.core.schema import Schema
from fedsim.core.uses import Use, Uses

USUAL_CLIENTS = 100
"""Default number of clients, for kinds that do not take it from the data."""


class PartitionConfig(Schema):
    """Partition of the training examples over clients."""

    kind: Annotated[str, known_name("partitions.base:PARTITIONERS")] = "dirichlet_label"
    """iid; dirichlet_label (published procedure: sizes, then class priors of each client); dirichlet_class (each class
    split over clients); dirichlet_quantity (sizes only); label_shards (k classes per client); by_column (natural
    clients); or a plug-in's kind."""
    clients: PositiveInt | None = None
    """Number of simulated devices; 100 if not given. For by_column: this many of the column's values, drawn with the seed; if
    not given, all with at least min_size examples."""
    alpha: PositiveFloat = 1.0
    """dirichlet_label, dirichlet_class, dirichlet_quantity: concentration of the Dirichlet draw; smaller is more skewed."""
    size_alpha: PositiveFloat = 5.0
    """dirichlet_label: concentration of the Dirichlet draw of client sizes."""
    classes_per_client: PositiveInt = 2
    """label_shards: number of classes per client."""
    column: str | None = None
    """by_column: column whose values are the clients, for example ``author``."""
    min_size: PositiveInt = 1
    """Fewest examples that a client may hold."""
    max_tries: int = Field(default=100, gt=0, le=10_000)
    """Draws to try until every client holds ``min_size`` examples."""
    holdout_fraction: float = Field(default=0.1, ge=0.0, lt=1.0)
    """Share of each client's examples held out for personalised evaluation."""

    @classmethod
    def all_uses(cls) -> Uses:
        """Return the kinds that use each key: those whose partitioners name it."""
        from partitions.base import PARTITIONERS

        keys = dict.fromkeys(key for kind in PARTITIONERS.values() for key in kind.keys)
        return {
            key: (Use("kind", tuple(name for name, kind in PARTITIONERS.items() if key in kind.keys)),) for key in keys
        }

    @model_validator(mode="before")
    @classmethod
    def _usual_number(cls, values: Any) -> Any:
        """Set the default number of clients, except for by_column, which takes it from the data."""
        if isinstance(values, dict) and values.get("clients") is None and values.get("kind") != "by_column":
            return {**values, "clients": USUAL_CLIENTS}
        return values

    @property
    def population(self) -> int:
        """Number of clients, known once the data are read (``fedsim.simulation.preparation.settled``)."""
        if self.clients is None:
            raise ValueError("the number of clients is not known before the data are read")
        return self.clients

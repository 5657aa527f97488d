"""Schema of the ``partition`` section."""

from __future__ import annotations

from typing import Annotated, Any

from pydantic import Field, PositiveFloat, PositiveInt, model_validator

from fedsim.core.registry import known_name
from fedsim.core.schema import Schema
from fedsim.core.uses import Use, Uses

USUAL_CLIENTS = 100
"""Clients, where the data do not say how many there are."""


class PartitionConfig(Schema):
    """How the training examples are dealt out to clients."""

    kind: Annotated[str, known_name("partitions.base:PARTITIONERS")] = "dirichlet_label"
    """iid; dirichlet_label (published procedure: sizes, then class priors of each client); dirichlet_class (each class
    dealt over clients); dirichlet_quantity (sizes only); label_shards (k classes a client); by_column (natural
    clients); or that of a plug-in."""
    clients: PositiveInt | None = None
    """Number of simulated devices; 100 if not given. For by_column: this many of the column's values, drawn with the seed; all
    that have min_size examples if not given."""
    alpha: PositiveFloat = 1.0
    """Concentration of the Dirichlet draw of the kinds that skew: small is more skewed."""
    size_alpha: PositiveFloat = 5.0
    """dirichlet_label: concentration of the draw of client sizes."""
    classes_per_client: PositiveInt = 2
    """label_shards: number of classes that a client holds."""
    column: str | None = None
    """by_column: column whose values are the clients, for example ``author``."""
    min_size: PositiveInt = 1
    """Fewest examples that a client may hold."""
    max_tries: int = Field(default=100, gt=0, le=10_000)
    """Draws to try until every client holds ``min_size`` examples."""
    holdout_fraction: float = Field(default=0.1, ge=0.0, lt=1.0)
    """Share of each client's examples that it holds out for personalised evaluation."""

    @classmethod
    def all_uses(cls) -> Uses:
        """Return which kinds have a key: those whose partitioners name it."""
        from partitions.base import PARTITIONERS

        keys = dict.fromkeys(key for kind in PARTITIONERS.values() for key in kind.keys)
        return {
            key: (Use("kind", tuple(name for name, kind in PARTITIONERS.items() if key in kind.keys)),) for key in keys
        }

    @model_validator(mode="before")
    @classmethod
    def _usual_number(cls, values: Any) -> Any:
        """Set the usual number of clients where the data do not say how many there are."""
        if isinstance(values, dict) and values.get("clients") is None and values.get("kind") != "by_column":
            return {**values, "clients": USUAL_CLIENTS}
        return values

    @property
    def population(self) -> int:
        """Number of clients, which is settled once the data are read (``fedsim.simulation.preparation.settled``)."""
        if self.clients is None:
            raise ValueError("the number of clients is not settled yet")
        return self.clients

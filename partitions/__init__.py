"""How a dataset is dealt out to clients: one small base class, one file a partitioner, a registry."""

from partitions import by_column, dirichlet_class, dirichlet_label, dirichlet_quantity, iid, label_shards
from partitions.base import PARTITIONERS, Partitioner, partition

__all__ = [
    "PARTITIONERS",
    "Partitioner",
    "by_column",
    "dirichlet_class",
    "dirichlet_label",
    "dirichlet_quantity",
    "iid",
    "label_shards",
    "partition",
]

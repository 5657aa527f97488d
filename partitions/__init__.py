"""How a dataset is dealt out to clients: one small base class, one file a partitioner, a registry."""

from partitions.base import PARTITIONERS, Partitioner, partition

__all__ = ["PARTITIONERS", "Partitioner", "partition"]

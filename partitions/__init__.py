"""Partition of a dataset over clients: a small base class, one file per partitioner, a registry."""

from partitions.base import PARTITIONERS, Partitioner, partition

__all__ = ["PARTITIONERS", "Partitioner", "partition"]

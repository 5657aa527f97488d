"""A partitioner: each client has one dominant class, and otherwise a bit of everything.

    fedsim run configs/quickstart.yaml --load examples/my_partitioner.py \
        partition.kind=my_partitioner params.my_partitioner.dominance=0.7

It is how SCAFFOLD's experiments cut data (Karimireddy et al. 2020, arXiv 1910.06378, section 7): a part of a client's examples
is sorted by class, the others are drawn from what is left of all of them.
"""

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
from pydantic import Field

import fedsim
from fedsim.core.errors import PartitionError
from fedsim.core.schema import Schema
from partitions import Partitioner


@fedsim.register("partitioner", "my_partitioner")
class DominantClass(Partitioner):
    """Clients of one size; a share of each one's examples, rounded up, comes from one class."""

    class Config(Schema):
        """Keys in section ``params.my_partitioner``."""

        dominance: float = Field(default=0.7, ge=0.0, le=1.0)
        """Share of a client's examples that are of its own class, at least."""

    def deal(self, labels_N: np.ndarray, column: Sequence[Any] | None, rng: np.random.Generator) -> list[np.ndarray]:
        """See :meth:`Partitioner.deal`."""
        left = [rng.permutation(np.flatnonzero(labels_N == label)) for label in np.unique(labels_N)]
        sizes_C = [len(part) for part in np.array_split(labels_N, self.config.population)]
        own = []
        for size in sizes_C:
            most = max(range(len(left)), key=lambda k: len(left[k]))  # the class with the most examples left
            wanted = math.ceil(self.params.dominance * size)
            if wanted > len(left[most]):
                raise PartitionError(
                    f"params.my_partitioner.dominance={self.params.dominance:g} gives a client {wanted} examples of one class, "
                    f"but {len(left[most])} are left of the largest; lower it"
                )
            own.append(left[most][:wanted])
            left[most] = left[most][wanted:]
        missing_C = [size - len(part) for size, part in zip(sizes_C, own, strict=True)]
        others = np.split(rng.permutation(np.concatenate(left)), np.cumsum(missing_C)[:-1])
        return [np.concatenate(parts) for parts in zip(own, others, strict=True)]

"""A plug-in of every kind, as a user would write it: one file, loaded by ``--load``."""

from dataclasses import replace

import numpy as np

import fedsim
from clients.backbone.families import FAMILIES
from fedsim.core.compression.codec import Codec
from fedsim.core.schema import Schema
from partitions import Partitioner


@fedsim.register("partitioner", "stripes")
class Stripes(Partitioner):
    """Deals the examples out in stripes, one client after another."""

    class Config(Schema):
        """Own keys."""

        width: int = 2
        """Examples in a stripe."""

    def deal(self, labels_N, column, rng):
        """See :meth:`Partitioner.deal`."""
        owner_N = np.arange(len(labels_N)) // self.params.width % self.config.population
        return [np.flatnonzero(owner_N == client) for client in range(self.config.population)]


@fedsim.register("codec", "grid")
class Grid(Codec):
    """Rounds to whole steps, four bytes each."""

    class Config(Schema):
        """Own keys."""

        step: float = 1e-3
        """Width of the grid."""

    def encode(self, array_F, blocks, rng):
        """See :meth:`Codec.encode`."""
        return np.rint(array_F / self.params.step).astype("<i4").tobytes()

    def decode(self, payload, blocks, dtype):
        """See :meth:`Codec.decode`."""
        return (np.frombuffer(payload, "<i4") * self.params.step).astype(dtype)

    def most_bytes(self, blocks, itemsize):
        """See :meth:`Codec.most_bytes`."""
        return 4 * blocks.size


@fedsim.register("metric", "balanced_accuracy")
def balanced_accuracy(confusion_CC):
    """Return the mean of the classes' recalls."""
    return float((np.diag(confusion_CC) / np.maximum(confusion_CC.sum(axis=1), 1)).mean())


fedsim.register("task", "moods")(
    {
        "fields": ["text"],
        "template": "{text} . It was <mask> .",
        "labels": ["negative", "positive"],
        "label_words": ["terrible", "great"],
        "metric": "balanced_accuracy",
    }
)


def transform(model, hidden_BD):
    """Do what RoBERTa's head does; a function of this file, which actors need to have."""
    return FAMILIES["roberta"].head_transform(model, hidden_BD)


fedsim.register("family", "house-roberta")(replace(FAMILIES["roberta"], name="house-roberta", head_transform=transform))

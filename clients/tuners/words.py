"""What is trained, in words: as plans, tables and summaries name it. No torch here.

A kind without a row is named by its own name.
"""

from __future__ import annotations

from collections.abc import Collection

_VECTORS = {"prefix": "prompt", "lora": "LoRA matrices"}


def vector_word(kind: str) -> str:
    """Return the name of the vector that devices and server exchange with a ``tuner.kind``, such as ``prompt``."""
    return _VECTORS.get(kind, kind.replace("_", " "))


def trained_words(tuner: str, trained: Collection[int], num_layers: int, head: str) -> str:
    """Describe what a run trains, such as ``prefix of 8 tokens in 2 of 4 layers``.

    Parameters
    ----------
    tuner
        :attr:`clients.tuners.tuner.Tuner.described`.
    trained
        Layers with trained numbers, exchanged or personal.
    head
        ``model.head.kind``: a classifier is trained too.
    """
    layers = f"all {num_layers}" if len(trained) == num_layers else f"{len(trained)} of {num_layers}"
    return f"{tuner} in {layers} layers{', and a classifier' if head == 'classifier' else ''}"

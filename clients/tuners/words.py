"""What is trained, in words: as plans, tables and summaries name it. No torch here.

A kind without a row is named by its own name.
"""

from __future__ import annotations

from collections.abc import Collection

_VECTORS = {"prefix": "prompt", "lora": "LoRA matrices", "ia3": "IA³ vectors", "adapter": "adapters"}


def vector_word(kind: str) -> str:
    """Return the name of the vector that devices and server exchange with a ``tuner.kind``, such as ``prompt``."""
    return _VECTORS.get(kind, kind.replace("_", " "))


def trained_words(tuner: str, trained: Collection[int] | None, num_layers: int, head: str) -> str:
    """Describe what a run trains, such as ``prefix of 8 tokens in 2 of 4 layers``.

    Parameters
    ----------
    tuner
        :attr:`clients.tuners.tuner.Tuner.described`.
    trained
        Layers with trained numbers, exchanged or personal; None where the tuner acts at one place.
    head
        ``model.head.kind``: a classifier is trained too.
    """
    layers = ""
    if trained is not None:
        layers = f" in {'all' if len(trained) == num_layers else f'{len(trained)} of'} {num_layers} layers"
    return f"{tuner}{layers}{', and a classifier' if head == 'classifier' else ''}"

"""Responses of vectors to examples: what a model writes behind each prompt.

Shape suffixes: C vectors (clients); A parameters of a vector; N examples; S new tokens.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from clients.backbone.device import to_device
from clients.backbone.model import Backbone
from clients.backbone.passes import PassLimit
from clients.generation_settings import GenerationSpec
from fedsim.core.generated import Generated
from fedsim.core.layout import VectorLayout
from fedsim.core.tokens import TokenTable


def respond(
    backbone: Backbone,
    table: TokenTable,
    indices_N: Sequence[np.ndarray],
    layout: VectorLayout,
    vector_CA: np.ndarray,
    spec: GenerationSpec,
    names: tuple[int, Sequence[int]],
) -> list[Generated]:
    """Write responses to examples with the parameters of ``layout``; one result a vector.

    Parameters
    ----------
    indices_N
        The examples of each vector.
    vector_CA
        One vector per row; all share the passes through the backbone.
    names
        The round, and each vector's client: what draws depend on beside seed and example.

    Raises
    ------
    ResourceError
        If a single example does not fit in the device's memory.
    """
    round, clients = names
    counts = [len(own) for own in indices_N]
    all_N, owners_N = np.concatenate(indices_N), np.repeat(np.arange(len(vector_CA)), counts)
    tuned_CLX, _ = layout.split_rows(to_device(vector_CA.copy(), backbone.device))
    decoding, uniform_NS = spec.decoding, None
    if decoding.do_sample and len(all_N):
        drawn = zip(owners_N.tolist(), all_N.tolist(), strict=True)
        uniform_NS = np.stack(
            [decoding.uniform_S(spec.seed, round, clients[owner], example) for owner, example in drawn]
        )
    limit = PassLimit()
    prompts = [prompt_ids(table, example) for example in all_N.tolist()]
    sizes = spec.batch_size, limit
    written = backbone.generate(prompts, tuned_CLX, layout.layers, decoding, owners_N, uniform_NS, *sizes)
    parts = np.split(np.arange(len(all_N)), np.cumsum(counts)[:-1])
    splits = [limit.splits, *[0] * (len(parts) - 1)]
    return [
        Generated.of(own_N, [written[place] for place in places], split)
        for own_N, places, split in zip(indices_N, parts, splits, strict=True)
    ]


def prompt_ids(table: TokenTable, example: int) -> np.ndarray:
    """Return the int64 token ids of an example's prompt: all before its response."""
    assert table.response_starts_N is not None, "generation is for tasks of responses"
    start = int(table.offsets_N1[example])
    return table.ids_Z[start : start + int(table.response_starts_N[example])].astype(np.int64)


def response_ids(table: TokenTable, example: int) -> np.ndarray:
    """Return the int64 token ids of an example's response, with its end."""
    assert table.response_starts_N is not None, "generation is for tasks of responses"
    start, stop = table.offsets_N1[example : example + 2].tolist()
    return table.ids_Z[start + int(table.response_starts_N[example]) : stop].astype(np.int64)

"""Attention with relative positions, as in DeBERTa: a score adds what a query finds at its distance to a key, and a key at its
distance to a query (He et al. 2021, arXiv 2006.03654).

transformers computes it inside its attention module, out of reach of its attention interface. Here the module's maps make
queries, keys and values; their scores against every distance of the pass go behind their numbers, so that rows can be moved as
in any family; and attention within a bucket picks those that it needs. Distances are embeddings that go through the maps of
queries and keys, which a tuner may have changed: each client has its own then.

The pass travels as ``relative_pos``, an argument of the model's layers that its encoder hands on as it is.

Shape suffixes: C clients, B examples, T tokens, H heads, D head dimension, W distances of a pass, E hidden size, F = H x D.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor, nn

if TYPE_CHECKING:
    from clients.tuners.client_rows import PackedRows, PaddedRows
    from clients.tuners.prefix import AttentionHook


@dataclass(frozen=True)
class RelativePass:
    """What attention needs in one forward pass."""

    hook: AttentionHook
    rows: PaddedRows | PackedRows
    clients: int
    longest: int
    """Tokens of the longest text, virtual ones included."""
    _places: dict[tuple[int, torch.device], tuple[Tensor, slice]] = field(default_factory=dict)

    def places(self, module: Any, device: torch.device) -> tuple[Tensor, slice]:
        """Return the distance of two tokens as its place among those of the pass, int64 [T, T], and these among the model's."""
        span = module.pos_ebd_size
        if (span, device) not in self._places:
            rows = torch.empty((self.longest, 0), device=device)
            build = sys.modules[type(module).__module__].build_relative_position
            found_1TT = build(rows, rows, module.position_buckets, module.max_relative_positions)
            all_TT = torch.clamp(found_1TT[0] + span, 0, 2 * span - 1)
            first, last = int(all_TT.min()), int(all_TT.max())
            self._places[span, device] = all_TT - first, slice(first, last + 1)
        return self._places[span, device]


def install(module: nn.Module) -> None:
    """Let an attention module follow :class:`RelativePass`; without one it runs as it is."""
    module.forward = partial(_forward, module, module.forward)


@contextmanager
def carried(encoder: nn.Module, relative: RelativePass) -> Iterator[None]:
    """Hand a pass to the attention of an encoder in this block."""

    def enter(module: nn.Module, arguments: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[Any, ...]:
        return arguments, kwargs | {"relative_pos": relative}

    handle = encoder.register_forward_pre_hook(enter, with_kwargs=True)
    try:
        yield
    finally:
        handle.remove()


def _forward(
    module: Any,
    plain: Any,
    hidden_BTE: Tensor,
    attention_mask: Tensor,
    output_attentions: bool = False,
    query_states: Tensor | None = None,
    relative_pos: Any = None,
    rel_embeddings: Tensor | None = None,
) -> tuple[Tensor, Tensor | None]:
    if not isinstance(relative_pos, RelativePass):
        return plain(hidden_BTE, attention_mask, output_attentions, query_states, relative_pos, rel_embeddings)
    maps = module.query_proj, module.key_proj, module.value_proj
    query_BHTD, key_BHTD, value_BHTD = (_heads(linear(hidden_BTE), module) for linear in maps)
    places_TT = None
    if module.relative_attention and rel_embeddings is not None:
        places_TT, own = relative_pos.places(module, hidden_BTE.device)
        distances_WE = module.pos_dropout(rel_embeddings)[own]
        if "c2p" in module.pos_att_type:
            of_keys = module.key_proj if module.share_att_key else module.pos_key_proj
            query_BHTD = _with_scores(query_BHTD, distances_WE, of_keys, relative_pos)
        if "p2c" in module.pos_att_type:
            of_queries = module.query_proj if module.share_att_key else module.pos_query_proj
            key_BHTD = _with_scores(key_BHTD, distances_WE, of_queries, relative_pos)
    output_BTHD, shares = relative_pos.hook.attend(
        _attend, module, query_BHTD, key_BHTD, value_BHTD, attention_mask, places_TT=places_TT
    )
    return output_BTHD.flatten(2), shares


def _heads(features_BTF: Tensor, module: Any) -> Tensor:
    return features_BTF.unflatten(2, (module.num_attention_heads, -1)).transpose(1, 2)


def _with_scores(rows_BHTD: Tensor, distances_WE: Tensor, linear: nn.Module, relative: RelativePass) -> Tensor:
    """Return rows with their scores against every distance behind them, [B, H, T, D + W]."""
    heads = rows_BHTD.shape[1]
    tuned = bool(linear._forward_hooks or linear._forward_pre_hooks)
    clients = relative.clients if tuned else 1
    with relative.rows.of_clients():
        of_distances_CWF: Tensor = linear(distances_WE.expand(clients, -1, -1))
    rows_BTF = rows_BHTD.transpose(1, 2).flatten(2)
    if clients == 1:
        scores_BTX = _scores(rows_BTF, of_distances_CWF, heads)
    else:
        scores_BTX = relative.rows.mapped(partial(_scores, heads=heads), rows_BTF, of_distances_CWF)
    scores_BHTW = scores_BTX.unflatten(2, (heads, -1)).transpose(1, 2)
    return torch.cat([rows_BHTD, scores_BHTW], dim=3)


def _scores(rows_GMF: Tensor, distances_GWF: Tensor, heads: int) -> Tensor:
    """Return [G, M, H x W]."""
    rows_GHMD = rows_GMF.unflatten(2, (heads, -1)).transpose(1, 2)
    distances_GHDW = distances_GWF.unflatten(2, (heads, -1)).permute(0, 2, 3, 1)
    return (rows_GHMD @ distances_GHDW).transpose(1, 2).flatten(2)


def _attend(
    module: Any,
    query_BHTD: Tensor,
    key_BHTD: Tensor,
    value_BHTD: Tensor,
    mask: Tensor | None,
    places_TT: Tensor | None = None,
    **_: Any,
) -> tuple[Tensor, Tensor]:
    """Return attention's result [B, T, H, D] of rows that carry their scores against distances; ``mask`` is bool."""
    size, tokens = value_BHTD.shape[3], value_BHTD.shape[2]
    scores_BHTT = query_BHTD[..., :size] @ key_BHTD[..., :size].mT
    if places_TT is not None:
        shape = (*scores_BHTT.shape[:2], tokens, tokens)
        places = places_TT[:tokens, :tokens]
        if "c2p" in module.pos_att_type:
            scores_BHTT = scores_BHTT + query_BHTD[..., size:].gather(3, places.expand(shape))
        if "p2c" in module.pos_att_type:
            # A key's distance to a query is as far as the query's to it, to the same side: rows are keys here.
            scores_BHTT = scores_BHTT + key_BHTD[..., size:].gather(3, places.mT.expand(shape)).mT
    parts = 1 + sum(kind in module.pos_att_type for kind in ("c2p", "p2c"))
    scores_BHTT = scores_BHTT / float(np.sqrt(np.float32(size * parts)))  # in float32, as in transformers
    if mask is not None:
        scores_BHTT = scores_BHTT.masked_fill(~mask.bool(), torch.finfo(scores_BHTT.dtype).min)
    shares_BHTT = module.dropout(torch.softmax(scores_BHTT, dim=-1))
    return (shares_BHTT @ value_BHTD).transpose(1, 2), shares_BHTT

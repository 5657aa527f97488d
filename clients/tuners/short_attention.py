"""Attention of short texts on a CPU, in batched matrix products.

torch's fused attention kernel works through one head of one example at a time, which for a dozen tokens is mostly overhead:
here a bucket's heads are one batched product, and rows go from the packed batch, prompts included, to the product's layout
in one copy and back in another. Between the copies there is no autograd: one function computes all gradients.

Shape suffixes: Z packed tokens, B examples of the pass, N examples of a bucket, H query heads, K key/value heads, T tokens, P
prompt length, V keys a query may see (P + T), D head dimension, C clients, Q and R query and key rows of all buckets, X rows
of a tensor.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from transformers.integrations.sdpa_attention import sdpa_attention_forward

from clients.tuners.visibility import additive

LONGEST = 64
"""Tokens of a text. For longer ones the fused kernel is as fast, and needs no memory for probabilities."""


class Bucket(Protocol):
    """A range of examples whose attention is computed together."""

    @property
    def examples(self) -> slice:
        """The examples, in packed order."""
        ...

    @property
    def num_tokens(self) -> int:
        """Tokens of the longest."""
        ...


@dataclass(frozen=True)
class Layout:
    """Where the rows of a packed pass go, for layers of one kind."""

    shapes: tuple[tuple[int, int, int], ...]
    """(examples, query tokens, keys) of each bucket."""
    heads: int
    kv_heads: int
    prompt_length: int
    query_Q: Tensor
    """Row of queries [Z H, D] at each place, bucket by bucket [N, H, T]; padding repeats the first token of its example."""
    key_R: Tensor
    """Row of prompts [C K P, D] and then keys [Z K, D] at each place, bucket by bucket [N, K, V]."""
    places_of_queries: Tensor | None
    """Place of each query row [Z H]; None if places and rows are in the same order."""
    places_of_keys: Tensor
    """Place of each key row [Z K]."""
    padding: Tensor | None
    """Places of queries that are padding; None if there are none."""
    client_B: Tensor
    """Row of the prompts of each example."""
    masks: tuple[Tensor | None, ...]
    """What to add to the scores of each bucket, as [N K, H / K T, V]; None for nothing."""

    @classmethod
    def of(
        cls,
        lengths_B: np.ndarray,
        buckets: Sequence[Bucket],
        heads: tuple[int, int],
        prompts: tuple[int, int, Tensor | None],
        read_B: np.ndarray | None,
        visible: Sequence[Tensor | None],
        dtype: torch.dtype,
    ) -> Layout:
        """Lay out a pass.

        Parameters
        ----------
        heads
            Query heads, and key/value heads, which divide them.
        prompts
            Clients, prompt length, and the row of each example's prompt; None for the only row.
        read_B
            The one token of each example that queries, by its row in the batch; None for all tokens.
        visible
            bool mask of each bucket that broadcasts to [N, 1, T, V]; None if all is visible.
        """
        num_heads, kv_heads = heads
        clients, length, owner_B = prompts
        client_B = np.zeros(len(lengths_B), np.int64) if owner_B is None else owner_B.numpy()
        starts_B = np.cumsum(lengths_B) - lengths_B
        head_H1, head_K1 = np.arange(num_heads)[:, None], np.arange(kv_heads)[:, None]
        behind, shapes, masks = clients * kv_heads * length, [], []
        query, key, place_q, place_k, padding = [], [], [], [], []
        at_q = at_k = 0
        for bucket, seen in zip(buckets, visible, strict=True):
            count, longest = bucket.examples.stop - bucket.examples.start, bucket.num_tokens
            place_T = np.arange(longest)
            own_NT = place_T < lengths_B[bucket.examples, None]
            token_NT = np.where(own_NT, starts_B[bucket.examples, None] + place_T, starts_B[bucket.examples, None])
            asked_NT = token_NT if read_B is None else read_B[bucket.examples, None]
            query.append((asked_NT[:, None] * num_heads + head_H1).ravel())
            prompt_NKP = (client_B[bucket.examples, None, None] * kv_heads + head_K1) * length + np.arange(length)
            token_NKT = behind + token_NT[:, None] * kv_heads + head_K1
            key.append(np.concatenate([prompt_NKP, token_NKT], axis=2).ravel())
            if read_B is None:
                place_NHT = at_q + np.arange(count * num_heads * longest).reshape(count, num_heads, longest)
                place_q.append(place_NHT.transpose(0, 2, 1)[own_NT].ravel())
                padding.append(place_NHT.transpose(0, 2, 1)[~own_NT].ravel())
            keys = length + longest
            place_NKV = at_k + np.arange(count * kv_heads * keys).reshape(count, kv_heads, keys)
            place_k.append(place_NKV[:, :, length:].transpose(0, 2, 1)[own_NT].ravel())
            at_q, at_k = at_q + len(query[-1]), at_k + len(key[-1])
            shapes.append((count, asked_NT.shape[1], keys))
            masks.append(None if seen is None else _scores_mask(seen, shapes[-1], heads, dtype))
        unused = np.concatenate(padding) if padding else np.empty(0, np.int64)
        return cls(
            shapes=tuple(shapes),
            heads=num_heads,
            kv_heads=kv_heads,
            prompt_length=length,
            query_Q=torch.from_numpy(np.concatenate(query)),
            key_R=torch.from_numpy(np.concatenate(key)),
            places_of_queries=torch.from_numpy(np.concatenate(place_q)) if place_q else None,
            places_of_keys=torch.from_numpy(np.concatenate(place_k)),
            padding=torch.from_numpy(unused) if len(unused) else None,
            client_B=torch.from_numpy(client_B),
            masks=tuple(masks),
        )


def _scores_mask(visible: Tensor, shape: tuple[int, int, int], heads: tuple[int, int], dtype: torch.dtype) -> Tensor:
    count, queries, keys = shape
    num_heads, kv_heads = heads
    return additive(visible, dtype).expand(count, num_heads, queries, keys).reshape(count * kv_heads, -1, keys)


def fits(plain: Any, module: nn.Module, query_1HZD: Tensor, longest: int, kwargs: dict[str, Any]) -> bool:
    """Whether attention of a packed pass can be computed here, and is faster so.

    Parameters
    ----------
    plain
        The attention function of transformers that is asked for.
    longest
        Tokens of the longest text.
    kwargs
        Its arguments.
    """
    return (
        plain is sdpa_attention_forward
        and longest <= LONGEST
        and query_1HZD.device.type == "cpu"
        and query_1HZD.dtype in (torch.float32, torch.float64)
        and not torch.is_autocast_enabled("cpu")
        and not (kwargs.get("dropout") and module.training)
    )


def attend(
    query_1HZD: Tensor,
    key_1KZD: Tensor,
    value_1KZD: Tensor,
    pair_CKPD: tuple[Tensor, Tensor] | None,
    scale: float | None,
    layout: Layout,
) -> Tensor:
    """Return attention's result [Z, H, D], or [B, H, D] of the one token of each example that queries.

    Parameters
    ----------
    pair_CKPD
        Prompts before keys and before values of each client, if the layer has any.
    scale
        Factor of the scores; None for one over the root of the head dimension.
    """
    size = query_1HZD.shape[3]
    rows = [tensor[0].transpose(0, 1).reshape(-1, size) for tensor in (query_1HZD, key_1KZD, value_1KZD)]
    prompts = (None, None) if pair_CKPD is None else tuple(part.to(query_1HZD.dtype) for part in pair_CKPD)
    return _Attention.apply(*rows, *prompts, size**-0.5 if scale is None else scale, layout)


class _Attention(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        query_XD: Tensor,
        key_XD: Tensor,
        value_XD: Tensor,
        prompt_key_CKPD: Tensor | None,
        prompt_value_CKPD: Tensor | None,
        scale: float,
        layout: Layout,
    ) -> Tensor:
        query_QD = query_XD.index_select(0, layout.query_Q)
        key_RD = _with_prompts(prompt_key_CKPD, key_XD).index_select(0, layout.key_R)
        value_RD = _with_prompts(prompt_value_CKPD, value_XD).index_select(0, layout.key_R)
        output_QD = torch.empty_like(query_QD)
        shares = []
        for query, key, value, output, mask in _buckets(layout, query_QD, key_RD, value_RD, output_QD):
            if mask is None:
                scores = torch.baddbmm(query.new_empty(1), query, key.mT, beta=0, alpha=scale)
            else:
                scores = torch.baddbmm(mask, query, key.mT, alpha=scale)
            shares.append(torch.softmax(scores, -1))
            torch.bmm(shares[-1], value, out=output)
        ctx.save_for_backward(query_QD, key_RD, value_RD, *shares)
        ctx.layout, ctx.scale = layout, scale
        ctx.clients = None if prompt_key_CKPD is None else prompt_key_CKPD.shape
        ctx.rows = len(query_XD)
        if layout.places_of_queries is not None:
            output_QD = output_QD.index_select(0, layout.places_of_queries)
        return output_QD.view(-1, layout.heads, query_XD.shape[1])

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        layout: Layout = ctx.layout
        query_QD, key_RD, value_RD, *shares = ctx.saved_tensors
        grad_QD = gradients[0].reshape(-1, query_QD.shape[1])
        if layout.places_of_queries is not None:
            grad_QD = _scattered(grad_QD, layout)
        of_query_QD, of_key_RD, of_value_RD = map(torch.empty_like, (query_QD, key_RD, value_RD))
        wants_query = ctx.needs_input_grad[0]
        inner = zip(
            _buckets(layout, query_QD, key_RD, value_RD, grad_QD),
            _buckets(layout, of_query_QD, of_key_RD, of_value_RD, grad_QD),
            shares,
            strict=True,
        )
        for (query, key, value, grad, _), (of_query, of_key, of_value, _, _), share in inner:
            torch.bmm(share.mT, grad, out=of_value)
            of_scores = torch._softmax_backward_data(torch.bmm(grad, value.mT), share, -1, share.dtype)
            of_scores.mul_(ctx.scale)
            torch.bmm(of_scores.mT, query, out=of_key)
            if wants_query:
                torch.bmm(of_scores, key, out=of_query)
        of_query_XD = _query_rows(of_query_QD, layout, ctx.rows) if wants_query else None
        of_rows = [
            of.index_select(0, layout.places_of_keys) if wanted else None
            for of, wanted in zip((of_key_RD, of_value_RD), ctx.needs_input_grad[1:3], strict=True)
        ]
        of_prompts = [
            _prompt_gradient(of, layout, ctx.clients) if wanted else None
            for of, wanted in zip((of_key_RD, of_value_RD), ctx.needs_input_grad[3:5], strict=True)
        ]
        return of_query_XD, *of_rows, *of_prompts, None, None


def _with_prompts(prompt_CKPD: Tensor | None, rows_XD: Tensor) -> Tensor:
    return rows_XD if prompt_CKPD is None else torch.cat([prompt_CKPD.reshape(-1, rows_XD.shape[1]), rows_XD])


def _buckets(
    layout: Layout, query_QD: Tensor, key_RD: Tensor, value_RD: Tensor, output_QD: Tensor
) -> list[tuple[Tensor, Tensor, Tensor, Tensor, Tensor | None]]:
    """Return views of each bucket's rows as batches of [H / K T, D] and [V, D], one for each key/value head."""
    found, at_q, at_k, size = [], 0, 0, query_QD.shape[1]
    for (count, queries, keys), mask in zip(layout.shapes, layout.masks, strict=True):
        rows_q, rows_k = count * layout.heads * queries, count * layout.kv_heads * keys
        batch = count * layout.kv_heads
        query, output = (rows[at_q : at_q + rows_q].view(batch, -1, size) for rows in (query_QD, output_QD))
        key, value = (rows[at_k : at_k + rows_k].view(batch, keys, size) for rows in (key_RD, value_RD))
        found.append((query, key, value, output, mask))
        at_q, at_k = at_q + rows_q, at_k + rows_k
    return found


def _scattered(grad_XD: Tensor, layout: Layout) -> Tensor:
    """Return the gradient of each place; that of padding, which nothing reads, is zero."""
    grad_QD = grad_XD.index_select(0, layout.query_Q)
    return grad_QD if layout.padding is None else grad_QD.index_fill_(0, layout.padding, 0.0)


def _query_rows(of_query_QD: Tensor, layout: Layout, rows: int) -> Tensor:
    """Return the gradient of every query row; rows that do not query have none."""
    if layout.places_of_queries is not None:
        return of_query_QD.index_select(0, layout.places_of_queries)
    whole_XD = of_query_QD.new_zeros((rows, of_query_QD.shape[1]))
    whole_XD[layout.query_Q] = of_query_QD
    return whole_XD


def _prompt_gradient(of_key_RD: Tensor, layout: Layout, shape: torch.Size) -> Tensor:
    """Add up the gradients of each client's prompt over its examples, in their order."""
    total_CX = of_key_RD.new_zeros((shape[0], shape[1] * shape[2] * shape[3]))
    at, example = 0, 0
    for count, _, keys in layout.shapes:
        rows = count * layout.kv_heads * keys
        of_NKVD = of_key_RD[at : at + rows].view(count, layout.kv_heads, keys, -1)
        own_NX = of_NKVD[:, :, : layout.prompt_length].reshape(count, -1)
        total_CX.index_add_(0, layout.client_B[example : example + count], own_NX)
        at, example = at + rows, example + count
    return total_CX.view(shape)

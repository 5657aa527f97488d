"""Prefix attention over packed tokens: only attention needs to know where examples end.

A packed batch is one row of all tokens, without padding. Linear layers, norms and activations, nearly all of the work,
run on it directly. In attention the tokens are split into buckets of examples of similar length, each a small padded
batch with the prompts before its keys and values, and the results are written back to the row.

Shape suffixes: B examples, T tokens, H heads, D head dimension, P prompt length, C clients, L prompted layers, K {key,
value}, Z packed tokens, S slots: tokens of all buckets with their padding, Q = T, and V keys a query may see (P + T).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

from clients.backbone.device import to_device
from clients.tuners import short_attention
from clients.tuners.moves import apart, take_rows, together
from clients.tuners.prefix import Attend
from clients.tuners.prompt_dropout import PromptMask, masked
from clients.tuners.visibility import additive, visible_keys
from fedsim.core.errors import ModelError
from fedsim.core.words import Branches

_MAX_PADDING_SLOTS = {"cpu": 192, "cuda": 8192}
"""Padding allowed per bucket, by device type. Attention is a few per cent of the work on short texts, so another bucket,
which costs a few kernel calls per layer, must save about this many slots to be worth it: a GPU processes thousands in
the time of one call."""


@dataclass(frozen=True)
class _Bucket:
    """A range of examples whose attention is computed together."""

    examples: slice
    slots: slice
    num_examples: int
    num_tokens: int
    padded: bool


class PackedPrefix:
    """Prompts of one forward pass on packed tokens.

    Parameters
    ----------
    prompt_CLKHPD
        Prompts of each client for ``layers``, in float32 (or float64); cast to the model's number format where they are used.
    layers
        Model layer of each prompt; in all other layers tokens see only their own example.
    client_of_example_B
        Row of ``prompt_CLKHPD`` for each example; needed unless there is one client.
    lengths_B
        Tokens of each example, in packed order. Any order is correct; ascending order minimises the buckets'
        padding.
    is_causal
        Whether attention is causal.
    top
        A layer, and one token per example (rows of the batch): attention there is computed for these tokens only, in the
        first rows of the output.
    mask
        What each example sees of its client's prompts; None for all of them.
    branches
        Branches of a tree that the last tokens of each example are; None if there are none.
    """

    def __init__(
        self,
        prompt_CLKHPD: Tensor,
        layers: tuple[int, ...],
        client_of_example_B: Tensor | None,
        lengths_B: np.ndarray,
        *,
        is_causal: bool,
        top: tuple[int, Tensor] | None = None,
        mask: PromptMask | None = None,
        branches: Branches | None = None,
    ) -> None:
        self._kept_BHPD = {} if mask is None else mask.of_layers(layers)
        if mask is not None:
            prompt_CLKHPD = prompt_CLKHPD * mask.scale
        # unbind, not indexing: its gradient is one stack instead of L tensors of full size.
        self._pairs_CHPD: dict[int, tuple[Tensor, Tensor]] = {}
        for layer, prompt_CKHPD in zip(layers, prompt_CLKHPD.unbind(1), strict=True):
            key_CHPD, value_CHPD = prompt_CKHPD.unbind(1)
            self._pairs_CHPD[layer] = key_CHPD, value_CHPD
        self._length = prompt_CLKHPD.shape[4]
        self._client_of_example_B = client_of_example_B if len(prompt_CLKHPD) > 1 else None
        self._is_causal, self._branches = is_causal, branches
        self._lengths_B = lengths_B
        self._top = top
        self._device = prompt_CLKHPD.device
        self._buckets = _cut(lengths_B, _MAX_PADDING_SLOTS.get(self._device.type, 192))
        self._moves_of_rows: tuple[tuple[Tensor, Tensor, Tensor] | None] | None = None
        self._longest = int(lengths_B.max())
        self._masks: dict[tuple[Any, ...], Tensor | None] = {}
        self._layouts: dict[tuple[Any, ...], short_attention.Layout] = {}
        self._seen: set[int] = set()

    @property
    def slots_B(self) -> np.ndarray:
        """int64 tokens that attention processes for each example, padding included."""
        return np.concatenate([np.full(bucket.num_examples, bucket.num_tokens) for bucket in self._buckets])

    def attend(
        self,
        plain: Attend,
        module: nn.Module,
        query_1HZD: Tensor,
        key_1HZD: Tensor,
        value_1HZD: Tensor,
        mask: Tensor | None,
        **kwargs: Any,
    ) -> tuple[Tensor, Tensor | None]:
        """Attend within each example and to its client's prompt; returns [1, Z, H, D]. ``mask`` is ignored."""
        kwargs["is_causal"] = False  # our masks are complete; without one everything is visible
        layer: int = module.layer_idx  # type: ignore[assignment]
        pair_CHPD = self._pairs_CHPD.get(layer)
        self._seen.add(layer)
        rows_B = self._top[1] if self._top is not None and self._top[0] == layer else None
        if layer not in self._kept_BHPD and short_attention.fits(plain, module, query_1HZD, self._longest, kwargs):
            layout = self._layout((query_1HZD, key_1HZD), pair_CHPD, rows_B, kwargs.get("sliding_window"), plain)
            output_ZHD = short_attention.attend(
                query_1HZD, key_1HZD, value_1HZD, pair_CHPD, kwargs.get("scaling"), layout
            )
            return _padded(output_ZHD, query_1HZD.shape[2]).unsqueeze(0), None
        key_SHD, value_SHD = self._apart(key_1HZD), self._apart(value_1HZD)
        query_SHD = self._apart(query_1HZD) if rows_B is None else take_rows(query_1HZD[0].transpose(0, 1), rows_B)
        pieces = []
        for number, bucket in enumerate(self._buckets):
            query_BHTD = _of_bucket(query_SHD, bucket) if rows_B is None else query_SHD[bucket.examples].unsqueeze(2)
            key_BHVD, value_BHVD = _of_bucket(key_SHD, bucket), _of_bucket(value_SHD, bucket)
            if pair_CHPD is not None:
                key_BHVD, value_BHVD = (
                    torch.cat([self._of_examples(prompt_CHPD, kept_BHPD, bucket, own.dtype), own], dim=2)
                    for prompt_CHPD, kept_BHPD, own in zip(
                        pair_CHPD, self._kept_BHPD.get(layer, (None, None)), (key_BHVD, value_BHVD), strict=True
                    )
                )
            length = 0 if pair_CHPD is None else self._length
            mask_B1TV = self._mask(number, length, kwargs.get("sliding_window"), plain, query_BHTD.dtype)
            output_BTHD, _ = plain(module, query_BHTD, key_BHVD, value_BHVD, mask_B1TV, **kwargs)
            pieces.append(output_BTHD.flatten(0, 1))
        output_SHD = pieces[0] if len(pieces) == 1 else torch.cat(pieces)
        if rows_B is None:
            return self._together(output_SHD).unsqueeze(0), None
        return _padded(output_SHD, query_1HZD.shape[2]).unsqueeze(0), None

    def _layout(
        self,
        tensors_1HZD: tuple[Tensor, Tensor],
        pair_CHPD: tuple[Tensor, Tensor] | None,
        rows_B: Tensor | None,
        window: int | None,
        plain: Attend,
    ) -> short_attention.Layout:
        """Return where rows go in batched products; built once per pass for all layers of a kind."""
        query_1HZD, key_1HZD = tensors_1HZD
        heads = query_1HZD.shape[1], key_1HZD.shape[1]
        clients, length = (1, 0) if pair_CHPD is None else (len(pair_CHPD[0]), self._length)
        key = (heads, length, window, rows_B is None)
        if key not in self._layouts:
            masks = [self._mask(n, length, window, plain, query_1HZD.dtype) for n in range(len(self._buckets))]
            self._layouts[key] = short_attention.Layout.of(
                self._lengths_B,
                self._buckets,
                heads,
                (clients, length, None if pair_CHPD is None else self._client_of_example_B),
                None if rows_B is None else rows_B.numpy(),
                masks,
                query_1HZD.dtype,
            )
        return self._layouts[key]

    @property
    def _moves(self) -> tuple[Tensor, Tensor, Tensor] | None:
        if self._moves_of_rows is None:
            self._moves_of_rows = (_moves(self._lengths_B, self._buckets, self._device),)
        return self._moves_of_rows[0]

    def _apart(self, tensor_1HZD: Tensor) -> Tensor:
        tensor_ZHD = tensor_1HZD[0].transpose(0, 1)
        return tensor_ZHD if self._moves is None else apart(tensor_ZHD, *self._moves)

    def _together(self, tensor_SHD: Tensor) -> Tensor:
        return tensor_SHD if self._moves is None else together(tensor_SHD, *self._moves)

    def _of_examples(
        self, prompt_CHPD: Tensor, kept_BHPD: Tensor | None, bucket: _Bucket, dtype: torch.dtype
    ) -> Tensor:
        if self._client_of_example_B is None and kept_BHPD is None:
            return prompt_CHPD.to(dtype).expand(bucket.num_examples, -1, -1, -1)
        if self._client_of_example_B is None:
            rows_BHPD = prompt_CHPD.expand(bucket.num_examples, -1, -1, -1)
        else:
            # Indexing, not index_select: on a GPU only its gradient adds up in a fixed order. It comes before
            # rounding to half precision, so that the examples' gradients are added up in float32.
            rows_BHPD = prompt_CHPD[self._client_of_example_B[bucket.examples]]
        return masked(rows_BHPD, None if kept_BHPD is None else kept_BHPD[bucket.examples]).to(dtype)

    def _mask(self, number: int, length: int, window: int | None, plain: Attend, dtype: torch.dtype) -> Tensor | None:
        """Return a bucket's attention mask in the attention function's format; built once per pass."""
        eager = plain.__name__ == "eager_attention_forward"
        key = (number, length, window, eager)
        if key not in self._masks:
            bucket = self._buckets[number]
            visible = visible_keys(
                self._lengths_B[bucket.examples],
                bucket.num_tokens,
                prompt_length=length,
                is_causal=self._is_causal,
                window=window,
                branches=self._branches,
            )
            mask = None if visible is None else to_device(visible, self._device)
            self._masks[key] = additive(mask, dtype) if mask is not None and eager else mask
        return self._masks[key]

    def check_seen(self) -> None:
        """Raise unless every prompt was used.

        Raises
        ------
        ModelError
            If a layer never requested its prompt, which would then silently not be trained.
        """
        missing = sorted(set(self._pairs_CHPD) - self._seen)
        if missing:
            raise ModelError(
                f"layer {missing[0]} never requested its prompt; its attention bypasses transformers' interface"
            )


def _padded(output_BHD: Tensor, rows: int) -> Tensor:
    """Add empty rows, so that the layer's modules see one for each token."""
    return (
        output_BHD if len(output_BHD) == rows else functional.pad(output_BHD, (0, 0, 0, 0, 0, rows - len(output_BHD)))
    )


def _cut(lengths_B: np.ndarray, max_padding: int) -> list[_Bucket]:
    """Split examples into ranges, from last to first, so that none has much padding."""
    edges, longest, padding = [len(lengths_B)], 0, 0
    for example in range(len(lengths_B) - 1, -1, -1):
        length, count = int(lengths_B[example]), edges[-1] - example
        grown = max(longest, length)
        padding += grown - length + (count - 1) * (grown - longest) if longest else 0
        if padding > max_padding:
            edges.append(example + 1)
            grown, padding = length, 0
        longest = grown
    edges.append(0)
    buckets: list[_Bucket] = []
    slot = 0
    for start, stop in zip(edges[:0:-1], edges[-2::-1], strict=True):
        lengths = lengths_B[start:stop]
        tokens, count = int(lengths.max()), stop - start
        slots = slice(slot, slot + count * tokens)
        buckets.append(_Bucket(slice(start, stop), slots, count, tokens, bool((lengths != tokens).any())))
        slot = slots.stop
    return buckets


def _of_bucket(tensor_SHD: Tensor, bucket: _Bucket) -> Tensor:
    shape = (bucket.num_examples, bucket.num_tokens, *tensor_SHD.shape[1:])
    return tensor_SHD[bucket.slots].view(shape).transpose(1, 2)


def _moves(lengths_B: np.ndarray, buckets: list[_Bucket], device: torch.device) -> tuple[Tensor, Tensor, Tensor] | None:
    """Return ``(token of each slot [S], slot of each token [Z], slots of padding)``, or None if there is no padding.

    A padding slot holds the first token of its example; any would do, since no used output depends on it.
    """
    if not any(bucket.padded for bucket in buckets):
        return None
    starts_B = np.cumsum(lengths_B) - lengths_B
    tokens_S, slots_Z, padding = [], [], []
    for bucket in buckets:
        places_T = np.arange(bucket.num_tokens)
        starts, own_BT = starts_B[bucket.examples, None], places_T < lengths_B[bucket.examples, None]
        tokens_S.append(np.where(own_BT, starts + places_T, starts).reshape(-1))
        slots_Z.append(np.flatnonzero(own_BT) + bucket.slots.start)
        padding.append(np.flatnonzero(~own_BT) + bucket.slots.start)
    tokens, slots, unused = (to_device(np.concatenate(moves), device) for moves in (tokens_S, slots_Z, padding))
    return tokens, slots, unused

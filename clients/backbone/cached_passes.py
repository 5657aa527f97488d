"""Passes of texts that grow: keys and values of what was read are kept, so that a step reads one new token of each text.

Texts are padded on the left, so that the tokens of a step stand in one column. A prefix is what the cache of its layers begins
with; LoRA and its like act in every step; virtual tokens enter between padding and text when the texts are first read.
Attention makes its own masks, for each layer by the columns that its cache holds, so layers may differ in their prompts.

Shape suffixes: C clients, L tuned layers, X axes of one layer's trained numbers, B examples, T tokens, S = T + P, Z tokens
without padding, P prompt length or virtual tokens, H key/value heads, D hidden size or head dimension, V keys that a query may
see.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from transformers import DynamicCache

from clients.backbone.device import to_device
from clients.backbone.tuned_model import TunedModel
from clients.tuners.client_rows import PackedRows, PaddedRows
from clients.tuners.prefix import Attend
from clients.tuners.texts import Texts
from clients.tuners.virtual_tokens import entered, turned
from clients.tuners.visibility import additive


class GrowingTexts:
    """Texts of one batch, and keys and values of all that was read of them.

    Parameters
    ----------
    texts
        Token ids of each text.
    tuned_CLX, layers
        As in :meth:`clients.backbone.model.Backbone.forward`.
    client_of_example_B
        int64 row of ``tuned_CLX`` for each text; None if there is one client.
    """

    def __init__(
        self,
        parts: TunedModel,
        texts: Sequence[np.ndarray],
        tuned_CLX: Tensor,
        layers: tuple[int, ...],
        client_of_example_B: np.ndarray | None,
    ) -> None:
        self._parts, self._layers = parts, layers
        self._tuned_CLX = tuned_CLX
        self._owner_B = client_of_example_B if len(tuned_CLX) > 1 else None
        self._lengths_B = np.array([len(text) for text in texts], dtype=np.int64)
        self._ids_BT = np.zeros((len(texts), int(self._lengths_B.max())), dtype=np.int64)
        self._pads_B = self._ids_BT.shape[1] - self._lengths_B
        for row, text in enumerate(texts):
            self._ids_BT[row, self._pads_B[row] :] = text
        self._cache = DynamicCache()
        self._virtual = parts.virtual(tuned_CLX, layers)
        self._prefixed: dict[int, int] = {}
        prompt_CLKHPD, prompted = parts.prompts(tuned_CLX, layers)
        self._offset = parts.offset(prompt_CLKHPD, self._virtual)
        for layer, prompt_CKHPD in zip(prompted, prompt_CLKHPD.unbind(1), strict=True):
            device = parts.placement.of_layers[layer]
            keys_BHPD, values_BHPD = self._of_examples(prompt_CKHPD)
            self._cache.update(keys_BHPD.to(device), values_BHPD.to(device), layer)
            self._prefixed[layer] = prompt_CKHPD.shape[3]

    def __len__(self) -> int:
        return len(self._lengths_B)

    def read(self) -> Tensor:
        """Read the texts; return the last hidden state of the last token of each, [B, D]."""
        return self._pass(self._ids_BT, self._first_positions, self._entered())

    def grow(self, ids_B: np.ndarray) -> Tensor:
        """Append a token to each text and read it; return its last hidden state, [B, D]."""
        positions_B1 = self._lengths_B[:, None]
        self._lengths_B = self._lengths_B + 1
        return self._pass(ids_B[:, None], positions_B1, self._behind_virtual_tokens(positions_B1))

    def keep(self, kept_B: np.ndarray) -> None:
        """Drop the texts that are not kept (bool [B])."""
        rows = np.flatnonzero(kept_B)
        for device, layers in self._parts.placement.places(range(len(self._cache.layers))):
            own_rows = to_device(rows, device)
            for layer in layers:
                held: Any = self._cache.layers[layer]
                held.batch_select_indices(own_rows)
        self._lengths_B, self._pads_B = self._lengths_B[rows], self._pads_B[rows]
        self._owner_B = None if self._owner_B is None else self._owner_B[rows]

    def _plain(self) -> Tensor:
        """Return the last hidden state of the last token of each text in the plain model, [B, D]."""
        hook = _CachedAttention(self._pads_B, {})
        output = self._parts.calls.cached(self._ids_BT, self._first_positions, DynamicCache(), hook)
        return self._parts.calls.precision.leave(output.last_hidden_state[:, -1])

    def _pass(self, ids_BT: np.ndarray, positions_BT: np.ndarray, inside: Any) -> Tensor:
        parts = self._parts
        tuned = self._tuned_CLX, self._layers
        hook = _CachedAttention(self._pads_B, self._prefixed)
        with parts.inserted(*tuned, PaddedRows(self._owner)), inside:
            output = parts.calls.cached(ids_BT, positions_BT + self._offset, self._cache, hook)
        return parts.calls.precision.leave(output.last_hidden_state[:, -1])

    @property
    def _first_positions(self) -> np.ndarray:
        """int64 [B, T]; position of each token of the texts, 0 for padding."""
        return np.maximum(np.arange(self._ids_BT.shape[1]) - self._pads_B[:, None], 0)

    @property
    def _owner(self) -> Tensor | None:
        return None if self._owner_B is None else to_device(self._owner_B, self._parts.device)

    def _of_examples(self, prompt_CKHPD: Tensor) -> tuple[Tensor, Tensor]:
        """Return keys and values of each example, in the model's number format."""
        prompt_CKHPD = prompt_CKHPD.to(self._parts.model.dtype)
        if self._owner is None:
            prompt_BKHPD = prompt_CKHPD.expand(len(self), *prompt_CKHPD.shape[1:])
        else:
            prompt_BKHPD = prompt_CKHPD[self._owner]
        keys_BHPD, values_BHPD = prompt_BKHPD.unbind(1)
        return keys_BHPD, values_BHPD

    @contextmanager
    def _entered(self) -> Iterator[None]:
        """Let virtual tokens enter."""
        with ExitStack() as stack:
            if self._virtual is not None:
                longer = _LeftPadded(self._pads_B, self._ids_BT.shape[1], self._virtual.length, self._parts.device)
                output_BD = self._plain() if self._parts.tuner.reads_output else None
                seen = partial(self._texts, longer.own_BT, output_BD)
                stack.enter_context(entered(self._parts.stack, self._virtual, longer, seen))
            yield

    @contextmanager
    def _behind_virtual_tokens(self, positions_B1: np.ndarray) -> Iterator[None]:
        """Give new tokens the rotary angles that they have in the layers where virtual tokens stand before them."""
        virtual, parts = self._virtual, self._parts
        with ExitStack() as stack:
            if virtual is not None:
                positions = to_device(positions_B1 + virtual.length, parts.device)
                stack.enter_context(turned(parts.stack, virtual.depth, positions))
            yield

    def _texts(self, own_BT: Tensor, output_BD: Tensor | None, hidden_ZD: Tensor) -> Texts:
        """Return the texts as virtual tokens see them; the last token stands for each."""
        rows = PackedRows(self._owner_B, self._lengths_B)
        embeddings = self._parts.model.get_input_embeddings()
        ids_Z = to_device(self._ids_BT, self._parts.device)[own_BT]
        last_B = np.cumsum(self._lengths_B) - 1
        return Texts(hidden_ZD, self._lengths_B, last_B, self._owner, rows, lambda: embeddings(ids_Z), output_BD)


class _LeftPadded:
    """Puts virtual tokens between padding and text; see :class:`clients.tuners.virtual_tokens.Longer`."""

    def __init__(self, pads_B: np.ndarray, num_tokens: int, length: int, device: torch.device) -> None:
        self._length = length
        places_S = np.arange(num_tokens + length)
        self.positions = to_device(np.maximum(places_S - pads_B[:, None], 0), device)
        self.own_BT = to_device(places_S[:num_tokens] >= pads_B[:, None], device)
        """bool; whether a token is the text's."""
        # Columns of [texts, virtual tokens] in their order: padding, virtual tokens, text.
        virtual_BS = num_tokens + places_S - pads_B[:, None]
        text_BS = np.where(places_S < pads_B[:, None], places_S, places_S - length)
        inside_BS = (places_S >= pads_B[:, None]) & (places_S < pads_B[:, None] + length)
        self._order_BS = to_device(np.where(inside_BS, virtual_BS, text_BS), device)

    def packed(self, hidden_BTD: Tensor) -> Tensor:
        """Return the texts' rows [Z, D]."""
        return hidden_BTD[self.own_BT]

    def join(self, hidden_BTD: Tensor, vectors_BPD: Tensor) -> Tensor:
        """Return [B, S, D]."""
        both_BSD = torch.cat([hidden_BTD, vectors_BPD.expand(len(hidden_BTD), -1, -1)], dim=1)
        return both_BSD.gather(1, self._order_BS.unsqueeze(2).expand(-1, -1, both_BSD.shape[2]))

    def drop(self, hidden_BSD: Tensor) -> Tensor:
        """Return the last T rows: the texts, and for shorter ones virtual tokens in place of padding, which nobody reads."""
        return hidden_BSD[:, self._length :]


class _CachedAttention:
    """Attention of one pass over a cache of texts that are padded on the left."""

    def __init__(self, pads_B: np.ndarray, prefixed: dict[int, int]) -> None:
        self._pads_B, self._prefixed = pads_B, prefixed
        self._masks: dict[tuple[Any, ...], Tensor] = {}

    def attend(
        self,
        plain: Attend,
        module: nn.Module,
        query_BHTD: Tensor,
        key_BHVD: Tensor,
        value_BHVD: Tensor,
        mask: Tensor | None,
        **kwargs: Any,
    ) -> tuple[Tensor, Tensor | None]:
        """Attend to the prefix and to all earlier tokens of the same text; ``mask`` is ignored."""
        prefix = self._prefixed.get(module.layer_idx, 0)  # type: ignore[call-overload]
        eager = plain.__name__ == "eager_attention_forward"
        shape = query_BHTD.shape[2], key_BHVD.shape[2], prefix, kwargs.get("sliding_window")
        kind = (*shape, eager, query_BHTD.device)
        if kind not in self._masks:
            visible = to_device(seen_keys(self._pads_B, *shape), query_BHTD.device)
            self._masks[kind] = additive(visible, query_BHTD.dtype) if eager else visible
        kwargs["is_causal"] = False  # our mask is complete
        return plain(module, query_BHTD, key_BHVD, value_BHVD, self._masks[kind], **kwargs)


def seen_keys(pads_B: np.ndarray, num_queries: int, num_keys: int, prefix: int, window: int | None) -> np.ndarray:
    """Return which keys each of the last tokens sees, bool [B, 1, T, V].

    Parameters
    ----------
    pads_B
        Columns of padding, behind the prefix. A padding token sees the prefix and itself: every query needs a key.
    prefix
        Keys that every query sees, in the first columns.
    window
        Sliding window of the layer, as in transformers.
    """
    columns_V = np.arange(num_keys - prefix)
    own_T = columns_V[len(columns_V) - num_queries :]
    back_TV = own_T[:, None] - columns_V[None, :]
    near_TV = (back_TV >= 0) & (True if window is None else back_TV < window)
    token_BV = columns_V >= pads_B[:, None]
    seen_BTV = near_TV & token_BV[:, None, :] | (back_TV == 0)
    return np.pad(seen_BTV, ((0, 0), (0, 0), (prefix, 0)), constant_values=True)[:, None]

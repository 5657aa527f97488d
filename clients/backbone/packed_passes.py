"""Passes of packed examples through a tuned model: training and evaluation.

Shape suffixes: C clients, L tuned layers, X axes of one layer's trained numbers, B examples, Z packed tokens, N of them that
are computed, U rows that are read, D hidden size.
"""

from __future__ import annotations

from contextlib import ExitStack
from typing import Any

import numpy as np
import torch
from torch import Tensor

from clients.backbone.device import to_device
from clients.backbone.heads import Pooling, pool_packed, pooled_rows
from clients.backbone.pass_texts import without_dropout
from clients.backbone.placed_layers import ByDevice, by_device
from clients.backbone.shared_beginnings import SharedAttention, SharedBeginnings
from clients.backbone.tuned_model import TunedModel
from clients.tuners.client_rows import PackedRows
from clients.tuners.moves import take_rows
from clients.tuners.packed_prefix import PackedPrefix
from clients.tuners.prefix import AttentionHook
from clients.tuners.prompt_dropout import PromptMask
from clients.tuners.relative_attention import RelativePass
from clients.tuners.tuner import Tuner
from clients.tuners.virtual_tokens import ByDepth, PackedTexts, VirtualTokens, entered
from fedsim.core.tokens import PackedTokens


class PackedPasses:
    """Runs packed examples through a tuned model.

    Parameters
    ----------
    parts
        The model.
    pooling
        Hidden state that the head reads.
    share
        Compute beginnings once that texts of a client share, where that pays.
    """

    def __init__(self, parts: TunedModel, pooling: Pooling, *, share: bool = True) -> None:
        self._parts = parts
        self._pooling = pooling
        self._share = share

    @property
    def shares(self) -> bool:
        """Whether layers may compute once what texts begin with.

        Not with dropout, which differs from text to text, and not compiled: each pass would create its own graph.
        """
        parts = self._parts
        alone = type(parts.tuner).virtual_tokens is Tuner.virtual_tokens
        return self._share and alone and parts.is_causal and not parts.calls.compiled and not parts.model.training

    def pooled(
        self,
        tokens: PackedTokens,
        tuned_CLX: Tensor,
        layers: tuple[int, ...],
        owners: tuple[Tensor | np.ndarray | None, Tensor | None],
        cached_ZD: Tensor | None,
        mask: PromptMask | None,
    ) -> tuple[Tensor, np.ndarray]:
        """Return what the head reads of each example [B, D], and the tokens that attention processed for it (int64 [B]).

        Where several tokens of an example are read (``tokens.reads``), it is the hidden states of all of them, [U, D].

        Parameters
        ----------
        owners
            ``client_of_example_B`` as it was given, and on the device.
        tokens, tuned_CLX, layers, cached_ZD, mask
            As in :meth:`clients.backbone.model.Backbone.read`.

        Raises
        ------
        ModelError
            If a layer was never tuned in the pass.
        """
        parts, tuner = self._parts, self._parts.tuner
        given_B, owner_B = owners
        tuned_CLX = parts.calls.precision.enter(tuned_CLX)
        prompt_CLKHPD, prompted = parts.prompts(tuned_CLX, layers)
        virtual = parts.virtual(tuned_CLX, layers)
        longer = None
        if virtual is not None:
            longer = PackedTexts(tokens.lengths_B, virtual.length, parts.device, tokens.branches)
        shared = self._shared(tokens, given_B) if mask is None else None
        rows = _rows(tokens, given_B, shared, self._pooling)
        output_BD = self._output(tokens, cached_ZD) if tuner.reads_output and virtual is not None else None
        narrow = self._rows_read(tokens, longer, shared)
        # Of several tokens an example, attention is computed for all: they are no batch of one query each.
        asked_B = narrow if tokens.reads is None and shared is None else None
        hook, prefix = self._attention(tokens, (prompt_CLKHPD, prompted, mask), (virtual, longer), owner_B, asked_B)
        if shared is not None:
            hook = SharedAttention(hook, shared)
        with ExitStack() as stack:
            stack.enter_context(parts.inserted(tuned_CLX, layers, rows))
            if cached_ZD is not None and not tuner.reads_output:
                entering_ND = to_device(cached_ZD, parts.device).to(parts.model.dtype)
                entering_ND = entering_ND if shared is None else take_rows(entering_ND, shared.on(parts.device)[0])
                stack.enter_context(parts.stack.above(min(layers), entering_ND))
            if virtual is not None and longer is not None:
                owner = owner_B if len(tuned_CLX) > 1 else None
                texts = parts.texts.packed(tokens, owner, rows, output_BD, parts.device)
                stack.enter_context(entered(parts.stack, virtual, longer, texts))
            if narrow is not None:
                stack.enter_context(parts.stack.narrowed(narrow, attended_alone=asked_B is not None))
            longest = int((tokens.lengths_B if longer is None else longer.lengths_B).max())
            carried = parts.hooked(hook, rows, len(tuned_CLX), longest)
            offset, computed_N = parts.offset(prompt_CLKHPD, virtual), None if shared is None else shared.first_N
            (hidden_ND,) = parts.calls.packed(tokens, carried, offset, computed_N).last_hidden_state
        for own in prefix.hooks.values():
            own.check_seen()
        if shared is not None:
            rows_U = _rows_asked(tokens, self._pooling)
            hidden_ND = shared.spread(hidden_ND) if narrow is None else shared.spread_read(hidden_ND, rows_U)
        pooled_BD = hidden_ND if narrow is not None else _read(hidden_ND, tokens, self._pooling)
        return parts.calls.precision.leave(pooled_BD), own.slots_B

    @torch.no_grad()
    def kept(self, tokens: PackedTokens, layers: tuple[int, ...]) -> Tensor:
        """Return what :meth:`clients.backbone.model.Backbone.cached` does."""
        parts = self._parts
        if parts.tuner.reads_output:
            return self._output(tokens, None)
        with parts.stack.below(min(layers)) as left:
            parts.calls.packed(tokens, self._plain(tokens), parts.tuner.offset)
        return left[0]

    def _attention(
        self,
        tokens: PackedTokens,
        prompts: tuple[Tensor, tuple[int, ...], PromptMask | None],
        inserted: tuple[VirtualTokens | None, PackedTexts | None],
        owner_B: Tensor | None,
        rows_B: Tensor | None,
    ) -> tuple[AttentionHook, ByDevice[PackedPrefix]]:
        """Return the hook of a pass, and the part of it that runs in the top layer."""
        virtual, longer = inserted
        if virtual is None or longer is None:
            prefix = self._prefix(tokens, prompts, owner_B, rows_B)
            return prefix, prefix
        above = self._prefix(tokens, rows_B=rows_B, lengths_B=longer.lengths_B)
        if not virtual.depth:
            return above, above
        return ByDepth(virtual.depth, self._prefix(tokens), above), above

    @torch.no_grad()
    def _output(self, tokens: PackedTokens, cached_BD: Tensor | None) -> Tensor:
        """Return the last hidden state in the plain model of the token that stands for each example, [B, D]."""
        parts = self._parts
        if cached_BD is not None:
            return to_device(cached_BD, parts.device).to(parts.model.dtype)
        with without_dropout(parts.model):
            (hidden_ZD,) = parts.calls.packed(tokens, self._plain(tokens), 0).last_hidden_state
        return hidden_ZD[to_device(parts.texts.summary_rows(tokens), parts.device)]

    def _plain(self, tokens: PackedTokens) -> AttentionHook | RelativePass:
        """Return the attention of a pass of the frozen model alone."""
        rows = PackedRows(None, tokens.lengths_B)
        return self._parts.hooked(self._prefix(tokens), rows, 1, int(tokens.lengths_B.max()))

    def _prefix(
        self,
        tokens: PackedTokens,
        prompts: tuple[Tensor, tuple[int, ...], PromptMask | None] | None = None,
        owner_B: Tensor | None = None,
        rows_B: Tensor | None = None,
        lengths_B: np.ndarray | None = None,
    ) -> ByDevice[PackedPrefix]:
        """Return the attention of a pass, or of a part of it: of the texts alone unless there are prompts."""
        parts = self._parts
        top = None if rows_B is None else (parts.geometry.num_layers - 1, rows_B)
        lengths_B = tokens.lengths_B if lengths_B is None else lengths_B
        fixed: dict[str, Any] = {"is_causal": parts.is_causal, "top": top, "branches": tokens.branches}

        def make(
            device: torch.device, prompt_CLKHPD: Tensor, layers: tuple[int, ...], mask: PromptMask | None
        ) -> PackedPrefix:
            owner = None if owner_B is None else owner_B.to(device)
            return PackedPrefix(prompt_CLKHPD, layers, owner, lengths_B, mask=mask, **fixed)

        return by_device(parts.placement, prompts or (parts.no_prompts, (), None), make)

    def _shared(self, tokens: PackedTokens, client_of_example_B: Tensor | np.ndarray | None) -> SharedBeginnings | None:
        """Return the beginnings that texts share, if that pays."""
        if not self.shares:
            return None
        owners_B = client_of_example_B.cpu().numpy() if isinstance(client_of_example_B, Tensor) else client_of_example_B
        return SharedBeginnings.of(tokens, owners_B)

    def _rows_read(
        self, tokens: PackedTokens, longer: PackedTexts | None, shared: SharedBeginnings | None
    ) -> Tensor | None:
        """Return the tokens that the head reads, if the top layer can skip the others.

        Not with dropout, which would be drawn for fewer tokens, and not compiled: each pass would create its own graph.
        """
        parts = self._parts
        if self._pooling == "mean" or not parts.stack.narrows or parts.calls.compiled or parts.model.training:
            return None
        rows_U = _rows_asked(tokens, self._pooling)
        last = parts.placement.of_layers[-1]
        if shared is not None:
            return to_device(shared.rows_read(rows_U), last)
        return to_device(rows_U if longer is None else longer.rows_with(rows_U, _examples_read(tokens)), last)


def _rows(
    tokens: PackedTokens,
    client_of_example_B: Tensor | np.ndarray | None,
    shared: SharedBeginnings | None,
    pooling: Pooling,
) -> PackedRows:
    """Return whose the rows of a pass are."""
    if shared is None:
        return PackedRows(client_of_example_B, tokens.lengths_B, _examples_read(tokens))
    examples_U = None if pooling == "mean" else shared.examples_of(shared.rows_read(_rows_asked(tokens, pooling)))
    return PackedRows(client_of_example_B, shared.own_B, examples_U)


def _rows_asked(tokens: PackedTokens, pooling: Pooling) -> np.ndarray:
    """Return the rows that the head reads, unless it is all."""
    return pooled_rows(tokens, pooling) if tokens.reads is None else tokens.reads.rows_U


def _read(hidden_ZD: Tensor, tokens: PackedTokens, pooling: Pooling) -> Tensor:
    """Return what the head reads of the hidden states of all tokens."""
    if tokens.reads is None:
        return pool_packed(hidden_ZD, tokens, pooling)
    return take_rows(hidden_ZD, to_device(tokens.reads.rows_U, hidden_ZD.device))


def _examples_read(tokens: PackedTokens) -> np.ndarray | None:
    """Return the int64 example of each row that is read, [U]; None where it is one of each example."""
    if tokens.reads is None:
        return None
    return np.searchsorted(tokens.starts_B, tokens.reads.rows_U, side="right") - 1

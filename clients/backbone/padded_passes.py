"""Passes of a padded batch through a tuned model, in the weights' precision: for layer scores, spectra and comparisons.

Shape suffixes: C clients, L tuned layers, X axes of one layer's trained numbers, B examples, T tokens.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from torch import Tensor

from clients.backbone.heads import Tokens
from clients.backbone.pass_texts import without_dropout
from clients.backbone.placed_layers import ByDevice, by_device
from clients.backbone.tuned_model import TunedModel
from clients.tuners.client_rows import PaddedRows
from clients.tuners.prefix import AttentionHook, Prefix, blinds_padding, detached
from clients.tuners.prompt_dropout import PromptMask
from clients.tuners.virtual_tokens import ByDepth, PaddedAttention, PaddedTexts, VirtualTokens, entered


def run_padded(
    parts: TunedModel,
    tokens: Tokens,
    tuned_CLX: Tensor,
    layers: tuple[int, ...],
    client_of_example_B: Tensor | None,
    mask: PromptMask | None = None,
    *,
    output_hidden_states: bool = False,
) -> Any:
    """Return the base model's output for a padded batch.

    Raises
    ------
    ModelError
        If a layer was never tuned in the pass.
    """
    prompt_CLKHPD, prompted = parts.prompts(tuned_CLX, layers)
    prefix = _prefix(parts, (prompt_CLKHPD, prompted, mask), client_of_example_B) if prompted else None
    virtual = parts.virtual(tuned_CLX, layers)
    owner_B = client_of_example_B if len(tuned_CLX) > 1 else None
    rows = PaddedRows(owner_B)
    hook: AttentionHook | None = prefix
    if tokens.branches is not None and virtual is None:
        lengths_B = tokens.attention_mask_BT.sum(1).cpu().numpy()
        hook = PaddedAttention(lengths_B, is_causal=parts.is_causal, branches=tokens.branches, inner=prefix)
    with ExitStack() as stack:
        stack.enter_context(parts.inserted(tuned_CLX, layers, rows))
        if virtual is not None:
            hook = stack.enter_context(_virtual_tokens(parts, tokens, virtual, owner_B))
        elif parts.relative and layers:
            hook = Prefix(parts.no_prompts, ())
        elif hook is None and not blinds_padding(parts.model):
            # Without a prompt the plain implementation runs, mask skipping included, with the original model's bits.
            stack.enter_context(detached(parts.model))
        offset = parts.offset(prompt_CLKHPD, virtual)
        longest = tokens.input_ids_BT.shape[1] + (0 if virtual is None else virtual.length)
        carried = None if hook is None else parts.hooked(hook, rows, len(tuned_CLX), longest)
        output = parts.calls.padded(tokens, carried, offset, output_hidden_states=output_hidden_states)
    for own in prefix.hooks.values() if prefix else ():
        own.check_seen()
    return output


def _prefix(
    parts: TunedModel, prompts: tuple[Tensor, tuple[int, ...], PromptMask | None], client_of_example_B: Tensor | None
) -> ByDevice[Prefix]:
    """Return the attention of a pass with prompts."""

    def make(device: torch.device, prompt_CLKHPD: Tensor, layers: tuple[int, ...], mask: PromptMask | None) -> Prefix:
        owner_B = None if client_of_example_B is None else client_of_example_B.to(device)
        return Prefix(prompt_CLKHPD, layers, owner_B, mask)

    return by_device(parts.placement, prompts, make)


@contextmanager
def _virtual_tokens(
    parts: TunedModel, tokens: Tokens, virtual: VirtualTokens, owner_B: Tensor | None
) -> Iterator[AttentionHook]:
    """Let virtual tokens enter a pass; yields its attention."""
    below: AttentionHook = Prefix(parts.no_prompts, ())
    branches, causal = tokens.branches, parts.is_causal
    if branches is not None:
        own_B = tokens.attention_mask_BT.sum(1).cpu().numpy()
        below = PaddedAttention(own_B, is_causal=causal, branches=branches)

    @torch.no_grad()
    def plain() -> Tensor:
        with without_dropout(parts.model):
            hook = parts.hooked(below, PaddedRows(None), 1, tokens.input_ids_BT.shape[1])
            return parts.calls.padded(tokens, hook, 0).last_hidden_state

    lengths_B, texts = parts.texts.padded(tokens, owner_B, plain if parts.tuner.reads_output else None)
    above = PaddedAttention(lengths_B + virtual.length, is_causal=causal, branches=branches)
    with entered(parts.stack, virtual, PaddedTexts(tokens.attention_mask_BT, virtual.length, branches), texts):
        yield ByDepth(virtual.depth, below, above)

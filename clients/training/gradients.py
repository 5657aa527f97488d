"""Losses and gradients of one step of several clients, in shared passes through the backbone.

Only prompts and heads differ between clients, so the mini-batches of all of them go through the backbone together: each
example takes the prompt of its own client, the loss is the sum over clients of each client's mean, and gradients fall
apart by client.

Shape suffixes: C clients, A all parameters that a client trains, B examples of a step.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from clients.backbone.device import to_device
from clients.backbone.model import Backbone
from clients.backbone.passes import PassLimit, run_passes
from clients.tuners.prompt_dropout import PromptMask
from fedsim.core.layout import VectorLayout
from fedsim.core.tokens import TokenTable, rows


@dataclass(frozen=True)
class StepBatch:
    """The examples of one step, of all clients that take it."""

    indices_B: np.ndarray
    """int64 numbers in the token table."""
    owners_B: np.ndarray
    """int64; row of the client that each example belongs to."""
    share_B: np.ndarray
    """float64; one over the size of the mini-batch that the example is in."""
    cached: Tensor | None = None
    """What enters the lowest prompted layer, of all examples of the clients [tokens, hidden]; None where all layers run."""
    trunk_starts_B: np.ndarray | None = None
    """int64 row of ``trunk`` of each example's first token."""
    kept_BA: np.ndarray | None = None
    """bool; entries of the prompts that each example keeps with ``prompt.dropout``, None for all."""
    kept_scale: float = 1.0
    """What kept entries are multiplied by."""

    def __len__(self) -> int:
        return len(self.indices_B)

    def states_of(self, chosen_B: np.ndarray, lengths_B: np.ndarray) -> Tensor | None:
        """Return the trunk of some of the examples, one after another, or None."""
        if self.cached is None or self.trunk_starts_B is None:
            return None
        return self.cached.index_select(
            0, to_device(rows(self.trunk_starts_B[chosen_B], lengths_B), self.cached.device)
        )

    def mask_of(self, chosen_B: np.ndarray, layout: VectorLayout, device: torch.device) -> PromptMask | None:
        """Return what some of the examples keep of their prompts, or None for all."""
        if self.kept_BA is None:
            return None
        kept_BLKHPD = to_device(self.kept_BA[chosen_B], device).view(len(chosen_B), *layout.tuned_shape)
        return PromptMask(kept_BLKHPD, self.kept_scale)


@dataclass
class Gradient:
    """What a step's examples say."""

    loss_C: Tensor
    """Mean loss of each client's mini-batch."""
    gradient_CA: Tensor
    """Its gradient."""
    tokens_C: np.ndarray
    """int64 tokens of each client's mini-batch."""
    slots_C: np.ndarray
    """int64 tokens that attention computed for them, padding included."""


def gradients(
    backbone: Backbone,
    table: TokenTable,
    batch: StepBatch,
    layout: VectorLayout,
    vector_CA: Tensor,
    max_tokens: PassLimit | int | None = None,
) -> Gradient:
    """Return each client's mean loss and its gradient in the parameters of ``layout``.

    Parameters
    ----------
    vector_CA
        Parameters of each client, one a row.
    max_tokens
        Tokens in one pass through the backbone; more are cut into several, which bounds memory. An example is never cut. A
        limit is lowered where memory does not hold a pass.

    Raises
    ------
    ResourceError
        If the memory of the device does not hold one example.
    """
    count = len(vector_CA)
    total = Gradient(
        vector_CA.new_zeros(count), torch.zeros_like(vector_CA), np.zeros(count, np.int64), np.zeros(count, np.int64)
    )
    lengths_B = table.lengths_N[batch.indices_B]
    order_B = np.argsort(lengths_B, kind="stable")

    def add(examples: slice) -> None:
        _add_pass(total, backbone, table, batch, order_B[examples], layout, vector_CA)

    run_passes(lengths_B[order_B], [slice(0, len(order_B))], PassLimit.of(max_tokens), add)
    return total


def _add_pass(
    total: Gradient,
    backbone: Backbone,
    table: TokenTable,
    batch: StepBatch,
    chosen_B: np.ndarray,
    layout: VectorLayout,
    vector_CA: Tensor,
) -> None:
    device = vector_CA.device
    indices_B, owners_B = batch.indices_B[chosen_B], batch.owners_B[chosen_B]
    tokens = table.pack(indices_B)
    leaf_CA = vector_CA.detach().requires_grad_(True)
    prompt_CLKHPD, head_C = layout.split_rows(leaf_CA)
    owner_of_B = to_device(owners_B, device)
    reading, slots_B = backbone.read(
        tokens,
        prompt_CLKHPD,
        layout.layers,
        head_C,
        owner_of_B,
        batch.states_of(chosen_B, tokens.lengths_B),
        batch.mask_of(chosen_B, layout, device),
    )
    share_B = to_device(batch.share_B[chosen_B], device).to(reading.loss_B.dtype)
    loss_B = reading.loss_B * share_B
    (gradient_CA,) = torch.autograd.grad(loss_B.sum(), leaf_CA)
    # Neither index_add, which keeps no order on a GPU, nor a matrix product, in which one client's NaN would be everyone's.
    belongs_CB = owner_of_B == torch.arange(len(vector_CA), device=device).unsqueeze(1)
    loss_C = torch.where(belongs_CB, loss_B.detach(), 0.0).sum(1)
    # From here on nothing can run out of memory, so a pass is either in the total or has left nothing in it.
    total.gradient_CA.add_(gradient_CA)
    total.loss_C.add_(loss_C)
    np.add.at(total.tokens_C, owners_B, tokens.lengths_B)
    np.add.at(total.slots_C, owners_B, slots_B)

"""Loss and gradient of one step, or the loss alone, per client, in shared passes through the backbone.

Only prompts and heads differ between clients, so their mini-batches go through the backbone together: each example takes the
prompt of its own client, the loss is the sum of the clients' means, and the gradient separates by client.

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
from clients.backbone.shared_beginnings import SharedBeginnings
from clients.tuners.prompt_dropout import PromptMask
from fedsim.core.layout import VectorLayout
from fedsim.core.tokens import TokenTable, rows


@dataclass(frozen=True)
class StepBatch:
    """The examples of one step, of all clients that take it."""

    indices_B: np.ndarray
    """int64 row numbers in the token table."""
    owners_B: np.ndarray
    """int64; row of each example's client."""
    share_B: np.ndarray
    """float64; the example's share in the loss of its mini-batch; see :func:`shares`."""
    cached: Tensor | None = None
    """Input of the lowest prompted layer, for all examples of the clients [tokens, hidden]; None where all layers run."""
    cached_starts_B: np.ndarray | None = None
    """int64; row in ``cached`` of each example's first token."""
    kept_BA: np.ndarray | None = None
    """bool; entries of the prompts that each example keeps with ``prompt.dropout``, None for all."""
    kept_scale: float = 1.0
    """Factor for the kept entries."""

    def __len__(self) -> int:
        return len(self.indices_B)

    def for_candidates(self, population: int) -> StepBatch:
        """Return a batch in which each of a client's ``population`` candidates reads the client's examples.

        Candidate n of client c is row ``c * population + n`` of the vectors.
        """
        if self.kept_BA is not None:
            raise ValueError("candidates are compared without dropout")
        size, rows_N = len(self), np.arange(population)
        starts = None if self.cached_starts_B is None else np.tile(self.cached_starts_B, population)
        return StepBatch(
            np.tile(self.indices_B, population),
            np.tile(self.owners_B * population, population) + np.repeat(rows_N, size),
            np.tile(self.share_B, population),
            self.cached,
            starts,
        )

    def states_of(self, chosen_B: np.ndarray, rows_B: np.ndarray) -> Tensor | None:
        """Return the cached states of some of the examples, ``rows_B`` rows of each, concatenated, or None."""
        if self.cached is None or self.cached_starts_B is None:
            return None
        return self.cached.index_select(0, to_device(rows(self.cached_starts_B[chosen_B], rows_B), self.cached.device))

    def mask_of(self, chosen_B: np.ndarray, layout: VectorLayout, device: torch.device) -> PromptMask | None:
        """Return the prompt mask of some of the examples, or None if they keep all entries."""
        if self.kept_BA is None:
            return None
        kept_BLKHPD = to_device(self.kept_BA[chosen_B], device).view(len(chosen_B), *layout.tuned_shape)
        return PromptMask(kept_BLKHPD, self.kept_scale)


@dataclass
class Gradient:
    """Loss and gradient of one step, per client."""

    loss_C: Tensor
    """Mean loss of each client's mini-batch."""
    gradient_CA: Tensor
    """Gradient of that loss; without entries, [C, 0], where only losses were asked for."""
    tokens_C: np.ndarray
    """int64; tokens in each client's mini-batch."""
    slots_C: np.ndarray
    """int64; tokens that attention computed for them, including padding."""


def shares(table: TokenTable, indices_B: np.ndarray, owners_B: np.ndarray) -> np.ndarray:
    """Return each example's share in the loss of its client's mini-batch, float64.

    One over the mini-batch's size; with responses its share in their tokens, so that the loss is the mean over tokens.

    Parameters
    ----------
    indices_B
        Row numbers in the table.
    owners_B
        Each example's client.
    """
    tokens_B = table.responses_N[indices_B].astype(np.float64)
    return tokens_B / np.bincount(owners_B, weights=tokens_B)[owners_B]


def gradients(
    backbone: Backbone,
    table: TokenTable,
    batch: StepBatch,
    layout: VectorLayout,
    vector_CA: Tensor,
    max_tokens: PassLimit | int | None = None,
) -> Gradient:
    """Return each client's mean loss and its gradient with respect to the parameters of ``layout``.

    Parameters
    ----------
    vector_CA
        Parameters, one row per client.
    max_tokens
        Most tokens in one pass through the backbone; larger steps are cut into several passes, which bounds memory. An example
        is never cut. A limit is lowered if a pass does not fit in memory.

    Raises
    ------
    ResourceError
        If a single example does not fit in the device's memory.
    """
    return _run(backbone, table, batch, layout, vector_CA, max_tokens, torch.zeros_like(vector_CA))


def losses(
    backbone: Backbone,
    table: TokenTable,
    batch: StepBatch,
    layout: VectorLayout,
    vector_CA: Tensor,
    max_tokens: PassLimit | int | None = None,
) -> Gradient:
    """Return each client's mean loss by forward passes alone, without a gradient; parameters as for :func:`gradients`."""
    with torch.no_grad():
        return _run(backbone, table, batch, layout, vector_CA, max_tokens, vector_CA.new_zeros(len(vector_CA), 0))


def _run(
    backbone: Backbone,
    table: TokenTable,
    batch: StepBatch,
    layout: VectorLayout,
    vector_CA: Tensor,
    max_tokens: PassLimit | int | None,
    gradient_CA: Tensor,
) -> Gradient:
    count = len(vector_CA)
    total = Gradient(vector_CA.new_zeros(count), gradient_CA, np.zeros(count, np.int64), np.zeros(count, np.int64))
    order_B, tokens_B = _order(backbone, table, batch)

    def add(examples: slice) -> None:
        _add_pass(total, backbone, table, batch, order_B[examples], layout, vector_CA)

    run_passes(tokens_B, [slice(0, len(order_B))], PassLimit.of(max_tokens), add)
    return total


def _order(backbone: Backbone, table: TokenTable, batch: StepBatch) -> tuple[np.ndarray, np.ndarray]:
    """Return the order in which examples go into passes, int64 [B], and the tokens that each adds to its pass.

    By length, which is the least work for attention; where a client's texts begin alike, client by client, as only those of one
    pass share what they begin with.
    """
    lengths_B = table.lengths_N[batch.indices_B]
    if backbone.shares_beginnings and batch.kept_BA is None:
        order_B = np.lexsort((lengths_B, batch.owners_B))
        shared = SharedBeginnings.of(table.pack(batch.indices_B[order_B]), batch.owners_B[order_B])
        if shared is not None:
            return order_B, shared.own_B
    order_B = np.argsort(lengths_B, kind="stable")
    return order_B, lengths_B[order_B]


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
    wanted = torch.is_grad_enabled()
    leaf_CA = vector_CA.detach().requires_grad_(wanted)
    tuned_CLX, head_C = layout.split_rows(leaf_CA)
    owner_of_B = to_device(owners_B, device)
    reading, slots_B = backbone.read(
        tokens,
        tuned_CLX,
        layout.layers,
        head_C,
        owners_B,
        batch.states_of(chosen_B, backbone.cached_rows(tokens.lengths_B)),
        batch.mask_of(chosen_B, layout, device),
    )
    share_B = to_device(batch.share_B[chosen_B], device).to(reading.loss_B.dtype)
    loss_B = reading.loss_B * share_B
    gradient_CA = torch.autograd.grad(loss_B.sum(), leaf_CA)[0] if wanted else None
    # Not index_add, whose order varies on a GPU, nor a matrix product, which would spread one client's NaN to all.
    belongs_CB = owner_of_B == torch.arange(len(vector_CA), device=device).unsqueeze(1)
    loss_C = torch.where(belongs_CB, loss_B.detach(), 0.0).sum(1)
    # Nothing below can run out of memory, so a pass is added either completely or not at all.
    if gradient_CA is not None:
        total.gradient_CA.add_(gradient_CA)
    total.loss_C.add_(loss_C)
    np.add.at(total.tokens_C, owners_B, tokens.lengths_B)
    np.add.at(total.slots_C, owners_B, slots_B)

"""Log-probabilities of target tokens over a whole vocabulary, without the scores of all words of all rows at once.

Rows go through the LM head's last linear layer in chunks. The loss of a row has the gradient W[target] - sum of p_v W[v] over
all words v, up to its sign; the sum is made while the chunk's scores are there, so they are neither kept nor made again.

Shape suffixes: U rows that are read, R reads, D hidden size, V vocabulary size, M rows of a chunk.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from clients.backbone.device import to_device
from clients.budget import rows_of_scores
from clients.tuners.moves import add_rows
from fedsim.core.reads import Reads


@dataclass(frozen=True)
class TargetScores:
    """What a model says of the tokens that follow."""

    logp_R: Tensor
    """float32 or float64 log-probability of each target, differentiable."""
    best_U: Tensor
    """int64; the most likely token of each row, the first of equals."""


def target_scores(
    hidden_UD: Tensor, reads: Reads, transform: Callable[[Tensor], Tensor], decoder: nn.Linear, cap: float | None
) -> TargetScores:
    """Return the log-probability of each target by the frozen LM head, over its whole vocabulary.

    Parameters
    ----------
    hidden_UD
        Last hidden states of ``reads.rows_U``.
    reads
        What each row has to predict; ``groups_R`` are of no matter here.
    transform
        The LM head without its last linear layer.
    decoder
        That layer; no gradient reaches it.
    cap
        Bound c of the scores, c tanh(score / c); None for none.
    """
    head = _Head(decoder.weight.detach(), None if decoder.bias is None else decoder.bias.detach(), cap)
    places = _Places.of(reads, hidden_UD.device)
    logp_R, best_U = _Scores.apply(transform(hidden_UD), head, places, torch.is_grad_enabled())
    return TargetScores(logp_R, best_U)


def group_means(values_R: Tensor, reads: Reads) -> Tensor:
    """Return the mean of each group's values, [groups]; added up in a fixed order, so that a NaN stays in its group."""
    counts_G = np.bincount(reads.groups_R, minlength=reads.num_groups)
    sums_G = add_rows(reads.num_groups, to_device(reads.groups_R, values_R.device), values_R)
    return sums_G / to_device(counts_G, values_R.device)


@dataclass(frozen=True)
class _Head:
    weight_VD: Tensor
    bias_V: Tensor | None
    cap: float | None

    def scores(self, hidden_MD: Tensor) -> Tensor:
        """Return the scores of all words [M, V], in float32 or float64."""
        scores_MV = nn.functional.linear(hidden_MD, self.weight_VD, self.bias_V)
        scores_MV = scores_MV.to(torch.promote_types(scores_MV.dtype, torch.float32))
        return scores_MV if self.cap is None else self.cap * torch.tanh(scores_MV / self.cap)

    def slope(self, scores: Tensor) -> Tensor | None:
        """Return the derivative of bounded scores in what they were before; None without a bound."""
        return None if self.cap is None else 1 - (scores / self.cap).square()

    def chunk(self, device: torch.device) -> int:
        """Return the rows of a chunk."""
        return rows_of_scores(len(self.weight_VD), self.weight_VD.element_size(), on_gpu=device.type == "cuda")


@dataclass(frozen=True)
class _Places:
    """Reads in the order of their rows."""

    order_R: Tensor
    """Number of each among the reads as they were given."""
    row_R: Tensor
    """Row of each in the hidden states, ascending."""
    target_R: Tensor
    ends_U1: np.ndarray
    """Number of reads before each row, and of all."""

    @classmethod
    def of(cls, reads: Reads, device: torch.device) -> _Places:
        order_R = np.argsort(reads.read_R, kind="stable")
        row_R = reads.read_R[order_R]
        ends_U1 = np.searchsorted(row_R, np.arange(len(reads.rows_U) + 1))
        order, rows, targets = (to_device(array, device) for array in (order_R, row_R, reads.targets_R[order_R]))
        return cls(order, rows, targets, ends_U1)


class _Scores(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, hidden_UD: Tensor, head: _Head, places: _Places, wanted: bool) -> tuple[Tensor, Tensor]:
        wanted = wanted and ctx.needs_input_grad[0]
        count, exact = len(hidden_UD), torch.promote_types(hidden_UD.dtype, torch.float32)
        logp_R = hidden_UD.new_empty(len(places.row_R), dtype=exact)
        slope_R = torch.empty_like(logp_R) if wanted and head.cap is not None else None
        mean_UD = torch.empty_like(hidden_UD, dtype=exact) if wanted else None
        best_U = torch.empty(count, dtype=torch.int64, device=hidden_UD.device)
        step = head.chunk(hidden_UD.device)
        for start in range(0, count, step):
            rows = slice(start, min(start + step, count))
            reads = slice(*places.ends_U1[[rows.start, rows.stop]].tolist())
            scores_MV = head.scores(hidden_UD[rows])
            slope_MV = head.slope(scores_MV) if wanted else None
            top_M, best_U[rows] = scores_MV.max(1)
            row, target = places.row_R[reads] - start, places.target_R[reads]
            of_targets = scores_MV[row, target]
            shares_MV = scores_MV.sub_(top_M.unsqueeze(1)).exp_()
            total_M = shares_MV.sum(1)
            logp_R[reads] = of_targets - top_M[row] - total_M.log()[row]
            if slope_R is not None and slope_MV is not None:
                slope_R[reads] = slope_MV[row, target]
                shares_MV.mul_(slope_MV)
            if mean_UD is not None:
                mean_UD[rows] = shares_MV.div_(total_M.unsqueeze(1)).to(head.weight_VD.dtype) @ head.weight_VD
        ctx.save_for_backward(hidden_UD, mean_UD, slope_R)
        ctx.head, ctx.places = head, places
        ctx.mark_non_differentiable(best_U)
        given_R = torch.empty_like(logp_R)
        given_R[places.order_R] = logp_R
        return given_R, best_U

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        head, places = ctx.head, ctx.places
        hidden_UD, mean_UD, slope_R = ctx.saved_tensors
        grad_R = gradients[0][places.order_R]
        if torch.is_grad_enabled():  # a second derivative is wanted
            return _differentiable(hidden_UD, grad_R, head, places), None, None, None
        count = len(hidden_UD)
        pull_R1 = (grad_R if slope_R is None else grad_R * slope_R).unsqueeze(1)
        of_targets_UD = add_rows(count, places.row_R, pull_R1 * head.weight_VD[places.target_R].to(pull_R1.dtype))
        of_all_UD = add_rows(count, places.row_R, grad_R).unsqueeze(1) * mean_UD
        return (of_targets_UD - of_all_UD).to(hidden_UD.dtype), None, None, None


def _differentiable(hidden_UD: Tensor, grad_R: Tensor, head: _Head, places: _Places) -> Tensor:
    """Return the gradient with a graph of its own, from the scores of all words."""
    logp_UV = head.scores(hidden_UD).log_softmax(1)
    logp_R = logp_UV[places.row_R, places.target_R]
    (of_hidden_UD,) = torch.autograd.grad(logp_R, hidden_UD, grad_R, create_graph=True)
    return of_hidden_UD

"""Local training of one client: mini-batch steps on its prompts and head, with optional correction of client drift.

Shape suffixes: A all parameters that the client trains, F the exchanged ones among them, M the personal ones.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor

from clients.backbone import Backbone
from clients.config import ClientConfig
from clients.optimizers import Moments, clip, decay_and_step, direction, gain, learning_rate
from fedsim.core import seeds
from fedsim.core.layout import VectorLayout
from fedsim.core.tokens import TokenTable


@dataclass(frozen=True)
class Parts:
    """Which of a client's parameters travel and which stay, as positions in the flat vector that it trains."""

    trained: VectorLayout
    exchanged: VectorLayout
    personal: VectorLayout
    exchanged_F: np.ndarray
    personal_M: np.ndarray

    @classmethod
    def of(cls, full: VectorLayout, layers: tuple[int, ...], keep_local: bool) -> Parts:
        """Cut the parameters of all layers (``full``) into exchanged ``layers`` and, if kept, personal ones."""
        exchanged = full.exchanged(layers)
        trained = full if keep_local else exchanged
        personal = trained.local(layers)
        return cls(trained, exchanged, personal, trained.positions(exchanged), trained.positions(personal))

    def assemble(self, vector_F: np.ndarray, personal_M: np.ndarray) -> np.ndarray:
        """Return the trained vector of length A made of its exchanged and personal entries."""
        vector_A = np.empty(self.trained.size, dtype=vector_F.dtype)
        vector_A[self.exchanged_F] = vector_F
        vector_A[self.personal_M] = personal_M
        return vector_A


@dataclass(frozen=True)
class TrainingResult:
    """What one visit made of a client's parameters."""

    vector_A: np.ndarray
    """Parameters after training, in the number format of those before."""
    moments: Moments
    num_steps: int
    loss_first: float
    """Mean loss over the first pass."""
    loss_last: float
    """Mean loss over the last pass."""
    stepped_A: np.ndarray | None = None
    """With the preconditioner correction: what the optimizer's steps took away, weight decay left out."""
    gain_A: np.ndarray | None = None
    """With the preconditioner correction: sum over steps of learning rate times gain; stepped over gain is a mean gradient."""


def batches(config: ClientConfig, num_examples: int, rng: np.random.Generator) -> Iterator[tuple[int, np.ndarray]]:
    """Yield ``(pass number, positions of a batch)`` for one visit: ``epochs`` passes, or passes until ``steps`` are done."""
    limit = config.steps if config.steps is not None else num_steps(config, num_examples)
    done = epoch = 0
    while done < limit:
        order = rng.permutation(num_examples) if config.shuffle else np.arange(num_examples)
        for start in range(0, num_examples, config.batch_size):
            if done == limit:
                return
            yield epoch, order[start : start + config.batch_size]
            done += 1
        epoch += 1


def num_steps(config: ClientConfig, num_examples: int) -> int:
    """Return the local steps T_i of one visit of a client with ``num_examples`` training examples."""
    if config.steps is not None:
        return config.steps
    return (config.epochs or 0) * -(-num_examples // config.batch_size)


@contextmanager
def _dropout(backbone: Backbone, active: bool, seed: int) -> Iterator[None]:
    """Run the backbone with its dropout active, drawing from a seed of this visit and leaving torch's state untouched."""
    if not active:
        yield
        return
    devices = [backbone.device] if backbone.device.type == "cuda" else []
    with torch.random.fork_rng(devices=devices):
        torch.manual_seed(seed)
        backbone.set_dropout(True)
        try:
            yield
        finally:
            backbone.set_dropout(False)


def gradient(
    backbone: Backbone, table: TokenTable, indices_B: np.ndarray, layout: VectorLayout, vector_A: Tensor
) -> tuple[Tensor, Tensor]:
    """Return ``(mean loss, its gradient [A])`` of one batch in the parameters of ``layout``."""
    vector_A = vector_A.detach().requires_grad_(True)
    prompt_LKHPD, head = layout.split(vector_A)
    head_1 = {name: array.unsqueeze(0) for name, array in head.items()}
    reading = backbone.forward(table.batch(indices_B), prompt_LKHPD.unsqueeze(0), layout.layers, head_1)
    loss = reading.loss_B.mean()
    (gradient_A,) = torch.autograd.grad(loss, vector_A)
    return loss.detach(), gradient_A


def train_client(
    backbone: Backbone,
    table: TokenTable,
    indices_N: np.ndarray,
    parts: Parts,
    config: ClientConfig,
    correction: str,
    start_A: np.ndarray,
    moments: Moments | None,
    drift_F: np.ndarray | None,
    *,
    seed: int,
    round: int,
    client: int,
) -> TrainingResult:
    """Train one client for one visit.

    Parameters
    ----------
    indices_N
        The client's training examples in ``table``.
    correction
        ``none``, ``proximal`` (FedProx: the gradient of mu/2 |p - P_t|^2 is added on the exchanged entries), ``control``
        (``drift_F`` is added to every step on the exchanged entries) or ``preconditioner`` (steps are plain; what they took
        away and their gain are returned, so that the server can average clients in a common metric).
    start_A
        Parameters to start from, float32 or float64; the exchanged entries are the global vector P_t.
    moments
        The optimizer's state of the last visit, or None to begin anew.
    drift_F
        c - c_i, needed by ``control``. It is added to the step rather than to the gradient: c_i is a
        displacement per step and learning rate, so it has the units of a step whatever the optimizer (with plain SGD
        the two are the same, and this is SCAFFOLD).
    """
    device = backbone.device
    vector_A = torch.from_numpy(start_A.copy()).to(device)
    anchor_F = vector_A[torch.from_numpy(parts.exchanged_F).to(device)] if correction == "proximal" else None
    positions_F = torch.from_numpy(parts.exchanged_F).to(device)
    drift = torch.from_numpy(drift_F.copy()).to(device) if correction == "control" and drift_F is not None else None
    moments = moments or Moments.zeros(vector_A)
    visit_steps = num_steps(config, len(indices_N))
    rng = seeds.stream(seed, round, client, "shuffle")
    losses: dict[int, list[Tensor]] = {}
    tally = _Tally(vector_A) if correction == "preconditioner" else None
    with _dropout(backbone, config.dropout, seeds.torch_seed(seed, round, client, "dropout")):
        for epoch, positions_B in batches(config, len(indices_N), rng):
            loss, gradient_A = gradient(backbone, table, indices_N[positions_B], parts.trained, vector_A)
            if anchor_F is not None:
                pull_F = config.proximal_mu * (vector_A[positions_F] - anchor_F)
                gradient_A.index_add_(0, positions_F, pull_F)
            scale = clip(gradient_A, config.optimizer.clip_norm)
            lr = learning_rate(config.schedule, config.optimizer.lr, moments.step, visit_steps)
            step_A = direction(config.optimizer, moments, gradient_A)
            if drift is not None:
                step_A = step_A.index_add(0, positions_F, drift)
            if tally is not None:
                tally.add(step_A, gain(config.optimizer, moments) * scale, lr)
            decay_and_step(config.optimizer, vector_A, step_A, lr)
            losses.setdefault(epoch, []).append(loss)
    means = [float(torch.stack(values).mean()) for values in losses.values()]
    result = TrainingResult(vector_A.cpu().numpy(), moments, visit_steps, means[0], means[-1])
    return result if tally is None else tally.add_to(result)


class _Tally:
    """Sums over a visit's steps, for the preconditioner correction."""

    def __init__(self, like_A: Tensor) -> None:
        self._stepped_A = torch.zeros_like(like_A)
        self._gain_A = torch.zeros_like(like_A)

    def add(self, step_A: Tensor, gain_A: Tensor, lr: float) -> None:
        self._stepped_A.add_(step_A, alpha=lr)
        self._gain_A.add_(gain_A, alpha=lr)

    def add_to(self, result: TrainingResult) -> TrainingResult:
        return replace(result, stepped_A=self._stepped_A.cpu().numpy(), gain_A=self._gain_A.cpu().numpy())

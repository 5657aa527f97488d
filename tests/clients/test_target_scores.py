"""Target scores against the log-softmax over all words: values, gradients and second derivatives."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import nn

from clients.backbone import target_scores as module
from clients.backbone.target_scores import target_scores
from fedsim.core.reads import Reads

ROWS, HIDDEN, WORDS = 7, 5, 23
PAIRS = [(0, 3), (1, 22), (1, 0), (3, 3), (3, 3), (2, 9), (6, 1), (5, 8), (0, 4)]
"""Row and target of each read: in no order, rows read never, once, and several times, one pair twice."""


def reads(pairs=PAIRS) -> Reads:
    read_R, targets_R = np.array(pairs).T
    return Reads(np.arange(ROWS) * 2, read_R, targets_R, np.arange(len(pairs)), len(pairs))


def head(bias: bool, dtype: torch.dtype = torch.float64) -> nn.Linear:
    generator = torch.Generator().manual_seed(1)
    linear = nn.Linear(HIDDEN, WORDS, bias=bias, dtype=dtype)
    for parameter in linear.parameters():
        parameter.data = torch.randn(parameter.shape, generator=generator, dtype=torch.float64).to(dtype)
    return linear


def hidden(dtype: torch.dtype = torch.float64) -> torch.Tensor:
    generator = torch.Generator().manual_seed(2)
    return (2 * torch.randn((ROWS, HIDDEN), generator=generator, dtype=torch.float64)).to(dtype).requires_grad_()


def transform(hidden_UD: torch.Tensor) -> torch.Tensor:
    return torch.nn.functional.gelu(hidden_UD)


def plain(
    hidden_UD: torch.Tensor, own: Reads, decoder: nn.Linear, cap: float | None
) -> tuple[torch.Tensor, torch.Tensor]:
    """Return what :func:`target_scores` returns, from the scores of all words."""
    scores = decoder(transform(hidden_UD))
    if cap is not None:
        scores = cap * torch.tanh(scores / cap)
    logp = scores.log_softmax(1)
    return logp[torch.from_numpy(own.read_R), torch.from_numpy(own.targets_R)], scores.argmax(1)


@pytest.fixture(params=["one chunk", "chunks of two rows"])
def chunks(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    if request.param != "one chunk":
        monkeypatch.setattr(module, "rows_of_scores", lambda *sizes, on_gpu: 2)


@pytest.mark.parametrize("cap", [None, 1.5])
@pytest.mark.parametrize("bias", [False, True])
def test_values_and_gradients_are_those_of_the_whole_softmax(chunks, bias, cap):
    decoder, own, given = head(bias), reads(), hidden()
    ours = target_scores(given, own, transform, decoder, cap)
    logp_R, best_U = plain(given, own, decoder, cap)
    torch.testing.assert_close(ours.logp_R, logp_R, rtol=1e-12, atol=1e-12)
    assert torch.equal(ours.best_U, best_U)
    weights = torch.linspace(-1, 2, len(PAIRS), dtype=torch.float64)
    mine, theirs = (torch.autograd.grad((logp * weights).sum(), given)[0] for logp in (ours.logp_R, logp_R))
    torch.testing.assert_close(mine, theirs, rtol=1e-11, atol=1e-12)
    assert not any(parameter.grad is not None for parameter in decoder.parameters())


@pytest.mark.parametrize("cap", [None, 1.5])
def test_second_derivatives_are_right(chunks, cap):
    """Hessian spectra differentiate a gradient."""
    decoder, own, given = head(True), reads(), hidden()
    direction = torch.linspace(-1, 1, ROWS * HIDDEN, dtype=torch.float64).view(ROWS, HIDDEN)
    products = []
    for logp_R in (target_scores(given, own, transform, decoder, cap).logp_R, plain(given, own, decoder, cap)[0]):
        (gradient,) = torch.autograd.grad(logp_R.square().sum(), given, create_graph=True)
        products.append(torch.autograd.grad(gradient, given, direction)[0])
    assert products[1].abs().max() > 1e-2
    torch.testing.assert_close(*products, rtol=1e-10, atol=1e-11)


def test_half_precision_is_scored_in_float32(chunks):
    decoder, own, given = head(True, torch.bfloat16), reads(), hidden(torch.bfloat16)
    ours = target_scores(given, own, transform, decoder, None)
    logp_R, _ = plain(given.detach().double(), own, head(True), None)
    assert ours.logp_R.dtype == torch.float32
    torch.testing.assert_close(ours.logp_R.double(), logp_R, rtol=0.03, atol=0.05)
    (gradient,) = torch.autograd.grad(ours.logp_R.sum(), given)
    assert gradient.dtype == torch.bfloat16


def test_a_broken_row_breaks_no_other(chunks):
    decoder, own, given = head(True), reads(), hidden()
    broken = given.detach().clone()
    broken[3] = torch.nan
    broken.requires_grad_()
    before, after = (target_scores(states, own, transform, decoder, None).logp_R for states in (given, broken))
    others = torch.from_numpy(own.read_R != 3)
    assert after[~others].isnan().all() and torch.equal(after[others], before[others])
    gradients = [torch.autograd.grad(logp.sum(), states)[0] for logp, states in ((before, given), (after, broken))]
    rows = torch.arange(ROWS) != 3
    assert gradients[1][3].isnan().all() and torch.equal(gradients[1][rows], gradients[0][rows])


def test_the_scores_of_all_words_are_not_kept():
    kept: list[torch.Size] = []

    def pack(tensor: torch.Tensor) -> torch.Tensor:
        kept.append(tensor.shape)
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        target_scores(hidden(), reads(), transform, head(True), 1.5)
    assert kept and all(shape.numel() <= ROWS * HIDDEN for shape in kept)
    with torch.inference_mode():
        scored = target_scores(hidden(), reads(), transform, head(True), None)
    assert not scored.logp_R.requires_grad

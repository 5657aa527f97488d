"""The trunk: the layers below the lowest prompted one, where nothing depends on a prompt.

What enters the lowest prompted layer is a function of an example alone (dropout off), so it is computed once and used
again in every later pass over that example.

Shape suffixes: N examples, Z packed tokens, D hidden size.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import reduce
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor, nn

from clients.backbone.families import Family
from clients.backbone.passes import PassLimit, run_passes
from clients.tuners.packed_prefix import take_rows
from fedsim.core.tokens import TokenTable, rows

if TYPE_CHECKING:
    from clients.backbone.model import Backbone


class LayerStack:
    """The list of a model's layers, parts of which can be run by themselves.

    transformers' own forward pass runs around the part: embeddings, rotary angles and the last norm stay its business.
    """

    def __init__(self, base: nn.Module, family: Family) -> None:
        *path, self._name = family.layers.split(".")
        self._parent: Any = reduce(getattr, path, base)
        self._all: nn.ModuleList = getattr(self._parent, self._name)
        self._behind: nn.Module | None = None
        if family.behind_attention is not None:
            self._behind = self._all[-1].get_submodule(family.behind_attention)

    @property
    def narrows(self) -> bool:
        """Whether the top layer can be run for some tokens alone."""
        return self._behind is not None

    @property
    def all(self) -> nn.ModuleList:
        """All layers, from the lowest."""
        return self._all

    @contextmanager
    def above(self, depth: int, entering_ZD: Tensor) -> Iterator[None]:
        """Run the layers from ``depth`` on alone, on ``entering_ZD`` instead of what the embeddings give."""

        def enter(module: nn.Module, arguments: tuple[Any, ...]) -> tuple[Any, ...]:
            return (entering_ZD.unsqueeze(0), *arguments[1:])

        handle = self._all[depth].register_forward_pre_hook(enter)
        try:
            with self._only(slice(depth, None)):
                yield
        finally:
            handle.remove()

    @contextmanager
    def below(self, depth: int) -> Iterator[list[Tensor]]:
        """Run the layers under ``depth`` alone; what leaves the last of them is put into the list that this gives."""
        left: list[Tensor] = []

        def leave(module: nn.Module, arguments: tuple[Any, ...], output: Any) -> None:
            hidden_1ZD: Tensor = output[0] if isinstance(output, tuple) else output
            left.append(hidden_1ZD[0])

        handle = self._all[depth - 1].register_forward_hook(leave)
        try:
            with self._only(slice(0, depth)):
                yield left
        finally:
            handle.remove()

    @contextmanager
    def narrowed(self, rows_B: Tensor) -> Iterator[None]:
        """Run the top layer, behind its attention, for the tokens ``rows_B`` alone: so many rows leave the model.

        Their attention's output has to stand in the first rows of what attention gives, where :class:`PackedPrefix` puts it.
        """

        def narrow(module: nn.Module, arguments: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor]:
            attended_1ZD, entered_1ZD = arguments
            return attended_1ZD[:, : len(rows_B)], take_rows(entered_1ZD[0], rows_B).unsqueeze(0)

        assert self._behind is not None
        handle = self._behind.register_forward_pre_hook(narrow)
        try:
            yield
        finally:
            handle.remove()

    @contextmanager
    def _only(self, part: slice) -> Iterator[None]:
        setattr(self._parent, self._name, self._all[part])
        try:
            yield
        finally:
            setattr(self._parent, self._name, self._all)


@dataclass(frozen=True)
class CachedStates:
    """What enters the lowest prompted layer, of some examples one after another; plain NumPy, so that Ray maps it.

    NumPy has no bfloat16: such numbers are carried as uint16 of the same bits.
    """

    hidden_ZD: np.ndarray
    dtype: str
    """Number format: float32, bfloat16, float16 or float64."""

    @property
    def nbytes(self) -> int:
        """Bytes of the hidden states."""
        return self.hidden_ZD.nbytes

    @classmethod
    def of(cls, hidden_ZD: Tensor, dtype: str) -> CachedStates:
        """Keep hidden states in a number format."""
        kept_ZD = hidden_ZD.detach().to("cpu", getattr(torch, dtype))
        return cls((kept_ZD.view(torch.uint16) if dtype == "bfloat16" else kept_ZD).numpy(), dtype)

    def tensor(self) -> Tensor:
        """Return the hidden states [Z, D] on the CPU without a copy; they must not be written to."""
        with warnings.catch_warnings():
            # Arrays of the object store are read-only, which torch cannot express.
            warnings.filterwarnings("ignore", message=".*not writable.*")
            hidden_ZD = torch.from_numpy(self.hidden_ZD)
        return hidden_ZD.view(torch.bfloat16) if self.dtype == "bfloat16" else hidden_ZD


def compute_states(
    backbone: Backbone,
    table: TokenTable,
    indices_N: np.ndarray,
    layers: tuple[int, ...],
    dtype: str,
    max_tokens: PassLimit | int,
) -> CachedStates:
    """Compute the trunk of the examples ``indices_N``, in their order.

    The passes are cut in one way whatever else goes on, so that a trunk that was evicted comes back in the same bits, unless
    memory does not hold a pass; see :class:`clients.backbone.passes.PassLimit`.
    """
    lengths_N = table.lengths_N[indices_N]
    order_N = np.argsort(lengths_N, kind="stable")
    pieces: list[Tensor] = []

    def compute(examples: slice) -> None:
        pieces.append(backbone.cached(table.pack(indices_N[order_N[examples]]), layers).cpu())

    run_passes(lengths_N[order_N], [slice(0, len(order_N))], PassLimit.of(max_tokens), compute)
    hidden_ZD = torch.cat(pieces)
    starts_N = np.empty(len(indices_N), dtype=np.int64)
    starts_N[order_N] = np.cumsum(lengths_N[order_N]) - lengths_N[order_N]
    return CachedStates.of(hidden_ZD[torch.from_numpy(rows(starts_N, lengths_N))], dtype)

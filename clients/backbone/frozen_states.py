"""Frozen-layer states: outputs of the layers below the lowest prompted one, which no prompt influences.

The input of the lowest prompted layer depends only on the example (dropout off), so it is computed once and reused
in every later pass over that example.

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
from clients.tuners.moves import take_rows
from fedsim.core.tokens import TokenTable, rows

if TYPE_CHECKING:
    from clients.backbone.model import Backbone


class LayerStack:
    """A model's layers, of which a part can run on its own.

    The part runs within transformers' own forward pass, which handles embeddings, rotary angles and the final norm.
    """

    def __init__(self, base: nn.Module, family: Family) -> None:
        *path, self._name = family.layers.split(".")
        self._base: Any = base
        self._family = family
        self._parent: Any = reduce(getattr, path, base)
        self._all: nn.ModuleList = getattr(self._parent, self._name)
        self._behind: nn.Module | None = None
        if family.behind_attention is not None:
            self._behind = self._all[-1].get_submodule(family.behind_attention)

    @property
    def narrows(self) -> bool:
        """Whether the top layer can run for selected tokens only."""
        return self._behind is not None

    @property
    def all(self) -> nn.ModuleList:
        """All layers, from the lowest."""
        return self._all

    def running(self) -> nn.ModuleList:
        """Return the layers that the model runs now."""
        layers: nn.ModuleList = getattr(self._parent, self._name)
        return layers

    def embed(self, vectors_BPD: Tensor) -> Tensor:
        """Return the input of layer 0 for input embeddings at the first positions."""
        return self._family.embed(self._base, vectors_BPD)

    def rotary_kind(self, layer: int) -> str | None:
        """Return the kind of a layer's rotary angles; None if all layers have the same."""
        return self._base.config.layer_types[layer] if self._family.rotary_by_layer else None

    def rotary(self, hidden: Tensor, positions: Tensor, kind: str | None) -> Any:
        """Return the rotary angles of a kind at positions."""
        own = () if kind is None else (kind,)
        return self._base.rotary_emb(hidden, positions, *own)

    @contextmanager
    def above(self, depth: int, entering_ZD: Tensor) -> Iterator[None]:
        """Run only the layers from ``depth`` up, on ``entering_ZD`` instead of the embeddings."""

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
        """Run only the layers below ``depth``; the output of the last is appended to the yielded list."""
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
    def narrowed(self, rows_U: Tensor, *, attended_alone: bool = True) -> Iterator[None]:
        """Run the top layer after its attention for the tokens ``rows_U`` only: the model outputs that many rows.

        Parameters
        ----------
        attended_alone
            Attention is computed for these tokens alone and lies in the first rows of its result, where :class:`PackedPrefix`
            puts it.
        """

        def narrow(module: nn.Module, arguments: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor]:
            attended_1ZD, entered_1ZD = arguments
            own_UD = attended_1ZD[0, : len(rows_U)] if attended_alone else take_rows(attended_1ZD[0], rows_U)
            return own_UD.unsqueeze(0), take_rows(entered_1ZD[0], rows_U).unsqueeze(0)

        assert self._behind is not None
        handle = self._behind.register_forward_pre_hook(narrow)
        try:
            yield
        finally:
            handle.remove()

    @contextmanager
    def _only(self, part: slice) -> Iterator[None]:
        kept = self._all[part]
        if self._family.layers_by_index:
            inside = range(*part.indices(len(self._all)))
            kept = nn.ModuleList(layer if place in inside else _Passed(layer) for place, layer in enumerate(self._all))
        setattr(self._parent, self._name, kept)
        try:
            yield
        finally:
            setattr(self._parent, self._name, self._all)


class _Passed(nn.Module):
    """Stands where a layer is left out; some versions of transformers choose a mask by its kind of attention."""

    def __init__(self, layer: nn.Module) -> None:
        super().__init__()
        if hasattr(layer, "attention_type"):
            self.attention_type = layer.attention_type

    def forward(self, hidden: Tensor, *_: Any, **__: Any) -> Tensor:
        return hidden


@dataclass(frozen=True)
class CachedStates:
    """Inputs of the lowest prompted layer for some examples, concatenated; plain NumPy, so that Ray can map it.

    NumPy has no bfloat16: such numbers are stored as uint16 with the same bits.
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
        """Store hidden states in a number format."""
        kept_ZD = hidden_ZD.detach().to("cpu", getattr(torch, dtype))
        return cls((kept_ZD.view(torch.uint16) if dtype == "bfloat16" else kept_ZD).numpy(), dtype)

    def tensor(self) -> Tensor:
        """Return the hidden states [Z, D] on the CPU without a copy; do not write to them."""
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
    """Compute the frozen-layer states of the examples ``indices_N``, in their order.

    Passes are always cut the same way, so that evicted states are recomputed to the same bits, unless a pass does not fit
    into memory; see :class:`clients.backbone.passes.PassLimit`.
    """
    lengths_N = table.lengths_N[indices_N]
    order_N = np.argsort(lengths_N, kind="stable")
    pieces: list[Tensor] = []

    def compute(examples: slice) -> None:
        pieces.append(backbone.cached(table.pack(indices_N[order_N[examples]]), layers).cpu())

    run_passes(lengths_N[order_N], [slice(0, len(order_N))], PassLimit.of(max_tokens), compute)
    hidden_ZD = torch.cat(pieces)
    kept_N = backbone.cached_rows(lengths_N)
    starts_N = np.empty(len(indices_N), dtype=np.int64)
    starts_N[order_N] = np.cumsum(kept_N[order_N]) - kept_N[order_N]
    return CachedStates.of(hidden_ZD[torch.from_numpy(rows(starts_N, kept_N))], dtype)

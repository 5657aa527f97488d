"""Virtual tokens: trained vectors before each text in the hidden states, from one layer up.

They enter at the input of a layer, the text's rows follow them, and behind the last layer they are dropped again: the model
returns the rows that it was given. The layers between run on longer texts, with attention and rotary angles of their own.

Shape suffixes: B examples, T tokens, Z packed tokens, P virtual tokens, D hidden size, S = P + T, Y = Z + B x P.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor, nn

from clients.backbone.device import to_device
from clients.tuners.moves import take_rows, together
from clients.tuners.prefix import Attend, AttentionHook
from clients.tuners.texts import Texts, VirtualTokens
from clients.tuners.visibility import additive, visible_keys
from fedsim.core.words import Branches


class Host(Protocol):
    """The model that virtual tokens enter."""

    @property
    def all(self) -> nn.ModuleList:
        """All layers, from the lowest."""
        ...

    def embed(self, vectors_BPD: Tensor) -> Tensor:
        """Return the input of layer 0 for input embeddings at the first positions."""
        ...

    def rotary_kind(self, layer: int) -> str | None:
        """Return the kind of a layer's rotary angles; None if all layers have the same."""
        ...

    def rotary(self, hidden: Tensor, positions: Tensor, kind: str | None) -> Any:
        """Return the rotary angles of a kind at positions."""
        ...


class Longer(Protocol):
    """Puts virtual tokens before texts, and takes them away."""

    positions: Tensor
    """int64 [1, rows], or [B, S]; position of each row, virtual tokens first."""

    def packed(self, hidden: Tensor, /) -> Tensor:
        """Return the texts' rows [Z, D]."""
        ...

    def join(self, hidden: Tensor, vectors_BPD: Tensor, /) -> Tensor:
        """Return the rows with the virtual tokens."""
        ...

    def drop(self, hidden: Tensor, /) -> Tensor:
        """Return the rows of the texts only; unchanged if the virtual tokens are gone already."""
        ...


class PaddedTexts:
    """Texts padded on the right, [B, T, D]."""

    def __init__(self, mask_BT: Tensor, length: int, branches: Branches | None = None) -> None:
        self._mask_BT, self._length = mask_BT.bool(), length
        longer = length + mask_BT.shape[1]
        self.positions = torch.arange(longer, device=mask_BT.device).unsqueeze(0)
        if branches is not None:
            lengths_B = self._mask_BT.sum(1).cpu().numpy() + length
            self.positions = to_device(branches.positions(lengths_B, longer), mask_BT.device)

    def packed(self, hidden_BTD: Tensor) -> Tensor:
        """Return the texts' rows [Z, D]."""
        return hidden_BTD[self._mask_BT]

    def join(self, hidden_BTD: Tensor, vectors_BPD: Tensor) -> Tensor:
        """Return [B, S, D]."""
        return torch.cat([vectors_BPD, hidden_BTD], dim=1)

    def drop(self, hidden_BSD: Tensor) -> Tensor:
        """Return [B, T, D]."""
        return hidden_BSD[:, self._length :]


class PackedTexts:
    """Texts one after another, [1, Z, D]."""

    def __init__(
        self, lengths_B: np.ndarray, length: int, device: torch.device, branches: Branches | None = None
    ) -> None:
        self._length = length
        self.lengths_B = lengths_B + length
        """int64; rows of each example with its virtual tokens."""
        ends_B = np.cumsum(self.lengths_B)
        within_Y = np.arange(int(ends_B[-1])) - np.repeat(ends_B - self.lengths_B, self.lengths_B)
        text_Y = within_Y >= length
        # Texts first, then all virtual tokens: the order in which they are concatenated.
        order = np.concatenate([np.flatnonzero(text_Y), np.flatnonzero(~text_Y)])
        inverse = np.empty_like(order)
        inverse[order] = np.arange(len(order))
        self._text_rows = to_device(np.flatnonzero(text_Y), device)
        self._moves = (
            to_device(order, device),
            to_device(inverse, device),
            torch.empty(0, dtype=torch.int64, device=device),
        )
        if branches is not None:
            longest = int(self.lengths_B.max())
            own_BS = np.arange(longest) < self.lengths_B[:, None]
            within_Y = branches.positions(self.lengths_B, longest)[own_BS]
        self.positions = to_device(within_Y, device).unsqueeze(0)

    def packed(self, hidden_1ZD: Tensor) -> Tensor:
        """Return the texts' rows [Z, D]."""
        return hidden_1ZD[0]

    def join(self, hidden_1ZD: Tensor, vectors_BPD: Tensor) -> Tensor:
        """Return [1, Y, D]."""
        return together(torch.cat([hidden_1ZD[0], vectors_BPD.flatten(0, 1)]), *self._moves).unsqueeze(0)

    def drop(self, hidden_1YD: Tensor) -> Tensor:
        """Return [1, Z, D], or what the narrowed top layer left."""
        if hidden_1YD.shape[1] != self.positions.shape[1]:
            return hidden_1YD
        return take_rows(hidden_1YD[0], self._text_rows).unsqueeze(0)

    def rows_with(self, rows_U: np.ndarray, examples_U: np.ndarray | None = None) -> np.ndarray:
        """Return where rows of the texts are among the longer texts; one row of each example if ``examples_U`` is not given."""
        return rows_U + self._length * (1 + (np.arange(len(rows_U)) if examples_U is None else examples_U))


class ByDepth:
    """Attention that changes at a layer."""

    def __init__(self, depth: int, below: AttentionHook, above: AttentionHook) -> None:
        self._depth, self._below, self._above = depth, below, above

    def attend(self, plain: Attend, module: nn.Module, *arguments: Any, **kwargs: Any) -> tuple[Tensor, Tensor | None]:
        """Compute the attention of layer ``module.layer_idx``."""
        hook = self._below if module.layer_idx < self._depth else self._above  # type: ignore[operator]
        return hook.attend(plain, module, *arguments, **kwargs)


class PaddedAttention:
    """Attention over padded texts of given lengths, with a mask of its own.

    Parameters
    ----------
    branches
        Branches of a tree that the last tokens of each text are; None if there are none.
    inner
        What attends with that mask; None for the layer's own attention.
    """

    def __init__(
        self,
        lengths_B: np.ndarray,
        *,
        is_causal: bool,
        branches: Branches | None = None,
        inner: AttentionHook | None = None,
    ) -> None:
        self._lengths_B, self._is_causal = lengths_B, is_causal
        self._branches, self._inner = branches, inner
        self._masks: dict[tuple[Any, ...], Tensor | None] = {}

    def attend(
        self,
        plain: Attend,
        module: nn.Module,
        query_BHSD: Tensor,
        key_BHSD: Tensor,
        value_BHSD: Tensor,
        mask: Tensor | None,
        **kwargs: Any,
    ) -> tuple[Tensor, Tensor | None]:
        """Attend within each text; ``mask`` is ignored."""
        kwargs["is_causal"] = False  # our mask is complete; without one everything is visible
        own = self._mask(query_BHSD, kwargs.get("sliding_window"), plain.__name__ == "eager_attention_forward")
        if self._inner is not None:
            return self._inner.attend(plain, module, query_BHSD, key_BHSD, value_BHSD, own, **kwargs)
        return plain(module, query_BHSD, key_BHSD, value_BHSD, own, **kwargs)

    def _mask(self, query_BHSD: Tensor, window: int | None, eager: bool) -> Tensor | None:
        """Return the mask of layers with a window, the same object for all of them."""
        key = (query_BHSD.shape[2], window, eager, query_BHSD.device)
        if key not in self._masks:
            visible = visible_keys(
                self._lengths_B,
                query_BHSD.shape[2],
                prompt_length=0,
                is_causal=self._is_causal,
                window=window,
                branches=self._branches,
            )
            own = None if visible is None else to_device(visible, query_BHSD.device)
            self._masks[key] = additive(own, query_BHSD.dtype) if own is not None and eager else own
        return self._masks[key]


@contextmanager
def entered(host: Host, virtual: VirtualTokens, longer: Longer, texts: Callable[[Tensor], Texts]) -> Iterator[None]:
    """Let virtual tokens enter for the length of one forward pass.

    Parameters
    ----------
    texts
        Returns the texts of the pass from their hidden states [Z, D].
    """

    def enter(module: nn.Module, arguments: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[Any, ...]:
        hidden: Tensor = arguments[0].to(longer.positions.device)
        vectors_BPD = virtual.vectors(texts(longer.packed(hidden))).to(hidden.dtype)
        if virtual.embedded:
            vectors_BPD = host.embed(vectors_BPD)
        return (longer.join(hidden, vectors_BPD), *arguments[1:]), kwargs

    def leave(module: nn.Module, arguments: tuple[Any, ...], output: Any) -> Any:
        return (longer.drop(output[0]), *output[1:]) if isinstance(output, tuple) else longer.drop(output)

    layers = host.all
    with ExitStack() as stack:
        stack.callback(layers[virtual.depth].register_forward_pre_hook(enter, with_kwargs=True).remove)
        stack.enter_context(turned(host, virtual.depth, longer.positions))
        stack.callback(layers[-1].register_forward_hook(leave).remove)
        yield


@contextmanager
def turned(host: Host, depth: int, positions: Tensor) -> Iterator[None]:
    """Give the rows of layers from ``depth`` up the rotary angles of ``positions`` for the length of one forward pass."""

    def turn(kind: str | None, arguments: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[Any, ...] | None:
        if "position_embeddings" not in kwargs:
            return None
        if kind not in angles:
            # Of the hidden states only number format and device matter, and another device's are not needed for that.
            hidden: Tensor = arguments[0]
            own = hidden if hidden.device == positions.device else hidden[:, :0].to(positions.device)
            angles[kind] = host.rotary(own, positions, kind)
        turned = {"position_embeddings": angles[kind], "position_ids": positions}
        return arguments, kwargs | {key: value for key, value in turned.items() if key in kwargs}

    def turning(layer: int) -> Callable[..., tuple[Any, ...] | None]:
        kind = host.rotary_kind(layer)
        return lambda module, arguments, kwargs: turn(kind, arguments, kwargs)

    angles: dict[str | None, Any] = {}
    with ExitStack() as stack:
        for layer in range(depth, len(host.all)):
            stack.callback(host.all[layer].register_forward_pre_hook(turning(layer), with_kwargs=True).remove)
        yield

"""Attention with a bias by distance, as in T5: each head adds a learnt number for the distance of two tokens to their score
(Raffel et al. 2020, arXiv 1910.10683).

transformers makes the bias for all rows of a pass, which on packed tokens are of many texts and would be a square of thousands.
Here attention's own module makes none while :mod:`clients.tuners.prefix` is attached; each attention that is computed, within
a bucket or a padded batch, adds the bias of as many tokens as it has. A bias depends on distances alone, so it is kept as one
number for each distance and head.

Shape suffixes: H heads, T tokens, W distances.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

_NAME = "fedsim_position_bias"
_KEPT, _SHORT = 8, 128
"""Biases that are kept, of texts of up to so many tokens: layers of a pass ask for the same ones again and again."""


class PositionBias:
    """The bias of an attention module.

    Parameters
    ----------
    compute
        The module's own function from numbers of queries and keys to their bias [1, H, queries, keys].
    """

    def __init__(self, compute: Callable[[int, int], Tensor]) -> None:
        self._compute = compute
        self._distances_HW: Tensor | None = None
        self._kept: dict[tuple[int, torch.dtype, torch.device], Tensor] = {}

    def of(self, tokens: int, dtype: torch.dtype, device: torch.device) -> Tensor:
        """Return the bias of a text, [1, H, T, T]; layers that share it may be on several devices."""
        key = (tokens, dtype, device)
        if key in self._kept:
            return self._kept[key]
        # An evaluation may ask first, and no gradient goes through what is made in its inference mode.
        with torch.inference_mode(mode=False), torch.no_grad():
            distances_HW = self._distances(tokens)
            place_T = torch.arange(tokens, device=distances_HW.device)
            middle = distances_HW.shape[1] // 2
            bias_1HTT = distances_HW[:, place_T - place_T.unsqueeze(1) + middle].unsqueeze(0).to(device, dtype)
        if tokens <= _SHORT:
            if len(self._kept) >= _KEPT:
                self._kept.pop(next(iter(self._kept)))
            self._kept[key] = bias_1HTT
        return bias_1HTT

    def _distances(self, tokens: int) -> Tensor:
        """Return the bias of each distance of a key behind its query, from -W/2 to W/2, for texts of ``tokens`` or more."""
        if self._distances_HW is None or self._distances_HW.shape[1] < 2 * tokens - 1:
            behind_HT, before_HT = self._compute(1, tokens)[0, :, 0], self._compute(tokens, 1)[0, :, :, 0]
            self._distances_HW = torch.cat([before_HT.flip(1), behind_HT[:, 1:]], dim=1)
        return self._distances_HW


class _Biased:
    """An attention function of transformers that adds a bias to scores."""

    def __init__(self, plain: Callable[..., Any], bias: PositionBias) -> None:
        self._plain, self._bias = plain, bias
        self.__name__ = plain.__name__  # by which hooks tell what masks it takes

    def __call__(
        self, module: nn.Module, query_BHTD: Tensor, key_BHTD: Tensor, value_BHTD: Tensor, mask: Any, **kwargs: Any
    ) -> Any:
        if query_BHTD.shape[2] != key_BHTD.shape[2]:
            raise RuntimeError("keys and queries are not of the same tokens, so their distances are not known")
        kwargs["position_bias"] = self._bias.of(key_BHTD.shape[2], query_BHTD.dtype, query_BHTD.device)
        return self._plain(module, query_BHTD, key_BHTD, value_BHTD, mask, **kwargs)


def within(module: nn.Module, plain: Callable[..., Any]) -> Callable[..., Any]:
    """Return the attention function of a module: ``plain``, with the module's bias if it has one."""
    bias = getattr(module, _NAME, None)
    return plain if bias is None else _Biased(plain, bias)


def install(base: nn.Module, layers: nn.ModuleList, attention: str, attached: Callable[[], bool]) -> None:
    """Let the layers of an encoder make their bias where attention is computed; by itself the model runs as it is.

    Parameters
    ----------
    base
        The model. It gets the configuration of its layers, which a UMT5's have a copy of.
    layers, attention
        Its layers, and where their attention is. A layer without a table of its own has that of the lowest.
    attached
        Whether attention goes through :func:`within` now.
    """
    lowest: Any = layers[0].get_submodule(attention)
    config: Any = lowest.config
    for each in base.modules():
        if isinstance(getattr(each, "config", None), type(config)):
            each.config = config
    shared, compute = PositionBias(lowest.compute_bias), lowest.compute_bias
    for layer in layers:
        module: Any = layer.get_submodule(attention)
        has_own = module.has_relative_attention_bias and module is not lowest
        plain = module.compute_bias if has_own else compute
        setattr(module, _NAME, PositionBias(plain) if has_own else shared)
        module.has_relative_attention_bias = True  # else it would make one of zeros
        module.compute_bias = partial(_unless_attached, plain, attached)
        feed_forward: Any = layer.get_submodule("layer.1.DenseReluDense")
        feed_forward.forward = partial(_feed_forward, feed_forward)


def _unless_attached(
    plain: Callable[..., Tensor], attached: Callable[[], bool], *arguments: Any, **kwargs: Any
) -> Tensor | None:
    return None if attached() else plain(*arguments, **kwargs)


def _feed_forward(module: Any, hidden: Tensor) -> Tensor:
    """Run a feed-forward part without transformers' cast to the format in which its last map is kept, such as uint8."""
    gated = hasattr(module, "wi_1")
    inner = module.act(module.wi_0(hidden)) * module.wi_1(hidden) if gated else module.act(module.wi(hidden))
    return module.wo(module.dropout(inner))

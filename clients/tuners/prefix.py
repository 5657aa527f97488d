"""Inject prompts into a frozen model's attention, as key/value pairs before a layer's own.

transformers looks up attention and mask functions by name. This module registers two of each under names of its own, so
other models in the process are not affected. The prompts of a forward pass travel as a keyword argument from the model to
its attention layers, never as a global: a pass recomputed later (gradient checkpointing) sees the same prompts, and two
clients on one model cannot interfere.

Shape suffixes: B examples, T tokens, H key/value heads, D head dimension, P prompt length, C clients, L prompted
layers, K {key, value}, S keys a query may see (P + T).
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, Protocol

import torch
from torch import Tensor, nn
from torch.nn import functional
from transformers import AttentionInterface, AttentionMaskInterface, PreTrainedModel
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import eager_mask, sdpa_mask

from clients.tuners.position_bias import within
from clients.tuners.prompt_dropout import PromptMask, masked
from fedsim.core.errors import ModelError
from fedsim.core.layout import PromptGeometry

IMPLEMENTATIONS = {"sdpa": "fedsim_prefix_sdpa", "eager": "fedsim_prefix_eager"}
"""Name, in transformers' registry, of the prefix version of each supported attention implementation."""

ARGUMENT = "fedsim_prefix"
"""Keyword argument of a model's forward pass that carries a :class:`AttentionHook`."""


Attend = Callable[..., tuple[Tensor, Tensor | None]]
"""An attention function of transformers: (module, query, key, value, mask, ...) to ([B, T, H, D], weights)."""


class AttentionHook(Protocol):
    """Hook into the attention layers during one forward pass."""

    @property
    def attend(self) -> Callable[..., tuple[Tensor, Tensor | None]]:
        """Compute the attention of a module: (original function, module, query, key, value, mask, ...)."""
        ...


class Prefix:
    """Prompts of one forward pass on a padded batch.

    Parameters
    ----------
    prompt_CLKHPD
        Prompts of each client for ``layers``, in float32 (or float64); cast to the model's number format where they are used.
    layers
        Model layer of each prompt; all other layers run unchanged.
    client_of_example_B
        Row of ``prompt_CLKHPD`` for each example; needed unless there is one client.
    mask
        What each example sees of its client's prompts; None for all of them.
    """

    def __init__(
        self,
        prompt_CLKHPD: Tensor,
        layers: tuple[int, ...],
        client_of_example_B: Tensor | None = None,
        mask: PromptMask | None = None,
    ) -> None:
        self._kept_BHPD = {} if mask is None else mask.of_layers(layers)
        if mask is not None:
            prompt_CLKHPD = prompt_CLKHPD * mask.scale
        # unbind, not indexing: its gradient is one stack instead of L tensors of full size.
        self._pairs_CHPD = {
            layer: prompt_CKHPD.unbind(1) for layer, prompt_CKHPD in zip(layers, prompt_CLKHPD.unbind(1), strict=True)
        }
        self._length = prompt_CLKHPD.shape[4]
        self._client_of_example_B = client_of_example_B if len(prompt_CLKHPD) > 1 else None
        self._masks: tuple[Tensor, Tensor] | None = None
        self._seen: set[int] = set()

    def attend(
        self,
        plain: Attend,
        module: nn.Module,
        query_BHTD: Tensor,
        key_BHTD: Tensor,
        value_BHTD: Tensor,
        mask_B1TT: Tensor | None,
        **kwargs: Any,
    ) -> tuple[Tensor, Tensor | None]:
        """Attend with the layer's prompt before its keys and values, and a mask that lets every token see it."""
        layer: int = module.layer_idx  # type: ignore[assignment]
        pair_CHPD = self._pairs_CHPD.get(layer)
        if pair_CHPD is None:
            return plain(module, query_BHTD, key_BHTD, value_BHTD, mask_B1TT, **kwargs)
        if mask_B1TT is None:
            raise ModelError(f"attention of layer {layer} got no mask, so a prompt cannot be put before it safely")
        self._seen.add(layer)
        key_BHSD, value_BHSD = (
            torch.cat([self._of_examples(prompt_CHPD, kept_BHPD, own_BHTD), own_BHTD], dim=2)
            for prompt_CHPD, kept_BHPD, own_BHTD in zip(
                pair_CHPD, self._kept_BHPD.get(layer, (None, None)), (key_BHTD, value_BHTD), strict=True
            )
        )
        return plain(module, query_BHTD, key_BHSD, value_BHSD, self._wider(mask_B1TT), **kwargs)

    def _of_examples(self, prompt_CHPD: Tensor, kept_BHPD: Tensor | None, own_BHTD: Tensor) -> Tensor:
        if kept_BHPD is None:
            prompt_CHPD = prompt_CHPD.to(own_BHTD.dtype)
        if self._client_of_example_B is None:
            rows_BHPD = prompt_CHPD.expand(len(own_BHTD), -1, -1, -1)
        else:
            # Indexing, not index_select: on a GPU only its gradient adds up in a fixed order.
            rows_BHPD = prompt_CHPD[self._client_of_example_B]
        return masked(rows_BHPD, kept_BHPD).to(own_BHTD.dtype)

    def _wider(self, mask_B1TT: Tensor) -> Tensor:
        """Prepend P columns that hide nothing to the mask; done once for all layers that share the mask."""
        if self._masks is None or self._masks[0] is not mask_B1TT:
            visible = True if mask_B1TT.dtype == torch.bool else 0.0
            self._masks = (mask_B1TT, functional.pad(mask_B1TT, (self._length, 0), value=visible))
        return self._masks[1]

    def check_seen(self) -> None:
        """Raise unless every prompt was used.

        Raises
        ------
        ModelError
            If a layer never requested its prompt, which would then silently not be trained.
        """
        missing = sorted(set(self._pairs_CHPD) - self._seen)
        if missing:
            raise ModelError(
                f"layer {missing[0]} never requested its prompt; its attention bypasses transformers' interface"
            )


class KeyShapes:
    """A hook that changes nothing and records the shape of each layer's keys.

    Parameters
    ----------
    with_scores
        Whether keys carry scores behind their numbers, as in :mod:`clients.tuners.relative_attention`.
    """

    def __init__(self, *, with_scores: bool = False) -> None:
        self._with_scores = with_scores
        self.heads_and_size: dict[int, tuple[int, int]] = {}
        """(key/value heads, head dimension) by layer."""

    def attend(
        self,
        plain: Attend,
        module: nn.Module,
        query_BHTD: Tensor,
        key_BHTD: Tensor,
        value_BHTD: Tensor,
        mask_B1TT: Tensor | None,
        **kwargs: Any,
    ) -> tuple[Tensor, Tensor | None]:
        """Record the shapes."""
        layer: int = module.layer_idx  # type: ignore[assignment]
        if key_BHTD.shape != value_BHTD.shape and not self._with_scores:
            raise ModelError(f"keys and values of layer {layer} differ in shape; prompts need them alike")
        self.heads_and_size[layer] = (value_BHTD.shape[1], value_BHTD.shape[3])
        return plain(module, query_BHTD, key_BHTD, value_BHTD, mask_B1TT, **kwargs)

    def geometry(self, num_layers: int, prompt_length: int) -> PromptGeometry:
        """Return the prompt shape that fits the keys seen in a forward pass.

        Raises
        ------
        ModelError
            If some layers did not request their prompts, or layers differ.
        """
        if sorted(self.heads_and_size) != list(range(num_layers)):
            raise ModelError(f"{len(self.heads_and_size)} of {num_layers} layers use transformers' attention interface")
        if len(set(self.heads_and_size.values())) > 1:
            raise ModelError("the model's layers differ in key/value heads or head dimension; prompts need them alike")
        num_kv_heads, head_dim = self.heads_and_size[0]
        return PromptGeometry(num_layers, num_kv_heads, prompt_length, head_dim)


def _prefix_sdpa(
    module: nn.Module,
    query_BHTD: Tensor,
    key_BHTD: Tensor,
    value_BHTD: Tensor,
    attention_mask: Tensor | None,
    fedsim_prefix: AttentionHook | None = None,
    **kwargs: Any,
) -> tuple[Tensor, Tensor | None]:
    plain = within(module, sdpa_attention_forward)
    if fedsim_prefix is None:
        return plain(module, query_BHTD, key_BHTD, value_BHTD, attention_mask, **kwargs)
    return fedsim_prefix.attend(plain, module, query_BHTD, key_BHTD, value_BHTD, attention_mask, **kwargs)


def _prefix_eager(
    module: nn.Module,
    query_BHTD: Tensor,
    key_BHTD: Tensor,
    value_BHTD: Tensor,
    attention_mask: Tensor | None,
    fedsim_prefix: AttentionHook | None = None,
    **kwargs: Any,
) -> tuple[Tensor, Tensor | None]:
    # Each family defines its own eager function beside its attention class; the registry has no common one.
    eager = within(module, sys.modules[type(module).__module__].eager_attention_forward)
    if fedsim_prefix is None:
        return eager(module, query_BHTD, key_BHTD, value_BHTD, attention_mask, **kwargs)
    return fedsim_prefix.attend(eager, module, query_BHTD, key_BHTD, value_BHTD, attention_mask, **kwargs)


def _always_sdpa_mask(*args: Any, **kwargs: Any) -> Tensor | None:
    # A skipped mask means "is_causal", which aligns to the upper left: wrong with a prefix before the keys.
    return sdpa_mask(*args, **kwargs | {"allow_is_causal_skip": False, "allow_is_bidirectional_skip": False})


def _always_eager_mask(*args: Any, **kwargs: Any) -> Tensor | None:
    if kwargs.get("dtype") == torch.float64:
        # Decoders compute softmax in float32, where float64's lowest number is -inf; see blinds_padding.
        kwargs["dtype"] = torch.float32
    return eager_mask(*args, **kwargs | {"allow_is_bidirectional_skip": False})


_FUNCTIONS: dict[str, Attend] = {"sdpa": _prefix_sdpa, "eager": _prefix_eager}
_MASKS = {"sdpa": _always_sdpa_mask, "eager": _always_eager_mask}


def blinds_padding(model: PreTrainedModel) -> bool:
    """Whether transformers' own mask may hide everything from padding, as eager attention's does in float64: NaN, then."""
    return model.dtype == torch.float64 and model.config._attn_implementation == IMPLEMENTATIONS["eager"]


def register() -> None:
    """Register the prefix implementations with transformers in this process; idempotent."""
    for plain, name in IMPLEMENTATIONS.items():
        AttentionInterface.register(name, _FUNCTIONS[plain])
        AttentionMaskInterface.register(name, _MASKS[plain])


def keep_out_of_graphs() -> None:
    """Exclude the prefix implementations from torch.compile, which compiles the code around them."""
    for plain, function in ("sdpa", _prefix_sdpa), ("eager", _prefix_eager):
        _FUNCTIONS[plain] = torch.compiler.disable(function)
    register()


def is_attached(model: PreTrainedModel) -> bool:
    """Whether a model's attention goes through this module."""
    return model.config._attn_implementation in IMPLEMENTATIONS.values()


def attach(model: PreTrainedModel) -> None:
    """Switch a model from ``sdpa`` or ``eager`` to the prefix version of the same."""
    register()
    model.config._attn_implementation = IMPLEMENTATIONS[model.config._attn_implementation]


def detach(model: PreTrainedModel) -> None:
    """Restore the implementation that a model had before :func:`attach`."""
    plain = {prefix: name for name, prefix in IMPLEMENTATIONS.items()}
    model.config._attn_implementation = plain[model.config._attn_implementation]


@contextmanager
def detached(model: PreTrainedModel) -> Iterator[None]:
    """Run an attached model as if it had never been attached."""
    detach(model)
    try:
        yield
    finally:
        attach(model)

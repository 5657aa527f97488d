"""Calls of the frozen base model, padded and packed: its arguments, and the number formats of a pass.

Shape suffixes: B examples, T tokens, Z packed tokens, N of them that are computed.
"""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from typing import Any

import numpy as np
import torch
from torch import Tensor
from transformers import DynamicCache, PreTrainedModel

from clients.backbone.checkpointing import CheckpointedLayers
from clients.backbone.compiling import CompiledLayers
from clients.backbone.device import to_device
from clients.backbone.families import Family
from clients.backbone.heads import Tokens
from clients.backbone.placed_layers import PlacedLayers
from clients.backbone.precision import Precision
from clients.backbone.product_format import multiplies_bfloat16
from clients.backbone.products import HalfProducts
from clients.tuners.client_rows import PaddedRows
from clients.tuners.prefix import ARGUMENT, AttentionHook, KeyShapes
from clients.tuners.relative_attention import RelativePass, carried
from fedsim.core.errors import ModelError
from fedsim.core.layout import PromptGeometry
from fedsim.core.tokens import PackedTokens, TokenBatch


class ModelCalls:
    """Runs the base model of a frozen model.

    Parameters
    ----------
    model, family
        The model.
    autocast
        ``model.autocast``; packed passes follow it.
    half
        The layers' linear maps, which packed passes run in half precision.
    compiled
        The layers compiled, for packed passes; None to run them as they are.
    checkpointed
        The layers that packed passes compute again for their gradients; None to keep what gradients need.
    placed
        The layers on their devices; None if all is on one, and rests there.
    """

    def __init__(
        self,
        model: PreTrainedModel,
        family: Family,
        autocast: str,
        half: HalfProducts,
        compiled: CompiledLayers | None,
        checkpointed: CheckpointedLayers | None = None,
        placed: PlacedLayers | None = None,
    ) -> None:
        self._config: Any = model.config
        self._base: Any = model.base_model
        self._family = family
        self._half = half
        self._compiled = compiled
        self._changed_layers = compiled or checkpointed
        self._runs_again = checkpointed is not None
        self._placed = placed
        self.device: torch.device = next(model.parameters()).device
        self.precision = Precision(model.dtype, autocast, half.format, self.device)
        self._plain = model.dtype

    @property
    def compiled(self) -> bool:
        """Whether packed passes run compiled layers."""
        return self._compiled is not None

    @property
    def emulates_products(self) -> bool:
        """Whether linear maps are in bfloat16 on a processor without instructions for it: correct, but slow."""
        in_half = self._half.format == torch.bfloat16 != self._plain
        return in_half and self.device.type == "cpu" and not multiplies_bfloat16()

    def padded(
        self,
        tokens: Tokens,
        hook: AttentionHook | RelativePass | None,
        offset: int,
        *,
        output_hidden_states: bool = False,
    ) -> Any:
        """Return the output for a padded batch; the first ``offset`` positions are not the text's."""
        arguments: dict[str, object] = {
            "input_ids": tokens.input_ids_BT,
            "attention_mask": tokens.attention_mask_BT,
            "position_ids": self._positions(tokens, offset),
            "use_cache": False,
            "output_hidden_states": output_hidden_states,
        }
        if tokens.token_type_ids_BT is not None:
            arguments["token_type_ids"] = tokens.token_type_ids_BT
        with self._hooked(hook, arguments), self._crossing():
            return self._base(**arguments)

    def _hooked(
        self, hook: AttentionHook | RelativePass | None, arguments: dict[str, object]
    ) -> AbstractContextManager[None]:
        """Let a hook reach attention: as an argument of the base model, or the way that its family has."""
        if isinstance(hook, RelativePass):
            return carried(self._base.encoder, hook)
        if hook is not None:
            arguments[ARGUMENT] = hook
        return nullcontext()

    def _positions(self, tokens: Tokens, offset: int) -> Tensor:
        """Return the position of each token, int64 [B, T] or [1, T]."""
        if tokens.branches is None:
            return self._family.position_ids(self._config, tokens.input_ids_BT, offset)
        lengths_B = tokens.attention_mask_BT.sum(1).cpu().numpy()
        places_BT = tokens.branches.positions(lengths_B, tokens.input_ids_BT.shape[1])
        return to_device(places_BT + offset, self.device)

    def packed(
        self,
        tokens: PackedTokens,
        hook: AttentionHook | RelativePass,
        offset: int,
        rows_N: np.ndarray | None = None,
    ) -> Any:
        """Return the output for packed examples, one row of all tokens, or of ``rows_N`` of them."""

        def row(array_Z: np.ndarray) -> Tensor:
            return to_device(array_Z if rows_N is None else array_Z[rows_N], self.device).unsqueeze(0)

        arguments: dict[str, object] = {
            "input_ids": row(tokens.ids_Z),
            "position_ids": row(self._family.packed_position_ids(self._config, tokens, offset)),
            # Attention over packed tokens makes its own masks. A four-dimensional mask is passed through unchanged.
            "attention_mask": self._mask_1111,
            "use_cache": False,
        }
        if tokens.types_Z is not None and self._has_types:
            arguments["token_type_ids"] = row(tokens.types_Z)
        layers = nullcontext() if self._changed_layers is None else self._changed_layers.active()
        crossing = self._crossing(run_again=self._runs_again)
        with self._hooked(hook, arguments), self.precision.products(), self._half.active(), crossing, layers:
            return self._base(**arguments)

    def cached(self, ids_BT: np.ndarray, positions_BT: np.ndarray, cache: DynamicCache, hook: AttentionHook) -> Any:
        """Return the output for tokens behind those of a cache, which grows by them; formats are those of packed passes."""
        arguments = {
            "input_ids": to_device(ids_BT, self.device),
            "position_ids": to_device(positions_BT, self.device),
            # The hook makes masks. A four-dimensional one is passed through unchanged.
            "attention_mask": torch.zeros((1, 1, 1, 1), device=self.device),
            "past_key_values": cache,
            "use_cache": True,
            ARGUMENT: hook,
        }
        with self.precision.products(), self._half.active(), self._crossing():
            return self._base(**arguments)

    def _crossing(self, *, run_again: bool = False) -> AbstractContextManager[None]:
        return nullcontext() if self._placed is None else self._placed.active(run_again=run_again)

    @property
    def _mask_1111(self) -> Tensor:
        """What hides nothing: DeBERTa multiplies embeddings by its mask."""
        fill = torch.ones if self._family.relative_attention else torch.zeros
        return fill((1, 1, 1, 1), device=self.device)

    def tokens(self, batch: TokenBatch) -> Tokens:
        """Return a padded batch on the device."""

        def tensor(array: np.ndarray) -> Tensor:
            return to_device(array, self.device)

        types_BT = batch.token_type_ids_BT if self._has_types else None
        return Tokens(
            tensor(batch.input_ids_BT),
            tensor(batch.attention_mask_BT),
            None if types_BT is None else tensor(types_BT),
            tensor(batch.read_positions_B),
            tensor(batch.labels_B),
            batch.branches,
        )

    @property
    def _has_types(self) -> bool:
        return getattr(self._config, "type_vocab_size", 0) > 1

    @torch.no_grad()
    def key_shapes(self) -> PromptGeometry:
        """Return the shape of the model's keys, measured in a short forward pass, with prompt length 0.

        Raises
        ------
        ModelError
            If the pass fails, or layers differ.
        """
        one_token = 1 if self._config.pad_token_id == 0 else 0  # not padding
        ids_BT = torch.full((1, 1), one_token, device=self.device)
        zeros_B = torch.zeros(1, dtype=torch.int64, device=self.device)
        relative = self._family.relative_attention
        shapes = KeyShapes(with_scores=relative)
        hook = RelativePass(shapes, PaddedRows(None), 1, 1) if relative else shapes
        try:
            self.padded(Tokens(ids_BT, torch.ones_like(ids_BT), None, zeros_B, zeros_B), hook, 0)
        except torch.OutOfMemoryError:
            raise
        except (RuntimeError, ValueError, KeyError, IndexError) as error:
            first_line = (str(error).strip().splitlines() or [""])[0]
            raise ModelError(
                "the model fails in a forward pass of one token; look into its config.json: "
                f"{type(error).__name__}: {first_line}"
            ) from error
        return shapes.geometry(self._config.num_hidden_layers, 0)

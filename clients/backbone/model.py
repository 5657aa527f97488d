"""The frozen backbone: one per worker process, shared by all clients that run there.

Shape suffixes: C clients, L tuned layers, X axes of one layer's trained numbers, B examples, T tokens, Z packed tokens,
D hidden size.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import numpy as np
import torch
from torch import Tensor
from transformers import PreTrainedModel

from clients.backbone.calls import ModelCalls
from clients.backbone.compiling import CompiledLayers
from clients.backbone.device import to_device
from clients.backbone.families import Family
from clients.backbone.frozen_states import LayerStack
from clients.backbone.heads import (
    Classifier,
    Head,
    Reading,
    Tokens,
    Verbalizer,
    check_pooling,
    label_words,
    pool,
    pool_packed,
    pooled_rows,
    resolve_pooling,
)
from clients.backbone.loading import SharedWeights, assemble
from clients.backbone.pass_texts import PassTexts, without_dropout
from clients.backbone.products import HalfProducts
from clients.config import ModelConfig
from clients.tuners.client_rows import PackedRows, PaddedRows
from clients.tuners.packed_prefix import PackedPrefix
from clients.tuners.prefix import AttentionHook, Prefix, attach, detach, detached
from clients.tuners.prompt_dropout import PromptMask
from clients.tuners.tuner import Tuner
from clients.tuners.virtual_tokens import (
    ByDepth,
    PackedTexts,
    PaddedAttention,
    PaddedTexts,
    VirtualTokens,
    entered,
)
from fedsim.core.errors import ModelError
from fedsim.core.layout import LayerShape
from fedsim.core.tokens import PackedTokens, TokenBatch

__all__ = ["Backbone", "Reading"]


class Backbone:
    """A frozen model that can be tuned in any of its layers.

    It holds no client state: what is trained comes with each call. Its weights may be read-only memory shared
    with other processes and are never written.
    """

    def __init__(
        self,
        model: PreTrainedModel,
        family: Family,
        head: Head,
        tuner: Tuner,
        autocast: str = "off",
        *,
        compiled: bool = False,
    ) -> None:
        self._model = model
        self._family = family
        self._head = head
        self._stack = LayerStack(model.base_model, family)
        self._tuner = tuner
        self._texts = PassTexts(model.base_model, is_causal=family.causal_attention(model.config))
        # What a tuner adds to a map's output, or scales, stays in the weights' precision.
        acts_on_maps = type(tuner).inserted is not Tuner.inserted
        activation = getattr(model.config, "hidden_act", "")
        half = HalfProducts(self._stack.all, model.dtype, family, activation, narrow=not acts_on_maps)
        self._calls = ModelCalls(model, family, autocast, half, CompiledLayers(self._stack.all) if compiled else None)
        self.device: torch.device = self._calls.device
        self.head_shapes: tuple[tuple[str, tuple[int, ...]], ...] = head.shapes
        """Name and shape of each array of the head that a client trains; empty for the verbalizer."""
        self.limit: str = family.limit(model.config)
        """Reason for ``max_tokens``, phrased to follow "the model"."""
        self.max_tokens: int = family.max_positions(model.config) - tuner.room
        """Longest text, in tokens, that fits the model's positions beside those that the tuner takes."""
        if self.max_tokens < 1:
            raise ModelError(
                f"{tuner.length_key} {tuner.room} leaves no positions for the text, the model {self.limit} for "
                f"{family.max_positions(model.config)}; shorten it"
                + (" or set prompt.position_offset=none" if tuner.kind == "prefix" else "")
            )
        self.hidden_size: int = model.config.hidden_size
        """Hidden size."""
        self.geometry: LayerShape = tuner.shape(self._calls.key_shapes(), self._stack.all)
        """What is trained in each layer."""

    @classmethod
    def build(
        cls,
        weights: SharedWeights,
        model: ModelConfig,
        tuner: Tuner,
        num_classes: int,
        label_word_ids_C: np.ndarray | None,
        device: str,
    ) -> Backbone:
        """Build a worker's backbone from shared weights; on a CPU it maps them without a copy.

        Parameters
        ----------
        weights
            From ``clients.backbone.loading.load_shared_weights``; read-only arrays are fine.
        model
            Section of the config.
        tuner
            What is trained; see :func:`clients.tuners.make.make_tuner`.
        num_classes
            Classes of the task.
        label_word_ids_C
            Token id of each class's word; needed by the verbalizer.
        device
            ``cpu`` or ``cuda``.

        Raises
        ------
        ModelError
            If the head does not fit the model, or the prompt leaves no room for text.
        """
        frozen, family = assemble(weights, model.attention, device)
        attach(frozen)
        if model.head.kind == "classifier":
            pooling = resolve_pooling(model.head.pooling, predicts_next=family.predicts_next)
            check_pooling(pooling, is_causal=family.causal_attention(frozen.config))
            classifier = Classifier(num_classes, frozen.config.hidden_size, pooling)
            return cls(frozen, family, classifier, tuner, model.autocast, compiled=model.compile)
        if weights.kind == "base":
            raise ModelError("model.head.kind=verbalizer needs a model with its LM head; these weights have none")
        words_C = label_words(label_word_ids_C, num_classes, frozen.config.vocab_size, next(frozen.parameters()).device)
        decoder = frozen.get_output_embeddings()
        verbalizer = Verbalizer(lambda h: family.head_transform(frozen, h), decoder, words_C, model.head.loss)
        return cls(frozen, family, verbalizer, tuner, model.autocast, compiled=model.compile)

    @property
    def model(self) -> PreTrainedModel:
        """The frozen model, for inspection; to use it by itself, call :meth:`detach`."""
        return self._model

    @property
    def emulates_products(self) -> bool:
        """Whether linear maps are in bfloat16 on a processor without instructions for it: correct, but slow."""
        return self._calls.emulates_products

    @property
    def is_causal(self) -> bool:
        """Whether attention is causal."""
        return self._family.causal_attention(self._model.config)

    @property
    def predicts_next(self) -> bool:
        """Whether the family's LM head predicts the next token."""
        return self._family.predicts_next

    def forward(
        self,
        batch: TokenBatch,
        tuned_CLX: Tensor,
        layers: tuple[int, ...],
        head_C: dict[str, Tensor],
        client_of_example_B: Tensor | None = None,
        mask: PromptMask | None = None,
    ) -> Reading:
        """Compute loss and class scores of a padded batch; gradients reach trained numbers and head only.

        Parameters
        ----------
        batch
            Examples, of one client or of several.
        tuned_CLX
            float32 trained numbers of each client for ``layers``. With one client all examples use its own.
        layers
            Model layer of each. Without layers, or with prompts of length zero, the plain model runs.
        head_C
            float32 arrays of each client's head by name, [C, *shape] each; empty for the verbalizer.
        client_of_example_B
            int64 row of ``tuned_CLX`` and ``head_C`` for each example; needed if there are several clients.
        mask
            What each example sees of its client's prompts; None for all of them.

        Raises
        ------
        ModelError
            If the batch is longer than ``max_tokens``, or a layer was never tuned in the pass.
        """
        self._check(tuned_CLX, layers, head_C, client_of_example_B)
        tokens = self._calls.tokens(batch)
        if client_of_example_B is not None:
            client_of_example_B = to_device(client_of_example_B, self.device)
        output = self._run(tokens, tuned_CLX, layers, client_of_example_B, mask)
        pooled_BD = pool(output.last_hidden_state, tokens, self._head.pooling)
        return self._head.read(pooled_BD, tokens.labels_B, head_C, client_of_example_B)

    def read(
        self,
        tokens: PackedTokens,
        tuned_CLX: Tensor,
        layers: tuple[int, ...],
        head_C: dict[str, Tensor],
        client_of_example_B: Tensor | np.ndarray | None = None,
        cached_ZD: Tensor | None = None,
        mask: PromptMask | None = None,
    ) -> tuple[Reading, np.ndarray]:
        """Compute loss and class scores of packed examples: equals :meth:`forward` up to rounding, without work on padding.

        Parameters
        ----------
        tokens
            Examples, of one client or of several; sorted by length they need the least work.
        tuned_CLX, layers, head_C, client_of_example_B, mask
            As in :meth:`forward`. An array of clients is better than a tensor on a GPU, which some tuners have to wait for.
        cached_ZD
            From :meth:`cached`; the layers below the lowest tuned one are then skipped.

        Returns
        -------
        tuple
            Losses and scores, and for each example the tokens that attention processed, padding included (int64 [B]).

        Raises
        ------
        ModelError
            If an example is longer than ``max_tokens``, or a layer was never tuned in the pass.
        """
        self._check(tuned_CLX, layers, head_C, client_of_example_B)
        rows = PackedRows(client_of_example_B, tokens.lengths_B, self.device)
        owner_B = None if client_of_example_B is None else to_device(client_of_example_B, self.device)
        tuned_CLX = self._calls.precision.enter(tuned_CLX)
        prompt_CLKHPD, prompted = self._prompts(tuned_CLX, layers)
        virtual = self._virtual(tuned_CLX, layers)
        longer = None if virtual is None else PackedTexts(tokens.lengths_B, virtual.length, self.device)
        output_BD = self._output(tokens, cached_ZD) if self._tuner.reads_output and virtual is not None else None
        rows_B = self._rows_read(tokens, longer)
        hook, prefix = self._attention(tokens, (prompt_CLKHPD, prompted, mask), (virtual, longer), owner_B, rows_B)
        with ExitStack() as stack:
            stack.enter_context(self._tuner.inserted(self.geometry, self._stack.all, (tuned_CLX, layers), rows))
            if cached_ZD is not None and not self._tuner.reads_output:
                entering_ZD = to_device(cached_ZD, self.device).to(self._model.dtype)
                stack.enter_context(self._stack.above(min(layers), entering_ZD))
            if virtual is not None and longer is not None:
                owner = owner_B if len(tuned_CLX) > 1 else None
                texts = self._texts.packed(tokens, owner, rows, output_BD, self.device)
                stack.enter_context(entered(self._stack, virtual, longer, texts))
            if rows_B is not None:
                stack.enter_context(self._stack.narrowed(rows_B))
            (hidden_ZD,) = self._calls.packed(tokens, hook, self._offset(prompt_CLKHPD, virtual)).last_hidden_state
        prefix.check_seen()
        pooled_BD = hidden_ZD if rows_B is not None else pool_packed(hidden_ZD, tokens, self._head.pooling)
        pooled_BD = self._calls.precision.leave(pooled_BD)
        labels_B = to_device(tokens.labels_B, self.device)
        return self._head.read(pooled_BD, labels_B, head_C, owner_B), prefix.slots_B

    def cached_rows(self, lengths_N: np.ndarray) -> np.ndarray:
        """Return the rows of :meth:`cached` for each text, given its tokens."""
        return self._tuner.cached_rows(lengths_N)

    @torch.no_grad()
    def cached(self, tokens: PackedTokens, layers: tuple[int, ...]) -> Tensor:
        """Compute what can be kept of the frozen model for later passes, in the model's number format.

        The input of the lowest of the tuned ``layers`` [Z, D], which must not be layer 0; with a tuner that reads the plain
        model's output, that of one token of each example [B, D]. With dropout off it depends only on the examples.
        """
        if self._tuner.reads_output:
            return self._output(tokens, None)
        prefix = self._prefix(tokens, self._no_prompts, (), None)
        with self._stack.below(min(layers)) as left:
            self._calls.packed(tokens, prefix, self._tuner.offset)
        return left[0]

    @torch.no_grad()
    def hidden_states(self, batch: TokenBatch, tuned_CLX: Tensor, layers: tuple[int, ...]) -> list[Tensor]:
        """Return the input of the first layer and the output of every layer, [B, T, hidden] each, of one client.

        Like transformers' ``output_hidden_states``: in decoders the last one comes after the final normalisation.
        """
        self._check(tuned_CLX, layers, {}, None)
        output = self._run(self._calls.tokens(batch), tuned_CLX, layers, None, output_hidden_states=True)
        return list(output.hidden_states)

    def set_dropout(self, active: bool) -> None:
        """Switch the frozen model's dropout on, as in the published code, or off."""
        self._model.train(active)

    def detach(self) -> PreTrainedModel:
        """Return the model with its original attention; the backbone cannot be used afterwards."""
        self._model.eval()
        detach(self._model)
        return self._model

    # -- one forward pass ----------------------------------------------------------------------------------------------

    def _run(
        self,
        tokens: Tokens,
        tuned_CLX: Tensor,
        layers: tuple[int, ...],
        client_of_example_B: Tensor | None,
        mask: PromptMask | None = None,
        output_hidden_states: bool = False,
    ) -> Any:
        self._check_length(tokens.input_ids_BT.shape[1])
        prompt_CLKHPD, prompted = self._prompts(tuned_CLX, layers)
        prefix = Prefix(prompt_CLKHPD, prompted, client_of_example_B, mask) if prompted else None
        virtual = self._virtual(tuned_CLX, layers)
        owner_B = client_of_example_B if len(tuned_CLX) > 1 else None
        rows = PaddedRows(owner_B)
        hook: AttentionHook | None = prefix
        with ExitStack() as stack:
            stack.enter_context(self._tuner.inserted(self.geometry, self._stack.all, (tuned_CLX, layers), rows))
            if virtual is not None:
                hook = stack.enter_context(self._padded_virtual(tokens, virtual, owner_B))
            elif prefix is None:
                # Without a prompt the plain implementation runs, mask skipping included, with the original model's bits.
                stack.enter_context(detached(self._model))
            offset = self._offset(prompt_CLKHPD, virtual)
            output = self._calls.padded(tokens, hook, offset, output_hidden_states=output_hidden_states)
        if prefix:
            prefix.check_seen()
        return output

    def _prompts(self, tuned_CLX: Tensor, layers: tuple[int, ...]) -> tuple[Tensor, tuple[int, ...]]:
        """Return prompts and the layer of each; none where the tuner has none, or they are empty."""
        prompts = self._tuner.prompts(self.geometry, tuned_CLX, layers) if layers else None
        if prompts is None or not prompts[0].shape[4]:
            return self._no_prompts, ()
        return prompts

    @contextmanager
    def _padded_virtual(
        self, tokens: Tokens, virtual: VirtualTokens, owner_B: Tensor | None
    ) -> Iterator[AttentionHook]:
        """Let virtual tokens enter a padded pass; yields its attention."""
        below = Prefix(self._no_prompts, ())

        @torch.no_grad()
        def plain() -> Tensor:
            with without_dropout(self._model):
                return self._calls.padded(tokens, below, 0).last_hidden_state

        lengths_B, texts = self._texts.padded(tokens, owner_B, plain if self._tuner.reads_output else None)
        above = PaddedAttention(lengths_B + virtual.length, is_causal=self.is_causal)
        with entered(self._stack, virtual, PaddedTexts(tokens.attention_mask_BT, virtual.length), texts):
            yield ByDepth(virtual.depth, below, above)

    def _virtual(self, tuned_CLX: Tensor, layers: tuple[int, ...]) -> VirtualTokens | None:
        """Return the virtual tokens of a pass; None where the tuner has none."""
        return self._tuner.virtual_tokens(self.geometry, tuned_CLX) if layers else None

    def _attention(
        self,
        tokens: PackedTokens,
        prompts: tuple[Tensor, tuple[int, ...], PromptMask | None],
        inserted: tuple[VirtualTokens | None, PackedTexts | None],
        owner_B: Tensor | None,
        rows_B: Tensor | None,
    ) -> tuple[AttentionHook, PackedPrefix]:
        """Return the hook of a packed pass, and the part of it that runs in the top layer."""
        prompt_CLKHPD, prompted, mask = prompts
        virtual, longer = inserted
        if virtual is None or longer is None:
            prefix = self._prefix(tokens, prompt_CLKHPD, prompted, owner_B, rows_B, mask)
            return prefix, prefix
        above = self._prefix(tokens, self._no_prompts, (), None, rows_B, lengths_B=longer.lengths_B)
        if not virtual.depth:
            return above, above
        return ByDepth(virtual.depth, self._prefix(tokens, self._no_prompts, (), None), above), above

    @torch.no_grad()
    def _output(self, tokens: PackedTokens, cached_BD: Tensor | None) -> Tensor:
        """Return the last hidden state in the plain model of the token that stands for each example, [B, D]."""
        if cached_BD is not None:
            return to_device(cached_BD, self.device).to(self._model.dtype)
        plain = self._prefix(tokens, self._no_prompts, (), None)
        with without_dropout(self._model):
            (hidden_ZD,) = self._calls.packed(tokens, plain, 0).last_hidden_state
        return hidden_ZD[to_device(self._texts.summary_rows(tokens), self.device)]

    @property
    def _no_prompts(self) -> Tensor:
        return torch.empty((1, 0, 2, 1, 0, 1), device=self.device)

    def _prefix(
        self,
        tokens: PackedTokens,
        prompt_CLKHPD: Tensor,
        layers: tuple[int, ...],
        client_of_example_B: Tensor | None,
        rows_B: Tensor | None = None,
        mask: PromptMask | None = None,
        lengths_B: np.ndarray | None = None,
    ) -> PackedPrefix:
        self._check_length(int(tokens.lengths_B.max()))
        if lengths_B is None:
            lengths_B = tokens.lengths_B
        top = None if rows_B is None else (self.geometry.num_layers - 1, rows_B)
        return PackedPrefix(
            prompt_CLKHPD, layers, client_of_example_B, lengths_B, is_causal=self.is_causal, top=top, mask=mask
        )

    def _rows_read(self, tokens: PackedTokens, longer: PackedTexts | None) -> Tensor | None:
        """Return the token of each example that the head reads, if the top layer can skip the others.

        Not with dropout, which would be drawn for fewer tokens, and not compiled: each pass would create its own graph.
        """
        pooling = self._head.pooling
        if pooling == "mean" or not self._stack.narrows or self._calls.compiled or self._model.training:
            return None
        rows_B = pooled_rows(tokens, pooling)
        return to_device(rows_B if longer is None else longer.rows_with(rows_B), self.device)

    def _offset(self, prompt_CLKHPD: Tensor, virtual: VirtualTokens | None) -> int:
        """Return the positions before the text: one for each virtual token of the pass, if the tuner takes any."""
        if virtual is not None:
            return self._tuner.offset
        return prompt_CLKHPD.shape[4] if self._tuner.offset else 0

    @property
    def room(self) -> str:
        """Longest text and its reason, phrased to follow "the model"."""
        return f"{self.limit} for {self.max_tokens}{self._tuner.beside}"

    def _check_length(self, num_tokens: int) -> None:
        if num_tokens > self.max_tokens:
            raise ModelError(f"a batch has {num_tokens} tokens, but the model {self.room}; lower data.max_length")

    def _check(
        self,
        tuned_CLX: Tensor,
        layers: tuple[int, ...],
        head_C: dict[str, Tensor],
        client_of_example_B: Tensor | np.ndarray | None,
    ) -> None:
        clients, *shape_LX = tuned_CLX.shape
        known = len(set(layers)) == len(layers) == shape_LX[0] and set(layers) <= set(range(self.geometry.num_layers))
        if not known or not self._tuner.accepts(self.geometry, tuple(shape_LX)):
            raise ValueError(
                f"trained numbers of shape {tuple(tuned_CLX.shape)} do not fit layers {layers} of {self.geometry}"
            )
        if head_C and {len(array) for array in head_C.values()} != {clients}:
            raise ValueError(f"the head's arrays are not those of {clients} clients")
        if clients > 1 and client_of_example_B is None:
            raise ValueError(
                f"{clients} clients share a batch: client_of_example_B must assign each example to a client"
            )

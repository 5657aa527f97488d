"""The frozen backbone: one per worker process, shared by all clients that run there.

Shape suffixes: C clients, L tuned layers, X axes of one layer's trained numbers, B examples, T tokens, Z packed tokens,
D hidden size.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from clients.backbone.calls import ModelCalls
from clients.backbone.checkpointing import CheckpointedLayers
from clients.backbone.compiling import CompiledLayers
from clients.backbone.device import to_device
from clients.backbone.families import Family
from clients.backbone.frozen_states import LayerStack
from clients.backbone.generating import generate, refuse_generation
from clients.backbone.heads import Head, Reading, TokenHead, pool
from clients.backbone.loading import assemble
from clients.backbone.make_head import make_head
from clients.backbone.packed_passes import PackedPasses
from clients.backbone.padded_passes import run_padded
from clients.backbone.pass_texts import PassTexts
from clients.backbone.passes import PassLimit
from clients.backbone.placed_layers import PlacedLayers
from clients.backbone.placement import Placement
from clients.backbone.products import HalfProducts
from clients.backbone.shared_weights import SharedWeights
from clients.backbone.stepwise import read_stepwise
from clients.backbone.tuned_model import TunedModel
from clients.backbone.word_head import WordHead
from clients.config import ModelConfig
from clients.tuners.moves import take_rows
from clients.tuners.prefix import attach, detach
from clients.tuners.prompt_dropout import PromptMask
from clients.tuners.tuner import Tuner
from fedsim.core.decoding import Decoding
from fedsim.core.errors import ModelError
from fedsim.core.layout import LayerShape
from fedsim.core.reads import Reads
from fedsim.core.tokens import PackedTokens, TokenBatch, TokenTable
from fedsim.core.words import LabelWords

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
        head: Head | TokenHead,
        tuner: Tuner,
        autocast: str = "off",
        *,
        products: str = "float32",
        compiled: bool = False,
        checkpointed: bool = False,
        placement: Placement | None = None,
        share: bool = True,
    ) -> None:
        self._model = model
        self._family = family
        self._head = head
        self._tuner = tuner
        stack = LayerStack(model.base_model, family)
        # What a tuner adds to a map's output, or scales, stays in the weights' precision.
        acts_on_maps = type(tuner).inserted is not Tuner.inserted
        activation = getattr(model.config, "hidden_act", "")
        formats = model.dtype, getattr(torch, products)
        half = HalfProducts(stack.all, formats, family, activation, narrow=not acts_on_maps)
        compiled_layers = CompiledLayers(stack.all) if compiled else None
        checkpointed_layers = CheckpointedLayers(stack.all, half) if checkpointed else None
        here: torch.device = next(model.parameters()).device
        placement = placement or Placement.on(here, len(stack.all))
        plain = placement.is_one and not placement.offload
        placed = None if plain else PlacedLayers(stack.all, stack.running, placement)
        calls = ModelCalls(model, family, autocast, half, compiled_layers, checkpointed_layers, placed)
        self.device: torch.device = placement.first
        """Device of what a pass begins and ends with, and of all that is trained."""
        self.devices: tuple[torch.device, ...] = placement.devices
        """All devices of the model."""
        self.head_shapes: tuple[tuple[str, tuple[int, ...]], ...] = head.shapes
        """Name and shape of each array of the head that a client trains; empty where it is the frozen LM head."""
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
        embeddings: Any = model.get_input_embeddings()
        words = embeddings.weight.shape[1]
        if tuner.embeds and words != model.config.hidden_size:
            raise ModelError(
                f"tuner.kind={tuner.kind} stands among word embeddings, which have {words} numbers in this model, while its "
                f"layers have {model.config.hidden_size}; use another tuner.kind or another model"
            )
        self.hidden_size: int = model.config.hidden_size
        """Hidden size."""
        self.geometry: LayerShape = tuner.shape(calls.key_shapes(), stack.all)
        """What is trained in each layer."""
        causal = family.causal_attention(model.config)
        texts = PassTexts(model.base_model, is_causal=causal)
        relative = family.relative_attention
        self._parts = TunedModel(model, calls, stack, texts, tuner, self.geometry, causal, relative, placement)
        self._packed = PackedPasses(self._parts, head.pooling, share=share)

    @classmethod
    def build(
        cls,
        weights: SharedWeights,
        model: ModelConfig,
        tuner: Tuner,
        num_classes: int,
        label_word_ids_C: np.ndarray | None,
        device: str | tuple[str, ...],
        *,
        words: LabelWords | None = None,
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
            Classes of the task; of no matter where responses are generated.
        label_word_ids_C
            Token id of each class's word; needed by the verbalizer.
        device
            ``cpu`` or ``cuda``; or several, over which the layers are spread.
        words
            Label words of several tokens, or several a class, in place of ``label_word_ids_C``.

        Raises
        ------
        ModelError
            If the head does not fit the model, the prompt leaves no room for text, or the model has fewer layers than
            devices.
        """
        names = (device,) if isinstance(device, str) else device
        offload = model.offload and names[0] != "cpu"
        placement = None
        if offload or len(names) > 1:
            devices = [torch.device("cuda:0" if name == "cuda" else name) for name in names]
            placement = Placement.over(devices, weights, offload=offload)
        frozen, family = assemble(weights, model.attention, placement or names[0])
        attach(frozen)
        head = make_head(frozen, family, weights.kind, model.head, tuner, (num_classes, words or label_word_ids_C))
        how: dict[str, Any] = {"products": model.product_dtype, "compiled": model.compile}
        how |= {"checkpointed": model.gradient_checkpointing, "share": model.shared_beginnings == "auto"}
        how["placement"] = placement
        return cls(frozen, family, head, tuner, model.autocast, **how)

    @property
    def model(self) -> PreTrainedModel:
        """The frozen model, for inspection; to use it by itself, call :meth:`detach`."""
        return self._model

    @property
    def layers(self) -> nn.ModuleList:
        """The frozen model's layers, from the lowest."""
        return self._parts.stack.all

    @property
    def emulates_products(self) -> bool:
        """Whether linear maps are in bfloat16 on a processor without instructions for it: correct, but slow."""
        return self._parts.calls.emulates_products

    @property
    def is_causal(self) -> bool:
        """Whether attention is causal."""
        return self._parts.is_causal

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
        tokens = self._parts.calls.tokens(batch)
        self._check_length(batch.longest)
        owner_B = None if client_of_example_B is None else to_device(client_of_example_B, self.device)
        hidden_BTD = run_padded(self._parts, tokens, tuned_CLX, layers, owner_B, mask).last_hidden_state
        if batch.reads is None:
            read = pool(hidden_BTD, tokens, self._head.pooling)
        else:
            rows_U = to_device(batch.reads.rows_U, self.device)
            read = take_rows(hidden_BTD[tokens.attention_mask_BT.bool()], rows_U)
        return self._reading(read, batch.reads, tokens.labels_B, head_C, owner_B)

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
        self._check_length(tokens.longest)
        owner_B = None if client_of_example_B is None else to_device(client_of_example_B, self.device)
        pooled_BD, slots_B = self._packed.pooled(
            tokens, tuned_CLX, layers, (client_of_example_B, owner_B), cached_ZD, mask
        )
        labels_B = to_device(tokens.labels_B, self.device)
        return self._reading(pooled_BD, tokens.reads, labels_B, head_C, owner_B), slots_B

    @property
    def shares_beginnings(self) -> bool:
        """Whether a pass computes once what several texts of a client begin with, where that pays."""
        return self._packed.shares

    @property
    def texts_of_example(self) -> int:
        """Texts that a pass of :meth:`predict` may have for each example: one, or one for each label word."""
        head = self._head
        return len(head.words.lengths_W) if isinstance(head, WordHead) and head.steps > 1 else 1

    def predict(
        self,
        tokens: PackedTokens,
        tuned_CLX: Tensor,
        layers: tuple[int, ...],
        head_C: dict[str, Tensor],
        client_of_example_B: np.ndarray | None = None,
        cached_ZD: Tensor | None = None,
    ) -> Reading:
        """Compute loss and class scores as predictions have them: those of :meth:`read`, but for label words read stepwise.

        With ``model.head.decoding: stepwise`` the masks of a word are filled one after the other, in as many passes as the
        longest word has tokens; ``cached_ZD`` is then of no use. Parameters and errors are those of :meth:`read`.
        """
        head = self._head
        if not isinstance(head, WordHead) or head.steps <= 1:
            return self.read(tokens, tuned_CLX, layers, head_C, client_of_example_B, cached_ZD)[0]
        self._check(tuned_CLX, layers, head_C, client_of_example_B)
        self._check_length(tokens.longest)

        def log_likelihoods(texts: PackedTokens, owner_B: np.ndarray | None) -> Tensor:
            owners = owner_B, None if owner_B is None else to_device(owner_B, self.device)
            read_UD, _ = self._packed.pooled(texts, tuned_CLX, layers, owners, None, None)
            assert texts.reads is not None
            return head.log_likelihoods(read_UD, texts.reads)

        return read_stepwise(head, log_likelihoods, tokens, client_of_example_B)

    def _reading(
        self, read: Tensor, reads: Reads | None, labels_B: Tensor, head_C: dict[str, Tensor], owner_B: Tensor | None
    ) -> Reading:
        """Return what the head makes of the hidden states that it reads."""
        head = self._head
        if reads is not None and isinstance(head, TokenHead):
            return head.read_tokens(read, reads, labels_B)
        if reads is None and not isinstance(head, TokenHead):
            return head.read(read, labels_B, head_C, owner_B)
        raise ValueError("the head reads several tokens of an example, but the table says one, or the reverse")

    @torch.no_grad()
    def calibrate(self, table: TokenTable) -> None:
        """Subtract the frozen model's class scores of a table's one example from all class scores that are read later."""
        plain_1LX = torch.empty((1, 0, *self.geometry.layer_shape), device=self.device)
        head = self._head
        given: tuple[PackedTokens, Tensor, tuple[int, ...], dict[str, Tensor]]
        given = table.pack(np.arange(1)), plain_1LX, (), {}
        if isinstance(head, WordHead) and head.steps > 1:  # its predictions have scores of their own
            head.stepwise_offset_C = self.predict(*given).logits_BC[0]
        head.offset_C = self.read(*given)[0].logits_BC[0]  # type: ignore[union-attr]

    def cached_rows(self, lengths_N: np.ndarray) -> np.ndarray:
        """Return the rows of :meth:`cached` for each text, given its tokens."""
        return self._tuner.cached_rows(lengths_N)

    def cached(self, tokens: PackedTokens, layers: tuple[int, ...]) -> Tensor:
        """Compute what can be kept of the frozen model for later passes, in the model's number format.

        The input of the lowest of the tuned ``layers`` [Z, D], which must not be layer 0; with a tuner that reads the plain
        model's output, that of one token of each example [B, D]. With dropout off it depends only on the examples.
        """
        self._check_length(tokens.longest)
        return self._packed.kept(tokens, layers)

    @torch.no_grad()
    def hidden_states(self, batch: TokenBatch, tuned_CLX: Tensor, layers: tuple[int, ...]) -> list[Tensor]:
        """Return the input of the first layer and the output of every layer, [B, T, hidden] each, of one client.

        Like transformers' ``output_hidden_states``: in decoders the last one comes after the final normalisation.
        """
        return list(self._of_one(batch, tuned_CLX, layers, output_hidden_states=True).hidden_states)

    def last_hidden_state(self, batch: TokenBatch, tuned_CLX: Tensor, layers: tuple[int, ...]) -> Tensor:
        """Return the output of the base model, [B, T, hidden], of one client."""
        return self._of_one(batch, tuned_CLX, layers, output_hidden_states=False).last_hidden_state

    def _of_one(
        self, batch: TokenBatch, tuned_CLX: Tensor, layers: tuple[int, ...], *, output_hidden_states: bool
    ) -> Any:
        self._check(tuned_CLX, layers, {}, None)
        tokens = self._parts.calls.tokens(batch)
        self._check_length(batch.longest)
        return run_padded(self._parts, tokens, tuned_CLX, layers, None, output_hidden_states=output_hidden_states)

    def generate(
        self,
        texts: Sequence[np.ndarray],
        tuned_CLX: Tensor,
        layers: tuple[int, ...],
        decoding: Decoding,
        client_of_text_N: np.ndarray | None = None,
        uniform_NS: np.ndarray | None = None,
        batch_size: int = 64,
        limit: PassLimit | int | None = None,
    ) -> list[np.ndarray]:
        """Continue texts with the frozen LM head; return the new tokens of each, int64, with the end token if there is one.

        What is written depends neither on the other texts of the call nor on how they are cut into passes, but for the last
        bits of scores.

        Parameters
        ----------
        texts
            int64 token ids of each text, of one client or of several; at least one token each.
        tuned_CLX, layers
            As in :meth:`forward`.
        decoding
            How tokens are chosen. A text also ends where the model's positions do.
        client_of_text_N
            int64 row of ``tuned_CLX`` for each text; needed if there are several clients.
        uniform_NS
            float64 numbers in [0, 1) that choose the tokens of each text, from :meth:`Decoding.uniform_S`; needed to sample.
        batch_size
            Texts per pass.
        limit
            Most tokens of a pass, new ones included.

        Raises
        ------
        ModelError
            If the model or the tuner cannot generate, or a text is longer than ``max_tokens``.
        """
        self._check(tuned_CLX, layers, {}, client_of_text_N)
        refuse_generation(self._parts, predicts_next=self.predicts_next)
        self._check_length(max((len(text) for text in texts), default=0))
        sizes = self.max_tokens, batch_size, PassLimit.of(limit)
        draws = uniform_NS if decoding.do_sample else None
        tuned = tuned_CLX, layers
        return generate(self._parts, self._next_scores, texts, tuned, client_of_text_N, decoding, draws, *sizes)

    def _next_scores(self, hidden_BD: Tensor) -> Tensor:
        """Return the LM head's scores of the vocabulary."""
        decoder: Any = self._model.get_output_embeddings()
        scores_BV: Tensor = decoder(self._family.head_transform(self._model, hidden_BD))
        cap = self._family.logit_cap(self._model.config)
        return scores_BV if cap is None else cap * torch.tanh(scores_BV.float() / cap)

    def set_dropout(self, active: bool) -> None:
        """Switch the frozen model's dropout on, as in the published code, or off."""
        self._model.train(active)

    def detach(self) -> PreTrainedModel:
        """Return the model with its original attention; the backbone cannot be used afterwards."""
        self._model.eval()
        detach(self._model)
        return self._model

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

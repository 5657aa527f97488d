"""The parts of a frozen model that its passes share, and what the tuner puts into a pass.

Shape suffixes: C clients, L tuned layers, K {key, value}, H heads, P prompt length, D head dimension, X axes of one layer's
trained numbers.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor
from transformers import PreTrainedModel

from clients.backbone.calls import ModelCalls
from clients.backbone.frozen_states import LayerStack
from clients.backbone.pass_texts import PassTexts
from clients.backbone.placement import Placement
from clients.tuners.client_rows import PackedRows, PaddedRows
from clients.tuners.prefix import AttentionHook
from clients.tuners.relative_attention import RelativePass
from clients.tuners.tuner import Tuner
from clients.tuners.virtual_tokens import VirtualTokens
from fedsim.core.layout import LayerShape


@dataclass(frozen=True)
class TunedModel:
    """A frozen model and its tuner."""

    model: PreTrainedModel
    calls: ModelCalls
    stack: LayerStack
    texts: PassTexts
    tuner: Tuner
    geometry: LayerShape
    is_causal: bool
    relative: bool
    """Whether the family has ``relative_attention``."""
    placement: Placement

    @property
    def device(self) -> torch.device:
        """Device of what a pass begins and ends with, and of all that is trained."""
        return self.placement.first

    @property
    def no_prompts(self) -> Tensor:
        """Prompts of one client in no layer, [1, 0, 2, 1, 0, 1]."""
        return torch.empty((1, 0, 2, 1, 0, 1), device=self.device)

    def prompts(self, tuned_CLX: Tensor, layers: tuple[int, ...]) -> tuple[Tensor, tuple[int, ...]]:
        """Return prompts [C, L, K, H, P, D] and the layer of each; none where the tuner has none, or they are empty."""
        prompts = self.tuner.prompts(self.geometry, tuned_CLX, layers) if layers else None
        if prompts is None or not prompts[0].shape[4]:
            return self.no_prompts, ()
        return prompts

    def virtual(self, tuned_CLX: Tensor, layers: tuple[int, ...]) -> VirtualTokens | None:
        """Return the virtual tokens of a pass; None where the tuner has none."""
        return self.tuner.virtual_tokens(self.geometry, tuned_CLX) if layers else None

    @contextmanager
    def inserted(self, tuned_CLX: Tensor, layers: tuple[int, ...], rows: PaddedRows | PackedRows) -> Iterator[None]:
        """Let the tuner change the layers' modules for the length of a pass, with its numbers on each layer's device."""
        with ExitStack() as stack:
            for _, own_CLX, there in self.placement.shared_out(tuned_CLX, layers):
                stack.enter_context(self.tuner.inserted(self.geometry, self.stack.all, (own_CLX, there), rows))
            yield

    def offset(self, prompt_CLKHPD: Tensor, virtual: VirtualTokens | None) -> int:
        """Return the positions before the text: one for each virtual token of the pass, if the tuner takes any."""
        if virtual is not None:
            return self.tuner.offset
        return prompt_CLKHPD.shape[4] if self.tuner.offset else 0

    def hooked(
        self, hook: AttentionHook, rows: PaddedRows | PackedRows, clients: int, longest: int
    ) -> AttentionHook | RelativePass:
        """Return a hook as the family's attention takes it.

        Parameters
        ----------
        rows, clients
            Whose the rows of the pass are.
        longest
            Tokens of the longest text, virtual ones included.
        """
        return RelativePass(hook, rows, clients, longest) if self.relative else hook

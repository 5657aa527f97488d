"""Soft prompt: trained input embeddings before each text (Prompt Tuning, Lester et al. 2021, arXiv 2104.08691).

With FedAvg of the prompt alone it is FedPrompt (Zhao et al. 2023, arXiv 2208.12268). The prompt takes the first positions, the
text those behind it, as in PEFT. Heads read the text's tokens only.

Shape suffixes: C clients, P virtual tokens, D hidden size.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import ClassVar

import numpy as np
from torch import Tensor, nn

from clients.tuners.config import TunerConfig
from clients.tuners.linear_maps import hidden_size
from clients.tuners.tuner import Tuner
from clients.tuners.virtual_tokens import Texts, VirtualTokens
from clients.tuners.word_vectors import WordVectors
from fedsim.core import seeds
from fedsim.core.layout import LayerShape, OneLayer, PromptGeometry

PROMPT = "prompt"


@dataclass(frozen=True)
class SoftPromptTuner(Tuner):
    """Trains the embeddings of ``tuner.length`` virtual tokens."""

    kind: ClassVar[str] = "soft_prompt"
    soft: TunerConfig
    start_PD: np.ndarray | None = field(default=None, compare=False, repr=False)
    """float64 start from the vocabulary; None where it is random or not needed."""

    @property
    def offset(self) -> int:  # type: ignore[override]
        """Positions that the prompt takes."""
        return self.soft.length

    @property
    def described(self) -> str:
        """What it trains, in words."""
        return f"soft prompt of {self.soft.length} tokens"

    def shape(self, keys: PromptGeometry, layers: nn.ModuleList) -> OneLayer:
        """Return the array ``prompt`` [P, D], at the input of layer 0."""
        return OneLayer(len(layers), ((PROMPT, (self.soft.length, hidden_size(layers))),), layer=0)

    def initial(self, shape: LayerShape, layer: int, seed: int) -> np.ndarray:
        """Return the start from the vocabulary, or draw it uniformly in [-0.5, 0.5), as Lester et al.'s code does."""
        if self.start_PD is not None:
            return self.start_PD.reshape(-1)
        rng = seeds.stream(seed, seeds.NO_ROUND, seeds.NO_CLIENT, "soft_prompt")
        return rng.uniform(-0.5, 0.5, shape.layer_size)

    def knowing(self, words: WordVectors, seed: int) -> SoftPromptTuner:
        """Take the start from the model's input embeddings, if ``tuner.start`` says so."""
        if self.soft.start == "random":
            return self
        return replace(self, start_PD=words.start(self.soft.start, self.soft.length, seed))

    def virtual_tokens(self, shape: LayerShape, tuned_CLX: Tensor) -> VirtualTokens:
        """Return the prompt, to be embedded."""
        assert isinstance(shape, OneLayer)
        prompt_CPD = shape.split(tuned_CLX)[PROMPT].unbind(1)[0]

        def vectors(texts: Texts) -> Tensor:
            return texts.own(prompt_CPD)

        return VirtualTokens(0, self.soft.length, vectors, embedded=True)

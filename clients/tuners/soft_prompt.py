"""Soft prompt: trained input embeddings before each text (Prompt Tuning, Lester et al. 2021, arXiv 2104.08691).

With FedAvg of the prompt alone it is FedPrompt (Zhao et al. 2023, arXiv 2208.12268). The prompt takes the first positions, the
text those behind it, as in PEFT. Heads read the text's tokens only. With ``tuner.projection`` the prompt is S + A z: S is the
start, A a random matrix, both frozen and alike on all clients, and z is what is trained and travels.

Shape suffixes: C clients, P virtual tokens, D hidden size, Z numbers that are projected.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, ClassVar

import numpy as np

from clients.tuners.config import TunerConfig
from clients.tuners.linear_maps import hidden_size
from clients.tuners.projected import PROJECTED, PROJECTION, PROMPT, START
from clients.tuners.texts import Texts, VirtualTokens
from clients.tuners.tuner import Tuner
from clients.tuners.word_vectors import WordVectors
from fedsim.core import seeds
from fedsim.core.deferred import deferred
from fedsim.core.layout import LayerShape, OneLayer, PromptGeometry

if TYPE_CHECKING:
    import torch
    from torch import Tensor, nn
else:
    torch = deferred("torch")


@dataclass(frozen=True)
class SoftPromptTuner(Tuner):
    """Trains the embeddings of ``tuner.length`` virtual tokens."""

    kind: ClassVar[str] = "soft_prompt"
    embeds: ClassVar[bool] = True
    soft: TunerConfig
    start_PD: np.ndarray | None = field(default=None, compare=False, repr=False)
    """float64 start; None where it is drawn when asked for, or not needed."""
    projection_PDZ: np.ndarray | None = field(default=None, compare=False, repr=False)
    """float32 A; None without ``tuner.projection``, and before the model is known."""
    _placed: dict[tuple[torch.device, torch.dtype], tuple[Tensor, Tensor]] = field(
        default_factory=dict, init=False, compare=False, repr=False
    )
    """S and A where passes run: A may be large."""

    @property
    def offset(self) -> int:  # type: ignore[override]
        """Positions that the prompt takes."""
        return self.soft.length

    @property
    def constants(self) -> dict[str, np.ndarray]:
        """S and A."""
        if self.projection_PDZ is None or self.start_PD is None:
            return {}
        return {START: self.start_PD, PROJECTION: self.projection_PDZ}

    def as_filed(self) -> SoftPromptTuner:
        """Return the tuner for the numbers of a prompt file, which are the prompt itself."""
        return replace(self, soft=self.soft.model_copy(update={"projection": None}), projection_PDZ=None)

    @property
    def described(self) -> str:
        """What it trains, in words."""
        words = f"soft prompt of {self.soft.length} tokens"
        return f"{words}, projected from {self.soft.projection} numbers" if self.soft.projection else words

    def shape(self, keys: PromptGeometry, layers: nn.ModuleList) -> OneLayer:
        """Return the array ``prompt`` [P, D], at the input of layer 0, or ``projected`` [Z]."""
        if self.soft.projection:
            return OneLayer(len(layers), ((PROJECTED, (self.soft.projection,)),), layer=0)
        return OneLayer(len(layers), ((PROMPT, (self.soft.length, hidden_size(layers))),), layer=0)

    def initial(self, shape: LayerShape, layer: int, seed: int) -> np.ndarray:
        """Return words' embeddings, or draw it uniformly in [-0.5, 0.5), as Lester et al.'s code does; zeros for z."""
        if self.soft.projection:
            return np.zeros(shape.layer_size)
        if self.start_PD is not None:
            return self.start_PD.reshape(-1)
        return _uniform(seed, shape.layer_size)

    def knowing(self, words: WordVectors, seed: int) -> SoftPromptTuner:
        """Take the start from the model's input embeddings, if ``tuner.start`` says so, and draw A on their scale."""
        length = self.soft.length
        found = self
        if self.soft.start != "random":
            found = replace(self, start_PD=words.start(self.soft.start, length, seed))
        elif self.soft.projection:
            found = replace(self, start_PD=_uniform(seed, length * words.size).reshape(length, -1))
        if not self.soft.projection:
            return found
        rng = seeds.stream(seed, seeds.NO_ROUND, seeds.NO_CLIENT, "soft_prompt/projection")
        drawn = rng.standard_normal((length, words.size, self.soft.projection))
        scaled = words.deviation / math.sqrt(self.soft.projection) * drawn
        return replace(found, projection_PDZ=scaled.astype(np.float32))

    def virtual_tokens(self, shape: LayerShape, tuned_CLX: Tensor) -> VirtualTokens:
        """Return the prompt, to be embedded."""
        assert isinstance(shape, OneLayer)
        if self.soft.projection:
            prompt_CPD = self._prompts(tuned_CLX.unbind(1)[0])
        else:
            prompt_CPD = shape.split(tuned_CLX)[PROMPT].unbind(1)[0]

        def vectors(texts: Texts) -> Tensor:
            return texts.own(prompt_CPD)

        return VirtualTokens(0, self.soft.length, vectors, embedded=True)

    def _prompts(self, projected_CZ: Tensor) -> Tensor:
        assert self.projection_PDZ is not None and self.start_PD is not None
        place = projected_CZ.device, projected_CZ.dtype
        if place not in self._placed:
            # Copied: arrays from the object store are read-only.
            start_PD = torch.from_numpy(self.start_PD.copy()).to(projected_CZ)
            matrix_XZ = torch.from_numpy(self.projection_PDZ.copy()).to(projected_CZ).flatten(0, 1)
            self._placed[place] = start_PD, matrix_XZ
        start_PD, matrix_XZ = self._placed[place]
        return start_PD + (projected_CZ @ matrix_XZ.mT).unflatten(1, start_PD.shape)


def _uniform(seed: int, size: int) -> np.ndarray:
    return seeds.stream(seed, seeds.NO_ROUND, seeds.NO_CLIENT, "soft_prompt").uniform(-0.5, 0.5, size)

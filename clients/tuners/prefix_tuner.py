"""Prefix: trained keys and values before a layer's own (P-tuning v2, Liu et al. 2022; Li & Liang 2021)."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, ClassVar

import numpy as np

from clients.config import PromptConfig
from clients.tuners.tuner import Tuner
from fedsim.core import seeds
from fedsim.core.layout import LayerShape, PromptGeometry

if TYPE_CHECKING:
    from torch import Tensor, nn


@dataclass(frozen=True)
class PrefixTuner(Tuner):
    """Trains prompts: key/value pairs of ``prompt.length`` virtual tokens in each layer."""

    kind: ClassVar[str] = "prefix"
    length_key: ClassVar[str] = "prompt.length"
    prompt: PromptConfig

    @property
    def described(self) -> str:
        """Name the prefix and its length."""
        return f"prefix of {self.prompt.length} token{'s' if self.prompt.length > 1 else ''}"

    @property
    def offset(self) -> int:  # type: ignore[override]
        """Positions that the prompt takes."""
        return self.prompt.length if self.prompt.position_offset == "paper" else 0

    @property
    def beside(self) -> str:
        """What a text stands beside: the prompt, whether or not it takes positions."""
        return " beside the prompt"

    @property
    def dropout(self) -> float:  # type: ignore[override]
        """Chance that an entry of the prompt is zero in a training step."""
        return self.prompt.dropout

    def shape(self, keys: PromptGeometry, layers: nn.ModuleList) -> PromptGeometry:
        """Return the shape of the prompts."""
        return replace(keys, prompt_length=self.prompt.length)

    def initial(self, shape: LayerShape, layer: int, seed: int) -> np.ndarray:
        """Draw a layer's prompt: normal with ``prompt.init_std`` (published code: the model's initializer range, 0.02)."""
        rng = seeds.stream(seed, seeds.NO_ROUND, seeds.NO_CLIENT, f"prompt/{layer}")
        return rng.normal(0.0, self.prompt.init_std, shape.layer_shape).reshape(-1)

    def accepts(self, shape: LayerShape, tuned_LX: tuple[int, ...]) -> bool:
        """Whether these are prompts of the model, of any length."""
        return len(tuned_LX) == 5 and (*tuned_LX[1:3], shape.layer_shape[2], tuned_LX[4]) == shape.layer_shape

    def prompts(
        self, shape: LayerShape, tuned_CLX: Tensor, layers: tuple[int, ...]
    ) -> tuple[Tensor, tuple[int, ...]] | None:
        """Return the trained numbers, which are the prompts."""
        return tuned_CLX, layers

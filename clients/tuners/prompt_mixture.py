"""Prompt mixture: a trained soft prompt plus a weighted sum of frozen source prompts and itself, by attention to the text.

It is ATTEMPT (Asai et al. 2022, arXiv 2205.11961), with the attention of its authors' code (its method "sub").

For a text with input embeddings E(x), q = LN(W_up silu(W_down maxpool E(x))) scores every prompt by its largest entries,
s_k = maxpool(P_k) . q / tau, and the prompt that enters is P + sum_k softmax(s)_k P_k, over the sources and P itself.

Shape suffixes: C clients, K prompts in the mixture, B examples, P virtual tokens, D hidden size, R bottleneck; G, M as in
:mod:`clients.tuners.client_rows`.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, ClassVar

import numpy as np

from clients.tuners.config import TunerConfig
from clients.tuners.late_prompt import pooled_segments
from clients.tuners.linear_maps import hidden_size
from clients.tuners.texts import Texts, VirtualTokens
from clients.tuners.tuner import Tuner
from clients.tuners.word_vectors import WordVectors
from fedsim.core import seeds
from fedsim.core.deferred import deferred
from fedsim.core.layout import LayerShape, OneLayer, PromptGeometry

if TYPE_CHECKING:
    import torch
    from torch import Tensor, nn
    from torch.nn import functional
else:
    torch = deferred("torch")
    functional = deferred("torch.nn.functional")

_SOURCES = "sources"


@dataclass(frozen=True)
class PromptMixtureTuner(Tuner):
    """Trains a soft prompt and the attention over it and the sources."""

    kind: ClassVar[str] = "prompt_mixture"
    embeds: ClassVar[bool] = True
    reads_text: ClassVar[bool] = True  # type: ignore[misc]
    mixture: TunerConfig
    start_PD: np.ndarray | None = field(default=None, compare=False, repr=False)
    """float64 start of the trained prompt; None where it is not needed."""
    sources_KPD: np.ndarray | None = field(default=None, compare=False, repr=False)
    """float32 frozen prompts; None where the trained numbers hold them, as those of a prompt file do."""
    filed: bool = False
    """The trained numbers hold the sources."""

    @property
    def offset(self) -> int:  # type: ignore[override]
        """Positions that the prompt takes."""
        return self.mixture.length

    @property
    def constants(self) -> dict[str, np.ndarray]:
        """The sources."""
        return {} if self.sources_KPD is None else {_SOURCES: self.sources_KPD}

    def as_filed(self) -> PromptMixtureTuner:
        """Return the tuner for the numbers of a prompt file, which hold the sources."""
        return replace(self, filed=True)

    def with_sources(self, sources_KPD: np.ndarray) -> PromptMixtureTuner:
        """Return the tuner with trained sources, float32 [K, P, D]."""
        return replace(self, sources_KPD=sources_KPD)

    @property
    def described(self) -> str:
        """What it trains, in words."""
        return f"prompt of {self.mixture.length} tokens mixed with {self.mixture.num_sources} others"

    def shape(self, keys: PromptGeometry, layers: nn.ModuleList) -> OneLayer:
        """Return the sources [K, P, D], ``prompt`` [P, D], ``down`` [R, D], ``up`` [D, R], and a norm's two arrays [D]."""
        size, rank = hidden_size(layers), self.mixture.width
        arrays = (
            (_SOURCES, (self.mixture.num_sources, self.mixture.length, size)),
            ("prompt", (self.mixture.length, size)),
            ("down", (rank, size)),
            ("up", (size, rank)),
            ("norm.weight", (size,)),
            ("norm.bias", (size,)),
        )
        return OneLayer(len(layers), arrays, () if self.filed else (_SOURCES,), layer=0)

    def initial(self, shape: LayerShape, layer: int, seed: int) -> np.ndarray:
        """Start the prompt in the vocabulary, maps uniformly within 1 / sqrt(features in), the norm at weight 1 and bias 0."""
        assert isinstance(shape, OneLayer) and self.start_PD is not None
        pieces = [self.start_PD]
        for name, dims in shape.trained[1:]:
            if name in ("down", "up"):
                rng = seeds.stream(seed, seeds.NO_ROUND, seeds.NO_CLIENT, f"prompt_mixture/{name}")
                bound = 1.0 / math.sqrt(dims[1])
                pieces.append(rng.uniform(-bound, bound, dims))
            else:
                pieces.append(np.full(dims, float(name == "norm.weight")))
        return np.concatenate([piece.reshape(-1) for piece in pieces])

    def knowing(self, words: WordVectors, seed: int) -> PromptMixtureTuner:
        """Take the start, and the sources if they are random, from the model's input embeddings."""
        length = self.mixture.length
        found = replace(self, start_PD=words.start("vocabulary", length, seed))
        if self.mixture.sources:
            return found
        drawn = words.start("vocabulary", self.mixture.num_sources * length, seed, "prompt_mixture/sources")
        return found.with_sources(drawn.reshape(self.mixture.num_sources, length, -1).astype(np.float32))

    def virtual_tokens(self, shape: LayerShape, tuned_CLX: Tensor) -> VirtualTokens:
        """Return the mixture for each text, to be embedded."""
        assert isinstance(shape, OneLayer)
        arrays = {name: array.unbind(1)[0] for name, array in shape.split(tuned_CLX).items()}
        if not self.filed:
            assert self.sources_KPD is not None
            # A copy: arrays of the object store are read-only.
            sources_KPD = torch.from_numpy(self.sources_KPD.copy()).to(tuned_CLX)
            arrays[_SOURCES] = sources_KPD.expand(len(tuned_CLX), *sources_KPD.shape)
        prompts_CKPD = torch.cat([arrays[_SOURCES], arrays["prompt"].unsqueeze(1)], dim=1)
        scale = 1.0 / (self.mixture.temperature or math.e * prompts_CKPD.shape[-1])

        def mix(rows_GMD: Tensor, prompts_GKPD: Tensor, *attention: Tensor) -> Tensor:
            down_GRD, up_GDR, weight_GD, bias_GD = attention
            query_GMD = functional.silu(rows_GMD @ down_GRD.mT) @ up_GDR.mT
            query_GMD = functional.layer_norm(query_GMD, query_GMD.shape[-1:])
            query_GMD = query_GMD * weight_GD.unsqueeze(1) + bias_GD.unsqueeze(1)
            share_GMK = (query_GMD @ prompts_GKPD.amax(2).mT * scale).softmax(-1)
            return share_GMK @ prompts_GKPD.flatten(2) + prompts_GKPD[:, -1].flatten(1).unsqueeze(1)

        def vectors(texts: Texts) -> Tensor:
            largest_BD = pooled_segments(texts.words(), texts.lengths_B, 1, maximum=True)[:, 0]
            trained = (arrays[name] for name in ("down", "up", "norm.weight", "norm.bias"))
            made_1BX = texts.rows.mapped(mix, largest_BD.unsqueeze(0), prompts_CKPD, *trained)
            return made_1BX.view(len(texts.lengths_B), self.mixture.length, -1)

        return VirtualTokens(0, self.mixture.length, vectors, embedded=True)

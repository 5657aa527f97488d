"""Late prompt: trained vectors before each text in the hidden states of a middle layer (LPT; Liu et al. 2022, 2210.11292).

The layers below run without, so their states are computed once. The vectors are trained themselves, or come from the text by a
small trained generator. Linear maps have biases and start as PyTorch's do, as in the authors' code (xyltt/LPT).

Shape suffixes: C clients, G groups of rows, M rows of a group, B examples, P virtual tokens, D hidden size, R bottleneck, S
longest segment, Z packed tokens.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, ClassVar

import numpy as np

from clients.backbone.device import to_device
from clients.tuners.config import TunerConfig
from clients.tuners.linear_maps import hidden_size
from clients.tuners.texts import Texts, VirtualTokens
from clients.tuners.tuner import Tuner
from clients.tuners.word_vectors import WordVectors
from fedsim.core import seeds
from fedsim.core.deferred import deferred
from fedsim.core.errors import ModelError
from fedsim.core.layout import LayerShape, OneLayer, PromptGeometry

if TYPE_CHECKING:
    import torch
    from torch import Tensor, nn

    from clients.tuners import moves
else:
    torch = deferred("torch")
    moves = deferred("clients.tuners.moves")

PROMPT, DOWN, UP = "prompt", "down", "up"


@dataclass(frozen=True)
class LatePromptTuner(Tuner):
    """Trains a prompt, or its generator, at the input of layer ``tuner.depth``."""

    kind: ClassVar[str] = "late_prompt"
    late: TunerConfig
    rotary: bool = False
    """Whether the layers turn queries and keys by their positions."""
    start_PD: np.ndarray | None = field(default=None, compare=False, repr=False)
    """float64 start from the vocabulary; None where it is random or not needed."""

    @property
    def room(self) -> int:
        """Positions that the prompt takes in the layers that see it: none where positions are part of the input."""
        return self.late.length if self.rotary else 0

    @property
    def reads_text(self) -> bool:  # type: ignore[override]
        """Whether its generator pools all tokens of a text."""
        return self.late.generator in ("appg", "mppg")

    @property
    def described(self) -> str:
        """What it trains, in words."""
        made = "" if self.late.generator == "none" else f" by {self.late.generator.upper()}"
        return f"late prompt of {self.late.length} tokens{made}"

    def shape(self, keys: PromptGeometry, layers: nn.ModuleList) -> OneLayer:
        """Return the array ``prompt`` [P, D], or the generator's weights and biases.

        Raises
        ------
        ModelError
            If no layer would see the prompt.
        """
        depth = len(layers) // 2 if self.late.depth is None else self.late.depth
        if depth >= len(layers):
            raise ModelError(
                f"tuner.depth={depth} leaves no layer for the prompt, the model has {len(layers)}; set tuner.depth="
                f"{len(layers) - 1} or less"
            )
        size, length = hidden_size(layers), self.late.length
        if self.late.generator == "none":
            return OneLayer(len(layers), ((PROMPT, (length, size)),), layer=depth)
        rank = self.late.width
        made = length * size if self.late.generator == "npg" else size
        down = ((f"{DOWN}.weight", (rank, size)), (f"{DOWN}.bias", (rank,)))
        up = ((f"{UP}.weight", (made, rank)), (f"{UP}.bias", (made,)))
        return OneLayer(len(layers), (*down, *up), layer=depth)

    def initial(self, shape: LayerShape, layer: int, seed: int) -> np.ndarray:
        """Draw the start: a prompt from the vocabulary or N(0, 1), linear maps uniformly within 1 / sqrt(features in)."""
        assert isinstance(shape, OneLayer)
        if self.start_PD is not None:
            return self.start_PD.reshape(-1)
        pieces, features_in = [], 1
        for name, dims in shape.arrays:
            rng = seeds.stream(seed, seeds.NO_ROUND, seeds.NO_CLIENT, f"late_prompt/{name}")
            if name == PROMPT:
                pieces.append(rng.normal(0.0, 1.0, dims))
                continue
            features_in = dims[1] if len(dims) == 2 else features_in
            bound = 1.0 / math.sqrt(features_in)
            pieces.append(rng.uniform(-bound, bound, dims))
        return np.concatenate([piece.reshape(-1) for piece in pieces])

    def knowing(self, words: WordVectors, seed: int) -> LatePromptTuner:
        """Take the start from the model's input embeddings, if ``tuner.start`` says so."""
        if self.late.generator != "none" or self.late.start == "random":
            return self
        return replace(self, start_PD=words.start(self.late.start, self.late.length, seed))

    def virtual_tokens(self, shape: LayerShape, tuned_CLX: Tensor) -> VirtualTokens:
        """Return the prompt, or the generator's result for each text."""
        assert isinstance(shape, OneLayer)
        arrays = {name: array.unbind(1)[0] for name, array in shape.split(tuned_CLX).items()}
        vectors = {"none": _prompt, "npg": self._of_summary}.get(self.late.generator, self._of_segments)
        return VirtualTokens(shape.layer, self.late.length, lambda texts: vectors(texts, arrays))

    def _of_summary(self, texts: Texts, arrays: dict[str, Tensor]) -> Tensor:
        """NPG: a bottleneck on the token that stands for the text."""
        rows_B = to_device(texts.summary_rows_B, texts.hidden_ZD.device)
        summary_1BD = moves.take_rows(texts.hidden_ZD, rows_B).unsqueeze(0)
        down, bias, up, up_bias = arrays.values()

        def generate(rows_GMD: Tensor, down_GRD: Tensor, bias_GR: Tensor, up_GXR: Tensor, bias_GX: Tensor) -> Tensor:
            return linear(torch.relu(linear(rows_GMD, down_GRD, bias_GR)), up_GXR, bias_GX)

        made_1BX = texts.rows.mapped(generate, summary_1BD, down, bias, up, up_bias)
        return made_1BX.view(len(rows_B), self.late.length, -1)

    def _of_segments(self, texts: Texts, arrays: dict[str, Tensor]) -> Tensor:
        """APPG, MPPG: the text's tokens through the first map, pooled over P segments, through the second."""
        length = self.late.length
        down, bias, up, up_bias = arrays.values()
        low_1ZR = texts.rows.mapped(linear, texts.hidden_ZD.unsqueeze(0), down, bias)
        pooled_BPR = pooled_segments(low_1ZR[0], texts.lengths_B, length, maximum=self.late.generator == "mppg")

        def generate(rows_GMX: Tensor, up_GDR: Tensor, bias_GD: Tensor) -> Tensor:
            groups, rows, _ = rows_GMX.shape
            made = linear(torch.relu(rows_GMX.reshape(groups, rows * length, -1)), up_GDR, bias_GD)
            return made.view(groups, rows, -1)

        made_1BX = texts.rows.mapped(generate, pooled_BPR.flatten(1).unsqueeze(0), up, up_bias)
        return made_1BX.view(len(texts.lengths_B), length, -1)


def _prompt(texts: Texts, arrays: dict[str, Tensor]) -> Tensor:
    return texts.own(arrays[PROMPT])


def linear(rows_GMI: Tensor, weight_GOI: Tensor, bias_GO: Tensor) -> Tensor:
    """Return ``rows @ weight.T + bias`` with each group's own weight and bias, [G, M, O]."""
    return rows_GMI @ weight_GOI.mT + bias_GO.unsqueeze(1)


def pooled_segments(rows_ZR: Tensor, lengths_B: np.ndarray, parts: int, *, maximum: bool) -> Tensor:
    """Return the mean or maximum over ``parts`` segments of each text, [B, parts, R], as PyTorch's adaptive pooling cuts them.

    Segments overlap where a text's tokens do not divide evenly, and repeat where it has fewer than ``parts``.
    """
    parts_P = np.arange(parts)
    first_BP = parts_P * lengths_B[:, None] // parts
    past_BP = -(-(parts_P + 1) * lengths_B[:, None] // parts)
    starts_B = np.cumsum(lengths_B) - lengths_B
    steps_S = np.arange(int((past_BP - first_BP).max()))
    own_BPS = steps_S < (past_BP - first_BP)[..., None]
    # A padding place holds the segment's first token: it changes no maximum, and has no share in a mean.
    rows_BPS = starts_B[:, None, None] + first_BP[..., None] + np.where(own_BPS, steps_S, 0)
    # Indexing, not index_select: on a GPU only its gradient adds up in a fixed order.
    segments_BPSR = rows_ZR[to_device(rows_BPS, rows_ZR.device)]
    if maximum:
        return segments_BPSR.amax(2)
    share_BPS = own_BPS / (past_BP - first_BP)[..., None]
    return (segments_BPSR * to_device(share_BPS, rows_ZR.device).to(rows_ZR.dtype).unsqueeze(-1)).sum(2)

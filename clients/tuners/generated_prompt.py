"""Generated prompt: each text's own soft prompt, made by a small trained generator (IDPG; Wu et al. 2022, arXiv 2204.04497).

The generator reads the text's last hidden state in the plain frozen model, of the first token in encoders and of the last in
decoders: it depends on the text alone, so it is computed once. The prompt p = W2 gelu(W1 h + b1) + b2 enters before the text as
input embeddings. W1 and W2 are sums of Kronecker products (PHM). This is the form with one prompt at the input; the authors'
form with a prompt in every layer is not built.

Shape suffixes: C clients, N terms of a sum, B examples, P virtual tokens, D hidden size, R bottleneck; G, M, I, O as in
:mod:`clients.tuners.client_rows`.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

import numpy as np

from clients.tuners.config import TunerConfig
from clients.tuners.late_prompt import linear
from clients.tuners.linear_maps import hidden_size
from clients.tuners.texts import Texts, VirtualTokens
from clients.tuners.tuner import Tuner
from fedsim.core import seeds
from fedsim.core.deferred import deferred
from fedsim.core.errors import ModelError
from fedsim.core.layout import LayerShape, OneLayer, PromptGeometry

if TYPE_CHECKING:
    import torch
    from torch import Tensor, nn
    from torch.nn import functional
else:
    torch = deferred("torch")
    functional = deferred("torch.nn.functional")

_STD = 0.05
"""Standard deviation of all initial numbers, that of the authors' code."""


@dataclass(frozen=True)
class GeneratedPromptTuner(Tuner):
    """Trains the generator of a prompt of ``tuner.length`` virtual tokens."""

    kind: ClassVar[str] = "generated_prompt"
    embeds: ClassVar[bool] = True
    reads_output: ClassVar[bool] = True
    generated: TunerConfig

    @property
    def offset(self) -> int:  # type: ignore[override]
        """Positions that the prompt takes."""
        return self.generated.length

    @property
    def described(self) -> str:
        """What it trains, in words."""
        return f"generator of a prompt of {self.generated.length} tokens"

    def shape(self, keys: PromptGeometry, layers: nn.ModuleList) -> OneLayer:
        """Return the generator's arrays: of each map ``left`` [N, N, N], ``right`` [N, out/N, in/N] and ``bias`` [out].

        Raises
        ------
        ModelError
            If the number of terms does not divide the maps.
        """
        size, terms = hidden_size(layers), self.generated.terms
        rank = self.generated.width
        for what, number in (("the model's hidden size", size), ("tuner.bottleneck", rank)):
            if number % terms:
                raise ModelError(
                    f"tuner.terms={terms} must divide {what}, {number}; set tuner.terms to a divisor of it, 1 for ordinary maps"
                )
        arrays: list[tuple[str, tuple[int, ...]]] = []
        for name, size_in, size_out in (("down", size, rank), ("up", rank, self.generated.length * size)):
            arrays.append((f"{name}.left", (terms, terms, terms)))
            arrays.append((f"{name}.right", (terms, size_out // terms, size_in // terms)))
            arrays.append((f"{name}.bias", (size_out,)))
        return OneLayer(len(layers), tuple(arrays), layer=0)

    def initial(self, shape: LayerShape, layer: int, seed: int) -> np.ndarray:
        """Draw all numbers from N(0, 0.05²), as the authors' code does."""
        rng = seeds.stream(seed, seeds.NO_ROUND, seeds.NO_CLIENT, "generated_prompt")
        return rng.normal(0.0, _STD, shape.layer_size)

    def virtual_tokens(self, shape: LayerShape, tuned_CLX: Tensor) -> VirtualTokens:
        """Return the generator's result for each text, to be embedded."""
        assert isinstance(shape, OneLayer)
        arrays = {name: array.unbind(1)[0] for name, array in shape.split(tuned_CLX).items()}
        down_CRD, up_CXR = (kronecker_sum(arrays[f"{name}.left"], arrays[f"{name}.right"]) for name in ("down", "up"))

        def generate(rows_GMD: Tensor, down_GRD: Tensor, bias_GR: Tensor, up_GXR: Tensor, bias_GX: Tensor) -> Tensor:
            return linear(functional.gelu(linear(rows_GMD, down_GRD, bias_GR)), up_GXR, bias_GX)

        def vectors(texts: Texts) -> Tensor:
            assert texts.output_BD is not None
            made_1BX = texts.rows.mapped(
                generate, texts.output_BD.unsqueeze(0), down_CRD, arrays["down.bias"], up_CXR, arrays["up.bias"]
            )
            return made_1BX.view(len(texts.lengths_B), self.generated.length, -1)

        return VirtualTokens(0, self.generated.length, vectors, embedded=True)


def kronecker_sum(left_CNAB: Tensor, right_CNOI: Tensor) -> Tensor:
    """Return the sum over terms of the Kronecker products of left and right, [C, A O, B I]."""
    product_CAOBI = torch.einsum("cnab,cnoi->caobi", left_CNAB, right_CNOI)
    return product_CAOBI.flatten(3, 4).flatten(1, 2)

"""A tuner: what is trained in each layer of a frozen model, and how it acts in a forward pass.

Shape suffixes: C clients, L tuned layers, X the axes of one layer's trained numbers (``layer_shape`` of the tuner's shape),
K {key, value}, H key/value heads, P prompt length, D head dimension.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from contextlib import AbstractContextManager, nullcontext
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np

from clients.tuners.texts import VirtualTokens
from clients.tuners.word_vectors import WordVectors
from clients.tuners.words import vector_word
from fedsim.core.layout import LayerShape, PromptGeometry, VectorLayout
from fedsim.core.low_rank import LowRank

if TYPE_CHECKING:
    from torch import Tensor, nn

    from clients.tuners.client_rows import PackedRows, PaddedRows


class Tuner(ABC):
    """One kind of trainable parameters. It holds settings only, so it can be sent to workers."""

    kind: ClassVar[str]
    """Name in ``tuner.kind``."""
    offset: int = 0
    """Positions before the text that the tuner takes."""
    length_key: ClassVar[str] = "tuner.length"
    """Key of the number of positions that the tuner takes."""
    reads_output: ClassVar[bool] = False
    """Whether it reads the last hidden state of one token of each text in the plain model, which is then what is cached."""
    reads_text: bool = False
    """Whether it makes something of all tokens of a text, not of one alone that sees those before it."""
    embeds: ClassVar[bool] = False
    """Whether what it trains, or makes for a text, stands among the word embeddings."""
    dropout: float = 0.0
    """Chance that a trained number is zero in a training step; see :mod:`clients.tuners.prompt_dropout`."""

    @property
    def constants(self) -> dict[str, np.ndarray]:
        """Frozen arrays that the tuner itself holds, by the name that they have in its shape."""
        return {}

    def as_filed(self) -> Tuner:
        """Return the tuner for the numbers of a prompt file, which hold its constants."""
        return self

    def cached_rows(self, lengths_N: np.ndarray) -> np.ndarray:
        """Return the rows of cached states of each text, given its tokens."""
        return np.ones_like(lengths_N) if self.reads_output else lengths_N

    @property
    def beside(self) -> str:
        """What a text stands beside, for messages."""
        return " beside the prompt" if self.room else ""

    @property
    def room(self) -> int:
        """Positions that the tuner needs beside the text."""
        return self.offset

    @property
    def described(self) -> str:
        """What it trains in a layer, in words."""
        return vector_word(self.kind)

    @abstractmethod
    def shape(self, keys: PromptGeometry, layers: nn.ModuleList) -> LayerShape:
        """Return what is trained in each layer.

        Parameters
        ----------
        keys
            Shape of the model's keys, with prompt length 0.
        layers
            The model's layers, possibly on the meta device.

        Raises
        ------
        ModelError
            If the tuner does not fit the model.
        """

    @abstractmethod
    def initial(self, shape: LayerShape, layer: int, seed: int) -> np.ndarray:
        """Draw the initial numbers of a layer, float64 of shape [layer_size]; independent of the other layers."""

    def knowing(self, words: WordVectors, seed: int) -> Tuner:
        """Return the tuner with what its start takes from the model's input embeddings; itself if nothing."""
        return self

    def untrained(self, shape: LayerShape, layer: int) -> Mapping[str, np.ndarray]:
        """Return the arrays of a layer that are never trained, by name: those that ``shape`` names as frozen."""
        return self.constants

    def shared(self, shape: LayerShape) -> tuple[str, ...] | None:
        """Return the names of the arrays that travel, where devices keep the others; None where all travel."""
        return None

    def turns(self, shape: LayerShape) -> tuple[tuple[str, ...], ...]:
        """Return the names of the arrays that rounds train in turn; none where every round trains all."""
        return ()

    def low_rank(self, layout: VectorLayout) -> tuple[LowRank, ...]:
        """Return where low-rank changes lie whose products, not only factors, the server averages; none where it does not."""
        return ()

    def accepts(self, shape: LayerShape, tuned_LX: tuple[int, ...]) -> bool:
        """Whether trained numbers of such a shape can act in a pass."""
        return tuned_LX[1:] == shape.layer_shape

    def prompts(
        self, shape: LayerShape, tuned_CLX: Tensor, layers: tuple[int, ...]
    ) -> tuple[Tensor, tuple[int, ...]] | None:
        """Return the prompts before keys and values [C, L, K, H, P, D] and the model layer of each; None if there are none."""
        return None

    def virtual_tokens(self, shape: LayerShape, tuned_CLX: Tensor) -> VirtualTokens | None:
        """Return what the tuner puts before each text in the hidden states; None for nothing."""
        return None

    def inserted(
        self,
        shape: LayerShape,
        layers: nn.ModuleList,
        tuned: tuple[Tensor, tuple[int, ...]],
        rows: PaddedRows | PackedRows,
    ) -> AbstractContextManager[Any]:
        """Let trained numbers act in the layers' modules for the length of one forward pass.

        Parameters
        ----------
        tuned
            Numbers [C, L, X] and the model layer of each.
        rows
            Client of each row of the pass.
        """
        return nullcontext()

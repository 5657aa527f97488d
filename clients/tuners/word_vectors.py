"""Starts of prompts from the model's input embeddings.

Shape suffixes: V vocabulary, W label words, P virtual tokens, D hidden size.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

import numpy as np

from fedsim.core import seeds
from fedsim.core.deferred import deferred
from fedsim.core.errors import ModelError

if TYPE_CHECKING:
    import torch

    from clients.backbone.shared_weights import SharedWeights
else:
    torch = deferred("torch")

_TABLES = (
    *("word_embeddings.weight", "wte.weight", "embed_tokens.weight"),
    *("embed_in.weight", "tok_embeddings.weight"),
)
"""Ends of the names of the input embeddings."""


@dataclass(frozen=True)
class WordVectors:
    """The model's input embeddings, and what a start may be drawn from."""

    weights: SharedWeights
    special_ids: frozenset[int]
    """Token ids that stand for no word."""
    num_words: int
    """Token ids of words are below it; a table may be longer."""
    label_word_ids_W: np.ndarray | None
    """int64; token id of each class's word, if the task has such words."""

    def start(
        self,
        kind: Literal["vocabulary", "label_words"],
        length: int,
        seed: int,
        stream: str = "soft_prompt/words",
    ) -> np.ndarray:
        """Return input embeddings, float64 [P, D].

        Parameters
        ----------
        kind
            vocabulary: of different tokens, drawn uniformly; label_words: of the label words, then of drawn tokens.
        stream
            Name of the random stream.

        Raises
        ------
        ModelError
            If label words are asked for where there are none.
        """
        first: list[int] = []
        if kind == "label_words":
            if self.label_word_ids_W is None:
                raise ModelError(
                    "tuner.start=label_words needs label words, which only model.head.kind=verbalizer has; set "
                    "tuner.start=vocabulary"
                )
            first = list(dict.fromkeys(int(word) for word in self.label_word_ids_W))[:length]
        table_VD = self._table()
        rng = seeds.stream(seed, seeds.NO_ROUND, seeds.NO_CLIENT, stream)
        others = np.setdiff1d(np.arange(min(self.num_words, len(table_VD))), [*self.special_ids, *first])
        wanted = length - len(first)
        drawn = rng.choice(others, wanted, replace=wanted > len(others))
        return table_VD[[*first, *(int(word) for word in drawn)]].double().numpy()

    @property
    def deviation(self) -> float:
        """Standard deviation of their entries."""
        return float(self._table().double().std())

    @property
    def size(self) -> int:
        """D."""
        return self._table().shape[1]

    def _table(self) -> torch.Tensor:
        # A tied table is kept once, maybe under the name of the LM head's.
        names = dict(self.weights.aliases) | {name: name for name in self.weights.arrays}
        kept = next(names[name] for name in names if name.endswith(_TABLES))
        table_VD = torch.from_numpy(self.weights.arrays[kept].copy())
        if self.weights.dtype == "bfloat16":
            table_VD = table_VD.view(torch.bfloat16)
        return table_VD * table_VD.shape[1] ** 0.5 if self.weights.family.scaled_embeddings else table_VD

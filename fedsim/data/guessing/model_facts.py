"""What a config for one's own data asks of a model: its tokenizer, whether it has an LM head, and how long a text may be."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from clients.backbone.families import family_of
from clients.backbone.loading import config_values, load_tokenizer
from clients.backbone.location import locate
from clients.config import ModelConfig
from fedsim.data.config import TaskConfig
from fedsim.data.examples import Examples
from fedsim.data.responses import ResponseEncoder

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

_LM_CLASSES = ("ForMaskedLM", "ForCausalLM", "LMHeadModel", "ForPreTraining")
_SAMPLE, _NO_LIMIT = 1000, 2**30
_SHARE_COVERED = 99.0
"""Percent of the texts that are not cut."""


@dataclass(frozen=True)
class ModelFacts:
    """A model, as far as a config asks."""

    tokenizer: PreTrainedTokenizerBase
    causal: bool
    """Whether it predicts the next token, not a mask."""
    has_lm_head: bool
    max_positions: int

    @classmethod
    def of(cls, config: ModelConfig) -> ModelFacts:
        """Read a model's config.json and tokenizer; weights are not loaded.

        Raises
        ------
        ModelError
            If it cannot be found or read, or its family is not supported.
        """
        values = config_values(locate(config), config.location)
        family = family_of(values, config.location)
        named = values.get("architectures") or ()
        return cls(
            tokenizer=load_tokenizer(config),
            causal=family.predicts_next,
            has_lm_head=any(str(name).endswith(_LM_CLASSES) for name in named),
            max_positions=family.max_positions(family.config(values)),
        )

    def measure_responses(self, task: TaskConfig, examples: Examples) -> tuple[int, int]:
        """Return the tokens that almost all examples, and almost all responses, stay within; of the first examples."""
        first = examples.take(range(min(_SAMPLE, len(examples))))
        found = ResponseEncoder(task, self.tokenizer).encode(first, _NO_LIMIT)
        whole = [len(ids) for ids in found.ids]
        responses = [length - start for length, start in zip(whole, found.starts, strict=True)]
        return tuple(int(np.ceil(np.percentile(each, _SHARE_COVERED))) for each in (whole, responses))  # type: ignore[return-value]

    def measure(self, texts: Iterable[str]) -> tuple[int, float]:
        """Return the tokens that almost all texts stay below, and the share of tokens that the tokenizer does not know."""
        encoded = [self.tokenizer(text, verbose=False)["input_ids"] for text in texts]
        tokens = sum(map(len, encoded))
        unknown = sum(row.count(self.tokenizer.unk_token_id) for row in encoded)
        return int(np.ceil(np.percentile([len(row) for row in encoded], _SHARE_COVERED))), unknown / max(tokens, 1)

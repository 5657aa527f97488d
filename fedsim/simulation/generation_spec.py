"""What a run's workers write, and where a response ends."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING

import numpy as np

from clients.generation_settings import GenerationSpec
from fedsim.core import seeds
from fedsim.core.decoding import Decoding
from fedsim.data.responses import ResponseEncoder

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

    from clients.config import ModelConfig
    from fedsim.configuration.schema import Config
    from fedsim.data.config import TaskConfig


def generation_spec(
    config: Config, task: TaskConfig, tokenizer: PreTrainedTokenizerBase, num_validation: int
) -> GenerationSpec | None:
    """Return what workers write, None where a run writes nothing.

    Parameters
    ----------
    num_validation
        Number of validation examples.
    """
    asked = config.evaluation.generate
    if asked is None:
        return None
    rng = seeds.stream(config.seed, seeds.NO_ROUND, seeds.NO_CLIENT, "generate/examples")
    decoding = Decoding(
        max_new_tokens=asked.max_new_tokens,
        end_ids=end_ids(config.model, task, tokenizer),
        do_sample=asked.do_sample,
        temperature=asked.temperature,
        top_k=asked.top_k,
        top_p=asked.top_p,
    )
    return GenerationSpec(
        decoding=decoding,
        seed=config.seed if asked.seed is None else asked.seed,
        examples_N=np.sort(rng.permutation(num_validation)[: asked.examples]),
        client_examples=asked.client_examples if config.keeps_own != "none" else 0,
        batch_size=config.evaluation.batch_size,
    )


def end_ids(model: ModelConfig, task: TaskConfig, tokenizer: PreTrainedTokenizerBase) -> tuple[int, ...]:
    """Return the tokens that end a response: those with which the data's responses end, and the model's own."""
    from clients.backbone.end_tokens import end_tokens

    return tuple(dict.fromkeys((*ResponseEncoder(task, tokenizer).end_ids, *end_tokens(model))))


def decoded(tokenizer: PreTrainedTokenizerBase, ids: Iterable[int]) -> str:
    """Return token ids as text, without special tokens and white space around it."""
    text = tokenizer.decode(list(ids), skip_special_tokens=True, clean_up_tokenization_spaces=False)
    return str(text).strip()

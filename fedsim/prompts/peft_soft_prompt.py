"""Write soft prompt runs as PEFT prompt-tuning adapters: the same embeddings before each text, positions counted after them.

Shape suffixes: P virtual tokens, D hidden size.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
from peft import PromptTuningConfig

from clients.tuners.soft_prompt import PROMPT
from fedsim.core.errors import ModelError
from fedsim.core.layout import OneLayer
from fedsim.prompts.peft_export import TrainedModel, tuned_layers
from fedsim.prompts.peft_readme import AboutAdapter
from fedsim.prompts.prompt_file import PromptFile

EMBEDDINGS = "prompt_embeddings"
"""PEFT's name for the virtual tokens' input embeddings, [P, D]."""


def export_soft_prompt(file: PromptFile, output: Path, client: int | None) -> None:
    """Write the prompt of a run as an adapter.

    Parameters
    ----------
    output
        Folder to write; must be new or empty.
    client
        Refused: no client keeps a soft prompt to itself.

    Raises
    ------
    ModelError
        If the model needs token types, which PEFT drops, is not found, or the output cannot be written.
    """
    shape = file.layout.geometry
    assert isinstance(shape, OneLayer)
    prompt_PD = shape.split(tuned_layers(file, client)[shape.layer])[PROMPT]
    trained = TrainedModel.of(file)
    if trained.needs_token_types:
        raise ModelError(
            f"the model {trained.model.location} tells the texts of a pair apart by token types, and PEFT drops them in prompt "
            f"tuning, so no adapter gives the scores of {file.path}; use it with fedsim.load_adapter, or train with "
            "model.head.kind=verbalizer, where a pair is one text"
        )
    trained.write(output, _config(trained, prompt_PD), {EMBEDDINGS: prompt_PD}, _about(len(prompt_PD)))


def _config(trained: TrainedModel, prompt_PD: np.ndarray) -> PromptTuningConfig:
    length, size = prompt_PD.shape
    return PromptTuningConfig(
        **trained.common,
        num_virtual_tokens=length,
        token_dim=size,
        num_layers=trained.config.num_hidden_layers,
        num_attention_heads=trained.config.num_attention_heads,
        num_transformer_submodules=1,
    )


def _about(length: int) -> AboutAdapter:
    return AboutAdapter(
        title="Prompt-tuning adapter",
        trained="A soft prompt",
        what=f"the input embeddings of {length} virtual tokens before each text",
        calls=(
            "Give every call an `attention_mask` and no `position_ids`, and pad on the right: PEFT puts the virtual tokens "
            f"before the text, whose positions follow theirs. So the output has {length} rows more than the text."
        ),
        token_types="",
        before=length,
    )

"""Source prompts of ``tuner.kind=prompt_mixture``: soft prompts that earlier runs trained."""

from __future__ import annotations

from pathlib import PurePath
from typing import TYPE_CHECKING

import numpy as np

from clients.config import ModelConfig
from fedsim.core.errors import ModelError
from fedsim.core.uses import EVERY_KEY
from fedsim.prompts.prompt_file import read_prompt

if TYPE_CHECKING:
    from clients.tuners.config import TunerConfig


def load_sources(tuner: TunerConfig, model: ModelConfig, hidden_size: int) -> np.ndarray:
    """Return the prompts that ``tuner.sources`` names, float32 [K, P, D].

    Raises
    ------
    ModelError
        If one is no soft prompt, was trained on another model, or differs in length or hidden size.
    """
    prompts = []
    for source in tuner.sources or ():
        file = read_prompt(source)
        if file.kind != "soft_prompt":
            raise ModelError(
                f"tuner.sources {source} was trained with tuner.kind={file.kind}; sources must be soft prompts "
                "(tuner.kind=soft_prompt)"
            )
        trained_on = ModelConfig.model_validate(file.metadata["model"], context=EVERY_KEY).location
        if PurePath(trained_on).name != PurePath(model.location).name:  # a model may have moved
            raise ModelError(
                f"tuner.sources {source} was trained on model {trained_on}, but this run's is {model.location}, to which its "
                "embeddings mean nothing; give sources of the same model"
            )
        prompt_PD = file.layout.geometry.split(file.tuned_LX)["prompt"][0]  # type: ignore[attr-defined]
        if prompt_PD.shape != (tuner.length, hidden_size):
            raise ModelError(
                f"tuner.sources {source} holds {prompt_PD.shape[0]} virtual tokens of size {prompt_PD.shape[1]}, but this run "
                f"mixes tuner.length={tuner.length} of size {hidden_size}; give sources of this model and length, or set "
                f"tuner.length={prompt_PD.shape[0]}"
            )
        prompts.append(prompt_PD)
    return np.stack(prompts)

"""The tuner of a config."""

from __future__ import annotations

from clients.backbone.families import Family
from clients.config import PromptConfig
from clients.tuners.config import TunerConfig
from clients.tuners.lora import LoraTuner
from clients.tuners.prefix_tuner import PrefixTuner
from clients.tuners.tuner import Tuner


def make_tuner(tuner: TunerConfig, prompt: PromptConfig, family: Family, seed: int = 0) -> Tuner:
    """Return what ``tuner.kind`` names, for models of a family; the run's seed is for numbers that are never trained."""
    match tuner.kind:
        case "prefix":
            return PrefixTuner(prompt)
        case "lora":
            return LoraTuner(tuner, family.lora_targets, seed)

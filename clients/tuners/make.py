"""The tuner of a config."""

from __future__ import annotations

from clients.backbone.families import Family
from clients.config import PromptConfig
from clients.tuners.adapter import AdapterTuner
from clients.tuners.config import TunerConfig
from clients.tuners.ia3 import Ia3Tuner
from clients.tuners.lora import LoraTuner
from clients.tuners.prefix_tuner import PrefixTuner
from clients.tuners.tuner import Tuner


def make_tuner(tuner: TunerConfig, prompt: PromptConfig, family: Family) -> Tuner:
    """Return what ``tuner.kind`` names, for models of a family."""
    match tuner.kind:
        case "prefix":
            return PrefixTuner(prompt)
        case "lora":
            return LoraTuner(tuner, family.lora_targets)
        case "ia3":
            return Ia3Tuner(tuner, family.ia3_targets, family.ia3_feedforward)
        case "adapter":
            return AdapterTuner(tuner, family.sublayer_outputs, family.norms)

"""The tuner of a config."""

from __future__ import annotations

from clients.backbone.families import Family
from clients.backbone.rotary import rotary_class
from clients.config import PromptConfig
from clients.tuners.adapter import AdapterTuner
from clients.tuners.config import TunerConfig
from clients.tuners.generated_prompt import GeneratedPromptTuner
from clients.tuners.ia3 import Ia3Tuner
from clients.tuners.late_prompt import LatePromptTuner
from clients.tuners.lora import LoraTuner
from clients.tuners.prefix_tuner import PrefixTuner
from clients.tuners.projected_prefix import ProjectedPrefixTuner
from clients.tuners.prompt_mixture import PromptMixtureTuner
from clients.tuners.soft_prompt import SoftPromptTuner
from clients.tuners.tuner import Tuner
from fedsim.core.errors import ModelError

_PREFIXES = ("prefix", "projected_prefix")


def make_tuner(tuner: TunerConfig, prompt: PromptConfig, family: Family, seed: int = 0) -> Tuner:
    """Return what ``tuner.kind`` names, for models of a family; the run's seed is for numbers that are never trained."""
    if (family.relative_attention or family.position_bias) and tuner.kind in _PREFIXES:
        raise ModelError(
            f"tuner.kind={tuner.kind} cannot be used with a {family.name}: its attention scores distances of tokens, and "
            "keys of a prefix are of no token; set tuner.kind to lora, ia3, adapter or soft_prompt, or use another model"
        )
    match tuner.kind:
        case "prefix":
            return PrefixTuner(prompt)
        case "projected_prefix":
            return ProjectedPrefixTuner(tuner)
        case "soft_prompt":
            return SoftPromptTuner(tuner)
        case "late_prompt":
            return LatePromptTuner(tuner, rotary_class(family) is not None)
        case "generated_prompt":
            return GeneratedPromptTuner(tuner)
        case "prompt_mixture":
            return PromptMixtureTuner(tuner)
        case "lora":
            return LoraTuner(tuner, family.lora_targets, seed)
        case "ia3":
            return Ia3Tuner(tuner, family.ia3_targets, family.ia3_feedforward)
        case "adapter":
            return AdapterTuner(tuner, family.sublayer_outputs, family.norms)

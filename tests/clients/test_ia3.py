"""IA³: PEFT's numbers and default targets, decay towards the frozen model, and refusals; laws of all tuners: test_tuners.py."""

from __future__ import annotations

import numpy as np
import pytest
from cohorts import Cohort, specification
from peft import IA3Config, get_peft_model
from peft.utils.constants import (
    TRANSFORMERS_MODELS_TO_IA3_FEEDFORWARD_MODULES_MAPPING as FEEDFORWARD,
)
from peft.utils.constants import (
    TRANSFORMERS_MODELS_TO_IA3_TARGET_MODULES_MAPPING as TARGETS,
)
from peft_oracle import LAYERS, assert_same_as_peft
from tiny_models import TINY, backbone, save, settled, tiny_model, tuned_families

from clients.backbone.families import FAMILIES
from clients.tuners.config import TunerConfig
from fedsim.core.errors import ModelError

IA3 = TunerConfig(kind="ia3")


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    root = tmp_path_factory.mktemp("models")
    return {family: save(tiny_model(family), root / family) for family in TINY}


@tuned_families
def test_hidden_states_and_gradients_are_those_of_peft(folders, family):
    row = FAMILIES[family]
    kin = {"xlm-roberta": "roberta", "camembert": "roberta"}.get(family, family)
    if kin in TARGETS:
        assert (list(row.ia3_targets), list(row.ia3_feedforward)) == (TARGETS[kin], FEEDFORWARD[kin])
    _same_as_peft(folders[family], family, IA3, row.ia3_targets, row.ia3_feedforward)


@pytest.mark.parametrize(
    ("targets", "feedforward"),
    [
        (("attn.c_proj", "c_fc"), None),
        (("attn.c_proj", "mlp.c_proj", "c_attn"), ("c_attn", "c_proj")),
        (("c_proj",), ()),
    ],
    ids=str,
)
def test_targets_of_ones_own_are_scaled_as_in_peft(folders, targets, feedforward):
    config = TunerConfig(kind="ia3", targets=targets, feedforward_targets=feedforward)
    inputs = tuple(target for target in targets if target.endswith(feedforward)) if feedforward else ()
    _same_as_peft(folders["gpt2"], "gpt2", config, targets, inputs)


def _same_as_peft(folder: str, family: str, config: TunerConfig, targets: tuple, feedforward: tuple) -> None:
    base = FAMILIES[family].layers
    tops = [f"{base}.{layer}" for layer in LAYERS]
    model = tiny_model(family)
    maps = [
        name.removeprefix(f"{model.base_model_prefix}.")
        for name, _ in model.named_modules()
        if any(f".{top}." in f".{name}" for top in tops) and name.endswith(tuple(f".{target}" for target in targets))
    ]
    own = IA3Config(
        target_modules=maps,
        feedforward_modules=[name for name in maps if name.endswith(tuple(f".{one}" for one in feedforward))],
        fan_in_fan_out=family == "gpt2",
    )
    ours = backbone(folder, tuner=config, dtype=settled(family))
    assert_same_as_peft(ours, get_peft_model(model, own), family, "", origin=1.0)


def test_weight_decay_pulls_to_the_frozen_model(folders):
    """With a learning rate and decay whose product is one, a step forgets where it started."""
    optimizer = {"kind": "sgd", "lr": 1e-9, "weight_decay": 1e9}
    cohort = Cohort(specification(folders["bert"], tuner={"kind": "ia3"}, client={"optimizer": optimizer, "epochs": 1}))
    jobs = cohort.jobs()
    assert all(not job.start_A.any() for job in jobs)
    for job in jobs:
        job.start_A[:] = 0.5
    for result in cohort.train(jobs):
        np.testing.assert_allclose(result.vector_A, 0.0, atol=1e-6)


@pytest.mark.parametrize(
    ("keys", "words"),
    [
        (
            {"targets": ("q_proj",)},
            "tuner.targets names 'q_proj', but no linear map of the model's layers has such a name; use",
        ),
        (
            {"feedforward_targets": ("query",)},
            "tuner.feedforward_targets names 'query', which is none of the targets; use some of: attention.self.key, ",
        ),
    ],
)
def test_targets_that_the_model_lacks_are_refused(folders, keys, words):
    with pytest.raises(ModelError) as caught:
        backbone(folders["bert"], tuner=IA3.model_copy(update=keys))
    assert str(caught.value).startswith(words)

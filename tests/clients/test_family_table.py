"""Every cell of the table of families and tuners in docs/models.md: what it says is run, or is refused."""

from __future__ import annotations

import re
from dataclasses import replace
from typing import get_args

import numpy as np
import pytest
import torch
from support import ROOT
from test_packing import LENGTHS, OWNERS, SHUFFLED, texts
from test_tuners import TUNERS, numbers, places
from tiny_models import TINY, SharedByFamily, backbone

from clients.backbone.families import FAMILIES
from clients.backbone.model import Backbone
from clients.config import HeadConfig
from clients.tuners import packed_prefix
from clients.tuners.config import TunerConfig
from fedsim.core.errors import ModelError

_CELLS = re.compile(r"^\| `model_type` \| head \|(.+)\|\n\|[-|]+\|\n((?:\|.+\|\n)+)", re.M)
TABLE: dict[str, dict[str, str]] = {}
"""What the table says, by family and column."""
_columns, _rows = _CELLS.findall((ROOT / "docs" / "models.md").read_text())[0]
_names = ["head", *(name.strip() for name in _columns.split("|"))]
for _row in _rows.splitlines():
    _family, *_cells = (cell.strip() for cell in _row.strip("|").split("|"))
    TABLE[_family] = dict(zip(_names, _cells, strict=True))

FAST = {
    ("bert", "lora"),
    ("deberta-v2", "lora"),
    ("deberta-v2", "adapter"),
    ("t5", "lora"),
    ("umt5", "soft_prompt"),
    ("gpt_oss", "prefix"),
    ("qwen3_moe", "adapter"),
}
"""The others are run by ``make test-wide``; test_packing.py and test_tuners.py run each tuner with a few families."""


def cells(said: str) -> list:
    """Return the cells, family and tuner, that say so."""
    found = [(family, tuner) for family, row in TABLE.items() for tuner in _names[1:] if row[tuner].startswith(said)]
    found = [cell for cell in found if cell[0] in TINY]
    return [pytest.param(*cell, marks=() if cell in FAST or said == "no" else pytest.mark.wide) for cell in found]


def heads(family: str) -> list[HeadConfig]:
    kinds = TABLE[family]["head"].split("; ")
    pooled = [kind.removeprefix("classifier on ").split(", ") for kind in kinds if kind.startswith("classifier")]
    verbalizer = [HeadConfig()] if "verbalizer" in kinds else []
    return [*verbalizer, *(HeadConfig(kind="classifier", pooling=name) for name in pooled[0])]


def sections(tuner: str, family: str) -> list[TunerConfig]:
    """Return a tuner's variants."""
    found = [made for kind in TUNERS.values() if (made := kind.of_family(family))["kind"] == tuner]
    return [TunerConfig.model_validate(section) for section in found or [{"kind": tuner}]]


@pytest.fixture(scope="module")
def weights(tmp_path_factory: pytest.TempPathFactory) -> SharedByFamily:
    return SharedByFamily(tmp_path_factory.mktemp("models"), dtype="float64")


@pytest.fixture(autouse=True)
def _little_padding(monkeypatch: pytest.MonkeyPatch) -> None:
    """Force several buckets even for ten short examples, some with padding and some without."""
    monkeypatch.setitem(packed_prefix._MAX_PADDING_SLOTS, "cpu", 14)


def test_the_table_has_every_family_and_tuner():
    assert set(TABLE) == set(FAMILIES)
    assert set(_names[1:]) == set(get_args(TunerConfig.model_fields["kind"].annotation))
    for family, row in FAMILIES.items():
        pooled = ["mean", "last"] if row.predicts_next else ["first", "mean", "last"]
        words = [] if row.lm_kind == "base" else ["verbalizer"]
        assert [head.kind for head in heads(family)] == [*words, *["classifier"] * len(pooled)]
        assert [head.pooling for head in heads(family)[len(words) :]] == pooled


@pytest.mark.parametrize(("family", "tuner"), cells("yes"))
def test_a_cell_that_says_yes_is_right_on_every_way(weights, family, tuner):
    for head in heads(family):
        for section in sections(tuner, family):
            agree(backbone(weights[family], head, dtype="float64", tuner=section), f"{head.kind} {head.pooling}")


def agree(model: Backbone, case: str, longest: int = 30) -> None:
    """Compare a packed pass of several clients with a padded one, with each client alone, and with one of cached states."""
    table, owners = replace(texts(np.minimum(LENGTHS, longest)), type_ids_Z=None), OWNERS[SHUFFLED]
    (layers,) = places(model.geometry, (1, 2))
    tuned = numbers(model.geometry, len(layers), 3)
    arrays = {name: torch.randn((3, *shape), dtype=torch.float64).requires_grad_() for name, shape in model.head_shapes}
    padded = model.forward(table.batch(SHUFFLED), tuned, layers, arrays, torch.from_numpy(owners))
    expected = gradients(padded.loss_B, tuned, arrays)
    tokens = table.pack(SHUFFLED)
    ways = [None] if min(layers) == 0 else [None, model.cached(tokens, layers)]
    for cached in ways:
        reading, _ = model.read(tokens, tuned, layers, arrays, owners, cached)
        same([reading.logits_BC, *gradients(reading.loss_B, tuned, arrays)], [padded.logits_BC, *expected], case)
    for client in range(3):
        own = owners == client
        mine, head = tuned[client : client + 1], {name: array[client : client + 1] for name, array in arrays.items()}
        alone, _ = model.read(table.pack(SHUFFLED[own]), mine, layers, head)
        found = gradients(alone.loss_B, tuned, arrays)
        same(
            [alone.logits_BC, *(each[client] for each in found)],
            [padded.logits_BC[torch.from_numpy(own)], *(each[client] for each in expected)],
            f"{case}, alone",
        )


def gradients(loss_B: torch.Tensor, tuned: torch.Tensor, arrays: dict[str, torch.Tensor]) -> tuple[torch.Tensor, ...]:
    return torch.autograd.grad(loss_B.sum(), [tuned, *arrays.values()])


def same(ours: list[torch.Tensor], theirs: list[torch.Tensor], case: str) -> None:
    for mine, other in zip(ours, theirs, strict=True):
        scale = float(other.detach().abs().max())
        assert scale > 0, case
        torch.testing.assert_close(mine, other, rtol=1e-5, atol=1e-5 * max(1.0, scale), msg=lambda m: f"{case}: {m}")


@pytest.mark.parametrize(("family", "tuner"), cells("no"))
def test_a_cell_that_says_no_is_refused(weights, family, tuner):
    with pytest.raises(ModelError, match=f"^tuner.kind={tuner} cannot be used with a {family}: .* use another model$"):
        backbone(weights[family], tuner=TunerConfig(kind=tuner))


@pytest.mark.parametrize("family", ["qwen3_moe", "gpt_oss"])
@pytest.mark.parametrize("kind", ["lora", "ia3"])
def test_maps_of_experts_which_lie_in_one_array_are_no_targets(weights, family, kind):
    sentence = (
        "^tuner.targets names .down_proj., but no linear map of the model.s layers has such a name; use some of: self"
    )
    with pytest.raises(ModelError, match=sentence):
        backbone(weights[family], tuner=TunerConfig(kind=kind, targets=("q_proj", "down_proj")))


@pytest.mark.parametrize("family", ["qwen3_moe", "gpt_oss"])
def test_a_token_chooses_the_same_experts_in_any_company(weights, family):
    """In a packed pass of all texts, and in a pass of its own."""
    model, table, chosen = backbone(weights[family], dtype="float64"), texts(), []
    tuned = numbers(model.geometry, 2, 1)
    routers = [module for module in model.model.modules() if type(module).__name__.endswith("TopKRouter")]
    for router in routers:
        router.register_forward_hook(lambda _module, _read, output: chosen.append(output[2]))
    assert len(routers) == 3
    model.read(table.pack(SHUFFLED), tuned, (0, 2), {})
    together = torch.stack(chosen)  # layers, tokens, experts
    at = 0
    for example in SHUFFLED:
        chosen.clear()
        model.read(table.pack(np.array([example])), tuned, (0, 2), {})
        alone = torch.stack(chosen)
        assert torch.equal(together[:, at : at + alone.shape[1]], alone)
        at += alone.shape[1]
    assert at == together.shape[1] and len(together.unique()) > 2

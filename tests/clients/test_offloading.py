"""``model.offload``: weights come when their layer runs, are let go of, and change no bit.

Here both places are main memory; what is pretended to be elsewhere is in test_placed_backbone.py.
"""

from __future__ import annotations

import gc
import weakref

import pytest
import torch
from cohorts import specification
from support import sweep
from test_checkpointing import build, layers_of, loaded, step  # noqa: F401 - a fixture
from tiny_models import save, tiny_model

from clients.backbone import offloading
from clients.backbone.loading import assemble
from clients.backbone.make_head import make_head
from clients.backbone.model import Backbone
from clients.backbone.placement import Placement
from clients.backbone.shared_weights import SharedWeights
from clients.config import HeadConfig
from clients.tuners.prefix import attach
from clients.worker import ClientWorker
from fedsim.core.errors import ResourceError

CPU = torch.device("cpu")


def offloaded(weights: SharedWeights, plain: Backbone, *, checkpointed: bool) -> Backbone:
    """Return the same backbone with the weights of layers copied for each run."""
    tuner = plain._tuner
    placement = Placement.over((CPU,), weights, offload=True)
    frozen, family = assemble(
        weights, plain.model.config._attn_implementation.removeprefix("fedsim_prefix_"), placement
    )
    attach(frozen)
    head = make_head(frozen, family, weights.kind, HeadConfig(kind="classifier"), tuner, (3, None))
    return Backbone(frozen, family, head, tuner, placement=placement, checkpointed=checkpointed)


class Watched:
    """The weights that were brought."""

    def __init__(self) -> None:
        self._seen: list[weakref.ref] = []
        self.most = 0

    def bring(self, place: offloading._Place) -> torch.Tensor:
        weight = place.resting.clone()
        self._seen.append(weakref.ref(weight))
        self.most = max(self.most, self.alive)
        return weight

    @property
    def alive(self) -> int:
        return sum(ref() is not None for ref in self._seen)

    def __len__(self) -> int:
        return len(self._seen)


@pytest.mark.parametrize("checkpointed", [False, True])
@pytest.mark.parametrize(("family", "tuner"), sweep(
    [(family, tuner) for family in ("bert", "gpt2", "llama", "qwen3_moe") for tuner in ("prefix", "lora", "adapter")],
    [("llama", "lora"), ("bert", "prefix")],
))  # fmt: skip
def test_a_pass_holds_the_weights_of_one_layer_at_a_time(loaded, family, tuner, checkpointed, monkeypatch):  # noqa: F811
    """Forward and backward: nothing that is kept for gradients holds a weight."""
    head = HeadConfig(kind="classifier")
    plain = build(loaded[family], tuner, head, gradient_checkpointing=checkpointed)
    model = offloaded(loaded[family], plain, checkpointed=checkpointed)
    of_a_layer = len(list(model.layers[0].parameters()))
    watched = Watched()
    monkeypatch.setattr(offloading._Place, "brought", lambda place: watched.bring(place))
    gc.collect()
    gc.disable()  # what is let go of must not wait for a collection
    try:
        ours = step(model, layers_of(model))
        assert watched.alive == 0
    finally:
        gc.enable()
    assert all(map(torch.equal, ours, step(plain, layers_of(plain))))
    # In a backward pass weights come one by one, or with their layer, while another layer's last may still be in use.
    assert len(watched) > 3 * of_a_layer and watched.most <= of_a_layer + (of_a_layer if checkpointed else 1)


def test_layers_have_their_own_weights_again_after_a_pass_and_after_one_that_fails(loaded, monkeypatch):  # noqa: F811
    model = offloaded(
        loaded["llama"], build(loaded["llama"], "prefix", HeadConfig(kind="classifier")), checkpointed=True
    )
    before = [id(weight) for layer in model.layers for weight in layer.parameters()]
    step(model, (0, 2))
    assert [id(weight) for layer in model.layers for weight in layer.parameters()] == before
    monkeypatch.setattr(model.layers[1].mlp, "act_fn", None)
    with pytest.raises(TypeError):
        step(model, (0, 2))
    assert [id(weight) for layer in model.layers for weight in layer.parameters()] == before
    assert not any("forward" in vars(layer) for layer in model.layers)


def test_a_worker_on_a_cpu_has_no_use_for_it(tmp_path):
    spec = specification(save(tiny_model("llama"), tmp_path / "model"), HeadConfig(), model={"offload": True})
    with pytest.raises(
        ResourceError, match=r"computes on a CPU, which has them there already; set model\.offload=false$"
    ):
        ClientWorker(spec, "cpu")


def test_a_prompt_of_such_a_run_is_loaded_on_a_cpu(loaded):  # noqa: F811
    """Where a GPU has the layers when the run does, a CPU has them in any case."""
    results = [step(build(loaded["llama"], "prefix", offload=on), (0, 2)) for on in (False, True)]
    assert all(map(torch.equal, *results))

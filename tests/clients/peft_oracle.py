"""Tuners against PEFT: the same hidden states and gradients with the same arrays."""

from __future__ import annotations

import torch
from peft import PeftModel
from tiny_models import batch, same_at_tokens
from torch import Tensor

from clients.backbone.families import FAMILIES
from clients.backbone.model import Backbone
from fedsim.core.layout import LayerArrays

LAYERS = (0, 2)


def random_numbers(shape: LayerArrays) -> Tensor:
    """Return random numbers of one client for ``LAYERS``."""
    generator = torch.Generator().manual_seed(2)
    return (0.3 * torch.randn((1, len(LAYERS), shape.layer_size), generator=generator)).requires_grad_()


def assert_same_as_peft(ours: Backbone, theirs: PeftModel, family: str, end: str, origin: float = 0.0) -> None:
    """Compare hidden states and gradients to 1e-5, in our number format; ``end`` follows our name and PEFT's of the adapter.

    Parameters
    ----------
    origin
        What PEFT's arrays add to ours.
    """
    theirs = theirs.to(ours.model.dtype)
    data, tuned = batch("right"), random_numbers(ours.geometry).detach().to(ours.model.dtype).requires_grad_()
    arrays, mine = ours.geometry.split(tuned), {}
    for place, layer in enumerate(LAYERS):
        for name, array in arrays.items():
            path = f"{FAMILIES[family].layers}.{layer}.{name}.default{end}"
            (found,) = [p for n, p in theirs.named_parameters() if f".{n}".endswith(f".{path}")]
            found.data.copy_(array[0, place].detach() + origin)
            mine[(place, name)] = found
    assert len(mine) == sum(p.requires_grad for p in theirs.parameters())
    ids, mask = torch.from_numpy(data.input_ids_BT), torch.from_numpy(data.attention_mask_BT)
    states = theirs.base_model.model.base_model(
        input_ids=ids, attention_mask=mask, use_cache=False, output_hidden_states=True
    ).hidden_states
    same_at_tokens(ours.hidden_states(data, tuned, LAYERS), list(states), data)

    rows, positions = torch.arange(len(ids)), torch.from_numpy(data.read_positions_B)
    weights = torch.randn(states[-1][:, 0].shape, generator=torch.Generator().manual_seed(1)).to(tuned.dtype)
    expected = torch.autograd.grad((states[-1][rows, positions] * weights).sum(), list(mine.values()))
    output = ours.last_hidden_state(data, tuned, LAYERS)
    (gradient,) = torch.autograd.grad((output[rows, positions] * weights).sum(), tuned)
    parts = ours.geometry.split(gradient)
    for (place, name), theirs_gradient in zip(mine, expected, strict=True):
        scale = float(theirs_gradient.abs().max())
        assert scale > 0
        torch.testing.assert_close(parts[name][0, place], theirs_gradient, rtol=1e-5, atol=1e-5 * max(scale, 1.0))

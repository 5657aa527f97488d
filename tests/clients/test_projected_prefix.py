"""The network of a prefix: PEFT's, in forward and gradient."""

import pytest
import torch
from peft import PrefixTuningConfig
from peft.tuners.prefix_tuning import PrefixEncoder
from tiny_models import CONFIGS, backbone, save, tiny_model

from clients.tuners.config import TunerConfig

LENGTH, WIDTH = 3, 5


@pytest.mark.parametrize("family", ["bert", "gpt2", "llama"])
def test_the_network_is_that_of_peft(tmp_path, family):
    assert family in CONFIGS
    config = TunerConfig(kind="projected_prefix", length=LENGTH, bottleneck=WIDTH)
    model = backbone(save(tiny_model(family), tmp_path / family), tuner=config)
    shape, heads = model.geometry, dict(model.geometry.arrays)["up.bias"]
    theirs = PrefixEncoder(
        PrefixTuningConfig(
            num_virtual_tokens=LENGTH, token_dim=32, num_layers=3, encoder_hidden_size=WIDTH, prefix_projection=True
        )
    )
    # PEFT's last map makes keys and values of the hidden size; with fewer key/value heads it is narrower.
    theirs.transform[2] = torch.nn.Linear(WIDTH, torch.Size(heads).numel())
    own = torch.cat(
        [
            theirs.embedding.weight.detach().flatten(),
            *(
                tensor.detach().flatten()
                for map in (theirs.transform[0], theirs.transform[2])
                for tensor in map.parameters()
            ),
        ]
    )
    tuned = own.view(1, 1, -1).clone().requires_grad_()
    prompt, layers = model._tuner.prompts(shape, tuned, (0,))
    assert layers == (0, 1, 2)
    expected = theirs(torch.arange(LENGTH).unsqueeze(0)).view(1, LENGTH, *heads).permute(0, 2, 3, 4, 1, 5)
    torch.testing.assert_close(prompt, expected, rtol=1e-5, atol=1e-6)
    weights = torch.randn(prompt.shape, generator=torch.Generator().manual_seed(1))
    (gradient,) = torch.autograd.grad((prompt * weights).sum(), tuned)
    wanted = torch.autograd.grad((expected * weights).sum(), list(theirs.parameters()))
    torch.testing.assert_close(gradient.flatten(), torch.cat([part.flatten() for part in wanted]), rtol=1e-4, atol=1e-5)

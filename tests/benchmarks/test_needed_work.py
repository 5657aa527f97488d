"""The arithmetic that prompts before the text need, against what PyTorch counts."""

import numpy as np
import pytest
from torch.utils.flop_counter import FlopCounterMode

from benchmarks.flops import Shape, virtual_token_flops
from benchmarks.kinds import kind_of, overrides
from benchmarks.peers.work import Work
from fedsim.configuration.schema import read_config


@pytest.mark.parametrize("keys", [["soft_prompt"], ["late_prompt", "tuner.generator=none"]], ids=lambda keys: keys[0])
def test_virtual_tokens_need_what_pytorch_counts(keys):
    """Of the bare loop on texts of one length; its head, and its gradients of texts' projections, are not needed work."""
    kind, *others = keys
    model = ["model.attention=eager", "model.head.kind=classifier", "model.head.pooling=mean", "server.kind=fedavg"]
    small = ["data.train_examples=240", "data.validation_examples=40"]
    config = read_config("configs/quickstart.yaml", [*overrides(kind), *model, *small, *others])
    work, plan = Work.of(config, 1)
    lengths_N = work.train.lengths_N
    alike_B = np.flatnonzero(lengths_N == np.bincount(lengths_N).argmax())[:8]
    loop = kind_of(kind).loop(work)
    with FlopCounterMode(display=False) as counter:
        loss_B, _ = loop.read(loop.parameters(plan.start_F), work.train, alike_B)
        loss_B.mean().backward()
    plain = loop.model.config
    shape = Shape(plain.hidden_size, plain.intermediate_size, plain.num_hidden_layers)
    needed = virtual_token_flops(shape, lengths_N[alike_B], config.tuner.length, min(work.layers))
    unneeded = 2 * 3 * shape.hidden**2 * lengths_N[alike_B].sum()
    head = 3 * 2 * len(alike_B) * work.num_classes * shape.hidden
    assert counter.get_total_flops() == needed + unneeded + head


def test_a_plain_pass_comes_on_top_and_can_be_cached():
    """By hand: one layer, one text of 3 tokens; of the plain pass one token is read, the others need keys and values."""
    shape, lengths_N = Shape(8, 16, 1), np.array([3])
    projection, feed, attention = 2 * 8 * 8, 2 * 8 * 16, 2 * 3 * 8
    first = 3 * 2 * projection + 2 * projection + 2 * feed + 2 * attention
    without = virtual_token_flops(shape, lengths_N, 2)
    assert virtual_token_flops(shape, lengths_N, 2, plain_pass=True) == without + first
    assert virtual_token_flops(shape, lengths_N, 2, plain_pass=True, cached=True) == without

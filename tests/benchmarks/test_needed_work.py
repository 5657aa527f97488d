"""The arithmetic that tuning needs, by hand and against what PyTorch counts."""

import numpy as np
import pytest
from torch.utils.flop_counter import FlopCounterMode

from benchmarks.flops import Shape, needed_flops, virtual_token_flops
from benchmarks.gpu_report.shapes import SMALL
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


def test_needed_work_by_hand():
    """One layer, one example of 3 tokens behind a prompt of 2; multiplications and additions count one each."""
    hidden, inner = 8, 16
    projection, feed, attention = 2 * 3 * hidden * hidden, 2 * 3 * hidden * inner, 2 * 3 * (3 + 2) * hidden
    forward = 4 * projection + 2 * feed + 2 * attention
    # Back: the feed-forward net, the output projection, and two products for each of attention's; no query, key or value.
    backward = 2 * feed + projection + 4 * attention
    lengths_N = np.array([3])
    assert needed_flops(Shape(hidden, inner, 1), lengths_N, 2) == forward + backward
    two = Shape(hidden, inner, 2)
    whole = 4 * projection + 2 * feed + 4 * attention
    assert needed_flops(two, lengths_N, 2) == 2 * forward + backward + whole
    assert needed_flops(two, lengths_N, 2, lowest=1) == 2 * forward + backward
    assert needed_flops(two, lengths_N, 2, lowest=1, cached=True) == forward + backward
    # Where one token is read, the other two have keys and values in the top layer, and nothing else.
    forward_one = 2 * projection + (2 * projection + 2 * feed + 2 * attention) / 3
    backward_one = (projection + 2 * feed + 4 * attention) / 3
    one = needed_flops(Shape(hidden, inner, 1), lengths_N, 2, one_read=True)
    assert one == pytest.approx(forward_one + backward_one)
    # Below it, a layer is run for all; back from the top come the gradients of queries, keys and values as well.
    back = backward_one + 2 * projection + projection / 3
    assert needed_flops(two, lengths_N, 2, one_read=True) == pytest.approx(forward + forward_one + back + backward)


@pytest.mark.parametrize("examples", [1, 7])
def test_needed_work_adds_up_over_examples(examples):
    lengths_N = np.arange(5, 5 + examples)
    shape = Shape(32, 64, 3)
    each = sum(needed_flops(shape, lengths_N[i : i + 1], 4) for i in range(examples))
    assert needed_flops(shape, lengths_N, 4) == pytest.approx(each)


def test_needed_work_of_shared_keys_and_gated_feed_forwards_by_hand():
    """One causal layer, one text of 3 tokens behind a prompt of 2; multiplications and additions count one each."""
    hidden, inner, keys = 8, 16, 4
    query, read, feed = 2 * 3 * hidden**2, 2 * 3 * hidden * keys, 2 * 3 * hidden * inner
    attention = 2 * (3 * 2 + 1 + 2 + 3) * hidden
    forward = 2 * query + 2 * read + 3 * feed + 2 * attention
    backward = 3 * feed + query + 4 * attention
    shape = Shape(hidden, inner, 1, keys=keys, feeds=3, causal=True)
    assert needed_flops(shape, np.array([3]), 2) == forward + backward
    assert SMALL[1].shape == Shape(64, 128, 2, keys=32, feeds=3, causal=True)

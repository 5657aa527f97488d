"""What the benchmarks know of each kind of tuner: a bare loop that does the same work, and a learning rate that learns."""

from pathlib import Path

import pytest
import typer

from benchmarks.kinds import KINDS, kind_of, names
from benchmarks.local_sides import sides
from benchmarks.local_training import Share, check_same, configs
from benchmarks.peers.work import Work
from benchmarks.products import APART, BFLOAT16, FLOAT32, of_fedsim
from fedsim.configuration.schema import read_config
from fedsim.simulation.preparation import prepare


def test_a_kind_that_there_is_not_is_refused():
    assert KINDS.keys() <= set(names())
    with pytest.raises(typer.BadParameter, match=r"loira is not one of prefix, "):
        configs(["tiny"], None, "loira")


@pytest.mark.parametrize("kind", names())
def test_all_sides_of_local_training_do_the_same_work(tmp_path, kind):
    """The bare loop of each kind and every way of fedsim, as the benchmark checks it."""
    import pickle
    from dataclasses import replace
    from itertools import product

    config = configs(["tiny"], None, kind)["tiny"].replace(data={"train_examples": 600, "validation_examples": 40})
    spec = prepare(config).spec
    Work.of(config, 1)[0].save(tmp_path)
    for cached, products in product((False, True), of_fedsim()):
        rounded = replace(spec, weights=spec.weights.rounded(products))
        (tmp_path / f"spec-{cached}-{products}.pickle").write_bytes(pickle.dumps(rounded))
    clients = [0, 1, 2]
    share = Share(str(tmp_path), clients)
    measured = [side for side in sides(kind) if side.threads == 1]
    results = {side.name: share.run(side, clients)[0] for side in measured}
    examples = sum(len(spec.shards.train(client)) for client in clients)
    starts = {upper: examples * share.start(upper) for upper in (False, True)}
    for side in measured:
        assert abs(results[side.name] - starts[side.upper]).max() > 1e-3 * examples
    apart = check_same(results, measured, starts)
    assert apart[FLOAT32] < 1e-4 and 0 < apart[BFLOAT16] < APART


def test_learning_rates_are_those_of_the_configs_of_methods():
    found = [read_config(path) for path in Path("configs/methods").glob("*.yaml")]
    adam = [config for config in found if config.client.optimizer.kind == "adamw"]
    assert {config.tuner.kind for config in adam} >= {"prefix", "lora", "adapter", "soft_prompt"}
    for config in adam:
        assert config.client.optimizer.lr == kind_of(config.tuner.kind).lr

"""The examples: the same bytes wherever they run, what each one promises, and the commands that they name."""

import ast
import hashlib
import re
import shlex
from dataclasses import replace

import numpy as np
import pytest
import torch
from support import ROOT, make_tiny, merged

import fedsim
from clients.config import ClientConfig
from clients.training.local_job import LocalJob, Parts
from clients.training.local_rows import LocalRows
from fedsim.configuration.schema import read_config
from fedsim.core import plugins
from fedsim.core.attack import ATTACKS, Message
from fedsim.core.correction import CORRECTIONS, ClientRound
from fedsim.core.errors import PartitionError
from fedsim.core.layout import PromptGeometry, VectorLayout
from fedsim.core.messages import CombinedUpdate
from fedsim.core.method import METHODS, ServerState
from fedsim.core.robust import ROBUST_RULES
from fedsim.prompts.prompt_file import GLOBAL_PROMPT
from partitions import PARTITIONERS, partition

EXAMPLES = {path.stem: path for path in sorted((ROOT / "examples").glob("my_*.py"))}
PLACES = {"local": {"executor": "local"}, "two actors": {"ray": {"address": "auto", "actors": 2}}}
# fuse is given: a trial could settle it differently in two runs, and so change last bits.
PLAIN = {"layers": {"choose": "fixed", "fixed": [2, 3]}, "client": {"fuse": 2}, "server": {"kind": "fedavg"}}
ATTACKED = merged(PLAIN, {"attack": {"kind": "sign_flip", "clients": 4}, "server": {"aggregation": "median"}})
USES = {
    "my_server_optimizer": {"server": {"kind": "my_server_optimizer", "momentum": 0.5}},
    "my_correction": {"client": {"correction": "my_correction"}, "params": {"my_correction": {"mu": 0.5}}},
    "my_partitioner": {"partition": {"kind": "my_partitioner"}, "params": {"my_partitioner": {"dominance": 0.6}}},
    "my_robust_rule": {"server": {"aggregation": "my_robust_rule"}, "params": {"my_robust_rule": {"iterations": 3}}},
    "my_attack": {"attack": {"kind": "my_attack"}, "params": {"my_attack": {"scale": 4.0}}},
}
"""What names each example in a config."""
TOGETHER = (
    (PLAIN, ("my_partitioner", "my_correction", "my_server_optimizer")),
    (ATTACKED, ("my_robust_rule", "my_attack")),
)
"""Examples that are tried in one run, and the run without them."""


@pytest.fixture(autouse=True)
def examples():
    for path in EXAMPLES.values():
        plugins.load_plugin(path)
    yield
    for path in EXAMPLES.values():
        plugins.unload(path.name)


def run(folder, values, **more):
    """Return the SHA-256 of the prompt file that a run ends with."""
    fedsim.run(make_tiny(**merged(values, {"output": str(folder), **more})), progress=False)
    return hashlib.sha256((folder / "prompt" / GLOBAL_PROMPT).read_bytes()).hexdigest()


def made(registry, name, values, section):
    """Return the object that a config makes of an example."""
    config = make_tiny(**merged(PLAIN, {**USES[name], **values}))
    return registry[name].of(getattr(config, section), config.params[name])


# -- runs --------------------------------------------------------------------------------------------------------------


def test_each_example_is_tried():
    tried = [name for _, names in TOGETHER for name in names]
    assert sorted(tried) == sorted(EXAMPLES) == sorted(USES)


def test_the_same_bytes_in_this_process_and_on_two_actors(session_ray, tmp_path):
    values = ATTACKED  # all examples at once
    for use in USES.values():
        values = merged(values, use)
    assert len({run(tmp_path / place, values, **where) for place, where in PLACES.items()}) == 1


def test_each_example_changes_the_bytes(tmp_path):
    for number, (without, names) in enumerate(TOGETHER):
        uses = {"": {}, **{name: USES[name] for name in names}}
        found = {
            name: run(tmp_path / f"{number}{name}", merged(without, use), executor="local")
            for name, use in uses.items()
        }
        assert len(set(found.values())) == len(found), found


def code_lines(path):
    """Return how many lines are neither blank nor comment nor docstring."""
    text = path.read_text()
    words = [
        node.value
        for node in ast.walk(ast.parse(text))
        if isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant) and isinstance(node.value.value, str)
    ]
    said = {number for each in words for number in range(each.lineno, each.end_lineno + 1)}
    lines = enumerate(map(str.strip, text.splitlines()), 1)
    return sum(bool(line) and not line.startswith("#") and number not in said for number, line in lines)


def test_the_page_counts_the_lines_of_each_example():
    page = (ROOT / "docs" / "extending.md").read_text()
    counted = dict(re.findall(r"\[my_\w+\.py\]\(\.\./examples/(my_\w+)\.py\) \| (\d+) \|", page))
    assert counted == {name: str(code_lines(path)) for name, path in EXAMPLES.items()}


@pytest.mark.parametrize("path", EXAMPLES.values(), ids=EXAMPLES)
def test_the_command_that_an_example_names_is_right(path):
    text = ast.get_docstring(ast.parse(path.read_text()))
    command = next(line for line in text.splitlines() if line.strip().startswith("fedsim run "))
    _, _, config, load, file, *overrides = shlex.split(command)
    assert (load, ROOT / file) == ("--load", path)
    assert path.name in read_config(ROOT / config, overrides).plugins
    assert any(path.stem in each for each in overrides)


def test_what_clients_keep_outlives_a_resume(tmp_path):
    values = merged(PLAIN, merged(USES["my_correction"], {"executor": "local", "sampling": {"clients_per_round": 9}}))
    straight = run(tmp_path / "straight", values)
    with fedsim.Run(make_tiny(**values, output=str(tmp_path / "left")), progress=False) as left:
        next(left)
    fedsim.run(make_tiny(**values, output=str(tmp_path / "left")), resume=True, progress=False)
    assert hashlib.sha256((tmp_path / "left" / "prompt" / GLOBAL_PROMPT).read_bytes()).hexdigest() == straight


def test_a_client_is_pulled_from_its_second_visit_on(tmp_path):
    values = merged(PLAIN, {"executor": "local", "sampling": {"clients_per_round": 9}})  # of 12: some come again
    pulled = merged(values, USES["my_correction"])
    found = [
        (
            run(tmp_path / f"plain{rounds}", values, rounds=rounds),
            run(tmp_path / f"pulled{rounds}", pulled, rounds=rounds),
        )
        for rounds in (1, 2)
    ]
    assert [plain == own for plain, own in found] == [True, False]


@pytest.fixture
def typed():
    """Register a method and a correction, both with a ``Config``, as at a prompt: no file holds their source."""
    found = []
    for registry, name in ((METHODS, "my_server_optimizer"), (CORRECTIONS, "my_correction")):
        other = name.replace("my_", "typed_")
        found.append((registry, other))
        exec(EXAMPLES[name].read_text().replace(name, other), {"__name__": "__main__"})
    yield
    for registry, other in found:
        registry.discard(other)
    plugins._unfiled.clear()


def test_what_is_typed_at_a_prompt_runs_on_actors_too(session_ray, typed, tmp_path):
    of_files = merged(PLAIN, merged(USES["my_server_optimizer"], USES["my_correction"]))
    changes = {"server": {"kind": "typed_server_optimizer"}, "client": {"correction": "typed_correction"}}
    params = {"params": {"typed_correction": of_files["params"]["my_correction"]}}
    at_prompt = {**merged(of_files, changes), **params, "ray": {"address": "auto", "actors": 1}}
    assert run(tmp_path / "typed", at_prompt) == run(tmp_path / "files", of_files, executor="local")
    assert "__main__" in fedsim.load_run(tmp_path / "typed").summary["plugins"]


# -- laws --------------------------------------------------------------------------------------------------------------


def test_the_server_optimizer_steps_as_torchs_nesterov_momentum_does():
    rng = np.random.default_rng(0)
    method = METHODS["my_server_optimizer"](METHODS["my_server_optimizer"].Config(momentum=0.7, lr=0.4))
    start_F = rng.standard_normal(5)
    parameter = torch.tensor(start_F, requires_grad=True)
    optimizer = torch.optim.SGD([parameter], lr=0.4, momentum=0.7, nesterov=True)
    state = ServerState(start_F, lr=0.4, arrays=method.init(start_F))
    for _ in range(3):
        average_F = rng.standard_normal(5)
        state = method.apply(state, update(average_F))
        parameter.grad = parameter.detach() - torch.from_numpy(average_F)
        optimizer.step()
        np.testing.assert_allclose(state.vector_F, parameter.detach().numpy(), rtol=1e-12)


def update(average_F):
    """Return a round's update with this mean."""
    return CombinedUpdate(0, clients=(0,), rejected_clients=(), weight_sum=1.0, steps_sum=1, vector_F=average_F)


def test_the_correction_adds_the_gradient_of_its_penalty_but_for_who_comes_first():
    """Two clients side by side, the first of which has trained before; the last two of four layers are exchanged."""
    correction = made(CORRECTIONS, "my_correction", {}, "client")
    parts = Parts.of(VectorLayout(PromptGeometry(4, 1, 2, 1), (0, 1, 2, 3)), (2, 3), keep_local=True)
    vector_CA, gradient_CA, last_F = (torch.randn(2, parts.trained.size, dtype=torch.float32) for _ in range(3))
    last_F = last_F[0, : parts.exchanged.size].numpy()
    before = ClientRound(None, 1, 1, np.zeros_like(last_F))
    kept = correction.finish(replace(before, vector_F=last_F))
    jobs = [
        LocalJob(client, np.arange(1), vector_CA[client].numpy(), begun=correction.begin(replace(before, old=old)))
        for client, old in enumerate((kept, {}))
    ]
    rows = LocalRows(ClientConfig(), vector_CA, jobs, parts, (correction,))
    changed_CA = correction.gradient(rows.first(2, np.ones(2), None), gradient_CA.clone())
    added_CA = torch.zeros_like(gradient_CA)
    added_CA[0, parts.exchanged_F] = 0.5 * (vector_CA[0, parts.exchanged_F] - torch.from_numpy(last_F))
    torch.testing.assert_close(changed_CA, gradient_CA + added_CA)
    assert tuple(kept) == correction.kept and changed_CA.dtype == torch.float32


def test_the_geometric_median_has_no_slope_and_does_not_follow_who_is_far_away():
    rng = np.random.default_rng(1)
    rule = made(ROBUST_RULES, "my_robust_rule", {"params": {"my_robust_rule": {"iterations": 500}}}, "server")
    vector_kF, weights_k, origin_F = rng.standard_normal((7, 3)), rng.integers(1, 5, 7), rng.standard_normal(3)
    median_F = rule.fit(vector_kF, weights_k, origin_F)(vector_kF, origin_F)
    away_kF = median_F - vector_kF
    slope_F = (weights_k[:, None] * away_kF / np.linalg.norm(away_kF, axis=1, keepdims=True)).sum(axis=0)
    np.testing.assert_allclose(slope_F, 0.0, atol=1e-6)
    # Of points on a line it is the median, however far away the ends are.
    line_kF = np.array([[0.0], [1.0], [1e6]])
    assert abs(rule.fit(line_kF, np.ones(3), np.zeros(1))(line_kF, np.zeros(1)) - 1.0) < 1e-3


def test_an_attacker_sends_its_change_and_its_steps_as_many_times_as_long():
    attack = made(ATTACKS, "my_attack", {"attack": {"kind": "my_attack", "clients": 1}}, "attack")
    start_F, steps_F = np.array([1.0, 2.0], np.float32), np.array([0.5, -1.0], np.float32)
    sent = attack.send(Message(start_F, start_F - steps_F, {"steps": steps_F}), np.random.default_rng(0))
    np.testing.assert_array_equal(sent.vector_F, start_F - 4 * steps_F)
    np.testing.assert_array_equal(sent.displacements["steps"], start_F - sent.vector_F)
    assert sent.vector_F.dtype == sent.displacements["steps"].dtype == np.float32


@pytest.mark.parametrize("dominance", [0.0, 0.5, 0.8])
def test_each_client_has_its_dominant_class(dominance):
    labels_N = np.random.default_rng(2).integers(0, 3, 250)
    config = make_tiny(
        partition={"kind": "my_partitioner", "min_size": 1}, params={"my_partitioner": {"dominance": dominance}}
    )
    shards = partition(config.partition, labels_N, None, 0, config.params["my_partitioner"])
    parts = [np.concatenate([shards.train(client), shards.holdout(client)]) for client in range(12)]
    assert sorted(np.concatenate(parts)) == list(range(250)) and {len(part) for part in parts} == {20, 21}
    assert all(np.bincount(labels_N[part]).max() >= dominance * len(part) for part in parts)


def test_more_dominance_than_there_are_examples_of_a_class_is_one_sentence():
    config = make_tiny(
        partition={"kind": "my_partitioner", "min_size": 1}, params={"my_partitioner": {"dominance": 1.0}}
    )
    with pytest.raises(
        PartitionError, match=r"^params\.my_partitioner\.dominance=1 gives a client 20 examples of one class, but 10"
    ):
        partition(config.partition, np.arange(240) % 24 // 23, None, 0, config.params["my_partitioner"])
    assert "my_partitioner" in PARTITIONERS

"""Packed tokens against padded batches: both must give the same results for any batch."""

from __future__ import annotations

from dataclasses import replace
from itertools import product

import numpy as np
import pytest
import torch
from tiny_models import CONFIGS, LABEL_WORDS, PAD, VOCABULARY, backbone, families, prompts, save, tiny_model

from clients.backbone.families import FAMILIES
from clients.backbone.loading import load_shared_weights
from clients.backbone.model import Backbone
from clients.backbone.shared_weights import SharedWeights
from clients.config import HeadConfig, ModelConfig
from clients.tuners import packed_prefix as packing
from clients.tuners.packed_prefix import _cut
from fedsim.core.errors import ModelError
from fedsim.core.tokens import TokenTable

CLIENTS = 3
LENGTHS = np.array([3, 3, 4, 6, 7, 9, 12, 14, 20, 30])
SHUFFLED = np.array([8, 0, 9, 3, 1, 6, 2, 7, 5, 4])
OWNERS = np.array([0, 2, 1, 1, 0, 2, 2, 0, 1, 2])
LAYERS = [(0, 1, 2), (1, 2), (2,), ()]
EXACT = ("bert", "roberta", "xlm-roberta", "camembert", "electra", "distilbert", "gpt2")
"""Families whose eager attention takes its softmax in the number format of the scores."""


@pytest.fixture(scope="module")
def kinds(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    root = tmp_path_factory.mktemp("models")
    return {family: save(tiny_model(family), root / family) for family in CONFIGS}


@pytest.fixture(autouse=True)
def _little_padding(monkeypatch: pytest.MonkeyPatch) -> None:
    """Force several buckets even for ten short examples, some with padding and some without."""
    monkeypatch.setitem(packing._MAX_PADDING_SLOTS, "cpu", 14)


def texts(lengths: np.ndarray = LENGTHS, seed: int = 0) -> TokenTable:
    """Return examples with token types, which are read anywhere."""
    rng, count = np.random.default_rng(seed), len(lengths)
    return TokenTable(
        ids_Z=rng.integers(3, VOCABULARY, lengths.sum()).astype(np.int32),
        offsets_N1=np.concatenate([[0], np.cumsum(lengths)]),
        read_positions_N=rng.integers(0, lengths).astype(np.int32),
        labels_N=rng.integers(0, len(LABEL_WORDS), count),
        pad_id=PAD,
        type_ids_Z=rng.integers(0, 2, lengths.sum()).astype(np.uint8),
    )


def heads(family: str) -> list[HeadConfig]:
    poolings = ["mean", "last"] if FAMILIES[family].predicts_next else ["first", "mean", "last"]
    return [HeadConfig(), *(HeadConfig(kind="classifier", pooling=pooling) for pooling in poolings)]


def weights_of(folder: str, head: HeadConfig, dtype: str = "float32") -> SharedWeights:
    return load_shared_weights(ModelConfig(path=folder, head=head, dtype=dtype))


def exact(family: str, attention: str) -> float:
    """Return the tolerance in float64: transformers' eager attention of some decoders takes its softmax in float32."""
    return 1e-11 if attention == "sdpa" or family in EXACT else 1e-5


def parameters(model: Backbone, layers: tuple[int, ...], dtype: torch.dtype = torch.float32) -> dict[str, torch.Tensor]:
    """Return random prompts and heads of three clients."""
    generator = torch.Generator().manual_seed(5)
    head = {name: torch.randn((CLIENTS, *shape), generator=generator) for name, shape in model.head_shapes}
    arrays = {"prompt": prompts(model, layers, CLIENTS).detach(), **head}
    return {name: array.to(dtype).requires_grad_() for name, array in arrays.items()}


def padded(model, table, order, arrays, layers):
    """Return logits and loss of :meth:`Backbone.forward`, and the gradients, in the order of the examples."""
    head = {name: array for name, array in arrays.items() if name != "prompt"}
    owners = torch.from_numpy(OWNERS[order])
    reading = model.forward(table.batch(order), arrays["prompt"], layers, head, owners)
    return answers(reading, arrays, layers)


def packed(model, table, order, arrays, layers):
    """Return the same of :meth:`Backbone.read`."""
    head = {name: array for name, array in arrays.items() if name != "prompt"}
    owners = torch.from_numpy(OWNERS[order])
    reading, slots_B = model.read(table.pack(order), arrays["prompt"], layers, head, owners)
    assert (slots_B >= table.lengths_N[order]).all()
    return answers(reading, arrays, layers)


def answers(reading, arrays, layers):
    wanted = {name: array for name, array in arrays.items() if layers or name != "prompt"}
    # Weights of their own, so that no example can stand in for another; small enough for float16.
    weights_B = torch.arange(1.0, len(reading.loss_B) + 1).to(reading.loss_B.dtype) / len(reading.loss_B)
    loss = (reading.loss_B * weights_B).sum()
    gradients = torch.autograd.grad(loss, list(wanted.values())) if wanted else ()
    return {
        "logits": reading.logits_BC.detach(),
        "loss": reading.loss_B.detach(),
        **dict(zip(wanted, gradients, strict=True)),
    }


def assert_same(ours, theirs, tolerance: float, case: object = "") -> None:
    assert ours.keys() == theirs.keys()
    for name, array in theirs.items():
        scale = float(array.abs().max())
        assert scale > 0 and ours[name].dtype == array.dtype
        torch.testing.assert_close(
            ours[name], array, rtol=tolerance, atol=tolerance * scale, msg=lambda m, name=name: f"{case} {name}: {m}"
        )


@families
def test_packed_equals_padded(kinds, family):
    """In float64 to 1e-11, so that nothing hides behind rounding: each attention, position and set of layers.

    Every head with each of them, though not with each pair of attention and position: it comes after them. The examples
    are in order or shuffled in turn, both with any two of the rest.
    """
    table, buckets, ways = texts(), set(), list(product(("sdpa", "eager"), ("none", "paper")))
    for number, head in enumerate(heads(family)):
        weights = weights_of(kinds[family], head, "float64")
        for attention, offset in (ways, [ways[0], ways[3]], [ways[1], ways[2]])[number and 1 + number % 2]:
            model = backbone(weights, head, attention, offset, dtype="float64")
            for place, layers in enumerate(LAYERS):
                order = (np.arange(10), SHUFFLED)[(place + (attention == "eager") + (offset == "paper")) % 2]
                arrays = parameters(model, layers, torch.float64)
                ours, theirs = (way(model, table, order, arrays, layers) for way in (packed, padded))
                case = (family, attention, head.kind, head.pooling, offset, layers, order is SHUFFLED)
                assert_same(ours, theirs, exact(family, attention), case)
                buckets.add(len(_cut(table.lengths_N[order], 14)))
    assert min(buckets) > 2


@families
def test_packed_equals_padded_in_the_number_formats_of_runs(kinds, family):
    """float32 to its rounding, half precision to that of its own."""
    table = texts()
    for dtype, tolerance in (("float32", 2e-5), ("bfloat16", 0.1), ("float16", 0.02)):
        for attention in ("sdpa", "eager"):
            model = backbone(weights_of(kinds[family], HeadConfig(), dtype), None, attention, dtype=dtype)
            arrays = parameters(model, (1, 2))
            ours, theirs = (way(model, table, np.arange(10), arrays, (1, 2)) for way in (packed, padded))
            assert_same(ours, theirs, tolerance, (dtype, attention))
            assert {array.dtype for array in ours.values()} == {torch.float32}


def test_the_order_of_examples_changes_nothing_but_their_order(kinds):
    table = texts()
    for family in ("roberta", "llama"):
        model = backbone(kinds[family])
        arrays = parameters(model, (0, 2))
        straight, mixed = (packed(model, table, order, arrays, (0, 2)) for order in (np.arange(10), SHUFFLED))
        torch.testing.assert_close(mixed["logits"], straight["logits"][SHUFFLED], rtol=1e-5, atol=2e-5)


@pytest.mark.parametrize("attention, dtype, tolerance", [("sdpa", "float64", 1e-11), ("eager", "float32", 2e-5)])
@pytest.mark.parametrize(
    "family, changes",
    [
        ("mistral", {"sliding_window": 4}),
        ("qwen2", {"use_sliding_window": True, "sliding_window": 4, "max_window_layers": 1}),
        ("qwen3", {"use_sliding_window": True, "sliding_window": 4, "max_window_layers": 1}),
    ],
)
def test_a_window_shorter_than_the_text_is_kept(kinds, tmp_path, family, changes, attention, dtype, tolerance):
    """In layers with a prompt and without, of both sorts that Qwen has; and the window does hide something."""
    table, order = texts(), np.arange(10)
    near, far = (
        backbone(weights_of(folder, HeadConfig(), dtype), attention=attention, dtype=dtype)
        for folder in (save(tiny_model(family, **changes), tmp_path), kinds[family])
    )
    for layers in ((0, 1, 2), (0, 2), (1,)):
        arrays = parameters(near, layers, getattr(torch, dtype))
        ours = packed(near, table, order, arrays, layers)
        assert_same(ours, padded(near, table, order, arrays, layers), tolerance, layers)
        assert (ours["logits"] - packed(far, table, order, arrays, layers)["logits"]).abs().max() > 1e-2


def test_token_types_reach_packed_examples(kinds):
    model = backbone(kinds["bert"])
    table, arrays = texts(), parameters(model, (0,))
    other = replace(table, type_ids_Z=1 - table.type_ids_Z)
    first, second = (packed(model, t, np.arange(10), arrays, (0,))["logits"] for t in (table, other))
    assert (first - second).abs().max() > 1e-3
    untyped = replace(table, type_ids_Z=None)
    assert_same(*(way(model, untyped, SHUFFLED, arrays, (0,)) for way in (packed, padded)), 2e-5)


@pytest.mark.parametrize("offset", ["none", "paper"])
def test_a_padding_token_inside_a_text_has_the_position_that_transformers_gives_it(kinds, offset):
    table = texts()
    ids = table.ids_Z.copy()
    ids[table.offsets_N1[[2, 5, 8]]] = PAD  # at the beginning of a text, inside one, and at its end
    ids[table.offsets_N1[[4, 6, 9]] + 2] = PAD
    ids[table.offsets_N1[[8, 10]] - 1] = PAD
    table = replace(table, ids_Z=ids)
    for family in CONFIGS:
        model = backbone(kinds[family], position_offset=offset)
        arrays = parameters(model, (0, 2))
        assert_same(*(way(model, table, SHUFFLED, arrays, (0, 2)) for way in (packed, padded)), 2e-5, family)


def test_examples_of_one_token_of_one_length_and_alone(kinds):
    for family in CONFIGS:
        model = backbone(kinds[family])
        arrays = parameters(model, (1, 2))
        for lengths in (np.ones(10, int), np.full(10, 5)):
            ways = (way(model, texts(lengths), np.arange(10), arrays, (1, 2)) for way in (packed, padded))
            assert_same(*ways, 2e-5, family)
        table = texts()
        for example in (0, 9):
            one = np.array([example])
            with_one = {name: array[:1].detach() for name, array in arrays.items()}
            reading, slots_B = model.read(table.pack(one), with_one["prompt"], (1, 2), {})
            expected = model.forward(table.batch(one), with_one["prompt"], (1, 2), {})
            torch.testing.assert_close(reading.logits_BC, expected.logits_BC, rtol=1e-5, atol=2e-5)
            assert slots_B.tolist() == [LENGTHS[example]]


@families
def test_one_clients_broken_numbers_stay_its_own(kinds, family):
    """NaN in the prompt and head of one client: the others' answers and gradients are those that they had, to the bit."""
    table = texts()
    for head in heads(family):
        model = backbone(weights_of(kinds[family], head), head)
        arrays = parameters(model, (1, 2))
        before = packed(model, table, np.arange(10), arrays, (1, 2))
        broken = {name: array.detach().clone() for name, array in arrays.items()}
        for array in broken.values():
            array[1].view(-1)[0] = torch.nan
        broken = {name: array.requires_grad_() for name, array in broken.items()}
        after = packed(model, table, np.arange(10), broken, (1, 2))
        others = torch.from_numpy(OWNERS != 1)
        assert after["loss"][~others].isnan().all()
        for name in ("logits", "loss"):
            assert torch.equal(after[name][others], before[name][others]), (head, name)
        for name in arrays:
            assert after[name][1].isnan().any()
            assert torch.equal(after[name][[0, 2]], before[name][[0, 2]]), (head, name)


def test_a_model_without_prompts_runs_and_one_that_ignores_them_is_refused(kinds):
    table = texts()
    for family in CONFIGS:
        model = backbone(kinds[family])
        arrays = parameters(model, (1, 2))
        model.detach()
        with pytest.raises(ModelError, match="layer 1 never requested its prompt"):
            packed(model, table, np.arange(10), arrays, (1, 2))


def test_an_example_that_is_too_long_is_refused(kinds):
    model = backbone(kinds["roberta"], position_offset="paper")
    assert model.max_tokens == 34
    prompt = prompts(model, (0,))
    model.read(texts(np.array([5, 34])).pack(np.arange(2)), prompt, (0,), {})
    with pytest.raises(ModelError, match=r"35 tokens, but the model has positions for 34 .* lower data\.max_length"):
        model.read(texts(np.array([5, 35])).pack(np.arange(2)), prompt, (0,), {})


def test_calls_that_do_not_fit_are_refused(kinds):
    model, tokens = backbone(kinds["bert"]), texts().pack(np.arange(10))
    two = prompts(model, (0, 1), clients=2)
    with pytest.raises(ValueError, match="client_of_example_B must assign"):
        model.read(tokens, two, (0, 1), {})
    with pytest.raises(ValueError, match="do not fit layers"):
        model.read(tokens, two[:1], (0,), {})


def test_packed_passes_leave_the_weights_and_each_other_alone(kinds):
    for family in CONFIGS:
        weights = weights_of(kinds[family], HeadConfig())
        model, table, before = backbone(weights), texts(), weights.fingerprint()
        mine, other = parameters(model, (0, 2)), parameters(model, (1,))
        first = packed(model, table, SHUFFLED, mine, (0, 2))
        packed(model, table, np.arange(10), other, (1,))
        again = packed(model, table, SHUFFLED, mine, (0, 2))
        assert all(torch.equal(first[name], again[name]) for name in first)
        assert weights.fingerprint() == before
        assert not any(p.requires_grad or p.grad is not None for p in model.model.parameters())

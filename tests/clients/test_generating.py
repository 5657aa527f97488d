"""Generation with kept keys and values: what passes over whole texts would choose, alone, batched, and of clients."""

from __future__ import annotations

from itertools import product

import numpy as np
import pytest
import torch
from support import sweep
from tiny_models import (
    PAD,
    SharedByFamily,
    backbone,
    cache_oracle,
    doubled,
    prompts,
    runnable,
    save,
    shared,
    tiny_model,
)
from tiny_texts import DECODERS, GREEDY, generated_alone, lists, texts
from torch import Tensor

from clients.backbone.families import FAMILIES
from clients.backbone.model import Backbone
from clients.backbone.passes import PassLimit
from clients.tuners.config import TunerConfig
from fedsim.core.decoding import Decoding
from fedsim.core.errors import ModelError
from fedsim.core.layout import PromptGeometry
from fedsim.core.tokens import TokenBatch

ALL_LAYERS = (0, 1, 2)
decoders = pytest.mark.parametrize("family", DECODERS)
SAMPLED = Decoding(max_new_tokens=8, end_ids=(), do_sample=True, temperature=1.5, top_k=40, top_p=0.95)
TUNERS = {
    "lora": TunerConfig(kind="lora", rank=3),
    "ia3": TunerConfig(kind="ia3"),
    "adapter": TunerConfig(kind="adapter", bottleneck=4),
    "soft_prompt": TunerConfig(kind="soft_prompt", length=3),
    "late_prompt": TunerConfig(kind="late_prompt", length=3, depth=1, generator="none"),
    "npg": TunerConfig(kind="late_prompt", length=3, depth=1, generator="npg", bottleneck=4),
    "generated_prompt": TunerConfig(kind="generated_prompt", length=3, bottleneck=4, terms=1),
    "projected_prefix": TunerConfig(kind="projected_prefix", length=3, bottleneck=4),
}
PLACES = {"soft_prompt": (0,), "late_prompt": (1,), "npg": (1,), "generated_prompt": (0,), "projected_prefix": (0,)}


@pytest.fixture(scope="module")
def weights(tmp_path_factory: pytest.TempPathFactory) -> SharedByFamily:
    return SharedByFamily(tmp_path_factory.mktemp("models"))


def padded(some: list[np.ndarray], beginnings: list[np.ndarray]) -> TokenBatch:
    """Return texts padded on the right, by one token more than the longest; their beginnings' last tokens stand for them."""
    lengths = np.array([len(text) for text in some])
    ids = np.full((len(some), lengths.max() + 1), PAD)
    for row, text in enumerate(some):
        ids[row, : len(text)] = text
    mask = (np.arange(ids.shape[1]) < lengths[:, None]).astype(np.int64)
    last = np.array([len(text) - 1 for text in beginnings])
    return TokenBatch(ids, mask, None, last, np.zeros(len(some), np.int64))


def written(some: list[np.ndarray], last_hidden, decoder, cap, steps: int = 8) -> list[list[int]]:
    """Return what passes over the whole texts choose, token by token."""
    grown = [list(text) for text in some]
    for _ in range(steps):
        data = padded([np.array(text) for text in grown], some)
        with torch.no_grad():
            hidden = last_hidden(data)[torch.arange(len(some)), [len(text) - 1 for text in grown]]
            scores = decoder(hidden)
        scores = scores if cap is None else cap * torch.tanh(scores / cap)
        for row, token in enumerate(scores.argmax(1).tolist()):
            grown[row].append(token)
    return [text[-steps:] for text in grown]


def by_whole_texts(model: Backbone, some: list[np.ndarray], tuned: Tensor, layers: tuple[int, ...]) -> list[list[int]]:
    cap = model._family.logit_cap(model.model.config)
    decoder = model.model.get_output_embeddings()
    return written(some, lambda data: model.last_hidden_state(data, tuned, layers), decoder, cap)


def numbers(model: Backbone, layers: tuple[int, ...], clients: int = 1) -> Tensor:
    """Return random numbers of each client; larger ones for a prefix, which acts by itself."""
    if isinstance(model.geometry, PromptGeometry):
        return prompts(model, layers, clients).detach()
    generator = torch.Generator().manual_seed(0)
    shape = (clients, len(layers), *model.geometry.layer_shape)
    return 0.3 * torch.randn(shape, generator=generator)


EAGER = [(family, "eager") for family in DECODERS]


@pytest.mark.parametrize(
    ("family", "attention"),
    sweep([*((family, "sdpa") for family in DECODERS), *EAGER], [*((f, "sdpa") for f in DECODERS), EAGER[0]]),
)
def test_without_a_tuner_it_is_what_transformers_generates(weights, family, attention):
    model, some = backbone(weights[family], None, attention, dtype="float64"), texts()
    theirs = doubled(tiny_model(family))
    theirs.config._attn_implementation = runnable(family, attention)
    found = lists(model.generate(some, prompts(model, ()).detach(), (), GREEDY))
    assert found == generated_alone(theirs, some)
    assert len({tuple(tokens) for tokens in found}) > 1


@decoders
@pytest.mark.parametrize(
    ("layers", "offset"), sweep([(ALL_LAYERS, "paper"), ((0, 2), "none"), ((2,), "paper")], [((0, 2), "none")])
)
def test_a_prefix_is_that_of_a_cache_filled_by_hand(weights, family, layers, offset):
    model, some = backbone(weights[family], dtype="float64", position_offset=offset), texts()
    prompt = prompts(model, layers).detach()
    theirs = doubled(tiny_model(family))
    theirs.config._attn_implementation = runnable(family, "sdpa")

    def last_hidden(data: TokenBatch) -> Tensor:
        return cache_oracle(theirs, data, prompt[0].double(), layers, offset)[-1]

    cap = FAMILIES[family].logit_cap(theirs.config)
    expected = written(some, last_hidden, theirs.get_output_embeddings(), cap)
    assert lists(model.generate(some, prompt, layers, GREEDY)) == expected
    assert expected != lists(model.generate(some, prompt[:, :0], (), GREEDY))


ESSENTIAL = [
    *(("llama", kind) for kind in TUNERS),
    *(("gpt2", kind) for kind in ("lora", "soft_prompt", "late_prompt")),
    *(("opt", kind) for kind in ("lora", "adapter")),  # which reads rows, not texts, in its feed-forward
]


@pytest.mark.parametrize(("family", "kind"), sweep(list(product(DECODERS, TUNERS)), ESSENTIAL))
def test_each_tuner_writes_what_passes_over_whole_texts_choose(weights, family, kind):
    model, some = backbone(weights[family], dtype="float64", tuner=TUNERS[kind]), texts()
    layers = PLACES.get(kind, (0, 2))
    tuned = numbers(model, layers)
    found = lists(model.generate(some, tuned, layers, GREEDY))
    assert found == by_whole_texts(model, some, tuned, layers)
    assert found != lists(model.generate(some, numbers(model, ()), (), GREEDY))


WINDOWED = list(product(["mistral", "gemma3_text", "gemma2"], ["prefix", "soft_prompt", "late_prompt"]))


@pytest.mark.parametrize(("family", "kind"), sweep(WINDOWED, [WINDOWED[1], *WINDOWED[3:6], WINDOWED[6]]))
def test_windows_are_those_of_passes_over_whole_texts(tmp_path, family, kind):
    own = shared(tiny_model(family, sliding_window=4), tmp_path)
    model = backbone(own, dtype="float64", tuner=TUNERS.get(kind))
    layers = PLACES.get(kind, (0, 2))
    tuned, some = numbers(model, layers), texts()
    found = lists(model.generate(some, tuned, layers, GREEDY))
    assert found == by_whole_texts(model, some, tuned, layers)
    wide = backbone(shared(tiny_model(family), tmp_path / "wide"), dtype="float64", tuner=TUNERS.get(kind))
    assert found != lists(wide.generate(some, tuned, layers, GREEDY))


SIDE_BY_SIDE = list(product(DECODERS, ["prefix", *TUNERS], [GREEDY, SAMPLED]))
SOME = [case for case in SIDE_BY_SIDE if case[0] == "llama" and case[2] is SAMPLED]


@pytest.mark.parametrize(
    ("family", "kind", "decoding"),
    sweep(SIDE_BY_SIDE, [*SOME, ("gpt2", "prefix", GREEDY), ("gpt2", "soft_prompt", GREEDY)]),
    ids=lambda value: ("greedy", "sampled")[value.do_sample] if isinstance(value, Decoding) else value,
)
def test_clients_in_one_batch_write_what_each_writes_alone(weights, family, kind, decoding):
    model, some = backbone(weights[family], dtype="float64", tuner=TUNERS.get(kind)), texts(6)
    layers, owner = PLACES.get(kind, (0, 2)), np.array([2, 0, 2, 1, 0, 2])
    tuned = numbers(model, layers, clients=3)
    uniform = np.stack([decoding.uniform_S(5, 1, client, row) for row, client in enumerate(owner)])
    together = lists(model.generate(some, tuned, layers, decoding, owner, uniform))
    cut = lists(model.generate(some, tuned, layers, decoding, owner, uniform, limit=30))
    alone = [
        model.generate([text], tuned[client : client + 1], layers, decoding, None, uniform[row : row + 1])[0].tolist()
        for row, (text, client) in enumerate(zip(some, owner, strict=True))
    ]
    assert together == cut == alone
    swapped = lists(model.generate(some, tuned, layers, decoding, (owner + 1) % 3, uniform))
    assert swapped != together


def test_draws_are_repeated_and_differ_by_seed_round_client_and_example(weights):
    model, (text,) = backbone(weights["llama"], dtype="float64"), texts(1)
    prompt = prompts(model, (1,)).detach()

    def drawn(*names: int) -> tuple[int, ...]:
        uniform = SAMPLED.uniform_S(*names)[None]
        return tuple(model.generate([text], prompt, (1,), SAMPLED, None, uniform)[0].tolist())

    assert drawn(1, 2, 3, 4) == drawn(1, 2, 3, 4)
    assert len({drawn(1, 2, 3, 4), drawn(0, 2, 3, 4), drawn(1, 0, 3, 4), drawn(1, 2, 0, 4), drawn(1, 2, 3, 0)}) == 5
    assert drawn(1, 2, 3, 4) != tuple(model.generate([text], prompt, (1,), GREEDY)[0].tolist())


def test_a_text_ends_at_any_end_token_and_where_positions_do(weights):
    model, some = backbone(weights["gpt2"], dtype="float64"), [*texts(3), np.full(38, 5), np.full(40, 5)]
    prompt = prompts(model, ()).detach()
    whole = lists(model.generate(some, prompt, (), GREEDY))
    assert [len(each) for each in whole] == [8, 8, 8, 2, 0]
    ends = (whole[0][3], whole[1][5])
    ended = lists(model.generate(some, prompt, (), Decoding(8, ends)))
    for all_tokens, tokens in zip(whole, ended, strict=True):
        stop = next((place + 1 for place, token in enumerate(all_tokens) if token in ends), len(all_tokens))
        assert tokens == all_tokens[:stop]
    with pytest.raises(ModelError, match="a batch has 41 tokens, but the model has positions for 40"):
        model.generate([np.full(41, 5)], prompt, (), GREEDY)


def test_a_pass_that_does_not_fit_is_split_to_the_same_texts(weights, monkeypatch):
    model, some = backbone(weights["llama"], dtype="float64"), texts(7)
    prompt, limit = prompts(model, (0, 2)).detach(), PassLimit()
    whole = lists(model.generate(some, prompt, (0, 2), GREEDY))
    run, sizes = model._parts.calls.cached, []

    def small(ids_BT, *arguments):
        if len(ids_BT) > 3:
            raise torch.OutOfMemoryError
        sizes.append(len(ids_BT))
        return run(ids_BT, *arguments)

    monkeypatch.setattr(model._parts.calls, "cached", small)
    assert lists(model.generate(some, prompt, (0, 2), GREEDY, limit=limit)) == whole
    assert limit.splits and max(sizes) <= 3


def test_what_cannot_write_text_is_refused(weights, tmp_path):
    some = texts(1)
    encoder = backbone(weights["bert"])
    with pytest.raises(ModelError, match="an encoder fills masks and cannot generate text; use a decoder"):
        encoder.generate(some, prompts(encoder, ()), (), GREEDY)
    both = backbone(save(tiny_model("llama", is_causal=False), tmp_path / "both"))
    with pytest.raises(ModelError, match=r"is_causal: false .* cannot generate text"):
        both.generate(some, prompts(both, ()), (), GREEDY)
    late = backbone(weights["llama"], tuner=TunerConfig(kind="late_prompt", length=3, depth=1, generator="appg"))
    with pytest.raises(ModelError, match="is made of a whole text, of which generation knows only the beginning"):
        late.generate(some, numbers(late, ()), (), GREEDY)

"""Label words of several tokens, several a class: each scored as transformers scores its text alone, on every way."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from peft import LoraConfig, get_peft_model
from peft_oracle import LAYERS, random_numbers
from support import sweep
from test_attention_switches import close, own_masks, with_a_prompt_in_sight
from tiny_models import (
    CONFIGS,
    PAD,
    PROMPT_LENGTH,
    VOCABULARY,
    WITHOUT_SDPA,
    backbone,
    cache_oracle,
    doubled,
    prompts,
    runnable,
    save,
    tiny_model,
)
from torch import Tensor, nn

from clients.backbone.families import FAMILIES
from clients.backbone.loading import load_shared_weights
from clients.backbone.model import Backbone
from clients.config import HeadConfig, ModelConfig
from clients.tuners import packed_prefix as packing
from clients.tuners.config import TunerConfig
from fedsim.core.errors import ModelError
from fedsim.core.tokens import TokenBatch, TokenTable
from fedsim.core.words import LabelWords

CLASSES = [[[11, 5, 9], [11, 5, 3, 8]], [[42]], [[7, 20], [30]]]
"""Words that begin alike, one that is a single token, and classes of one word and of two."""
TRUNKS = np.array([2, 4, 5, 9, 10])
ALL_LAYERS = (0, 1, 2)
DECODERS = tuple(name for name in (*CONFIGS, *WITHOUT_SDPA) if FAMILIES[name].predicts_next)
ENCODERS = tuple(name for name in CONFIGS if not FAMILIES[name].predicts_next)
WINDOWS = {
    "mistral": {"sliding_window": 3},
    "phi3": {"sliding_window": 3},
    "qwen2": {"use_sliding_window": True, "sliding_window": 3, "max_window_layers": 1, "layer_types": None},
    "gemma3_text": {"sliding_window": 3},
    "gemma2": {"sliding_window": 3},
}
"""Windows that end within the text, and within a word."""
KINDS = [(family, {}) for family in DECODERS] + list(WINDOWS.items())
SLIDES = ("gemma3_text", WINDOWS["gemma3_text"])
NAMES = [f"{name}{'-window' * bool(own)}" for name, own in KINDS]
LOSSES = ("labels", "vocabulary")


@pytest.fixture(autouse=True)
def _little_padding(monkeypatch: pytest.MonkeyPatch) -> None:
    """Force several buckets even for few short examples, some with padding and some without."""
    monkeypatch.setitem(packing._MAX_PADDING_SLOTS, "cpu", 6)


def words_of(family: str, classes: list[list[list[int]]] = CLASSES) -> LabelWords:
    return LabelWords.of(classes, masks=not FAMILIES[family].predicts_next)


def texts(words: LabelWords, trunks: np.ndarray = TRUNKS) -> TokenTable:
    """Return texts that end in the words' branches, or have room for their masks."""
    rng, branches = np.random.default_rng(0), words.branches
    behind = np.empty(0, np.int64) if branches is None else branches.ids_Y
    ids = [np.concatenate([rng.integers(3, VOCABULARY, size), behind]) for size in trunks + words.num_masks]
    lengths = np.array([len(row) for row in ids])
    read = rng.integers(0, trunks + 1) if words.masks else trunks - 1
    return TokenTable(
        ids_Z=np.concatenate(ids).astype(np.int32),
        offsets_N1=np.concatenate([[0], np.cumsum(lengths)]),
        read_positions_N=read.astype(np.int32),
        labels_N=rng.integers(0, words.num_classes, len(trunks)),
        pad_id=PAD,
        words=words,
    )


def folder_of(root: Path, family: str, changes: dict[str, object]) -> str:
    """Save a tiny model with other settings than its weights were made with, as far as these are of no matter to them."""
    save(tiny_model(family), root)
    config = root / "config.json"
    config.write_text(json.dumps(json.loads(config.read_text()) | changes))
    return str(root)


def model_of(folder: str, head: HeadConfig, words: LabelWords, **keys: object) -> Backbone:
    attention = runnable(json.loads((Path(folder) / "config.json").read_text())["model_type"], "sdpa")
    config = ModelConfig(path=folder, head=head, dtype="float64", attention=attention)
    return backbone(load_shared_weights(config), head, dtype="float64", words=words, **keys)


def theirs_of(folder: str, family: str) -> nn.Module:
    """Return transformers' own model; of families that slide, with the attention whose masks can be widened."""
    attention = "eager" if family in WINDOWS else runnable(family, "sdpa")
    kind = FAMILIES[family].model_class(FAMILIES[family].lm_kind)
    return doubled(kind.from_pretrained(folder, dtype=torch.float64, attn_implementation=attention).eval())


def alone(table: TokenTable) -> tuple[TokenBatch, list[tuple[int, int]]]:
    """Return each example's text with each word behind it, padded, and where each word begins and ends."""
    rows, places = [], []
    for example in range(len(table)):
        trunk = table.trunks.ids_Z[slice(*table.trunks.offsets_N1[example : example + 2])].tolist()
        for word in table.words.words:
            rows.append([*trunk, *word])
            places.append((len(trunk), len(rows[-1])))
    longest = max(map(len, rows)) + 1  # padding in every row: some oracles need a mask
    ids = np.array([row + [PAD] * (longest - len(row)) for row in rows])
    mask = np.array([[1] * len(row) + [0] * (longest - len(row)) for row in rows])
    zeros = np.zeros(len(rows), np.int64)
    return TokenBatch(ids, mask, None, zeros, zeros), places


def class_scores(table: TokenTable, logp_XTV: Tensor, places: list[tuple[int, int]], data: TokenBatch) -> Tensor:
    """Return the mean over a class's words of the mean over a word's tokens of their log-likelihoods, [B, C]."""
    means = []
    for row, (start, stop) in enumerate(places):
        tokens = torch.from_numpy(data.input_ids_BT[row, start:stop])
        means.append(logp_XTV[row, torch.arange(start - 1, stop - 1), tokens].mean())
    scores_BW = torch.stack(means).view(len(table), -1)
    classes = torch.from_numpy(table.words.classes_W)
    return torch.stack([scores_BW[:, classes == own].mean(1) for own in range(table.words.num_classes)], 1)


def losses(scores_BC: Tensor, table: TokenTable, loss: str) -> Tensor:
    labels_B = torch.from_numpy(table.labels_N)
    if loss == "labels":
        return nn.functional.cross_entropy(scores_BC, labels_B, reduction="none")
    return -scores_BC[torch.arange(len(table)), labels_B]


def log_likelihoods(theirs: nn.Module, hidden_XTD: Tensor) -> Tensor:
    cap = getattr(theirs.config, "final_logit_softcapping", None)
    logits = theirs.get_output_embeddings()(hidden_XTD) / getattr(theirs.config, "logits_scaling", 1.0)
    return (logits if cap is None else cap * torch.tanh(logits / cap)).log_softmax(-1)


def ways(model: Backbone, table: TokenTable, tuned: Tensor, layers: tuple[int, ...]) -> dict[str, tuple[Tensor, ...]]:
    """Return scores, losses and gradient on every way: padded, packed, from cached states, each example alone."""
    order = np.random.default_rng(3).permutation(len(table))
    found = {}

    def answer(name: str, readings: list, back: np.ndarray) -> None:
        logits, loss = (torch.cat([getattr(r, key) for r in readings])[back] for key in ("logits_BC", "loss_B"))
        weights = torch.arange(1.0, len(table) + 1, dtype=loss.dtype)
        (gradient,) = torch.autograd.grad((loss * weights).sum(), tuned)
        found[name] = logits.detach(), loss.detach(), gradient

    def read(some: np.ndarray, cached: bool = False):
        tokens = table.pack(some)
        return model.read(tokens, tuned, layers, {}, cached_ZD=model.cached(tokens, layers) if cached else None)[0]

    every = np.arange(len(table))
    answer("packed", [read(order)], np.argsort(order))
    answer("padded", [model.forward(table.batch(order), tuned, layers, {})], np.argsort(order))
    answer("alone", [read(np.array([example])) for example in every], every)
    if min(layers):
        answer("cached", [read(order, cached=True)], np.argsort(order))
    return found


def assert_ways_agree(found: dict[str, tuple[Tensor, ...]]) -> None:
    for other in found.values():
        for ours, theirs in zip(other, found["packed"], strict=True):
            close(ours, theirs)


@pytest.mark.parametrize(
    ("family", "changes", "offset"),
    sweep(
        [(*kind, offset) for kind in KINDS for offset in ("none", "paper")],
        [("gpt2", {}, "paper"), ("llama", {}, "none"), ("mistral", WINDOWS["mistral"], "none"), (*SLIDES, "paper")],
    ),
    ids=[f"{name}-{offset}" for name in NAMES for offset in ("none", "paper")],
)
def test_a_decoder_with_a_prefix_scores_words_as_transformers_does_alone(tmp_path, family, changes, offset):
    """In float64 to 1e-5, with gradients, for both losses: one pass over the text against one for each word."""
    folder, words = folder_of(tmp_path, family, changes), words_of(family)
    table = texts(words)
    data, places = alone(table)
    for loss in LOSSES:
        model = model_of(folder, HeadConfig(loss=loss), words, position_offset=offset)
        tuned = prompts(model, ALL_LAYERS).detach().double().requires_grad_()
        theirs = theirs_of(folder, family)
        if changes:
            with_a_prompt_in_sight(theirs, own_masks(theirs, data))
        hidden = cache_oracle(theirs, data, tuned[0], ALL_LAYERS, offset)[-1]
        expected = class_scores(table, log_likelihoods(theirs, hidden), places, data)
        expected_losses = losses(expected, table, loss)
        weights = torch.arange(1.0, len(table) + 1, dtype=torch.float64)
        (gradient,) = torch.autograd.grad((expected_losses * weights).sum(), tuned)
        found = ways(model, table, tuned, ALL_LAYERS)
        for ours, wanted in zip(found["packed"], (expected.detach(), expected_losses.detach(), gradient), strict=True):
            assert wanted.abs().max() > 1e-3
            close(ours, wanted)
        assert_ways_agree(found)


@pytest.mark.parametrize(("family", "changes"), sweep(KINDS, [("llama", {}), SLIDES]), ids=NAMES)
def test_a_decoder_with_lora_scores_words_as_peft_does_alone(tmp_path, family, changes):
    folder, words = folder_of(tmp_path, family, changes), words_of(family)
    table, lora = texts(words), TunerConfig(kind="lora", rank=3, alpha=5.0)
    model = model_of(folder, HeadConfig(), words, tuner=lora)
    tuned = random_numbers(model.geometry).detach().double().requires_grad_()
    own = LoraConfig(
        r=3, lora_alpha=5.0, target_modules=list(FAMILIES[family].lora_targets), layers_to_transform=list(LAYERS),
        fan_in_fan_out=family == "gpt2",
    )  # fmt: skip
    theirs = get_peft_model(theirs_of(folder, family), own, autocast_adapter_dtype=False)
    mine = {}
    for place, layer in enumerate(LAYERS):
        for name, array in model.geometry.split(tuned).items():
            path = f"{FAMILIES[family].layers}.{layer}.{name}.default.weight"
            (found,) = [p for n, p in theirs.named_parameters() if f".{n}".endswith(f".{path}")]
            found.data = array[0, place].detach().clone()
            mine[place, name] = found
    data, places = alone(table)
    lm, hidden = theirs.base_model.model, []
    for row, (_, length) in zip(
        data.input_ids_BT, places, strict=True
    ):  # no padding: eager attention may make NaN of it
        whole = lm.base_model(input_ids=torch.from_numpy(row[None, :length]), use_cache=False).last_hidden_state
        hidden.append(nn.functional.pad(whole[0], (0, 0, 0, len(row) - length)))
    expected = class_scores(table, log_likelihoods(lm, torch.stack(hidden)), places, data)
    weights = torch.arange(1.0, len(table) + 1, dtype=torch.float64)
    gradients = torch.autograd.grad((losses(expected, table, "labels") * weights).sum(), list(mine.values()))
    found = ways(model, table, tuned, LAYERS)
    close(found["packed"][0], expected.detach())
    parts = model.geometry.split(found["packed"][2])
    for (place, name), wanted in zip(mine, gradients, strict=True):
        close(parts[name][0, place], wanted)
    assert_ways_agree(found)


@pytest.mark.parametrize("family", sweep(ENCODERS, ("bert", "modernbert")))
def test_an_encoder_scores_words_at_its_masks_all_at_once(tmp_path, family):
    """A word of n tokens at the first n masks: against the LM head of transformers itself, with a prefix and without cache."""
    folder, words = folder_of(tmp_path, family, {}), words_of(family)
    table = texts(words)
    data = table.batch(np.arange(len(table)))
    wider = [np.pad(array, ((0, 0), (0, 1)), constant_values=pad) for array, pad in
             ((data.input_ids_BT, PAD), (data.attention_mask_BT, 0))]  # fmt: skip
    padded = TokenBatch(*wider, None, data.read_positions_B, data.labels_B)
    for loss in LOSSES:
        model = model_of(folder, HeadConfig(loss=loss), words)
        for layers in ALL_LAYERS if loss == "labels" else (1, 2), (2,):
            tuned = prompts(model, layers).detach().double().requires_grad_()
            theirs = theirs_of(folder, family)
            hidden = cache_oracle(theirs, padded, tuned[0], layers, "none")[-1]
            logits = theirs.get_output_embeddings()(FAMILIES[family].head_transform(theirs, hidden))
            logp, means = logits.log_softmax(-1), []
            for example, first in enumerate(table.read_positions_N):
                own = [logp[example, first + np.arange(len(word)), list(word)].mean() for word in words.words]
                means.append(torch.stack(own))
            scores_BW, classes = torch.stack(means), torch.from_numpy(words.classes_W)
            expected = torch.stack([scores_BW[:, classes == own].mean(1) for own in range(3)], 1)
            expected_losses = losses(expected, table, loss)
            weights = torch.arange(1.0, len(table) + 1, dtype=torch.float64)
            (gradient,) = torch.autograd.grad((expected_losses * weights).sum(), tuned)
            found = ways(model, table, tuned, layers)
            for ours, wanted in zip(
                found["packed"], (expected.detach(), expected_losses.detach(), gradient), strict=True
            ):
                close(ours, wanted)
            assert_ways_agree(found)


TUNERS = {
    "soft": TunerConfig(kind="soft_prompt", length=3),
    "late": TunerConfig(kind="late_prompt", length=3, depth=1, generator="none", start="random"),
    "npg": TunerConfig(kind="late_prompt", length=3, depth=1, generator="npg", bottleneck=4),
    "appg": TunerConfig(kind="late_prompt", length=3, depth=1, generator="appg", bottleneck=4),
    "generated": TunerConfig(kind="generated_prompt", length=3, bottleneck=4, terms=2),
    "mixture": TunerConfig(kind="prompt_mixture", length=3, bottleneck=4, random_sources=2),
    "ia3": TunerConfig(kind="ia3"),
    "adapter": TunerConfig(kind="adapter", bottleneck=4),
}


@pytest.mark.parametrize("kind", TUNERS)
@pytest.mark.parametrize(
    ("family", "changes"),
    sweep([("llama", {}), ("gpt2", {}), ("mistral", WINDOWS["mistral"]), ("bert", {})], [("llama", {})]),
)
def test_every_tuner_scores_a_word_alike_whatever_other_words_there_are(tmp_path, family, changes, kind):
    """And on every way; a tuner that makes its prompt of the text sees the text alone, not the words behind it."""
    folder = folder_of(tmp_path, family, changes)
    scores = []
    for classes in CLASSES, [[[11, 5, 9], [11, 5, 3, 8]], [[8, 9, 10, 11]], [[12, 13], [14]]]:
        words = words_of(family, classes)
        table = texts(words)
        model = model_of(folder, HeadConfig(), words, tuner=TUNERS[kind])
        shape = model.geometry
        layers = (shape.layer,) if hasattr(shape, "layer") else (1, 2)
        generator = torch.Generator().manual_seed(2)
        tuned = 0.3 * torch.randn((1, len(layers), shape.layer_size), generator=generator).double()
        found = ways(model, table, tuned.requires_grad_(), layers)
        assert found["packed"][2].abs().max() > 0
        assert_ways_agree(found)
        scores.append(found["packed"][0][:, 0])
    if FAMILIES[family].predicts_next:  # masks of an encoder are part of its text
        close(*scores)


def test_words_of_one_token_have_the_scores_of_the_plain_head_up_to_a_constant(tmp_path):
    """Log-likelihoods over the vocabulary in place of its scores: the same predictions and cross-entropies."""
    for family in "bert", "llama":
        folder = folder_of(tmp_path / family, family, {})
        words = words_of(family, [[[11]], [[42]], [[7]]])
        assert words.branches is None and words.single_C is not None
        table = texts(words)
        for loss in LOSSES:
            head = HeadConfig(loss=loss)
            plain, ours = (model_of(folder, head, own) for own in (None, words))
            tuned = prompts(plain, (1, 2)).detach().double().requires_grad_()
            expected = ways(plain, replace(table, words=None), tuned, (1, 2))["packed"]
            found = ways(ours, table, tuned, (1, 2))["packed"]
            close(found[0].log_softmax(1), expected[0].log_softmax(1))
            close(found[1], expected[1])
            close(found[2], expected[2])


def test_a_decoder_whose_text_sees_what_follows_is_refused(tmp_path):
    folder = folder_of(tmp_path, "llama", {"is_causal": False})
    with pytest.raises(
        ModelError, match=r"data\.task\.label_words has words of several tokens, which a decoder with is_"
    ):
        model_of(folder, HeadConfig(), words_of("llama"))
    model_of(folder, HeadConfig(), words_of("llama", [[[11], [5]], [[42]], [[7]]]))


def test_branches_take_no_positions_beyond_the_longest_word(tmp_path):
    """The words' branches are 6 tokens, the longest of them 3: so many less than the model's 40 may a text have."""
    folder, words = folder_of(tmp_path, "gpt2", {}), words_of("gpt2")
    model = model_of(folder, HeadConfig(), words, prompt_length=PROMPT_LENGTH)
    tuned = prompts(model, (0,)).detach().double()
    fits, long = texts(words, np.array([5, 37])), texts(words, np.array([5, 38]))
    assert fits.longest == 40 and len(words.branches) > 3
    for way in (lambda t: model.read(t.pack(np.arange(2)), tuned, (0,), {}),
                lambda t: model.forward(t.batch(np.arange(2)), tuned, (0,), {})):  # fmt: skip
        way(fits)
        with pytest.raises(ModelError, match="a batch has 41 tokens, but the model has positions for 40"):
            way(long)

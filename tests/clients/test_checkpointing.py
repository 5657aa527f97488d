"""``model.gradient_checkpointing``: layers that are computed again for their gradients are the layers of the pass."""

from __future__ import annotations

import gc
import weakref

import numpy as np
import pytest
import torch
from cohorts import ARRAYS, Cohort, poolings, specification
from response_work import responses
from safetensors.numpy import load_file
from support import make_tiny, sweep
from test_label_word_scores import texts as wordy_texts
from test_label_word_scores import words_of
from test_packing import LENGTHS, OWNERS, SHUFFLED, texts
from test_tuners import TUNERS, numbers
from tiny_models import CONFIGS, LABEL_WORDS, SharedByFamily, families, runnable, save, shared, tiny_model
from torch import Tensor

from clients.backbone.families import FAMILIES
from clients.backbone.frozen_states import compute_states
from clients.backbone.model import Backbone
from clients.backbone.shared_weights import SharedWeights
from clients.config import HeadConfig, ModelConfig, PromptConfig
from clients.tuners.config import TunerConfig
from clients.tuners.make import make_tuner
from clients.tuners.prompt_dropout import PromptMask
from clients.tuners.word_vectors import WordVectors
from fedsim.core.errors import ConfigError
from fedsim.core.words import LabelWords
from fedsim.simulation.run import run

SECTIONS = {
    "prefix": lambda family: {},
    "lora of what enters": lambda family: {"kind": "lora", "rank": 2},
    **{name: kind.of_family for name, kind in TUNERS.items()},
}


@pytest.fixture(scope="module")
def loaded(tmp_path_factory: pytest.TempPathFactory) -> SharedByFamily:
    """Return the weights of each family's tiny model, in float64."""
    return SharedByFamily(tmp_path_factory.mktemp("models"), dtype="float64")


def build(
    weights: SharedWeights,
    tuner: str = "prefix",
    head: HeadConfig | None = None,
    words: LabelWords | None = None,
    **model: object,
) -> Backbone:
    head, family = head or HeadConfig(), weights.family
    config = ModelConfig.model_validate(
        {
            "path": "x",
            "dtype": weights.dtype,
            "attention": runnable(family.name, "sdpa"),
            "head": head.model_dump(),
            **model,
        }
    )
    section = TunerConfig.model_validate(SECTIONS[tuner](family.name))
    asked = LABEL_WORDS if words is None else words.ids_Q
    vectors = WordVectors(weights, frozenset(), 97, asked if head.kind == "verbalizer" else None)
    made = make_tuner(section, PromptConfig(length=4), family).knowing(vectors, 0)
    single = LABEL_WORDS if head.kind == "verbalizer" and words is None else None
    return Backbone.build(weights, config, made, len(LABEL_WORDS), single, "cpu", words=words)


def layers_of(model: Backbone) -> tuple[int, ...]:
    shape = model.geometry
    return (0, 2) if len(shape.tunable) == shape.num_layers else shape.tunable


def step(model: Backbone, layers: tuple[int, ...], **kwargs: object) -> tuple[Tensor, ...]:
    """Return losses of a pass of three clients, and the gradients in what is trained."""
    tuned = numbers(model.geometry, len(layers), 3)
    generator = torch.Generator().manual_seed(4)
    heads = {
        name: torch.randn((3, *shape), generator=generator, dtype=torch.float64).requires_grad_()
        for name, shape in model.head_shapes
    }
    reading, _ = model.read(texts(LENGTHS).pack(SHUFFLED), tuned, layers, heads, OWNERS[SHUFFLED], **kwargs)
    return reading.loss_B.detach(), *torch.autograd.grad(reading.loss_B.sum(), (tuned, *heads.values()))


def assert_equal(ours: tuple[Tensor, ...], theirs: tuple[Tensor, ...]) -> None:
    """Equal to the bit: the second run of a layer is the first one again."""
    assert all(map(torch.equal, ours, theirs))
    assert theirs[1].abs().amax(dim=tuple(range(2, theirs[1].ndim))).min() > 0, "every client and layer has a gradient"


@pytest.mark.parametrize(("family", "tuner"), sweep(
    [(family, tuner) for family in CONFIGS for tuner in SECTIONS],
    [*(("bert", tuner) for tuner in SECTIONS), *(("llama", tuner) for tuner in ("prefix", "lora", "ia3", "adapter"))],
))  # fmt: skip
def test_gradients_are_the_same_with_and_without(loaded, family, tuner):
    """Of prompts, of what tuners do inside the layers, and of heads; encoders run the top layer for one token alone."""
    for head in (None, poolings(family)[2]):
        plain = build(loaded[family], tuner, head)
        layers = layers_of(plain)
        assert_equal(step(build(loaded[family], tuner, head, gradient_checkpointing=True), layers), step(plain, layers))


OF_WHOLE_TEXTS = ("late prompt of segments", "prompt mixture")
"""Tuners that make something of a whole text, and so of no response."""
WORDS = [(family, tuner, "label words") for family in CONFIGS for tuner in SECTIONS]
RESPONSES = [(family, tuner, "responses") for family in CONFIGS for tuner in SECTIONS
             if FAMILIES[family].predicts_next and tuner not in OF_WHOLE_TEXTS]  # fmt: skip
ESSENTIAL = [("llama", "lora"), ("gpt2", "adapter"), ("bert", "prefix"), ("llama", "prefix"), ("llama", "soft prompt")]


@pytest.mark.parametrize(("family", "tuner", "what"), sweep(
    [*WORDS, *RESPONSES], [*((*each, "label words") for each in ESSENTIAL), *((*each, "responses") for each in ESSENTIAL[3:])],
))  # fmt: skip
def test_gradients_of_tokens_are_the_same_with_and_without(loaded, family, tuner, what):
    """Label words of several tokens, in branches on the trunk of their text or at masks; and the tokens of responses."""
    words = words_of(family) if what == "label words" else None
    table = responses() if words is None else wordy_texts(words)
    order = np.random.default_rng(0).permutation(len(table))
    results = []
    for checkpointed in (True, False):
        head = HeadConfig(kind="generation") if words is None else HeadConfig()
        model = build(loaded[family], tuner, head, words=words, gradient_checkpointing=checkpointed)
        layers = layers_of(model)
        tuned = numbers(model.geometry, len(layers), 3)
        reading, _ = model.read(table.pack(order), tuned, layers, {}, np.arange(len(table)) % 3)
        results.append((reading.loss_B.detach(), *torch.autograd.grad(reading.loss_B.sum(), tuned)))
    assert_equal(*results)


@pytest.mark.parametrize("tuner", ["prefix", "lora", "adapter"])
@pytest.mark.parametrize("quantize", ["none", "int8"])
def test_the_second_run_has_the_number_format_of_the_first(loaded, tuner, quantize, tmp_path):
    """Products in bfloat16, and quantised ones."""
    weights = shared(tiny_model("bert"), tmp_path / "model").stored(ModelConfig(products="bfloat16", quantize=quantize))
    gradients = []
    for checkpointed in (True, False):
        model = build(weights, tuner, products="bfloat16", quantize=quantize, gradient_checkpointing=checkpointed)
        tuned = numbers(model.geometry, 2, 3).detach().float().requires_grad_()
        reading, _ = model.read(texts(LENGTHS).pack(SHUFFLED), tuned, (0, 2), {}, OWNERS[SHUFFLED])
        gradients.append(torch.autograd.grad(reading.loss_B.sum(), tuned)[0])
    assert torch.equal(*gradients) and gradients[0].abs().max() > 0


@pytest.mark.parametrize("tuner", ["prefix", "lora"])
def test_cached_layers_are_entered_above_and_prompts_masked_as_in_the_first_run(loaded, tuner):
    results = []
    kept_BA = np.random.default_rng(0).random((len(LENGTHS), 2 * 2 * 4 * 4 * 8)) < 0.8
    for checkpointed in (True, False):
        model = build(loaded["bert"], tuner, gradient_checkpointing=checkpointed)
        states = compute_states(model, texts(LENGTHS), SHUFFLED, (1, 2), "float64", 512)
        more = {}
        if tuner == "prefix":
            kept = torch.from_numpy(kept_BA.reshape(len(LENGTHS), *model.geometry.layer_shape, 2)).movedim(-1, 1)
            more["mask"] = PromptMask(kept, 1.25)
        results.append(step(model, (1, 2), cached_ZD=states.tensor(), **more))
    assert_equal(*results)


@pytest.mark.parametrize(
    ("family", "tuner"), sweep([("bert", "prefix"), ("bert", "lora"), ("gpt2", "adapter")], [("bert", "lora")])
)
def test_dropout_draws_the_same_numbers_twice(tmp_path, family, tuner):
    """The whole local training of each client is the same to the bit, and dropout does act."""
    rates = (
        ("hidden_dropout_prob", "attention_probs_dropout_prob") if family == "bert" else ("resid_pdrop", "attn_pdrop")
    )
    folder = save(tiny_model(family, **dict.fromkeys(rates, 0.2)), tmp_path / "model")
    trained = {}
    for checkpointed, dropout in ((True, True), (False, True), (False, False)):
        section = {} if tuner == "prefix" else {"tuner": SECTIONS[tuner](family)}
        spec = specification(
            folder, HeadConfig(kind="classifier"), "float64", model={"gradient_checkpointing": checkpointed},
            client={"dropout": dropout, "fuse": "off"}, **section,
        )  # fmt: skip
        cohort = Cohort(spec)
        trained[checkpointed, dropout] = cohort.train_alone(cohort.jobs())
    for ours, theirs, without in zip(*trained.values(), strict=True):
        assert all(np.array_equal(getattr(ours, name), getattr(theirs, name)) for name in ARRAYS)
        assert not np.array_equal(ours.vector_A, without.vector_A)


@families
def test_layers_keep_what_enters_them_and_no_more(loaded, family):
    """What a pass keeps for its gradients, in numbers: with checkpoints, a layer more costs its input alone."""

    def held(model: Backbone) -> int:
        sizes: dict[int, int] = {}

        def keep(saved: Tensor) -> Tensor:
            if saved.is_floating_point():
                sizes[saved.untyped_storage().data_ptr()] = saved.untyped_storage().nbytes()
            return saved

        tuned = numbers(model.geometry, 3, 1)
        frozen = {parameter.untyped_storage().data_ptr() for parameter in model.model.parameters()}
        with torch.autograd.graph.saved_tensors_hooks(keep, lambda saved: saved):
            model.read(texts(LENGTHS).pack(SHUFFLED), tuned, (0, 1, 2), {})[0].loss_B.sum()
        return sum(size for place, size in sizes.items() if place not in frozen)

    plain, checkpointed = (held(build(loaded[family], gradient_checkpointing=on)) for on in (False, True))
    tokens = int(LENGTHS.sum())
    assert checkpointed < plain / 3
    assert plain > 3 * tokens * 5 * 32 * 8, "several tensors of the hidden size in each layer"


@pytest.mark.parametrize("tuner", sweep(["prefix", "lora", "adapter"], ["lora"]))
def test_a_pass_leaves_nothing_behind(loaded, tuner):
    """No hooks, and no tensors that only the garbage collector would find: memory would grow from step to step."""
    model = build(loaded["bert"], tuner, gradient_checkpointing=True)
    seen: list[weakref.ref[Tensor]] = []
    handle = model.layers[1].register_forward_hook(lambda module, arguments, output: seen.append(weakref.ref(output)))
    gc.collect()
    gc.disable()
    try:
        step(model, (0, 2))
        assert seen and not any(reference() is not None for reference in seen)
    finally:
        gc.enable()
    handle.remove()
    for layer in model.layers:
        assert "forward" not in vars(layer)
        assert not any(module._forward_hooks or module._forward_pre_hooks for module in layer.modules())
    with torch.no_grad():
        tuned = numbers(model.geometry, 2, 3)
        assert model.read(texts(LENGTHS).pack(SHUFFLED), tuned, (0, 2), {}, OWNERS[SHUFFLED])[0].loss_B.isfinite().all()


def test_a_run_is_the_same_run_with_and_without(tmp_path):
    identities, arrays = set(), []
    for checkpointed in (True, False):
        folder = tmp_path / str(checkpointed)
        config = make_tiny(
            executor="local", output=str(folder), rounds=2, client={"fuse": 2},
            model={"gradient_checkpointing": checkpointed},
        )  # fmt: skip
        run(config)
        identities.add(config.identity)
        arrays.append(load_file(folder / "prompt" / "global.safetensors"))
    assert len(identities) == 1
    assert "gradient_checkpointing: true" in (tmp_path / "True" / "config.yaml").read_text()
    assert arrays[0].keys() == arrays[1].keys()
    assert all(np.array_equal(arrays[0][name], arrays[1][name]) for name in arrays[0])


def test_it_is_refused_where_layers_are_not_run_twice():
    with pytest.raises(
        ConfigError, match=r"gradient_checkpointing has no use with model\.compile=true; it computes layers"
    ):
        make_tiny(model={"gradient_checkpointing": True, "compile": True})


def test_a_search_without_gradients_has_none_to_compute_layers_for():
    search = {"client": {"optimizer": {"kind": "cma_es"}}, "tuner": {"kind": "soft_prompt", "projection": 9}}
    with pytest.raises(
        ConfigError, match=r"gradient_checkpointing=true computes layers again for gradients, which client\.opt"
    ):
        make_tiny(model={"gradient_checkpointing": True}, server={"kind": "fedbpt"}, **search)

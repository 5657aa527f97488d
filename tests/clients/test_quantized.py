"""``model.quantize``: the layers' frozen matrices as small integers, in every pass the numbers that these stand for."""

from __future__ import annotations

import dataclasses
import hashlib

import numpy as np
import peft
import pytest
import torch
import transformers
from cohorts import Cohort, assert_same, specification
from support import make_tiny, sweep
from test_packing import EXACT, LENGTHS, OWNERS, SHUFFLED, texts
from test_tuners import TUNERS, numbers
from tiny_models import (
    CONFIGS,
    ESSENTIAL,
    LABEL_WORDS,
    SharedByFamily,
    batch,
    families,
    runnable,
    save,
    shared,
    tiny_model,
)
from tiny_models import backbone as build
from tiny_texts import DECODERS, GREEDY, lists
from tiny_texts import texts as some_texts
from torch import Tensor

from clients.analysis.hessian import PromptHessian
from clients.backbone.frozen_states import compute_states
from clients.backbone.loading import load_shared_weights, round_array
from clients.backbone.location import locate
from clients.backbone.model import Backbone
from clients.backbone.quantized import SCALE, dense, quantized
from clients.backbone.quantized_sizes import matrix_bytes
from clients.backbone.shared_weights import SharedWeights
from clients.config import HeadConfig, ModelConfig, PromptConfig
from clients.tuners.config import TunerConfig
from clients.tuners.prefix_tuner import PrefixTuner
from fedsim.core.errors import CheckpointError, ConfigError, ModelError
from fedsim.core.layout import VectorLayout
from fedsim.prompts.peft_adapter import export_peft
from fedsim.prompts.prompted_model import load_adapter
from fedsim.simulation.run import run

KINDS = ("int8", "int4")
STEPS = {"int8": 127.5, "int4": 7.5}
"""Half the steps between the least and the greatest integer."""
quantize = pytest.mark.parametrize("kind", KINDS)
tuners = pytest.mark.parametrize("tuner", ("prefix", *TUNERS))


@pytest.fixture(scope="module")
def loaded(tmp_path_factory: pytest.TempPathFactory) -> SharedByFamily:
    """Return the weights of each family's tiny model, in float64."""
    return SharedByFamily(tmp_path_factory.mktemp("models"), dtype="float64")


def matrix(rows: int, columns: int, seed: int = 0) -> Tensor:
    return torch.randn((rows, columns), generator=torch.Generator().manual_seed(seed))


def tensor(array: np.ndarray) -> Tensor:
    """Return an array of shared weights; uint16 are the bits of bfloat16."""
    bits = torch.from_numpy(array.copy())
    return bits.view(torch.bfloat16) if array.dtype == np.uint16 else bits


def as_plain_numbers(weights: SharedWeights) -> SharedWeights:
    """Return quantised weights as weights that hold, in float64, the numbers that the integers stand for."""
    arrays = dict(weights.arrays)
    for name in [name for name in arrays if name.endswith(f"weight{SCALE}")]:
        plain_OI = dense(*(tensor(arrays.pop(key)) for key in (name.removesuffix(SCALE), name)), torch.float64)
        arrays[name.removesuffix(SCALE)] = (
            (plain_OI.mT if weights.family.transposed_weights else plain_OI).contiguous().numpy()
        )
    return dataclasses.replace(weights, arrays=arrays)


def both(
    weights: SharedWeights, kind: str, tuner: str = "prefix", head: HeadConfig | None = None
) -> tuple[Backbone, Backbone]:
    """Return a quantised model, and a plain one of the numbers that its integers stand for."""
    whole, section = weights.quantized(kind), _section(tuner, weights.family.name)
    return tuple(build(each, head, dtype="float64", tuner=section) for each in (whole, as_plain_numbers(whole)))  # type: ignore[return-value]


def _section(tuner: str, family: str) -> TunerConfig | None:
    return None if tuner == "prefix" else TunerConfig.model_validate(TUNERS[tuner].of_family(family))


def layers_of(model: Backbone) -> tuple[int, ...]:
    shape = model.geometry
    return (0, 2) if len(shape.tunable) == shape.num_layers else shape.tunable


# -- what is stored ----------------------------------------------------------------------------------------------------


def test_int8_is_what_torch_s_own_quantiser_makes_of_the_same_scales():
    weight = matrix(7, 48)
    whole, scale = quantized(weight, "int8", "w")
    zeros = torch.zeros(7, dtype=torch.int32)
    expected = torch.fake_quantize_per_channel_affine(weight, scale.float().flatten(), zeros, 0, -128, 127)
    assert whole.min() == -128 or whole.max() == 127
    assert torch.equal(dense(whole, scale, torch.float32), expected)


@pytest.mark.parametrize(("columns", "size"), [(16, 8), (48, 8), (64, 32), (96, 16), (576, 32)])
def test_int4_is_what_its_definition_says_number_by_number(columns, size):
    weight = matrix(3, columns)
    whole, scale = quantized(weight, "int4", "w")
    assert whole.shape == (3, columns // 2) and scale.shape == (3, columns // size)
    plain = dense(whole, scale, torch.float64)
    for row in range(3):
        for column in range(columns):
            group = slice(column // size * size, (column // size + 1) * size)
            step = float((weight[row, group].abs().max() / 7.5).bfloat16())
            integer = min(7, max(-8, round(float(weight[row, column]) / step)))
            byte = int(whole[row, column % (columns // 2)])
            assert ((byte >> 4) if column >= columns // 2 else byte & 15) == integer + 8
            assert float(plain[row, column]) == integer * step


@quantize
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32, torch.float64])
def test_numbers_are_rounded_once_and_lie_within_a_step(kind, dtype):
    weight = matrix(16, 96) * torch.logspace(-6, 3, 16).unsqueeze(1)
    weight[3] = 0.0
    whole, scale = quantized(weight, kind, "w")
    plain = dense(whole, scale, torch.float64)
    steps = scale.double().repeat_interleave(96 // scale.shape[1], dim=1)
    assert (plain - weight).abs().le(0.76 * steps).all()
    inside = weight.abs() < 0.99 * (STEPS[kind] - 0.5) * steps
    assert (plain - weight).abs().le(0.5 * steps + 1e-12)[inside].all() and inside.float().mean() > 0.8
    assert torch.equal(dense(whole, scale, dtype), plain.to(dtype))
    assert sum(part.nbytes for part in (whole, scale)) == matrix_bytes(kind, 16, 96)


@quantize
@families
def test_the_matrices_of_the_layers_are_quantised_and_nothing_else(loaded, family, kind):
    weights = loaded[family]
    whole = weights.quantized(kind)
    changed = {name for name, array in whole.arrays.items() if array is not weights.arrays.get(name)}
    matrices = {name for name in weights.linear_maps if weights.arrays[name].ndim == 2}
    in_layers = {name for name in weights.arrays if any(part.isdigit() for part in name.split("."))}
    routers = {name for name in in_layers if name.endswith(("mlp.gate.weight", "router.weight"))}
    assert {name for name in in_layers if weights.arrays[name].ndim == 2} - routers <= matrices
    assert changed == matrices | {f"{name}{SCALE}" for name in matrices}
    for name in matrices:
        given = weights.arrays[name].T if weights.family.transposed_weights else weights.arrays[name]
        assert sum(whole.arrays[part].nbytes for part in (name, f"{name}{SCALE}")) == matrix_bytes(kind, *given.shape)
    # A prompt trained with it belongs to the same model.
    assert whole.fingerprint() == weights.fingerprint()


def test_a_map_that_int4_cannot_cut_and_numbers_that_have_no_scale_are_refused(tmp_path):
    odd = shared(tiny_model("llama", intermediate_size=40), tmp_path / "odd")
    with pytest.raises(
        ModelError, match=r"down_proj\.weight has 40 inputs, but model\.quantize=int4 needs a multiple of 16; set"
    ):
        odd.quantized("int4")
    odd.quantized("int8")
    broken = tiny_model("llama")
    broken.model.layers[1].mlp.up_proj.weight.data[3, 4] = float("inf")
    with pytest.raises(ModelError, match=r"layers\.1\.mlp\.up_proj\.weight holds a number that is not finite"):
        shared(broken, tmp_path / "broken").quantized("int8")


# -- what is computed --------------------------------------------------------------------------------------------------


WRITERS = [(family, tuner) for family in DECODERS for tuner in ("prefix", "lora", "adapter", "soft prompt")]


@quantize
@pytest.mark.parametrize(("family", "tuner"), sweep(WRITERS, [("llama", "prefix"), ("gpt2", "lora")]))
def test_what_is_written_is_what_a_model_of_these_numbers_writes(loaded, family, tuner, kind):
    """Greedy, with kept keys and values, of two clients in one batch; and not what the model before it was quantised writes."""
    written = []
    for model in (
        *both(loaded[family], kind, tuner),
        build(loaded[family], dtype="float64", tuner=_section(tuner, family)),
    ):
        layers = layers_of(model)
        tuned = numbers(model.geometry, len(layers), 2).detach()
        owners = np.arange(12) % 2
        written.append(lists(model.generate(some_texts(12), tuned, layers, GREEDY, owners)))
    assert written[0] == written[1]
    # int8 of so small a model may write the same.
    assert kind == "int8" or written[0] != written[2]


@quantize
@pytest.mark.parametrize(("family", "tuner"), sweep(
    [(family, tuner) for family in CONFIGS for tuner in ("prefix", *TUNERS)],
    [*((family, "prefix") for family in ESSENTIAL), ("gpt2", "lora"), ("llama", "lora"), ("bert", "ia3"), ("qwen3", "adapter"),
     ("roberta", "soft prompt")],
))  # fmt: skip
def test_passes_are_those_of_a_model_of_these_numbers(loaded, family, tuner, kind):
    """Packed, padded, scores, for all tuners: losses, gradients and hidden states."""
    whole, plain = both(loaded[family], kind, tuner)
    table, layers = texts(LENGTHS), layers_of(whole)
    tuned = numbers(whole.geometry, len(layers), 3)
    owners = torch.from_numpy(OWNERS[SHUFFLED])
    results = []
    for model in (whole, plain):
        readings = (
            model.read(table.pack(SHUFFLED), tuned, layers, {}, owners)[0],
            model.forward(table.batch(SHUFFLED), tuned, layers, {}, owners),
        )
        hidden = model.hidden_states(table.batch(SHUFFLED), tuned[:1].detach(), layers)
        gradients = [torch.autograd.grad(reading.loss_B.sum(), tuned)[0] for reading in readings]
        results.append([*(reading.loss_B.detach() for reading in readings), *gradients, *hidden])
    assert all(gradient.abs().max() > 0 for gradient in results[0][2:4])
    for ours, theirs in zip(*results, strict=True):
        # Norms and softmax of some families run in float32, where a last bit of their input may show.
        tolerance = 1e-11 if family in EXACT else 1e-5
        torch.testing.assert_close(ours, theirs, rtol=tolerance, atol=tolerance)


@quantize
def test_second_derivatives_are_those_of_a_model_of_these_numbers(loaded, kind):
    products = []
    for model in both(loaded["bert"], kind, head=HeadConfig(kind="classifier", pooling="mean")):
        layout = VectorLayout.full(model.geometry, model.head_shapes)
        generator = torch.Generator().manual_seed(0)
        vector = 0.3 * torch.randn(layout.size, generator=generator, dtype=torch.float64)
        hessian = PromptHessian(model, batch(), layout, vector)
        products.append(hessian.product(torch.randn(hessian.size, generator=generator, dtype=torch.float64)))
    assert products[0].norm() > 0
    torch.testing.assert_close(*products, rtol=1e-9, atol=1e-10)


@quantize
def test_cached_layers_and_several_clients_change_nothing(tmp_path, kind):
    spec = specification(
        save(tiny_model("roberta"), tmp_path / "model"), HeadConfig(kind="classifier"), "float64", model={"quantize": kind},
        tuner=TUNERS["lora"].of_family("roberta"),
    )  # fmt: skip
    assert any(name.endswith(f"weight{SCALE}") for name in spec.weights.arrays)
    cohort = Cohort(spec, layers=(1, 2))
    model, jobs, layers = cohort.worker._backbone, cohort.jobs(), cohort.parts.exchanged.layers
    cached = [
        dataclasses.replace(job, cached=compute_states(model, spec.train, job.indices_N, layers, "float64", 512))
        for job in jobs
    ]
    for ours, theirs, alone in zip(cohort.train(cached), cohort.train(jobs), cohort.train_alone(jobs), strict=True):
        np.testing.assert_allclose(ours.vector_A, theirs.vector_A, rtol=1e-8, atol=1e-10)
        assert_same(theirs, alone, 1e-10)


@quantize
@pytest.mark.parametrize("family", sweep(CONFIGS, ("bert", "llama", "gpt2")))
def test_no_pass_keeps_a_matrix_or_writes_to_the_shared_ones(loaded, family, kind):
    """What a linear map of dense numbers keeps for its gradient would be a model in float for each pass."""
    weights = loaded[family].quantized(kind)
    bits = {name: array.tobytes() for name, array in weights.arrays.items()}
    # Without an LM head, whose matrices are not quantised.
    model = build(weights, HeadConfig(kind="classifier", pooling="mean"), dtype="float64")
    heads = {name: torch.ones((1, *shape), dtype=torch.float64) for name, shape in model.head_shapes}
    sizes = {tuple(sorted(map(int, (m.weight.shape[0], m.weight.shape[1] * (2 if kind == "int4" else 1)))))
             for m in model.layers.modules() if hasattr(m, f"weight{SCALE}")}  # fmt: skip
    kept: list[tuple[int, ...]] = []
    table, tuned = texts(LENGTHS), numbers(model.geometry, 2, 1)

    def keep(saved: Tensor) -> Tensor:
        if saved.is_floating_point() and saved.ndim == 2:
            kept.append(tuple(sorted(saved.shape)))
        return saved

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda saved: saved):
        loss = model.read(table.pack(SHUFFLED), tuned, (0, 2), heads)[0].loss_B.sum()
    torch.autograd.grad(loss, tuned)
    model.forward(table.batch(SHUFFLED), tuned, (0, 2), heads)
    assert sizes and not sizes & set(kept)
    assert {name: array.tobytes() for name, array in weights.arrays.items()} == bits


@quantize
@pytest.mark.parametrize("family", sweep(CONFIGS, ("bert", "llama", "gpt2")))
def test_products_in_bfloat16_are_those_of_rounded_numbers(loaded, family, kind, tmp_path):
    """Near to float32, as without quantising, and exactly float32 in scores and spectra."""
    whole = shared(tiny_model(family), tmp_path / "model").quantized(kind)
    gradients = {}
    for products in ("float32", "bfloat16"):
        config = ModelConfig(path="shared", products=products, attention=runnable(family, "sdpa"))
        model = Backbone.build(whole, config, PrefixTuner(PromptConfig(length=4)), len(LABEL_WORDS), LABEL_WORDS, "cpu")
        tuned = (0.5 * numbers(model.geometry, 2, 3)).detach().float().requires_grad_()
        reading, _ = model.read(texts(LENGTHS).pack(SHUFFLED), tuned, (0, 2), {}, OWNERS[SHUFFLED])
        gradients[products] = torch.autograd.grad(reading.loss_B.sum(), tuned)[0]
        gradients[f"scores {products}"] = model.last_hidden_state(
            texts(LENGTHS).batch(SHUFFLED), tuned[:1].detach(), (0, 2)
        )
    exact, near = gradients["float32"], gradients["bfloat16"]
    assert near.dtype == torch.float32
    assert 0 < (near - exact).norm() / exact.norm() < 8e-2
    assert torch.equal(gradients["scores float32"], gradients["scores bfloat16"])


def test_int8_is_nearer_to_the_model_than_int4_and_both_are_near(loaded):
    weights, table = loaded["bert"], texts(LENGTHS)
    losses = [
        build(each, dtype="float64").read(table.pack(SHUFFLED), torch.empty(1, 0, 2, 4, 4, 8), (), {})[0].loss_B
        for each in (weights, weights.quantized("int8"), weights.quantized("int4"))
    ]
    eight, four = (float((loss - losses[0]).norm() / losses[0].norm()) for loss in losses[1:])
    assert 0 < eight < 0.03 and eight < four < 0.5


# -- runs --------------------------------------------------------------------------------------------------------------


def test_executors_agree_on_every_bit(session_ray, tmp_path):
    digests = set()
    for executor in ("local", "ray"):
        folder = tmp_path / executor
        ray = {"ray": {"address": "auto", "actors": 1}} if executor == "ray" else {}
        run(
            make_tiny(
                executor=executor, output=str(folder), rounds=2, model={"quantize": "int8"}, client={"fuse": 2}, **ray
            )
        )
        digests.add(hashlib.sha256(next((folder / "prompt").glob("*.safetensors")).read_bytes()).hexdigest())
    assert len(digests) == 1


def test_a_run_is_its_own_and_what_it_trained_is_used_with_the_same_weights(tmp_path):
    """Its record says so, another's does not continue it, and ``load_adapter`` quantises as it did."""
    config = make_tiny(executor="local", output=str(tmp_path / "run"), rounds=1, model={"quantize": "int4"})
    run(config)
    plain = make_tiny(executor="local", output=str(tmp_path / "run"), rounds=2)
    with pytest.raises(CheckpointError, match=r'model\.quantize was "int4" and is "none"'):
        run(plain, resume=True)
    loaded = load_adapter(tmp_path / "run")
    assert any(hasattr(module, f"weight{SCALE}") for module in loaded.backbone.layers.modules())
    whole = make_tiny(executor="local", output=str(tmp_path / "run"), rounds=2, model={"quantize": "int4"})
    assert run(whole, resume=True)["rounds"] == 2
    assert "quantize" not in plain.identity_values["model"], "runs of versions without the key stay what they were"


@pytest.mark.parametrize("other", [{"autocast": "bfloat16"}])
def test_quantised_maps_are_not_cast(other):
    with pytest.raises(
        ConfigError, match=r"quantize=int8 multiplies in the format of products.*set autocast=off and products="
    ):
        make_tiny(model={"quantize": "int8", **other})


def test_weights_that_are_rounded_are_not_quantised_and_the_other_way_round(loaded):
    weights = loaded["bert"]
    assert weights.stored(ModelConfig(dtype="float64")) is weights
    assert weights.stored(ModelConfig(dtype="float64", quantize="int8")).nbytes == weights.quantized("int8").nbytes
    assert round_array(np.ones(3, np.float32), "bfloat16").dtype == np.uint16


def test_an_exported_adapter_is_that_of_the_same_model(tmp_path):
    """PEFT, with the numbers that the integers stand for in the model, gives the scores of ``load_adapter``."""
    folder = locate(ModelConfig())
    run(make_tiny(executor="local", output=str(tmp_path / "run"), rounds=1, model={"quantize": "int4"},
                  tuner={"kind": "lora", "rank": 2}, client={"optimizer": {"lr": 0.05}}))  # fmt: skip
    ours = load_adapter(tmp_path / "run")
    adapter = export_peft(tmp_path / "run", tmp_path / "adapter")
    assert peft.PeftConfig.from_pretrained(str(adapter)).base_model_name_or_path == folder
    model = transformers.AutoModelForMaskedLM.from_pretrained(folder).eval()
    plain = as_plain_numbers(load_shared_weights(ModelConfig()).quantized("int4"))
    for name in plain.linear_maps:
        model.get_parameter(name).data = torch.from_numpy(plain.arrays[name].astype(np.float32))
    theirs = peft.PeftModel.from_pretrained(model, str(adapter)).eval()
    data = ours.backbone._parts.calls.tokens(batch())
    with torch.no_grad():
        hidden = theirs.base_model.model.base_model(data.input_ids_BT, attention_mask=data.attention_mask_BT)
    mine = ours.backbone.last_hidden_state(batch(), ours.tuned_LX.unsqueeze(0), ours.layers)
    real = data.attention_mask_BT.bool()
    torch.testing.assert_close(hidden.last_hidden_state[real], mine[real], rtol=1e-4, atol=1e-5)
    assert ours.tuned_LX.abs().max() > 0

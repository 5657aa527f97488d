"""``model.products``: the layers' frozen linear maps in half precision, everything else in float32."""

from __future__ import annotations

import dataclasses
import hashlib

import numpy as np
import pytest
import torch
from support import make_tiny
from tiny_models import CONFIGS, families, prompts, save, tiny_model
from tiny_models import backbone as build
from tiny_work import jobs_of, parts_of, token_table, train

from clients.backbone.loading import SharedWeights, load_shared_weights
from clients.backbone.model import Backbone
from clients.backbone.product_format import SMALLEST_HIDDEN_SIZE, multiplies_bfloat16, settled
from clients.backbone.products import linear_maps
from clients.config import HeadConfig, ModelConfig
from clients.tuners.config import TunerConfig
from fedsim.core.errors import CheckpointError, ConfigError
from fedsim.simulation.run import run

TOLERANCE = {"bfloat16": 8e-2, "float16": 1e-2}
"""Of gradients, relative: a few units in the last place of eight bits and of eleven."""
ENCODERS = ("bert", "roberta", "xlm-roberta", "camembert", "electra")
half = pytest.mark.parametrize("dtype", TOLERANCE)


@pytest.fixture(scope="module")
def loaded(tmp_path_factory: pytest.TempPathFactory) -> dict[str, SharedWeights]:
    """Return the weights of each family's tiny model."""
    root = tmp_path_factory.mktemp("models")
    return {
        family: load_shared_weights(ModelConfig(path=save(tiny_model(family), root / family))) for family in CONFIGS
    }


def in_float32(weights: SharedWeights) -> SharedWeights:
    """Return rounded weights as float32 numbers."""

    def plain(array: np.ndarray) -> np.ndarray:
        if array.dtype not in (np.uint16, np.float16):
            return array
        half = torch.from_numpy(array.copy())
        return (half.view(torch.bfloat16) if array.dtype == np.uint16 else half).float().numpy()

    return dataclasses.replace(weights, arrays={name: plain(array) for name, array in weights.arrays.items()})


def gradients(model: Backbone, share: float = 1.0) -> tuple[torch.Tensor, torch.Tensor]:
    """Return losses and the gradient in the prompts of three clients, all times ``share``, divided by it at the end."""
    tokens, prompt_CLKHPD = token_table(12).pack(np.arange(12)), prompts(model, (0, 2), clients=3)
    reading, _ = model.read(tokens, prompt_CLKHPD, (0, 2), {}, torch.arange(12) % 3)
    (gradient,) = torch.autograd.grad((share * reading.loss_B).sum(), prompt_CLKHPD)
    return reading.loss_B.detach(), gradient / share


def distance(one: torch.Tensor, other: torch.Tensor) -> float:
    return float((one - other).detach().norm() / other.detach().norm())


# -- what is rounded ---------------------------------------------------------------------------------------------------


@families
@half
def test_the_matrices_of_the_layers_are_rounded_and_nothing_else(loaded, family, dtype):
    weights = loaded[family]
    rounded = weights.rounded(dtype)
    bits = {"bfloat16": np.uint16, "float16": np.float16}[dtype]
    changed = {name for name, array in rounded.arrays.items() if array.dtype != weights.arrays[name].dtype}
    in_layers = {name for name in weights.arrays if any(part.isdigit() for part in name.split("."))}
    in_layers = {name for name in in_layers if not name.endswith("mlp.gate.weight")}  # whom experts are chosen by
    assert {name for name in in_layers if weights.arrays[name].ndim == 2} <= changed <= in_layers
    assert not any("norm" in name.lower() or "ln_" in name for name in changed)
    assert {rounded.arrays[name].dtype for name in changed} == {np.dtype(bits)}
    for name in changed:
        np.testing.assert_allclose(in_float32(rounded).arrays[name], weights.arrays[name], rtol=2**-8, atol=1e-6)
    assert all(rounded.arrays[name] is array for name, array in weights.arrays.items() if name not in changed)


def test_rounded_weights_take_half_the_bytes_and_keep_their_fingerprint(loaded):
    weights = loaded["roberta"]
    rounded = weights.rounded("bfloat16")
    saved = sum(weights.arrays[name].nbytes for name in weights.linear_maps) / 2
    assert weights.nbytes - rounded.nbytes == saved > 0
    # A prompt trained with half-precision products belongs to the same model.
    assert rounded.fingerprint() == weights.fingerprint()
    assert weights.rounded("float32") is weights


# -- what is computed --------------------------------------------------------------------------------------------------


@families
@half
def test_losses_and_gradients_are_near_to_those_of_float32(loaded, family, dtype):
    loss, gradient = gradients(build(loaded[family].rounded(dtype)))
    exact_loss, exact = gradients(build(loaded[family]))
    assert loss.dtype == gradient.dtype == torch.float32
    # Near, and not the same: products really are in half precision.
    assert 0 < distance(gradient, exact) < TOLERANCE[dtype] * (2 if family == "opt" else 1)  # its relu has a kink
    torch.testing.assert_close(loss, exact_loss, rtol=TOLERANCE[dtype], atol=TOLERANCE[dtype])


@families
def test_products_round_in_packed_passes_and_not_in_scores_and_spectra(loaded, family):
    rounded = loaded[family].rounded("bfloat16")
    half, plain = build(rounded), build(in_float32(rounded))
    tokens, prompt_CLKHPD = token_table(6), prompts(half, (0, 2))
    batch = tokens.batch(np.arange(6))
    for one, other in zip(
        half.hidden_states(batch, prompt_CLKHPD, (0, 2)), plain.hidden_states(batch, prompt_CLKHPD, (0, 2)), strict=True
    ):
        assert torch.equal(one, other)
    packed = half.read(tokens.pack(np.arange(6)), prompt_CLKHPD, (0, 2), {})[0].loss_B
    assert 0 < distance(packed, plain.read(tokens.pack(np.arange(6)), prompt_CLKHPD, (0, 2), {})[0].loss_B) < 0.08


@families
def test_each_map_multiplies_rounded_numbers_and_hands_float32_on(loaded, family):
    """Between the maps of a feed-forward part alone numbers stay in half precision."""
    model = build(loaded[family].rounded("bfloat16"))
    seen: dict[str, tuple[torch.dtype, torch.dtype]] = {}
    layers = model.layers
    for name, module in linear_maps(layers):
        module.register_forward_hook(
            lambda module, arguments, output, name=name: seen.update({name: (arguments[0].dtype, output.dtype)})
        )
    gradients(model)
    assert set(seen) == {name for name, _ in linear_maps(layers)}
    narrow = {name for name in seen if name.endswith(model._family.before_activation)}
    assert {seen[name][1] for name in narrow} <= {torch.bfloat16}
    assert {output for name, (_, output) in seen.items() if name not in narrow} == {torch.float32}
    after = {name for name, (read, _) in seen.items() if read == torch.bfloat16}
    assert len(after) == len(narrow) == (len(layers) if family in ENCODERS else 0) and not after & narrow


def test_an_activation_in_half_precision_changes_no_bit(loaded):
    model = build(loaded["bert"].rounded("bfloat16"))
    loss, gradient = gradients(model)
    for _, module in linear_maps(model.layers):
        module.narrow = False
    wide_loss, wide = gradients(model)
    assert torch.equal(loss, wide_loss) and torch.equal(gradient, wide)


@pytest.mark.parametrize("kind", ["lora", "ia3", "adapter"])
def test_what_tuners_do_to_a_map_s_output_stays_in_float32(loaded, kind):
    model = build(loaded["bert"].rounded("bfloat16"), tuner=TunerConfig(kind=kind))
    assert not any(module.narrow for _, module in linear_maps(model.layers))


def test_small_gradients_are_not_lost_in_float16(loaded):
    _, exact = gradients(build(loaded["bert"]))
    assert distance(gradients(build(loaded["bert"].rounded("float16")), share=1e-5)[1], exact) < 5e-2


@half
def test_clients_that_share_passes_go_the_way_of_clients_one_by_one(loaded, dtype):
    model = build(loaded["roberta"].rounded(dtype))
    parts = parts_of(model)
    jobs, table = jobs_of(parts, (5, 7, 4)), token_table(16)
    together = train(model, table, parts, jobs, optimizer={"kind": "sgd", "lr": 0.1})
    for one, job in zip(together, jobs, strict=True):
        (alone,) = train(model, table, parts, [job], optimizer={"kind": "sgd", "lr": 0.1})
        moved, moved_alone = (torch.from_numpy(r.vector_A - job.start_A) for r in (one, alone))
        assert one.vector_A.dtype == one.first_moment_A.dtype == np.float32
        assert distance(moved, moved_alone) < TOLERANCE[dtype]


# -- which format ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "text, expected",
    [
        ("processor\t: 0\nflags\t\t: fpu avx512f avx512_bf16 avx512_vnni\n", True),
        ("flags : amx_tile amx_bf16\n", True),
        ("flags : fpu avx2 avx512f\n", False),
        ("Features : fp asimd bf16\n", False),
        ("", False),
        (None, False),
    ],
)
def test_the_processor_is_asked_for_its_instructions(tmp_path, text, expected):
    file = tmp_path / "cpuinfo"
    if text is not None:
        file.write_text(text)
    assert multiplies_bfloat16(file) is expected


@pytest.mark.parametrize(
    "given, hidden_size, on_gpu, fast, expected",
    [
        ({}, SMALLEST_HIDDEN_SIZE, False, True, "bfloat16"),
        ({}, SMALLEST_HIDDEN_SIZE - 1, False, True, "float32"),
        ({}, 4096, False, False, "float32"),
        ({}, 4096, True, True, "float32"),
        ({"products": "bfloat16"}, 8, False, False, "bfloat16"),
        ({"products": "float32"}, 4096, False, True, "float32"),
        ({"dtype": "float64"}, 4096, False, True, "float64"),
        ({"autocast": "bfloat16"}, 4096, False, True, "float32"),
    ],
)
def test_auto_is_settled_by_model_and_processor(monkeypatch, given, hidden_size, on_gpu, fast, expected):
    monkeypatch.setattr("clients.backbone.product_format.multiplies_bfloat16", lambda: fast)
    model = settled(ModelConfig(**given), hidden_size, on_gpu=on_gpu)
    assert model.product_dtype == expected
    assert settled(model, 8, on_gpu=True) == model, "what is settled stays"


@pytest.mark.parametrize("other", [{"dtype": "float64"}, {"autocast": "bfloat16"}])
def test_products_beside_another_choice_of_precision_are_refused(other):
    with pytest.raises(ConfigError, match=r"model\.products has no use with model\.(dtype|autocast)="):
        make_tiny(model={"products": "bfloat16", **other})


def test_runs_record_what_was_settled_and_resume_with_it(tmp_path):
    config = make_tiny(executor="local", output=str(tmp_path / "run"), rounds=1)
    summary = run(config)
    assert "products: float32" in (tmp_path / "run" / "config.yaml").read_text()
    more = config.model_copy(update={"rounds": 2})
    assert run(more, resume=True)["rounds"] == 2
    assert run(more, resume=True)["rounds"] == 2, "finished"
    other = make_tiny(executor="local", output=str(tmp_path / "run"), rounds=3, model={"products": "bfloat16"})
    with pytest.raises(CheckpointError, match=r'model\.products was "float32" and is "bfloat16"'):
        run(other, resume=True)
    assert summary["config_hash"] != run(other.model_copy(update={"output": str(tmp_path / "b")}))["config_hash"]


def test_a_run_of_a_version_without_the_key_resumes_in_float32(tmp_path, monkeypatch):
    config = make_tiny(executor="local", output=str(tmp_path / "run"), rounds=1)
    run(config)
    recorded = tmp_path / "run" / "config.yaml"
    recorded.write_text("".join(line for line in recorded.open() if "products:" not in line))
    monkeypatch.setattr("clients.backbone.product_format.SMALLEST_HIDDEN_SIZE", 1)
    monkeypatch.setattr("clients.backbone.product_format.multiplies_bfloat16", lambda: True)
    assert run(config.model_copy(update={"rounds": 2}), resume=True)["rounds"] == 2
    assert "products: float32" in recorded.read_text()


def test_executors_agree_on_every_bit(session_ray, tmp_path):
    digests = set()
    for executor in ("local", "ray"):
        folder = tmp_path / executor
        ray = {"ray": {"address": "auto", "actors": 1}} if executor == "ray" else {}
        run(
            make_tiny(
                executor=executor,
                output=str(folder),
                rounds=2,
                model={"products": "bfloat16"},
                client={"fuse": 2},
                **ray,
            )
        )
        digests.add(hashlib.sha256(next((folder / "prompt").glob("*.safetensors")).read_bytes()).hexdigest())
    assert len(digests) == 1


def test_a_classifier_trains_in_float32_on_half_precision_products(loaded):
    head = HeadConfig(kind="classifier", pooling="mean")
    model = build(loaded["llama"].rounded("bfloat16"), head)
    parts = parts_of(model)
    (result,) = train(model, token_table(16), parts, jobs_of(parts, (6,)))
    assert result.vector_A.dtype == np.float32 and np.isfinite(result.vector_A).all()

"""Prompts as PEFT adapters and back: on tiny models of every family, PEFT computes what we compute."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import numpy as np
import peft
import pytest
import torch
import transformers
from support import make_tiny, sweep
from tiny_prompts import (
    ALL_LAYERS,
    CONFIGS,
    ESSENTIAL,
    PROMPT_LENGTH,
    ROTARY,
    TASK,
    TINY,
    TOLERANCE,
    TURNED,
    Prompt,
    backbone,
    batch,
    change_array,
    label_scores,
    of_peft,
    partial,
    run_readme,
    with_personal,
)

from clients.backbone.families import FAMILIES
from clients.backbone.loading import locate
from clients.config import HeadConfig, ModelConfig
from fedsim import cli
from fedsim.core.errors import ModelError
from fedsim.core.layout import VectorLayout
from fedsim.prompts.peft_adapter import export_peft, read_peft
from fedsim.prompts.prompt_file import save_prompt

LEARNED = ("bert", "roberta", "gpt2")


def assert_same_scores(prompt: Prompt, folder: Path, paddings=("none", "right", "single"), tolerance=TOLERANCE):
    model = peft.PeftModel.from_pretrained(prompt.base(), str(folder)).eval()
    for padding in paddings:
        data = batch(padding)
        torch.testing.assert_close(label_scores(model, data), prompt.scores(data), **tolerance)


with_cache = pytest.mark.parametrize("family", sweep([f for f in TINY if FAMILIES[f].has_cache], ESSENTIAL))


@pytest.mark.parametrize("family", [f for f in CONFIGS if not FAMILIES[f].has_cache])
def test_a_prefix_that_peft_would_leave_out_is_not_exported(tmp_path, family):
    Prompt(tmp_path, family)
    with pytest.raises(ModelError, match=f"a {family} has no cache of keys and values .* tuner.kind=lora"):
        export_peft(tmp_path / "run", tmp_path / "adapter")


# -- export ------------------------------------------------------------------------------------------------------------


@with_cache
def test_an_exported_adapter_gives_the_same_logits_in_peft(tmp_path, family):
    prompt = Prompt(tmp_path, family)
    folder = export_peft(tmp_path / "run", tmp_path / "adapter")
    # OPT does not number padding on the left; token tables have none.
    assert_same_scores(
        prompt, folder, ("none", "right", "single") if family == "opt" else ("none", "right", "left", "single")
    )
    config = peft.PeftConfig.from_pretrained(str(folder))
    assert config.peft_type == "PREFIX_TUNING" and config.base_model_name_or_path == prompt.model
    assert config.task_type == ("CAUSAL_LM" if prompt.row.predicts_next else "FEATURE_EXTRACTION")
    assert sorted(path.name for path in folder.iterdir()) == [
        "README.md",
        "adapter_config.json",
        "adapter_model.safetensors",
        "ro-crate-metadata.json",
    ]


def test_an_adapter_without_a_task_type_would_leave_the_prefix_out(tmp_path):
    """Why encoders are exported as FEATURE_EXTRACTION."""
    prompt = Prompt(tmp_path, "roberta")
    folder = export_peft(prompt.path, tmp_path / "adapter")
    path = folder / "adapter_config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "task_type": None}))
    model = peft.PeftModel.from_pretrained(prompt.base(), str(folder)).eval()
    assert (label_scores(model, batch()) - prompt.scores(batch())).abs().max() > 0.1


@pytest.mark.parametrize("family", ROTARY)
def test_a_rotary_prompt_for_a_text_numbered_from_zero_is_turned_exactly(tmp_path, family):
    prompt = Prompt(tmp_path, family, position_offset="none")
    folder = export_peft(tmp_path / "run", tmp_path / "adapter")
    assert_same_scores(prompt, folder, tolerance=TURNED)
    exported_LKHPD = read_peft(folder).prompt_LKHPD
    own_LKHPD = prompt.layout.split(prompt.vector_F)[0]
    assert np.array_equal(exported_LKHPD[:, 1], own_LKHPD[:, 1])
    assert np.abs(exported_LKHPD[:, 0] - own_LKHPD[:, 0]).max() > 0.1


@pytest.mark.parametrize(
    "rope",
    [
        {"rope_type": "linear", "factor": 4.0},
        {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 10},
        {
            "rope_type": "llama3",
            "factor": 8.0,
            "low_freq_factor": 1.0,
            "high_freq_factor": 4.0,
            "original_max_position_embeddings": 20,
        },
        {"rope_type": "dynamic", "factor": 2.0},
        {
            "rope_type": "longrope",
            "factor": 2.0,
            "short_factor": [1.0, 1.1, 1.3, 1.7],
            "long_factor": [1.0, 2.0, 4.0, 8.0],
            "original_max_position_embeddings": PROMPT_LENGTH + 16,
        },
    ],
    ids=lambda rope: rope["rope_type"],
)
def test_scaled_rotary_positions_are_turned_exactly(tmp_path, rope):
    prompt = Prompt(
        tmp_path, "llama", position_offset="none", changes={"rope_parameters": {"rope_theta": 10000.0, **rope}}
    )
    assert_same_scores(prompt, export_peft(prompt.path, tmp_path / "adapter"), tolerance=TURNED)


@pytest.mark.parametrize("pooling", ["auto", "mean", "last"])
@pytest.mark.parametrize("family", ["bert", "roberta", "gpt2", "llama"])
def test_a_classifier_head_reads_the_same_scores_from_the_peft_model(tmp_path, family, pooling):
    prompt = Prompt(tmp_path, family, HeadConfig(kind="classifier", pooling=pooling))
    folder = export_peft(tmp_path / "run", tmp_path / "adapter")
    for data in (batch("none"), batch("right")):
        names = run_readme(folder, prompt, data)
        torch.testing.assert_close(names["scores"], prompt.scores(data), **TOLERANCE)


def test_token_types_reach_the_model_as_the_readme_says(tmp_path):
    pairs = TASK.model_copy(update={"fields": ("a", "b"), "template": "{a} ? <mask> , {b}"})
    prompt = Prompt(tmp_path, "bert", HeadConfig(kind="classifier"), task=pairs)
    folder = export_peft(tmp_path / "run", tmp_path / "adapter")
    types = np.tile(np.arange(9) > 3, (4, 1)).astype(np.int64)
    data = batch("right")
    data = type(data)(data.input_ids_BT, data.attention_mask_BT, types, data.read_positions_B, data.labels_B)
    names = run_readme(folder, prompt, data)
    torch.testing.assert_close(names["scores"], prompt.scores(data), **TOLERANCE)
    assert (names["scores"] - prompt.scores(batch("right"))).abs().max() > 1e-3


@pytest.mark.parametrize("family", ["roberta", "llama"])
def test_the_readme_of_a_verbalizer_runs_and_says_how_scores_are_read(tmp_path, family):
    prompt = Prompt(tmp_path, family)
    folder = export_peft(tmp_path / "run", tmp_path / "adapter")
    data = batch("right")
    names = run_readme(folder, prompt, data)
    torch.testing.assert_close(names["output"].logits, of_peft(names["model"], data).logits)
    text = (folder / "README.md").read_text()
    assert "x, y, z" in text
    assert ("{text} . It was <mask> ." in text) == (family == "roberta")


def test_personal_prompts_of_a_client_fill_the_layers_that_were_not_exchanged(tmp_path):
    prompt = Prompt(tmp_path, "roberta", layers=(1,))
    personal_NM = prompt.save_personal(clients=(3, 8))
    folder = export_peft(tmp_path / "run", tmp_path / "adapter", client=8)
    own_LKHPD = prompt.layout.split(prompt.vector_F)[0]
    personal_LKHPD = personal_NM[1].reshape(2, *own_LKHPD.shape[1:])
    expected_LKHPD = np.stack([personal_LKHPD[0], own_LKHPD[0], personal_LKHPD[1]])
    assert np.array_equal(read_peft(folder).prompt_LKHPD, expected_LKHPD)
    model = peft.PeftModel.from_pretrained(prompt.base(), str(folder)).eval()
    with torch.no_grad():
        own = prompt.backbone.forward(batch(), torch.from_numpy(expected_LKHPD).unsqueeze(0), ALL_LAYERS, {})
    torch.testing.assert_close(label_scores(model, batch()), own.logits_BC, **TOLERANCE)


@pytest.mark.parametrize("family", ["qwen2", "qwen3"])
def test_a_window_that_no_layer_slides_in_is_exported(tmp_path, family):
    """Qwen's windows begin at a layer that a model may not have."""
    whole = {"use_sliding_window": True, "sliding_window": 5, "max_window_layers": 3}
    prompt = Prompt(tmp_path, family, changes=whole, max_length=9)
    assert transformers.AutoConfig.from_pretrained(prompt.model).sliding_window == 5
    assert_same_scores(prompt, export_peft(prompt.path, tmp_path / "adapter"))


def test_a_window_that_holds_text_and_prefix_is_exported(tmp_path):
    prompt = Prompt(tmp_path, "mistral", changes={"sliding_window": 13}, max_length=9)
    assert_same_scores(prompt, export_peft(prompt.path, tmp_path / "adapter"))


@pytest.mark.parametrize("family", ["gpt2", *ROTARY])
def test_a_decoder_that_sees_to_both_sides_does_so_in_peft(tmp_path, family):
    prompt = Prompt(tmp_path, family, changes={"is_causal": False})
    folder = export_peft(prompt.path, tmp_path / "adapter")
    assert_same_scores(prompt, folder, ("none", "right"))
    assert peft.PeftConfig.from_pretrained(str(folder)).task_type == "CAUSAL_LM"


WINDOW = {"sliding_window": 13, "use_sliding_window": True, "max_window_layers": 1, "layer_types": None}


@pytest.mark.parametrize("family", ["mistral", "qwen2"])
def test_a_window_to_both_sides_reaches_one_token_further_back(tmp_path, family):
    window = {"sliding_window": 13} if family == "mistral" else WINDOW
    prompt = Prompt(tmp_path, family, changes={**window, "is_causal": False}, max_length=10)
    model = peft.PeftModel.from_pretrained(prompt.base(), str(export_peft(prompt.path, tmp_path / "adapter"))).eval()
    for padding in ("none", "right"):
        data = batch(padding, num_tokens=10)
        torch.testing.assert_close(label_scores(model, data), prompt.scores(data), **TOLERANCE)


REFUSED_EXPORTS = {
    "no prompt in a layer": (partial, {}, r"no prompt in layers \[1\].*layers.choose=all"),
    "personal prompts, but no client": (
        with_personal,
        {},
        r"\[1\] stayed on the clients; give one of them with --client",
    ),
    "client without personal prompts": (partial, {"client": 3}, "no personal layers .* leave --client out"),
    "client that never trained": (with_personal, {"client": 5}, "client 5 never trained.* 3, 8$"),
    "client of a run that exchanges all": (lambda tmp: Prompt(tmp, "bert"), {"client": 0}, "leave --client out"),
    "window too small": (
        lambda tmp: Prompt(tmp, "mistral", changes={"sliding_window": 13}, max_length=10),
        {},
        "sees 13 tokens up to itself.*data.max_length=9 or less",
    ),
    "window to both sides too small": (
        lambda tmp: Prompt(tmp, "qwen2", changes={**WINDOW, "is_causal": False}, max_length=11),
        {},
        "sees 14 tokens up to itself.*data.max_length=10 or less",
    ),
    "window of one layer too small": (
        lambda tmp: Prompt(
            tmp,
            "qwen2",
            changes={"use_sliding_window": True, "sliding_window": 13, "max_window_layers": 2},
            max_length=10,
        ),
        {},
        "sees 13 tokens up to itself.*data.max_length=9 or less",
    ),
    "rotary frequencies that depend on the length": (
        lambda tmp: Prompt(
            tmp,
            "llama",
            position_offset="none",
            changes={"rope_parameters": {"rope_theta": 10000.0, "rope_type": "dynamic", "factor": 2.0}},
            max_length=40 - PROMPT_LENGTH + 1,
        ),
        {},
        r"type dynamic, which turn otherwise in texts of over 40 positions \(.* make 41\), so no adapter gives the same",
    ),
    **{
        f"learned positions, {family}": (
            lambda tmp, family=family: Prompt(tmp, family, position_offset="none"),
            {},
            "position_offset=none.* has learned positions.* train with prompt.position_offset=paper",
        )
        for family in LEARNED
    },
}


@pytest.mark.parametrize("name", REFUSED_EXPORTS)
def test_what_no_adapter_can_say_is_refused_and_nothing_is_written(tmp_path, name):
    make, arguments, expected = REFUSED_EXPORTS[name]
    with pytest.raises(ModelError, match=expected):
        export_peft(make(tmp_path).path, tmp_path / "adapter", **arguments)
    assert not (tmp_path / "adapter").exists()


def test_a_folder_with_files_is_not_written_to(tmp_path):
    prompt = Prompt(tmp_path, "bert")
    (tmp_path / "thesis").mkdir()
    (tmp_path / "thesis" / "chapter1.txt").write_text("years of work")
    for output in (tmp_path / "thesis", prompt.path):
        with pytest.raises(ModelError, match="is not an empty folder"):
            export_peft(prompt.path, output)
    assert [path.name for path in (tmp_path / "thesis").iterdir()] == ["chapter1.txt"]
    (tmp_path / "empty").mkdir()
    assert export_peft(prompt.path, tmp_path / "empty") == tmp_path / "empty"


def test_a_model_with_an_adapter_beside_it_is_refused(tmp_path):
    """transformers attaches that one by itself, so an exported one would be put on top of it."""
    prompt = Prompt(tmp_path, "llama")
    (Path(prompt.model) / "adapter_config.json").write_text('{"peft_type": "LORA"}')
    with pytest.raises(
        ModelError, match=r"type LORA .* puts into the model .*; move adapter_config\.json out of the folder"
    ):
        export_peft(prompt.path, tmp_path / "adapter")
    assert not (tmp_path / "adapter").exists()


def test_a_model_that_is_gone_is_named(tmp_path):
    prompt = Prompt(tmp_path, "bert")
    (Path(prompt.model) / "config.json").unlink()
    with pytest.raises(ModelError, match=f"{prompt.model} has no config.json"):
        export_peft(prompt.path, tmp_path / "adapter")


def test_the_embedded_model_is_named_by_its_folder(tmp_path):
    config = make_tiny(prompt={"position_offset": "paper"})
    built = backbone(locate(ModelConfig()), position_offset="paper")
    layout = VectorLayout.full(built.geometry)
    save_prompt(tmp_path / "global.safetensors", np.zeros(layout.size), layout, config, TASK)
    folder = export_peft(tmp_path / "global.safetensors", tmp_path / "adapter")
    base = peft.PeftConfig.from_pretrained(str(folder)).base_model_name_or_path
    assert transformers.AutoConfig.from_pretrained(base).model_type == "roberta"


# -- reading -----------------------------------------------------------------------------------------------------------


def peft_adapter(prompt: Prompt, folder: Path, **keys) -> Path:
    """Save an adapter with random prefixes that PEFT made itself."""
    kind = "CAUSAL_LM" if prompt.row.predicts_next else "FEATURE_EXTRACTION"
    config = peft.PrefixTuningConfig(task_type=kind, num_virtual_tokens=PROMPT_LENGTH, **keys)
    torch.manual_seed(5)
    peft.get_peft_model(prompt.base(), config).save_pretrained(str(folder))
    return folder


@with_cache
@pytest.mark.parametrize("projection", [False, True], ids=["plain", "projected"])
def test_an_adapter_that_peft_made_gives_the_same_logits_with_us(tmp_path, family, projection):
    prompt = Prompt(tmp_path, family)
    more = {"prefix_projection": True, "encoder_hidden_size": 24} if projection else {}
    folder = peft_adapter(prompt, tmp_path / "theirs", **more)
    adapter = read_peft(folder)
    assert adapter.geometry == prompt.backbone.geometry
    assert (adapter.head, adapter.unused) == ({}, ())
    model = peft.PeftModel.from_pretrained(prompt.base(), str(folder)).eval()
    prompt.vector_F = adapter.prompt_LKHPD.reshape(-1)
    for padding in ("none", "right"):
        data = batch(padding)
        torch.testing.assert_close(prompt.scores(data), label_scores(model, data), **TOLERANCE)


def test_what_else_an_adapter_holds_is_named(tmp_path):
    prompt = Prompt(tmp_path, "roberta")
    config = peft.PrefixTuningConfig(task_type="SEQ_CLS", num_virtual_tokens=PROMPT_LENGTH)
    model = peft.get_peft_model(prompt.base("SequenceClassification"), config)
    model.save_pretrained(str(tmp_path / "theirs"))
    adapter = read_peft(tmp_path / "theirs")
    assert adapter.task_type == "SEQ_CLS"
    assert adapter.unused and all("classifier" in name for name in adapter.unused)


@with_cache
def test_export_and_reading_give_the_same_bits(tmp_path, family):
    prompt = Prompt(tmp_path, family, HeadConfig(kind="classifier"))
    adapter = read_peft(export_peft(prompt.path, tmp_path / "adapter"))
    assert np.array_equal(prompt.layout.join(adapter.prompt_LKHPD, adapter.head), prompt.vector_F)
    assert adapter.base_model == prompt.model


def change_config(folder: Path, **values):
    path = folder / "adapter_config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **values}))


def only_pickle(folder: Path):
    (folder / "adapter_model.safetensors").unlink()
    (folder / "adapter_model.bin").write_bytes(b"")


def with_nan(arrays):
    arrays["prompt_embeddings"][0, 0] = np.nan
    return arrays


DAMAGE = {
    "pickle": (only_pickle, "only adapter_model.bin, a pickle, .*safe_serialization=True"),
    "no arrays": (lambda f: (f / "adapter_model.safetensors").unlink(), "has no adapter_model.safetensors; save"),
    "torn arrays": (lambda f: (f / "adapter_model.safetensors").write_bytes(b"torn"), "cannot be read"),
    "other kind": (lambda f: change_config(f, peft_type="LORA"), "adapter of type LORA; only PREFIX_TUNING"),
    "no kind": (lambda f: (f / "adapter_config.json").write_text("{}"), "is not the configuration of a PEFT adapter"),
    "no JSON": (lambda f: (f / "adapter_config.json").write_text("{"), "is not the configuration of a PEFT adapter"),
    "no configuration": (lambda f: (f / "adapter_config.json").unlink(), "is not the configuration of a PEFT adapter"),
    "encoder-decoder": (lambda f: change_config(f, num_transformer_submodules=2), "encoder-decoder"),
    "no layers": (lambda f: change_config(f, num_layers=None), "does not state the number of layers"),
    "a word for a number": (lambda f: change_config(f, token_dim="32"), "does not state the number of layers"),
    "a list for a number": (lambda f: change_config(f, num_layers=[1] * 300), "does not state the number of layers"),
    "other shape": (lambda f: change_config(f, num_layers=2), r"of shape \(4, 192\), but .* describes \(4, 128\)"),
    "other arrays": (lambda f: change_array(f, lambda a: {"lora_A": np.zeros(2)}), "has no array prompt_embeddings"),
    "NaN": (lambda f: change_array(f, with_nan), "NaN or infinite"),
    "damaged head": (lambda f: (f / "head.safetensors").write_bytes(b"torn"), "head.safetensors cannot be read"),
}


@pytest.mark.parametrize("name", DAMAGE)
def test_what_is_no_whole_prefix_adapter_is_refused(tmp_path, name):
    folder = export_peft(Prompt(tmp_path, "bert").path, tmp_path / "adapter")
    damage, expected = DAMAGE[name]
    damage(folder)
    with pytest.raises(ModelError, match=expected) as caught:
        read_peft(folder)
    assert str(caught.value).count("\n") == 0


# -- the command -------------------------------------------------------------------------------------------------------


def command(monkeypatch, capsys, *arguments):
    monkeypatch.setattr(sys, "argv", ["fedsim", "export", *map(str, arguments)])
    capsys.readouterr()  # what saving the model has shown
    try:
        cli.main()
        status = 0
    except SystemExit as ended:
        status = ended.code or 0
    return status, *capsys.readouterr()


def test_export_writes_beside_the_prompt_or_where_it_is_told(tmp_path, monkeypatch, capsys):
    prompt = with_personal(tmp_path)
    status, out, err = command(monkeypatch, capsys, tmp_path / "run", "--to", "peft", "--client", "8")
    folder = prompt.path.parent / "peft"
    assert (status, err) == (0, "") and f"adapter: {folder};" in out
    assert read_peft(folder).geometry == prompt.backbone.geometry
    status, out, err = command(
        monkeypatch, capsys, prompt.path, "--to", "peft", "--client", "3", "--output", tmp_path / "three"
    )
    assert status == 0
    three, eight = (read_peft(path).prompt_LKHPD for path in (tmp_path / "three", folder))
    assert np.array_equal(three[[0, 2]], eight[[0, 2]]) and not np.array_equal(three[1], eight[1])


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (["--client", "5"], "client 5 never trained"),
        ([], "give one of them with --client"),
        (["--client", "3", "--output", "run"], "is not an empty folder"),
    ],
)
def test_a_mistake_in_an_export_is_answered_with_one_sentence(tmp_path, monkeypatch, capsys, arguments, expected):
    with_personal(tmp_path)
    monkeypatch.chdir(tmp_path)
    before = sorted(tmp_path.rglob("*"))
    status, out, err = command(monkeypatch, capsys, "run", "--to", "peft", *arguments)
    assert (status, out) == (2, "")
    assert err.startswith("error: ") and err.count("\n") == 1 and expected in err
    assert sorted(tmp_path.rglob("*")) == before


def test_export_of_nothing_names_it(tmp_path, monkeypatch, capsys):
    for place in ("no/such/run", tmp_path):
        status, _, err = command(monkeypatch, capsys, place, "--to", "peft")
        assert status == 2 and "is not a prompt file of a run" in err and err.count("\n") == 1
